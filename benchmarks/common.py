"""What the trainers compared have in common: the clock, the loop, the score.

A trainer is a generator function `curve(train, test, config, seed, at)`: it trains on `train`
and yields a Point on `test` each time its clock passes the next of `at`. Nothing here needs
TensorFlow or PyTorch.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from config import CaptchaError, Config
from driver import Clock  # imports no TensorFlow unless asked to

WARM_UP = 10  # steps before those that are timed
SYMBOLS_36 = string.digits + string.ascii_uppercase  # of the row "36"


class Data(Protocol):
    """A captcha set in memory, such as driver.Data."""

    @property
    def images(self) -> np.ndarray:
        """Pictures, uint8 [N, H, W]."""

    @property
    def labels(self) -> np.ndarray:
        """One-hot labels, float32 [N, L * K]."""


class Point(NamedTuple):
    """One point of a learning curve."""

    seconds: float  # of training, evaluation not counted
    step: int  # training steps done
    symbols: float  # share of symbols right
    captchas: float  # share of captchas with all symbols right


def follow(
    step: Callable[[], None], score_now: Callable[[], tuple[float, float]], at: Sequence[float]
) -> Iterator[Point]:
    """Train step by step; a Point after the step with which the clock passes the next of `at`.

    The clock starts with the first step and stands still while the score is taken and while the
    caller has the Point. It is looked at after whole steps: what a framework compiles in its first
    step is counted, what it builds before is not.

    Args:
        step: does one training step, its batch included.
        score_now: (share of symbols right, share of captchas right) of the test set.
        at: increasing seconds.
    """
    clock, steps, scored, score_then = Clock(), 0, -1, (0.0, 0.0)
    for seconds in at:
        while clock.seconds < seconds:
            step()
            steps += 1
        with clock.stopped():
            if steps != scored:  # one long step can pass several
                scored, score_then = steps, score_now()
            yield Point(clock.seconds, steps, *score_then)


def reached(points: Sequence[Sequence[float]], column: int, share: float) -> float | None:
    """Seconds of training at the first point of a curve that has a share in that column; None if none has."""
    return next((point[0] for point in points if point[column] >= share), None)


def batches(count: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of one batch after the other for ever, shuffled anew for each epoch; int64 [B]."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(count)
        yield from (order[start : start + size] for start in range(0, count, size))


def classes(labels: np.ndarray, config: Config) -> np.ndarray:
    """One-hot [N, L * K] to int64 [N, L]."""
    places: np.ndarray = labels.reshape(len(labels), config.char_num, len(config.alphabet)).argmax(axis=2)
    return places


def score(answers: Sequence[Sequence[int]] | np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """(share of symbols right, share of captchas right).

    Symbols are compared place by place. A captcha is right when its answer is as long as the label
    and all its symbols are.

    Args:
        answers: for each picture the classes of the symbols that the reader saw, -1 for one that is
            not in the alphabet.
        truth: int [N, L].
    """
    symbols = captchas = 0
    for answer, label in zip(answers, truth, strict=True):
        equal = sum(bool(a == b) for a, b in zip(answer, label, strict=False))
        symbols += equal
        captchas += equal == len(label) == len(answer)
    return symbols / truth.size, captchas / len(truth)


def spelled(text: str, config: Config) -> list[int]:
    """The classes of a text's symbols, -1 for one that is not in the alphabet."""
    return [config.alphabet.find(symbol) for symbol in text]


def missing(package: str, requirements: str) -> CaptchaError:
    """What to raise where a package is not installed."""
    return CaptchaError(
        f"{package} must be installed to be measured, but is not: pip install -r benchmarks/{requirements}"
    )
