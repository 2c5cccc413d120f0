"""The decoder of captcha_cnn/ctc.py in NumPy, for reading without TensorFlow.

Everything is in logarithms and in float64. A state after a time step is (n, k), as it is there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

PAST_END = -1  # class of the places that a text does not reach


class Answers(NamedTuple):
    """What captcha_cnn.ctc.Predictions has, as arrays."""

    chars: np.ndarray  # int [B, L]
    confidence: np.ndarray  # float64 [B]
    char_probs: np.ndarray  # float64 [B, L]
    runner_up: np.ndarray  # int [B, L]
    runner_up_confidence: np.ndarray  # float64 [B]


def decode(log_probs: np.ndarray, min_length: int, length: int) -> Answers:
    """The most probable text of `min_length` to `length` characters, and the one after it.

    For each length, each place gets its most probable character. The answers are the best two of these
    texts, and of these with the nearest second character in one place; of one length alone, these two.

    Args:
        log_probs: float64 [B, T, K + 1], log softmax of each time step; class K is the blank.
    """
    starts, states = forward(log_probs, length)
    _, backward = forward(log_probs[:, ::-1], length)
    rest = backward[:, ::-1, :, :-1]  # [B, T, L + 1, K]: n characters from t on, by the first of them
    log_total = _log_sum(states[:, -1, min_length:], (1, 2))  # [B]
    candidates, places = [], []
    for n in range(min_length, length + 1):
        joint = _log_sum(starts[:, :, :n] + rest[:, :, n:0:-1], 1)  # [B, n, K]
        candidates += _two_texts(joint, length)
        places.append(np.pad(joint, ((0, 0), (0, length - n), (0, 0)), constant_values=-np.inf))
    texts = np.stack(candidates, axis=1)  # [B, 2 R, L]
    log_text_probs = np.stack([text_log_prob(log_probs, each) for each in candidates], axis=1)
    images = np.arange(len(texts))
    first, second = np.zeros_like(images), np.ones_like(images)  # of one length, as the graph has it
    if min_length < length:
        first, second = np.argsort(-log_text_probs, axis=1, kind="stable")[:, :2].T
    probs = np.exp(np.minimum(log_text_probs - log_total[:, None], 0.0))
    chars = texts[images, first]
    all_places = np.logaddexp.reduce(places, axis=0) - log_total[:, None, None]  # [B, L, K]
    chosen = np.take_along_axis(all_places, np.maximum(chars, 0)[..., None], axis=2)[..., 0]
    char_probs = np.where(chars == PAST_END, 0.0, np.exp(np.minimum(chosen, 0.0)))
    return Answers(chars, probs[images, first], char_probs, texts[images, second], probs[images, second])


def _two_texts(joint: np.ndarray, length: int) -> list[np.ndarray]:
    """The most probable character of each place, and the same with one replaced: two of int [B, L].

    Args:
        joint: float64 [B, n, K], log probability of each character in each place.
    """
    ranked = np.argsort(-joint, axis=2, kind="stable")[..., :2]  # [B, n, 2]
    best, second = np.moveaxis(np.take_along_axis(joint, ranked, axis=2), 2, 0)
    text = ranked[..., 0]
    replaced = text.copy()
    images, nearest = np.arange(len(text)), np.argmax(second - best, axis=1)
    replaced[images, nearest] = ranked[images, nearest, 1]
    missing = ((0, 0), (0, length - text.shape[1]))
    return [np.pad(each, missing, constant_values=PAST_END) for each in (text, replaced)]


def forward(log_probs: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Log probability of all alignments with up to `length` characters, by their state.

    Args:
        log_probs: float64 [B, T, K + 1].
    Returns:
        starts, float64 [B, T, L, K]: alignments before time step t with n characters, after which
        character k may start at t; states, float64 [B, T, L + 1, K + 1]: those up to time step t.
    """
    images, _, classes = log_probs.shape
    state = np.full([images, length + 1, classes], -np.inf)
    state[:, 0, -1] = 0.0  # no characters, as if a blank came before
    starts, states = [], []
    for emission in np.moveaxis(log_probs, 1, 0):
        others = _log_sum_of_others(state)  # a new character follows any class but its own, a blank any
        reached = np.full_like(state, -np.inf)
        reached[:, 1:, :-1] = others[:, :-1, :-1]
        reached[..., -1] = others[..., -1]
        state = np.logaddexp(state, reached) + emission[:, None]
        starts.append(others[:, :-1, :-1])
        states.append(state)
    return np.stack(starts, axis=1), np.stack(states, axis=1)


def _log_sum_of_others(x: np.ndarray) -> np.ndarray:
    """For each class, log(sum of exp(x) over all other classes); nothing is subtracted, so it is exact."""
    missing = np.full([*x.shape[:-1], 1], -np.inf)
    before = np.logaddexp.accumulate(np.concatenate([missing, x[..., :-1]], axis=-1), axis=-1)
    after = np.logaddexp.accumulate(np.concatenate([missing, x[..., :0:-1]], axis=-1), axis=-1)
    return np.logaddexp(before, after[..., ::-1])


def text_log_prob(log_probs: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Log probability of all alignments of one text an image: float64 [B].

    Args:
        log_probs: float64 [B, T, K + 1]. texts: int [B, L], PAST_END past the end.
    """
    images, _, classes = log_probs.shape
    lengths = (texts != PAST_END).sum(axis=1)
    path = np.full([images, 2 * texts.shape[1] + 1], classes - 1)  # a blank around each character
    path[:, 1::2] = np.where(texts == PAST_END, classes - 1, texts)
    skips = np.zeros(path.shape, bool)  # the blank between two characters, where they differ
    skips[:, 2:] = (path[:, 2:] != path[:, :-2]) & (path[:, 2:] != classes - 1)
    emissions = np.take_along_axis(log_probs, np.repeat(path[:, None], log_probs.shape[1], axis=1), axis=2)
    state = np.full(path.shape, -np.inf)
    state[:, 0] = 0.0
    for emission in np.moveaxis(emissions, 1, 0):
        step = np.pad(state, ((0, 0), (1, 0)), constant_values=-np.inf)[:, :-1]
        skip = np.pad(state, ((0, 0), (2, 0)), constant_values=-np.inf)[:, :-2]
        skip = np.where(skips, skip, -np.inf)
        state = np.logaddexp(np.logaddexp(state, step), skip) + emission
    ends = np.stack([2 * lengths, 2 * lengths - 1], axis=1)
    return _log_sum(np.take_along_axis(state, ends, axis=1), 1)


def _log_sum(x: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """log(sum of exp(x)) over these axes."""
    top = np.maximum(x.max(axis=axis, keepdims=True), -1e300)  # minus infinity alone would give NaN
    with np.errstate(divide="ignore"):
        found: np.ndarray = np.log(np.exp(x - top).sum(axis=axis)) + top.reshape(x.sum(axis=axis).shape)
    return found
