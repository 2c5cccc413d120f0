"""TensorBoard's folder: curves, images beside them, and clearing what earlier runs left there.

The confusion matrix drawn here is also the one of the HTML report and of docs/.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from captcha_cnn.decoded import Images
from captcha_cnn.labels import image_order
from captcha_cnn.metrics import EvalResult, Metrics, count_confusions
from config import Config, ConfigError, escape_unprintable

EVENTS_SUFFIX = ".captcha"  # ends the names of the event files that this program may clear
MAX_WORST = 12  # captchas shown, three beside each other
MAX_CHARS = 20  # characters in the confusion matrix
CELL = 28  # pixels of one of its cells
DARK, WHITE, BLUE, RED = (40, 40, 40), (255, 255, 255), np.array([31, 119, 180]), (176, 0, 32)


class SummaryWriter:
    """TensorBoard's curves: the same tags for training and validation, so that they share a chart.

    It writes in the session, and not in a thread of its own, so that a full disk is noticed at once.

    Args:
        step: where the curves go on; TensorBoard drops what an interrupted run wrote from there on.
    """

    def __init__(self, folder: str, session: Any, step: int) -> None:
        import tensorflow.compat.v1 as tf

        self._tf = tf
        self._train, self._validation = (
            tf.summary.FileWriter(
                os.path.join(folder, part), graph, filename_suffix=EVENTS_SUFFIX, session=session
            )
            for part, graph in (("train", session.graph), ("validation", None))
        )
        for writer in (self._train, self._validation):
            writer.add_session_log(tf.SessionLog(status=tf.SessionLog.START), step)

    def add_scalars(self, step: int, train: Mapping[str, float], validation: Mapping[str, float]) -> None:
        """A point of each curve, by tag."""
        for writer, points in ((self._train, train), (self._validation, validation)):
            values = [self._tf.Summary.Value(tag=tag, simple_value=value) for tag, value in points.items()]
            writer.add_summary(self._tf.Summary(value=values), step)
            writer.flush()

    def add_metrics(
        self, step: int, batch: Metrics, validation: Metrics | None, others: Mapping[str, float]
    ) -> None:
        """A point of each curve of a training; `others` are of the training alone."""
        self.add_scalars(
            step, {**batch.as_scalars(), **others}, validation.as_scalars() if validation else {}
        )

    def add_images(self, step: int, images: Mapping[str, Image.Image]) -> None:
        """Images of the validation set's state, by tag."""
        values = []
        for tag, image in images.items():
            stream = io.BytesIO()
            image.save(stream, "PNG")
            summary = self._tf.Summary.Image(
                height=image.height, width=image.width, colorspace=3, encoded_image_string=stream.getvalue()
            )
            values.append(self._tf.Summary.Value(tag=tag, image=summary))
        self._validation.add_summary(self._tf.Summary(value=values), step)
        self._validation.flush()

    def __enter__(self) -> SummaryWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in (self._train, self._validation):
            writer.close()


def summary_images(result: EvalResult, images: Images, config: Config) -> dict[str, Image.Image]:
    """What TensorBoard shows of an evaluated set: the confusion matrix, and the captchas with the most loss.

    Args:
        images: uint8 [N, H, W] or [N, H, W, 3].
    """
    alphabet = np.array([*config.alphabet, ""])  # the last, -1, past the end
    names, texts = (
        [image_order("".join(each), config.alphabet) for each in alphabet[k]]
        for k in (result.labels, result.chars)
    )
    worst = (-result.loss).argsort(kind="stable")[:MAX_WORST]
    shown = images[worst], [names[i] for i in worst], [texts[i] for i in worst]
    return {
        "confusion_matrix": draw_confusion_matrix(count_confusions(names, texts)),
        "worst_predictions": draw_worst_predictions(*shown),
    }


def draw_worst_predictions(images: np.ndarray, labels: Sequence[str], texts: Sequence[str]) -> Image.Image:
    """Captchas beside each other, under each its label and what was read, red where that is wrong.

    Args:
        images: uint8 [N, H, W] or [N, H, W, 3], the worst first; MAX_WORST of them are shown.
    """
    shown = list(zip(images, labels, texts, strict=True))[:MAX_WORST]
    height, width = images.shape[1:3]
    font = ImageFont.load_default(14)
    across = max(width, *(int(font.getlength(caption(a, b))) for _, a, b in shown)) + 10
    down = height + 30
    page = Image.new("RGB", (3 * across, -(-len(shown) // 3) * down), WHITE)
    draw = ImageDraw.Draw(page)
    for i, (image, label, text) in enumerate(shown):
        left, top = i % 3 * across + 5, i // 3 * down + 5
        page.paste(Image.fromarray(image), (left, top))
        draw.text((left, top + height + 2), caption(label, text), DARK if label == text else RED, font)
    return page


def caption(label: str, text: str) -> str:
    """The label of a captcha and what was read."""
    return label if label == text else f"{label} read as {text}"


def draw_confusion_matrix(counts: Mapping[tuple[str, str], int]) -> Image.Image:
    """How often each character was read as another: rows are the labels, columns what was read.

    Shown are the characters that are confused, the MAX_CHARS most frequent where they are many.

    Args:
        counts: by (character of the label, character read), as count_confusions() returns it.
    """
    involved: Counter[str] = Counter()
    for (a, b), count in counts.items():
        involved[a] += count
        involved[b] += count
    characters = sorted(character for character, _ in involved.most_common(MAX_CHARS))
    font = ImageFont.load_default(14)
    title = "rows: label; columns: what was read" if characters else "no character is confused"
    size = (len(characters) + 1) * CELL
    page = Image.new("RGB", (max(size, int(font.getlength(title))) + 10, size + CELL), WHITE)
    draw = ImageDraw.Draw(page)
    draw.text((5, 5), title, DARK, font)

    def draw_cell(row: int, column: int, text: str, fill: tuple[int, ...] | None = None) -> None:
        left, top = column * CELL, (row + 1) * CELL
        if fill:
            draw.rectangle((left, top, left + CELL - 2, top + CELL - 2), fill)
        draw.text((left + CELL / 2, top + CELL / 2), text, DARK, font, anchor="mm")

    largest = max(counts.values(), default=1)
    for i, a in enumerate(characters, 1):
        draw_cell(i, 0, a)
        draw_cell(0, i, a)
        for j, b in enumerate(characters, 1):
            count = counts.get((a, b), 0)
            colour = 245 + count / largest * (BLUE - 245) * 0.7
            draw_cell(i, j, str(count or ""), tuple(colour.astype(int).tolist()))
    return page


def check_events_folder(folder: str) -> None:
    """Refuse a folder from which nothing should ever be cleared.

    Raises:
        ConfigError: it is or holds the home folder, the current one or this program's, or is a link.
    """
    expected = "tensorboard_folder must be a folder for curves alone, since earlier ones are cleared from it"
    for place in (Path.home(), Path.cwd(), Path(__file__).parent.parent):
        if place.resolve().is_relative_to(Path(folder).resolve()):
            raise ConfigError(f"{expected}, but {escape_unprintable(folder)} holds {place}: name another")
    for path in (Path(folder), Path(folder, "train"), Path(folder, "validation")):
        if path.is_symlink():
            raise ConfigError(f"{expected}, but {escape_unprintable(path)} is a link: name another")


def clear_events(folder: str) -> None:
    """Remove the event files of earlier runs, so that their curves do not mix with the new ones.

    Only files that this program wrote are removed, from the two folders it writes to.
    """
    check_events_folder(folder)
    for part in ("train", "validation"):
        for events in Path(folder, part).glob(f"events.out.tfevents.*{EVENTS_SUFFIX}"):
            events.unlink()
