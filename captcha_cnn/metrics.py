"""What a reader made of labelled captchas: accuracy, intervals, confusions, calibration.

Everything is computed from labels and answers; nothing here reads an image or needs TensorFlow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

MIN_ODDS_RATIO = 1.1  # by which the labels' odds must grow for a validation result to count as better
CALIBRATION_BINS = 10
COVERAGES = (1.0, 0.99, 0.95, 0.9)  # shares of the images, the most confident, that are read


class EvalResult(NamedTuple):
    """What evaluating a set gave, image by image."""

    loss: np.ndarray  # float32 [N], as the network's loss defines it
    likelihood: np.ndarray  # float32 [N], probability of the label
    chars: np.ndarray  # int32 [N, L], the classes read; -1 past the end
    labels: np.ndarray  # int32 [N, L], those of the labels


class Metrics(NamedTuple):
    """What evaluating a set gave, averaged over its images."""

    loss: float
    accuracy: float  # share of characters read right: 1 - the character error rate, where lengths differ
    correct: int  # captchas with all characters right
    images: int
    likelihood: float  # mean probability of the whole label

    @property
    def captcha_accuracy(self) -> float:
        """Share of captchas with all characters right."""
        return self.correct / self.images

    @staticmethod
    def from_result(result: EvalResult) -> Metrics:
        """Every image counts the same."""
        correct = result.chars == result.labels
        captchas = np.all(correct, axis=1)
        accuracy = correct.mean()
        if min(result.chars.min(), result.labels.min()) < 0:
            errors = edit_distances(result.labels[~captchas], result.chars[~captchas]).sum()
            accuracy = max(0.0, 1 - errors / (result.labels >= 0).sum())
        return Metrics(
            float(result.loss.mean(dtype=np.float64)),
            float(accuracy),
            int(captchas.sum()),
            len(captchas),
            float(result.likelihood.mean(dtype=np.float64)),
        )

    def as_scalars(self) -> dict[str, float]:
        """The points of TensorBoard's curves, by tag."""
        return {
            "loss": self.loss,
            "accuracy/characters": self.accuracy,
            "accuracy/captchas": self.captcha_accuracy,
        }

    def improves_on(self, best: Metrics | None, ratio: float = MIN_ODDS_RATIO) -> bool:
        """Whether the odds of the labels, against all other texts, are `ratio` times as good.

        The number of captchas read right cannot tell apart two networks that read nearly all, and the
        loss depends most on the one captcha that nobody can read. The mean probability has neither
        fault, but it goes on rising a little long after no more captchas are read.
        """
        if best is None:
            return not math.isnan(self.likelihood)
        new, old = self.likelihood, best.likelihood
        return new > old and new * (1.0 - old) >= ratio * old * (1.0 - new)  # NaN never is


class Mistake(NamedTuple):
    """A captcha that was read wrong."""

    position: int  # of the image in its set
    label: str
    text: str  # what was read
    confidence: float


class EvaluationReport(NamedTuple):
    """What reading a labelled set gave."""

    labels: list[str]
    texts: list[str]
    correct: int  # captchas with all characters right
    images: int
    chars_correct: int  # place by place; where lengths differ, chars - char_errors, or 0
    chars: int
    char_errors: int  # edit distances, summed
    loss: float | None  # nats per character, where it is known
    selective_accuracy: np.ndarray  # float64 [N]: share right of the n + 1 most confident images
    bins: list[tuple[int, float, float]]  # (images, mean confidence, share right) by confidence
    calibration_error: float
    mistakes: list[Mistake]  # the most confident first


def evaluate_predictions(
    labels: Sequence[str], texts: Sequence[str], confidences: Sequence[float], loss: float | None
) -> EvaluationReport:
    """Compare N texts that were read, with their confidences, with N labels."""
    pairs = list(zip(labels, texts, strict=True))
    correct = np.array([label == text for label, text in pairs])
    confidence = np.array(confidences, np.float64)
    chars, char_errors = sum(map(len, labels)), int(edit_distances(*map(code_points, (labels, texts))).sum())
    chars_correct = sum(a == b for label, text in pairs for a, b in zip(label, text, strict=False))
    if len(set(map(len, [*labels, *texts]))) > 1:
        chars_correct = max(0, chars - char_errors)
    by_confidence = np.argsort(-confidence, kind="stable")
    bin_index = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    members = [bin_index == i for i in range(CALIBRATION_BINS)]
    bins = [(int(m.sum()), float(confidence[m].mean()), float(correct[m].mean())) for m in members if m.any()]
    return EvaluationReport(
        labels=list(labels),
        texts=list(texts),
        correct=int(correct.sum()),
        images=len(pairs),
        chars_correct=chars_correct,
        chars=chars,
        char_errors=char_errors,
        loss=loss,
        selective_accuracy=correct[by_confidence].cumsum() / np.arange(1, len(pairs) + 1),
        bins=bins,
        calibration_error=sum(n * abs(mean - share) for n, mean, share in bins) / len(pairs),
        mistakes=[
            Mistake(i, labels[i], texts[i], float(confidence[i]))
            for i in by_confidence.tolist()
            if not correct[i]
        ],
    )


def count_confusions(labels: Sequence[str], texts: Sequence[str]) -> Counter[tuple[str, str]]:
    """How often each character was read as which other: (character, what was read).

    Where a label and its text differ in length, the fewest edits say which characters belong together.
    """
    pairs = zip(labels, texts, strict=True)
    return Counter(
        (a, b) for label, text in pairs if label != text for a, b in align(label, text) if a and b and a != b
    )


def code_points(texts: Sequence[str]) -> np.ndarray:
    """Texts as int32 [N, L], -1 past the end."""
    table = np.full([len(texts), max(map(len, texts), default=0)], -1, np.int32)
    for row, text in zip(table, texts, strict=True):
        row[: len(text)] = list(map(ord, text))
    return table


def edit_distances(labels: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """The fewest insertions, deletions and substitutions between each label and its text (Levenshtein 1966).

    Args:
        labels, texts: int [N, L] and [N, M], -1 past the end.
    Returns:
        int64 [N].
    """
    rows, ends = np.arange(len(labels)), (texts >= 0).sum(axis=1)
    distances = np.tile(np.arange(texts.shape[1] + 1), (len(labels), 1))  # to each beginning of the texts
    found: np.ndarray = distances[rows, ends]
    lengths = (labels >= 0).sum(axis=1)
    for i in range(labels.shape[1]):
        replaced = distances[:, :-1] + (labels[:, i : i + 1] != texts)
        distances = distances + 1  # a character of the label is missing
        for j in range(texts.shape[1]):
            best = np.minimum(distances[:, j] + 1, replaced[:, j])
            distances[:, j + 1] = np.minimum(distances[:, j + 1], best)
        found = np.where(lengths == i + 1, distances[rows, ends], found)
    return found


def align(label: str, text: str) -> list[tuple[str, str]]:
    """The characters that belong together, "" for a missing one: place by place where lengths are equal."""
    if len(label) == len(text):
        return list(zip(label, text, strict=True))
    distances = np.add.outer(np.arange(len(label) + 1), np.arange(len(text) + 1))
    for i, a in enumerate(label):
        for j, b in enumerate(text):
            best = min(distances[i, j + 1], distances[i + 1, j]) + 1
            distances[i + 1, j + 1] = min(best, distances[i, j] + (a != b))
    i, j, pairs = len(label), len(text), []
    while i or j:
        if i and j and distances[i, j] == distances[i - 1, j - 1] + (label[i - 1] != text[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((label[i], text[j]))
        elif i and distances[i, j] == distances[i - 1, j] + 1:
            i -= 1
            pairs.append((label[i], ""))
        else:
            j -= 1
            pairs.append(("", text[j]))
    return pairs[::-1]


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share of which `correct` of `count` were seen (Wilson 1927)."""
    z = 1.959963984540054
    share, weight = correct / count, 1 + z * z / count
    centre = (share + z * z / (2 * count)) / weight
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / weight
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy_line(what: str, correct: int, count: int) -> str:
    """`Captcha accuracy:  99.67% (9967 of 10000, 95% interval 99.54 to 99.76)`."""
    low, high = wilson_interval(correct, count)
    share = (
        f"{correct / count:>7.2%} ({correct} of {count}, 95% interval {100 * low:.2f} to {100 * high:.2f})"
    )
    return f"{what} accuracy: {share}"


def coverage_lines(report: EvaluationReport) -> Iterable[tuple[float, str]]:
    """(coverage, how many of the images read are right) for each of COVERAGES."""
    for coverage in COVERAGES:
        read = max(1, round(coverage * report.images))
        correct = round(report.selective_accuracy[read - 1] * read)
        yield coverage, f"{correct / read:>7.2%} right ({correct} of {read})"
