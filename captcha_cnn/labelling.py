"""Labelling a folder of images: which image is next, what is recorded, and how good the model is.

The images have one random order, which follows from their names. A random image is the first in that
order that has no label; the others, once a model has been trained, are those that it is least sure of.
The honest figure counts the images from the beginning of the order on, whichever way each was chosen:
together they are a random sample. Each label is compared with what the model had answered before it was
given.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from captcha_cnn.dataset import check_label
from captcha_cnn.guesses import CHUNK, Guess, Guesses
from captcha_cnn.images import ImageError
from captcha_cnn.label_file import LabelFile, append_line, can_be_listed
from captcha_cnn.labels import normalize_label
from captcha_cnn.metrics import wilson_interval
from captcha_cnn.numpy_model import NumpyModel, general_model, load_model
from captcha_cnn.own_images import is_inside
from config import CaptchaError, Config, ConfigError, escape_unprintable

ANSWERS, MODEL = "answers.csv", "model.npz"  # files in the folder of the work
ANSWERS_HEADER = ("file", "guess", "confidence", "labels of the model")
RANDOM_SHARE = 0.5  # of the images that are chosen at random, once a model has been trained
FIGURE_IMAGES = 100  # random ones that the figure counts, at most
MIN_LABELS = 10  # from so many on, they say which kinds of characters there are
CLAIM_SECONDS = 600.0  # that a page keeps an image before another one gets it
LONGEST_LABEL_SECONDS = 60.0  # a longer one was a break
KINDS = ("0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


class Settings(NamedTuple):
    """What the command line says."""

    folder: str  # of the images
    work: str  # folder for everything but the labels
    characters: str = ""  # the only ones that labels have; all if empty
    char_num: str = ""  # the only lengths, such as 4-5; all if empty
    until: float = 0.99  # the accuracy to reach
    random_share: float = RANDOM_SHARE


class Item(NamedTuple):
    """An image to be labelled or reviewed."""

    file: str  # path inside the folder
    label: str | None  # "" for an unreadable image; None where there is none yet
    guess: str
    confidence: float
    char_probs: list[float]  # of the characters of the guess


class Accuracy(NamedTuple):
    """How many of the last random images the model had read right before they were labelled."""

    correct: int
    images: int

    def __str__(self) -> str:
        low, high = wilson_interval(*self)
        return (
            f"{self.correct / self.images:.0%} of the last {self.images} random images, "
            f"{100 * low:.0f} to {100 * high:.0f}"
        )


class Labelling:
    """The state of the labelling of a folder. Several threads may use it; close() ends its own.

    Raises:
        CaptchaError: the folder has no images, or cannot be written to; settings that no label fits.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self._lock, self._random = settings, threading.RLock(), random.Random(0)
        if is_inside(settings.work, settings.folder):
            work, shown = map(escape_unprintable, (settings.work, settings.folder))
            raise ConfigError(f"{work} must lie outside of {shown}: name another folder with --work")
        self.file = LabelFile(settings.folder)
        self.order = sorted(filter(can_be_listed, self.file.images), key=_random_key)
        self._known = frozenset(self.order)
        if not self.order:
            shown = escape_unprintable(settings.folder)
            raise CaptchaError(f"{shown} must hold images to be labelled, but holds none: put some there")
        self._given = {"characters": settings.characters, "char_num": settings.char_num}
        self._given = {name: value for name, value in self._given.items() if value}
        self._config = Config(images=settings.folder, **self._given)  # type: ignore[arg-type]
        os.makedirs(settings.work, exist_ok=True)
        self._answers = Path(settings.work, ANSWERS)
        self.answers = {row["file"]: row["guess"] for row in _read_rows(self._answers)}
        self._claims: dict[str, float] = {}
        self._times: deque[float] = deque(maxlen=50)  # seconds of the last labels
        self._last = 0.0  # when the last label was recorded
        self._model_stamp, self._narrowed = 0, self._what_labels_say()
        self.guesses = Guesses(settings.folder, self._general_model(), self.order, self.is_open)
        self.update_model()
        self.disagreements: list[Item] | None = None  # to be reviewed, the surest first
        self._reviewed: set[str] = set()

    def start(self) -> None:
        """Begin to read images in the background."""
        self.guesses.start()

    def close(self) -> None:
        """End what runs in the background."""
        self.guesses.close()

    # ------------------------------------------------------------------ which image

    def is_open(self, path: str) -> bool:
        """Whether an image waits for a label."""
        return path not in self.file.labels and path not in self.guesses.bad

    def next(self, held: Collection[str] = ()) -> Item | None:
        """The next image to be labelled or reviewed; None where there is none.

        Args:
            held: images that the page has already; those that other pages have wait for some minutes.
        """
        with self._lock:
            self.file.refresh()
            if self.disagreements is not None:
                done = self._reviewed.union(held)
                return next((item for item in self.disagreements if item.file not in done), None)
            waiting = [path for path in self.order if self.is_open(path) and path not in held]
        for path in self._by_choice(waiting):
            try:
                item = self.item(path)
            except ImageError:  # the next one can be read
                continue
            self._claims[path] = time.monotonic()
            return item
        return None

    def item(self, path: str) -> Item:
        """An image with what the model reads in it.

        Raises:
            ImageError: no image of the folder, or one that cannot be read.
        """
        if path not in self._known:
            raise ImageError("no such image", escape_unprintable(path))
        reading = self.guesses.of(path).reading
        return Item(path, self.file.labels.get(path), reading.text, reading.confidence, reading.char_probs)

    def has(self, path: str) -> bool:
        """Whether it is the path of an image in the folder."""
        return path in self._known

    def recent(self, count: int) -> list[str]:
        """The images that were labelled last, the last one at the end."""
        return [path for path in list(self.answers) if path in self.file.labels][-count:]

    def _by_choice(self, waiting: list[str]) -> Iterator[str]:
        """The images that wait, the one to be labelled next first; those of other pages last."""
        now = time.monotonic()
        claimed = {path for path, since in self._claims.items() if now - since < CLAIM_SECONDS}
        free = [path for path in waiting if path not in claimed]
        # How sure weights are that have seen no image of this system says little.
        share = self.settings.random_share if self.guesses.model.labels else 1.0
        if self._random.random() >= share and (path := self.guesses.least_sure(free)):
            yield path
        yield from free
        yield from waiting

    # ------------------------------------------------------------------ labels

    def record(self, path: str, label: str) -> None:
        """Write a label, "" for an image that nobody can read.

        Raises:
            ImageError: no such image, or not a label that the settings allow.
            OSError: it cannot be written.
        """
        if path not in self._known:
            raise ImageError("no such image", escape_unprintable(path))
        label = normalize_label(label.strip(), ignore_case=False)
        if label:
            check_label(label, self._config, self._given)
        guess = None if path in self.file.labels else self.guesses.of(path)
        with self._lock:
            is_new = path not in self.file.labels
            self.file.record(path, label)
            self._claims.pop(path, None)
            self._reviewed.add(path)
            if is_new and guess:
                self._note(path, guess)
        with contextlib.suppress(CaptchaError):  # a damaged model: the label is written all the same
            self.update_model()

    def _note(self, path: str, guess: Guess) -> None:
        """Remember what the model had answered, and how long the label took."""
        text, confidence, _ = guess.reading
        append_line(self._answers, [path, text, f"{confidence:.6f}", guess.model.labels], ANSWERS_HEADER)
        self.answers[path] = text
        now = time.monotonic()
        if self._last and now - self._last < LONGEST_LABEL_SECONDS:
            self._times.append(now - self._last)
        self._last = now

    @property
    def labels(self) -> dict[str, str]:
        """The labels of the images that can be read, by their path inside the folder."""
        return {path: label for path, label in list(self.file.labels.items()) if label}

    # ------------------------------------------------------------------ the model

    def _general_model(self) -> NumpyModel:
        """The general weights, with the characters and lengths that the command line or the labels say."""
        characters, lengths = self._narrowed
        try:
            return general_model("".join(c for c in characters if c in "".join(KINDS)), lengths)
        except ConfigError:  # it knows none of them: it guesses what it can
            return general_model()

    def _what_labels_say(self) -> tuple[str, str]:
        """The characters and lengths that labels may have, once there are enough; empty for any."""
        labels, (_, _, characters, char_num, *_) = list(self.labels.values()), self.settings
        if len(labels) >= MIN_LABELS:
            found, lengths = set("".join(labels)), list(map(len, labels))
            characters = characters or "".join(kind for kind in KINDS if found & set(kind))
            char_num = char_num or f"{min(lengths)}-{max(lengths)}"
        return characters, char_num

    def update_model(self) -> None:
        """Take a newly trained model, or what the labels say about their characters, for the guesses."""
        with self._lock:
            path = Path(self.settings.work, MODEL)
            if path.exists():
                stamp = path.stat().st_mtime_ns
                if stamp != self._model_stamp:
                    self._model_stamp = stamp
                    self.guesses.use(load_model(path))
            elif (narrowed := self._what_labels_say()) != self._narrowed:
                self._narrowed = narrowed
                self.guesses.use(self._general_model())

    # ------------------------------------------------------------------ figures

    def accuracy(self) -> Accuracy | None:
        """The honest figure; None before the first random image."""
        with self._lock:
            correct = []
            for path in self.order:
                label = self.file.labels.get(path)
                if label is None and path not in self._claims and path not in self.guesses.bad:
                    break
                if label and path in self.answers:
                    correct.append(self.answers[path] == label)
        last = correct[-FIGURE_IMAGES:]
        return Accuracy(sum(last), len(last)) if last else None

    def reached(self) -> bool:
        """Whether the last random images were read as well as asked for."""
        found = self.accuracy()
        return bool(
            found and found.images == FIGURE_IMAGES and found.correct >= self.settings.until * found.images
        )

    def status(self) -> dict[str, Any]:
        """What the page shows, for JSON."""
        accuracy, labels = self.accuracy(), self.labels
        return {
            "images": len(self.order) - len(self.guesses.bad),
            "labelled": len(labels),
            "unreadable": len(self.file.labels) - len(labels),
            "broken": len(self.guesses.bad),
            "seconds": round(statistics.median(self._times), 1) if self._times else None,
            "accuracy": str(accuracy) if accuracy else None,
            "model_labels": self.guesses.model.labels,
            "until": self.settings.until,
            "reached": self.reached(),
            "review": self.disagreements is not None,
            "to_review": len(self.disagreements or ()),
        }

    # ------------------------------------------------------------------ review

    def review(self, chunks: Any) -> None:
        """Read all labelled images, and have next() go through those whose label the model disagrees with.

        Args:
            chunks: shows the progress: a function from a list to an iterator over it, as tqdm is.
        """
        labels, model = self.labels, self.guesses.model
        paths = [path for path in self.order if path in labels]
        found = []
        for begin in chunks(range(0, len(paths), CHUNK)):
            part, images = [], []
            for path in paths[begin : begin + CHUNK]:
                try:
                    images.append(model.decode_image(os.path.join(self.settings.folder, path)))
                    part.append(path)
                except (ImageError, OSError) as error:
                    self.guesses.bad[path] = str(error)
            compared = model.compare(np.stack(images), [labels[path] for path in part]) if part else []
            found += [
                (odds, Item(path, labels[path], *reading))
                for path, (reading, odds) in zip(part, compared, strict=True)
                if reading.text != labels[path]
            ]
        found.sort(key=lambda each: -each[0])
        self.disagreements, self._reviewed = [item for _, item in found], set()


def _random_key(path: str) -> bytes:
    """Sorts paths in a random order that is the same each time."""
    return hashlib.sha256(path.encode()).digest()


def _read_rows(path: Path) -> Iterator[dict[str, str]]:
    """The lines of a table that append_line() wrote; none where it is missing."""
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            yield from (row for row in csv.DictReader(file) if row.get("guess") is not None)
