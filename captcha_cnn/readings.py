"""What a model reads in labelled images, and which of their labels look wrong.

A label looks wrong where another text is far more probable to the model (Northcutt et al. 2021, Confident
Learning). How sure the model is of that text says less: an image may be hard to read, and yet its label
impossible. The list is best where the model has not trained on the image: cross-validation
reads every image in this way.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from captcha_cnn.checkpoint import READINGS
from captcha_cnn.dataset import Dataset
from captcha_cnn.files import atomic_write
from captcha_cnn.labels import image_order
from captcha_cnn.progress import log
from captcha_cnn.tf_runtime import batch_slices
from config import Config, escape_unprintable

MIN_ODDS = 500.0  # how many times as probable as a label that looks wrong the text is
SHOWN = 10  # labels that are printed


class Readings(NamedTuple):
    """What a model reads in N images."""

    labels: list[str]
    texts: list[str]
    confidences: list[float]  # probability of the text among all texts of the lengths allowed
    label_probs: list[float]  # the same of the label

    @property
    def correct(self) -> int:
        """Captchas with all characters right."""
        return sum(label == text for label, text in zip(self.labels, self.texts, strict=True))


def read_dataset(session: Any, model: Any, data: Dataset, config: Config) -> Readings:
    """Read labelled images with the inference network.

    Args:
        model: cnn_model.CNN.
    """
    found = Readings([], [], [], [])
    for part in batch_slices(len(data.images)):
        fetches = [model.labels, model.predictions.chars, model.predictions.confidence, model.label_prob]
        feed = {model.x: data.images[part], model.y: data.labels[part]}
        labels, chars, confidences, label_probs = (each.tolist() for each in session.run(fetches, feed))
        found.labels.extend(_text(classes, config.alphabet) for classes in labels)
        found.texts.extend(_text(classes, config.alphabet) for classes in chars)
        found.confidences.extend(confidences)
        found.label_probs.extend(label_probs)
    return found


def read_recorded(
    session: Any, model: Any, sets: Mapping[str, Dataset], record: Mapping[str, Any], config: Config
) -> tuple[Readings, list[str]]:
    """Read the sets of the user's own images.

    Args:
        record: the paths of the images of each set inside the folder, by its name.
    Returns:
        the readings, and the paths.
    """
    recorded = [name for name in sets if record.get(name)]
    parts = [read_dataset(session, model, sets[name], config) for name in recorded]
    paths = [path for name in recorded for path in record[name]]
    columns: list[Any] = [[each for part in parts for each in part[i]] for i in range(len(Readings._fields))]
    return Readings(*columns), paths


def _text(classes: Sequence[int], alphabet: str) -> str:
    return image_order("".join(alphabet[k] for k in classes if k >= 0), alphabet)


def suspicious(readings: Readings) -> list[int]:
    """The numbers of the images whose labels look wrong, the surest first."""
    odds = {
        i: math.log(confidence / max(label_prob, 1e-30))
        for i, (label, text, confidence, label_prob) in enumerate(zip(*readings, strict=True))
        if label != text and confidence >= MIN_ODDS * label_prob
    }
    return sorted(odds, key=lambda i: -odds[i])


def describe(readings: Readings, paths: Sequence[str]) -> str:
    """The labels that look wrong, for people; empty where there are none.

    Args:
        paths: of the images, inside the folder.
    """
    found = suspicious(readings)
    if not found:
        return ""
    several = len(found) > 1
    begin = f"{len(found)} labels look wrong, the surest first" if several else "1 label looks wrong"
    lines = [f"{begin}; {READINGS} beside the checkpoints has all:"]
    for i in found[:SHOWN]:
        path, label, text = (
            escape_unprintable(each) for each in (paths[i], readings.labels[i], readings.texts[i])
        )
        lines.append(
            f"  {path}: label {label}, read as {text} with a confidence of {readings.confidences[i]:.1%}"
        )
    if len(found) > SHOWN:
        lines.append(f"  and {len(found) - SHOWN} others")
    return "\n".join(lines)


def report(readings: Readings, paths: Sequence[str], config: Config) -> None:
    """Name the labels that look wrong, and write all readings beside the checkpoints."""
    if text := describe(readings, paths):
        log(text)
    write(readings, paths, config.checkpoint_folder)


def write(readings: Readings, paths: Sequence[str], folder: str) -> None:
    """Write all readings as a table into that folder: labels that look wrong first, the surest first."""
    first = suspicious(readings)
    order = [*first, *sorted(set(range(len(paths))) - set(first))]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "label", "text", "confidence", "probability of the label", "looks wrong"])
    for n, i in enumerate(order):
        probs = f"{readings.confidences[i]:.6f}", f"{readings.label_probs[i]:.6g}"
        table.writerow(
            [paths[i], readings.labels[i], readings.texts[i], *probs, "yes" if n < len(first) else "no"]
        )
    with atomic_write(Path(folder, READINGS)) as temporary:
        Path(temporary).write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")
