"""What a model reads in the images that wait for a label, read in a thread of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from captcha_cnn.images import ImageError
from captcha_cnn.numpy_model import NumpyModel, Reading

CHUNK = 8  # images that are read at once: nobody notices a pause of that length


class Guess(NamedTuple):
    """A reading, and the model that it is of."""

    reading: Reading
    model: NumpyModel


class Guesses:
    """The newest model's reading of each image, or that of an earlier model until it has read it.

    Args:
        folder: of the images. order: their paths inside it, in the order in which they are read.
        is_wanted: whether an image still waits for a label.
    """

    def __init__(
        self, folder: str, model: NumpyModel, order: Sequence[str], is_wanted: Callable[[str], bool]
    ) -> None:
        self.model, self.bad = model, dict[str, str]()  # why an image cannot be read, by its path
        self._folder, self._order, self._is_wanted = folder, order, is_wanted
        self._found: dict[str, Guess] = {}
        self._changed, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._changed.set()
        self._thread.start()

    def use(self, model: NumpyModel) -> None:
        """Read everything anew with another model."""
        self.model = model
        self._changed.set()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._changed.set()
        if self._thread.ident:
            self._thread.join()

    def of(self, path: str) -> Guess:
        """The newest model's reading of an image; it is read now if it has not been.

        Raises:
            ImageError: not an image, or damaged.
        """
        guess = self._found.get(path)
        if guess is None or guess.model is not self.model:
            self._read([path])
        if path in self.bad:
            raise ImageError("not an image", self.bad[path])
        return self._found[path]

    def least_sure(self, paths: Iterable[str]) -> str | None:
        """Of those that have been read, the image whose text is the least probable; None where none has."""
        known = [path for path in paths if path in self._found]
        return min(known, key=lambda path: self._found[path].reading.confidence, default=None)

    def _work(self) -> None:
        while not self._closed:
            self._changed.wait()
            self.read_all()

    def read_all(self) -> None:
        """Read all images that wait with the newest model; stops early where there is a newer one."""
        self._changed.clear()
        for begin in range(0, len(self._order), CHUNK):
            if self._closed or self._changed.is_set():
                return
            self._read([path for path in self._order[begin : begin + CHUNK] if self._is_due(path)])

    def _is_due(self, path: str) -> bool:
        guess = self._found.get(path)
        known = guess is not None and guess.model is self.model
        return not known and path not in self.bad and self._is_wanted(path)

    def _read(self, paths: Sequence[str]) -> None:
        model, images, names = self.model, [], []
        for path in paths:
            try:
                images.append(model.decode_image(os.path.join(self._folder, path)))
                names.append(path)
            except (ImageError, OSError) as error:
                self.bad[path] = str(error)
        if images:
            readings = model.read(np.stack(images))
            self._found.update(
                {path: Guess(reading, model) for path, reading in zip(names, readings, strict=True)}
            )
