"""CTC: its loss, and decoding for texts of the lengths allowed, with exact probabilities.

The usual decoding of CTC may answer with a character too many or too few, though the length is
known. Here a dynamic programme adds up all alignments with exactly L characters, all in
logarithms, so that no length underflows.

Where lengths differ, from `min_length` to L characters, one dynamic programme serves all of them, and
classes past the end of a text are PAST_END. Functions that take `min_length` add nothing to the graph
for it where it is None or L.

An alignment gives each time step a character or the blank; equal neighbours are one character, and
blanks are dropped. Its state after a time step is (n, k): n characters so far, the last step k.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf

from captcha_cnn.labels import image_order
from captcha_cnn.numpy_ctc import PAST_END
from config import Config

IMPOSSIBLE = -60000.0  # log probability of what cannot be; float16 has it exactly


def label_classes(y: Any, config: Config) -> Any:
    """The classes of one-hot labels: float32 [B, L * K] to int32 [B, L], PAST_END where there is no one."""
    one_hot = tf.reshape(y, [-1, config.max_length, len(config.alphabet)])
    labels = tf.argmax(one_hot, axis=2, output_type=tf.int32)
    if config.min_length == config.max_length:
        return labels
    return tf.where_v2(tf.reduce_max(one_hot, axis=2) > 0, labels, PAST_END)


def count_chars(texts: Any, min_length: int | None) -> Any:
    """The characters of each text, int32 [B, L]: float32 [B], or a number where all have L."""
    length = int(texts.shape[1])
    if min_length in (None, length):
        return float(length)
    return tf.reduce_sum(tf.cast(texts >= 0, tf.float32), axis=1)


def ctc_loss(logits: Any, labels: Any, min_length: int | None = None) -> Any:
    """Connectionist temporal classification (Graves et al. 2006), in nats per character.

    A network that has learned nothing has a loss of ln K, about 2.30 for ten digits.

    Args:
        logits: float32 [T, B, K + 1]. labels: int32 [B, L].
    Returns:
        float32 [B], -log p(label) / (characters of the label).
    """
    time_steps = logits.shape[0]
    batch = tf.shape(labels, out_type=tf.int64)
    chars = count_chars(labels, min_length)
    if isinstance(chars, float):
        indices, values = tf.where(tf.fill(batch, True)), tf.reshape(labels, [-1])
    else:
        indices = tf.where(labels >= 0)
        values = tf.gather_nd(labels, indices)
    sparse = tf.SparseTensor(indices, values, batch)
    lengths = tf.fill([tf.shape(labels)[0]], time_steps)
    return tf.nn.ctc_loss(sparse, logits, lengths) / chars


class Predictions(NamedTuple):
    """What images say. Every probability is one among all texts of the lengths allowed.

    With lengths that differ, the most probable class of each place is found for each length, and the
    most probable of these texts, and of these with one class replaced, is the answer; the second is
    the runner-up.
    """

    chars: Any  # int32 [B, L], the most probable class of each place
    confidence: Any  # float32 [B], probability of these together
    char_probs: Any  # float32 [B, L], probability of each; 0 past the end
    runner_up: Any  # int32 [B, L], the text with one of them replaced, where the second is nearest
    runner_up_confidence: Any  # float32 [B]


def to_text(predictions: Predictions, config: Config, strings: bool) -> Predictions:
    """Predictions whose chars and runner_up are texts, string [B], or code points, int32 [B, L].

    The code points past the end of a text are 0. Characters are in the order of the text: from right to
    left in the image for an alphabet that is written so.
    """
    predictions = in_text_order(predictions, config)
    classes = [predictions.chars, predictions.runner_up]
    characters = [character if strings else ord(character) for character in config.alphabet]
    if config.min_length < config.max_length:
        characters = ["" if strings else 0, *characters]
        classes = [each - PAST_END for each in classes]
    alphabet = tf.constant(characters)
    texts = [tf.gather(alphabet, each) for each in classes]
    if strings:
        texts = [tf.strings.reduce_join(each, axis=1) for each in texts]
    return predictions._replace(chars=texts[0], runner_up=texts[1])


def in_text_order(predictions: Predictions, config: Config) -> Predictions:
    """Predictions, which are in the order of the image, in the order of the text."""
    if image_order(config.alphabet, config.alphabet) == config.alphabet:
        return predictions

    def reverse(values: Any, texts: Any) -> Any:
        return tf.reverse_sequence(values, tf.reduce_sum(tf.cast(texts >= 0, tf.int32), axis=1), seq_axis=1)

    chars, runner_up = predictions.chars, predictions.runner_up
    return predictions._replace(
        chars=reverse(chars, chars),
        char_probs=reverse(predictions.char_probs, chars),
        runner_up=reverse(runner_up, runner_up),
    )


def decode(log_probs: Any, length: int, min_length: int | None = None) -> Predictions:
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
    if min_length not in (None, length):
        log_totals = tf.reduce_logsumexp(forward[-1, :, min_length:], axis=[1, 2])
        backward = tf.reverse(backward, [0])
        return choose_length(log_probs, forward_starts, backward, log_totals, min_length)
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


def choose_length(log_probs: Any, starts: Any, rest: Any, log_total: Any, min_length: int) -> Predictions:
    """Predictions among texts of R lengths, from `min_length` to L characters.

    Args:
        log_probs: float32 [T, B, K + 1].
        starts: float32 [T, B, L, K], log probability of the n characters before time step t.
        rest: float32 [T, B, L + 1, K + 1], that of n characters from t on, by the first of them.
        log_total: float32 [B], log probability of all texts of these lengths.
    """
    length, classes = int(starts.shape[2]), int(starts.shape[3])
    before, lengths = np.meshgrid(range(length), range(min_length, length + 1))  # [R, L]
    after = np.maximum(lengths - before, 0).reshape(-1)
    joint = tf.gather(starts, before.reshape(-1), axis=2) + tf.gather(rest, after, axis=2)[..., :-1]
    joint = tf.reshape(tf.reduce_logsumexp(joint, axis=0), [-1, *lengths.shape, classes])  # [B, R, L, K]
    scores, ranked = tf.math.top_k(joint, 2)
    winners = tf.where_v2(before < lengths, ranked[..., 0], PAST_END)
    ratio = tf.where_v2(before < lengths, tf.exp(scores[..., 1] - scores[..., 0]), -1.0)
    nearest = tf.argmax(ratio, axis=2, output_type=tf.int32)
    replaced = tf.equal(nearest[:, :, None], np.arange(length))  # ONNX has no one-hot of such a shape
    texts = tf.concat([winners, tf.where(replaced, ranked[..., 1], winners)], axis=1)  # [B, 2 R, L]
    count = int(texts.shape[1])
    each = text_log_prob(tf.repeat(log_probs, count, axis=1), tf.reshape(texts, [-1, length]), min_length)
    best, index = tf.math.top_k(tf.reshape(each, [-1, count]), 2)
    chars, runner_up = tf.unstack(tf.gather(texts, index, batch_dims=1), axis=1)
    confidence, runner_up_confidence = tf.unstack(tf.exp(tf.minimum(best - log_total[:, None], 0.0)), axis=1)
    places = tf.reduce_logsumexp(joint, axis=1) - log_total[:, None, None]  # [B, L, K]
    is_char = tf.equal(chars[:, :, None], np.arange(classes))
    char_probs = tf.reduce_sum(tf.where_v2(is_char, tf.exp(tf.minimum(places, 0.0)), 0.0), axis=2)
    return Predictions(chars, confidence, char_probs, runner_up, runner_up_confidence)


def label_prob(log_probs: Any, labels: Any, min_length: int | None = None) -> Any:
    """The probability of labels, int32 [B, L], among all texts of the lengths allowed: float32 [B].

    Args:
        log_probs: float32 [T, B, K + 1], log softmax of each time step.
    """
    log_probs = clip(log_probs)
    _, states = ctc_forward(log_probs, int(labels.shape[1]))
    if min_length in (None, labels.shape[1]):
        log_total = tf.reduce_logsumexp(states[-1, :, -1], axis=1)
    else:
        log_total = tf.reduce_logsumexp(states[-1, :, min_length:], axis=[1, 2])
    return tf.exp(tf.minimum(text_log_prob(log_probs, labels, min_length) - log_total, 0.0))


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


def text_log_prob(log_probs: Any, chars: Any, min_length: int | None = None) -> Any:
    """Log probability of all alignments of texts, int32 [B, L]: float32 [B] (Graves et al. 2006).

    A state is a place in the text, with blanks before, between and after its characters.

    Args:
        log_probs: float32 [T, B, K + 1].
    """
    length, blank = int(chars.shape[1]), int(log_probs.shape[2]) - 1
    count = count_chars(chars, min_length)
    if not isinstance(count, float):  # states past the end reach none before it
        chars = tf.where_v2(chars < 0, blank, chars)
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
    if isinstance(count, float):
        return log_add(state[:, -1], state[:, -2])
    last = 2 * tf.cast(count, tf.int32)
    return tf.reduce_logsumexp(tf.gather(state, tf.stack([last, last - 1], axis=1), batch_dims=1), axis=1)


def log_add(a: Any, b: Any) -> Any:
    """log(exp(a) + exp(b)), float32 of any shape, without overflow."""
    return tf.maximum(a, b) + tf.math.log(1.0 + tf.exp(-tf.abs(a - b)))
