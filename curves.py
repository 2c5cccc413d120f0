"""TensorBoard's folder: the curves, the pictures beside them, and clearing what earlier runs left there."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from config import ConfigError, printable
from judge import confused

EVENTS = ".captcha"  # ends the names of the event files that are ours to clear
WORST = 12  # captchas shown, three beside each other
MOST = 20  # symbols in the picture of the confusions
CELL = 28  # pixels of one number in it
INK, PAPER, BLUE, RED = (40, 40, 40), (255, 255, 255), np.array([31, 119, 180]), (176, 0, 32)


class Curves:
    """TensorBoard's curves: the same tags for training and validation, so that they lie over each other.

    The writers write in the session, and not in a thread of their own, so that a full disk is
    noticed at once.

    Args:
        step: where the curves go on; TensorBoard drops what an interrupted run wrote from there on.
    """

    def __init__(self, folder: str, session: Any, step: int) -> None:
        import tensorflow.compat.v1 as tf

        self._tf = tf
        self._train, self._validation = (
            tf.summary.FileWriter(os.path.join(folder, part), graph, filename_suffix=EVENTS, session=session)
            for part, graph in (("train", session.graph), ("validation", None))
        )
        for writer in (self._train, self._validation):
            writer.add_session_log(tf.SessionLog(status=tf.SessionLog.START), step)

    def write(self, step: int, train: Mapping[str, float], validation: Mapping[str, float]) -> None:
        """A point of each curve, by tag."""
        for writer, points in ((self._train, train), (self._validation, validation)):
            values = [self._tf.Summary.Value(tag=tag, simple_value=value) for tag, value in points.items()]
            writer.add_summary(self._tf.Summary(value=values), step)
            writer.flush()

    def show(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        """Pictures of the validation set's state, by their tag."""
        values = []
        for tag, picture in pictures.items():
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            shown = self._tf.Summary.Image(
                height=picture.height,
                width=picture.width,
                colorspace=3,
                encoded_image_string=stream.getvalue(),
            )
            values.append(self._tf.Summary.Value(tag=tag, image=shown))
        self._validation.add_summary(self._tf.Summary(value=values), step)
        self._validation.flush()

    def close(self) -> None:
        """End the event files."""
        for writer in (self._train, self._validation):
            writer.close()


def read_worst(images: np.ndarray, labels: Sequence[str], texts: Sequence[str]) -> Image.Image:
    """Captchas beside each other, under each what it says and what was read, red where that is wrong.

    Args:
        images: uint8 [N, H, W], the worst first; WORST of them are shown.
    """
    shown = list(zip(images, labels, texts, strict=True))[:WORST]
    height, width = images.shape[1:]
    font = ImageFont.load_default(14)
    across = max(width, *(int(font.getlength(caption(a, b))) for _, a, b in shown)) + 10
    down = height + 30
    page = Image.new("RGB", (3 * across, -(-len(shown) // 3) * down), PAPER)
    draw = ImageDraw.Draw(page)
    for i, (image, label, text) in enumerate(shown):
        left, top = i % 3 * across + 5, i // 3 * down + 5
        page.paste(Image.fromarray(image), (left, top))
        draw.text((left, top + height + 2), caption(label, text), INK if label == text else RED, font)
    return page


def caption(label: str, text: str) -> str:
    """What a captcha says and what was read."""
    return label if label == text else f"{label} read {text}"


def confusions(labels: Sequence[str], texts: Sequence[str]) -> Image.Image:
    """How often each symbol was read for another: rows are what captchas say, columns what was read.

    Shown are the symbols that are confused, the MOST frequently so where they are many.
    """
    counts = confused(labels, texts)
    involved: Counter[str] = Counter()
    for (a, b), count in counts.items():
        involved[a] += count
        involved[b] += count
    symbols = sorted(symbol for symbol, _ in involved.most_common(MOST))
    font = ImageFont.load_default(14)
    title = "rows: what it says; columns: what was read" if symbols else "no symbol is confused"
    size = (len(symbols) + 1) * CELL
    page = Image.new("RGB", (max(size, int(font.getlength(title))) + 10, size + CELL), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((5, 5), title, INK, font)

    def cell(row: int, column: int, text: str, fill: tuple[int, ...] | None = None) -> None:
        left, top = column * CELL, (row + 1) * CELL
        if fill:
            draw.rectangle((left, top, left + CELL - 2, top + CELL - 2), fill)
        draw.text((left + CELL / 2, top + CELL / 2), text, INK, font, anchor="mm")

    most = max(counts.values(), default=1)
    for i, a in enumerate(symbols, 1):
        cell(i, 0, a)
        cell(0, i, a)
        for j, b in enumerate(symbols, 1):
            share = counts[a, b] / most
            cell(
                i, j, str(counts[a, b] or ""), tuple((245 + share * (BLUE - 245) * 0.7).astype(int).tolist())
            )
    return page


def check_curves_folder(folder: str) -> None:
    """Refuse a folder from which nothing should ever be cleared.

    Raises:
        ConfigError: it is or holds the home folder, the current one or this program's, or is a link.
    """
    wanted = "tensorboard_folder must be a folder for curves alone, since earlier ones are cleared from it"
    for place in (Path.home(), Path.cwd(), Path(__file__).parent):
        if place.resolve().is_relative_to(Path(folder).resolve()):
            raise ConfigError(f"{wanted}, but {printable(folder)} holds {place}: name another")
    for path in (Path(folder), Path(folder, "train"), Path(folder, "validation")):
        if path.is_symlink():
            raise ConfigError(f"{wanted}, but {printable(str(path))} is a link: name another")


def clear_events(folder: str) -> None:
    """Remove the event files of earlier runs, so that their curves do not mix with the new ones.

    Only files that this program wrote go, from the two folders it writes to.
    """
    check_curves_folder(folder)
    for part in ("train", "validation"):
        for events in Path(folder, part).glob(f"events.out.tfevents.*{EVENTS}"):
            events.unlink()
