"""CTC: its loss, and decoding for exactly L characters with exact probabilities.

The usual decoding of CTC may answer with a character too many or too few, though the length is
known. Here a dynamic programme adds up all alignments with exactly L characters, all in
logarithms, so that no length underflows.

An alignment gives each time step a character or the blank; equal neighbours are one character, and
blanks are dropped. Its state after a time step is (n, k): n characters so far, the last step k.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf

from config import Config

IMPOSSIBLE = -60000.0  # log probability of what cannot be; float16 has it exactly


def ctc_loss(logits: Any, labels: Any) -> Any:
    """Connectionist temporal classification (Graves et al. 2006), in nats per character.

    A network that has learned nothing has a loss of ln K, about 2.30 for ten digits.

    Args:
        logits: float32 [T, B, K + 1]. labels: int32 [B, L].
    Returns:
        float32 [B], -log p(label) / L.
    """
    time_steps, length = logits.shape[0], labels.shape[1]
    batch = tf.shape(labels, out_type=tf.int64)
    sparse = tf.SparseTensor(tf.where(tf.fill(batch, True)), tf.reshape(labels, [-1]), batch)
    lengths = tf.fill([tf.shape(labels)[0]], time_steps)
    return tf.nn.ctc_loss(sparse, logits, lengths) / float(length)


class Predictions(NamedTuple):
    """What images say. Every probability is one among all texts of L characters."""

    chars: Any  # int32 [B, L], the most probable class of each place
    confidence: Any  # float32 [B], probability of these together
    char_probs: Any  # float32 [B, L], probability of each
    runner_up: Any  # int32 [B, L], the text with one of them replaced, where the second is nearest
    runner_up_confidence: Any  # float32 [B]


def to_text(predictions: Predictions, config: Config, strings: bool) -> Predictions:
    """Predictions whose chars and runner_up are texts, string [B], or code points, int32 [B, L]."""
    alphabet = tf.constant([character if strings else ord(character) for character in config.alphabet])
    texts = [tf.gather(alphabet, each) for each in (predictions.chars, predictions.runner_up)]
    if strings:
        texts = [tf.strings.reduce_join(each, axis=1) for each in texts]
    return predictions._replace(chars=texts[0], runner_up=texts[1])


def decode(log_probs: Any, length: int) -> Predictions:
    """The most probable character of each of `length` places, and the probability of the answer.

    Forward and backward variables of Graves et al. (2006, section 4.1), over all texts of that
    length. Character n starts at time step t: combine forward alignments with n - 1 characters
    before t and backward alignments with L - n + 1 characters from t on.

    Args:
        log_probs: float32 [T, B, K + 1], log softmax of each time step.
    """
    log_probs = clip(log_probs)
    both = tf.concat([log_probs, tf.reverse(log_probs, [0])], axis=1)  # forward and backward at once
    starts, states = ctc_forward(both, length)
    forward_starts, _ = tf.split(starts, 2, axis=1)  # [T, B, L, K]
    forward, backward = tf.split(states, 2, axis=1)  # [T, B, L + 1, K + 1]
    rest = tf.reverse(tf.reverse(backward, [0]), [2])  # L - n + 1 characters from t on
    char_logits = tf.reduce_logsumexp(forward_starts + rest[:, :, :-1, :-1], axis=0)  # [B, L, K]
    log_total = tf.reduce_logsumexp(forward[-1, :, -1], axis=1)  # [B]
    both, log_total = tf.concat([log_probs] * 2, axis=1), tf.concat([log_total] * 2, axis=0)
    return choose(char_logits, lambda texts: text_log_prob(both, texts) - log_total)


def choose(char_logits: Any, log_prob: Any) -> Predictions:
    """Predictions from one score per place and character, float32 [B, L, K].

    Args:
        log_prob: from two texts an image, int32 [2 B, L], to their log probability, float32 [2 B].
    """
    length = int(char_logits.shape[1])
    probs, ranked = tf.math.top_k(tf.nn.softmax(char_logits), 2)  # [B, L, 2]
    chars, seconds = ranked[:, :, 0], ranked[:, :, 1]
    replaced = tf.one_hot(tf.argmax(probs[:, :, 1] / probs[:, :, 0], axis=1), length, True, False)
    runner_up = tf.where(replaced, seconds, chars)
    log_probs = log_prob(tf.concat([chars, runner_up], axis=0))
    confidence, runner_up_confidence = tf.split(tf.exp(tf.minimum(log_probs, 0.0)), 2)
    return Predictions(chars, confidence, probs[:, :, 0], runner_up, runner_up_confidence)


def label_prob(log_probs: Any, labels: Any) -> Any:
    """The probability of labels, int32 [B, L], among all texts of L characters: float32 [B].

    Args:
        log_probs: float32 [T, B, K + 1], log softmax of each time step.
    """
    log_probs = clip(log_probs)
    _, states = ctc_forward(log_probs, int(labels.shape[1]))
    log_total = tf.reduce_logsumexp(states[-1, :, -1], axis=1)
    return tf.exp(tf.minimum(text_log_prob(log_probs, labels) - log_total, 0.0))


def clip(log_probs: Any) -> Any:
    """Log probabilities clipped from below, so that an alignment of all T time steps stays above IMPOSSIBLE.

    The bound for the default 20 time steps is -2400: less than any network says. For the 512 that
    Config allows it is -93.75, the log of about the smallest number of float32.

    Args:
        log_probs: float32 [T, B, K + 1].
    """
    lowest = np.float16(0.8 * IMPOSSIBLE / int(log_probs.shape[0]))  # float16 has it exactly
    return tf.maximum(log_probs, float(lowest))


def ctc_forward(log_probs: Any, length: int) -> tuple[Any, Any]:
    """Log probability of all alignments with up to `length` characters, by their state.

    Args:
        log_probs: float32 [T, B, K + 1].
    Returns:
        starts, float32 [T, B, L, K]: alignments before time step t with n characters, after which
        character k may start at t; states, float32 [T, B, L + 1, K + 1]: those up to time step t.
    """
    first = np.full([1, length + 1, int(log_probs.shape[2])], IMPOSSIBLE, np.float32)
    first[0, 0, -1] = 0.0  # no characters, as if a blank came before
    state = tf.tile(tf.constant(first), [tf.shape(log_probs)[1], 1, 1])
    no_start = state[:, :1, :-1]
    starts, states = [], []
    for emission in tf.unstack(log_probs):  # few operations: their number is what takes time
        others = log_sum_of_others(state)  # a new character follows any class but its own, a blank any
        start, blank = others[:, :-1, :-1], others[:, :, -1:]
        reached = tf.concat([tf.concat([no_start, start], axis=1), blank], axis=2)
        state = log_add(state, reached) + emission[:, None]
        starts.append(start)
        states.append(state)
    return tf.stack(starts), tf.stack(states)


def log_sum_of_others(x: Any) -> Any:
    """For each class, log(sum of exp(x) over all other classes): float32 [B, N, K + 1] to the same.

    It is the sum of all classes minus that class. Where the class is more than half of the sum, the
    difference would lose digits: then the others are added up by themselves.
    """
    top = tf.reduce_max(x, axis=2, keepdims=True)
    scaled = tf.exp(x - top)
    total = tf.reduce_sum(scaled, axis=2, keepdims=True)
    dominant = scaled + scaled > total
    rest = tf.where_v2(dominant, IMPOSSIBLE, x)
    rest_top = tf.reduce_max(rest, axis=2, keepdims=True)
    rest_total = tf.reduce_sum(tf.exp(rest - rest_top), axis=2, keepdims=True)
    others = tf.where_v2(dominant, rest_total, total - scaled)
    return tf.math.log(others) + tf.where_v2(dominant, rest_top, top)


def text_log_prob(log_probs: Any, chars: Any) -> Any:
    """Log probability of all alignments of texts, int32 [B, L]: float32 [B] (Graves et al. 2006).

    A state is a place in the text, with blanks before, between and after its characters.

    Args:
        log_probs: float32 [T, B, K + 1].
    """
    length, blank = int(chars.shape[1]), int(log_probs.shape[2]) - 1
    places = tf.reshape(tf.stack([tf.fill(tf.shape(chars), blank), chars], axis=2), [-1, 2 * length])
    places = tf.pad(places, [[0, 0], [0, 1]], constant_values=blank)  # [B, 2 L + 1]
    emissions = tf.gather(tf.transpose(log_probs, [1, 2, 0]), places, batch_dims=1)  # [B, 2 L + 1, T]
    # The blank between two characters may be skipped where they differ.
    equal = tf.cast(tf.equal(places[:, 2:], places[:, :-2]), tf.float32)
    skip = tf.pad(IMPOSSIBLE * equal, [[0, 0], [2, 0]])
    state = tf.fill(tf.shape(places), IMPOSSIBLE) + tf.one_hot(0, 2 * length + 1, -IMPOSSIBLE)
    for emission in tf.unstack(emissions, axis=2):
        before = tf.pad(state, [[0, 0], [2, 0]], constant_values=IMPOSSIBLE)
        from_each = tf.stack([state, before[:, 1:-1], before[:, :-2] + skip])
        top = tf.reduce_max(from_each, axis=0)
        state = tf.math.log(tf.reduce_sum(tf.exp(from_each - top), axis=0)) + top + emission
    return log_add(state[:, -1], state[:, -2])


def log_add(a: Any, b: Any) -> Any:
    """log(exp(a) + exp(b)), float32 of any shape, without overflow."""
    return tf.maximum(a, b) + tf.math.log(1.0 + tf.exp(-tf.abs(a - b)))
