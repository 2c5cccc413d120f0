"""What the designs compared have in common: batches, clock, loop, score.

A design is a module with a generator function `curve(train, test, config, at)`: it trains on `train`
and yields a Point on `test` each time its clock passes the next of `at`. Nothing here needs TensorFlow
or PyTorch.
"""

from __future__ import annotations

import importlib
import statistics
import string
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from captcha_cnn.batches import Batch, batches_from
from captcha_cnn.dataset import Dataset
from captcha_cnn.parallel import prefetch
from captcha_cnn.progress import Stopwatch
from config import CaptchaError, Config
from driver import next_batch  # imports no TensorFlow

WARM_UP = 10  # steps before those that are timed
CHARACTERS_36 = string.digits + string.ascii_uppercase  # of the row "36"


class Point(NamedTuple):
    """One point of a learning curve."""

    seconds: float  # of training, evaluation not counted
    step: int  # training steps done
    character_accuracy: float  # share of characters right
    captcha_accuracy: float  # share of captchas with all characters right


def endless_batches(data: Dataset, config: Config) -> Generator[Batch, None, None]:
    """The batches of one epoch after the other, augmented; the next is made while one is used.

    Each is the epoch, x, uint8 [B, H, W], and y, float32 [B, L * K]. All designs get them in this way.
    """
    return prefetch(batches_from(0, data, replace(config, Epoch=10**9), next_batch))


def timed_curve(
    step: Callable[[], None], score_now: Callable[[], tuple[float, float]], at: Sequence[float]
) -> Iterator[Point]:
    """Train step by step; a Point after the step with which the clock passes the next of `at`.

    The clock starts with the first step, and is paused while the score is taken and while the caller
    has the Point. It is looked at after whole steps: what a framework compiles in its first step is
    counted, what it builds before is not.

    Args:
        step: does one training step, its batch included.
        score_now: (share of characters right, share of captchas right) of the test set.
        at: increasing seconds.
    """
    clock, steps, scored, score_then = Stopwatch(), 0, -1, (0.0, 0.0)
    for seconds in at:
        while clock.seconds < seconds:
            step()
            steps += 1
        with clock.paused():
            if steps != scored:  # one long step can pass several
                scored, score_then = steps, score_now()
            yield Point(clock.seconds, steps, *score_then)


def time_to_threshold(
    points: Sequence[Sequence[float]], column: int, threshold: float, unit: int = 0
) -> float | None:
    """When a curve first has at least that value in that column; None where no point has it.

    Args:
        unit: 0 for seconds of training, 1 for steps.
    """
    return next((point[unit] for point in points if point[column] >= threshold), None)


def label_classes(labels: np.ndarray, config: Config) -> np.ndarray:
    """One-hot [N, L * K] to int64 [N, L]."""
    classes: np.ndarray = labels.reshape(len(labels), config.max_length, len(config.alphabet)).argmax(axis=2)
    return classes


def text_classes(text: str, config: Config) -> list[int]:
    """The classes of a text's characters, -1 for one that is not in the alphabet."""
    return [config.alphabet.find(character) for character in text]


def score(answers: Sequence[Sequence[int]] | np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """(share of characters right, share of captchas right).

    Characters are compared place by place. A captcha is right when its answer is as long as the label
    and all its characters are right.

    Args:
        answers: for each image the classes of the characters that were read, -1 for one that is not
            in the alphabet.
        truth: int [N, L].
    """
    characters = captchas = 0
    for answer, label in zip(answers, truth, strict=True):
        equal = sum(bool(a == b) for a, b in zip(answer, label, strict=False))
        characters += equal
        captchas += equal == len(label) == len(answer)
    return characters / truth.size, captchas / len(truth)


def load_package(name: str, requirements: str = "requirements.txt") -> Any:
    """Import a package that only the benchmarks need.

    Raises:
        CaptchaError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise CaptchaError(
            f"{name.replace('_', '-')} must be installed to be measured, but is not: pip install -r "
            f"benchmarks/{requirements}"
        ) from None


def mean_std(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation; the value alone where there is one."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
