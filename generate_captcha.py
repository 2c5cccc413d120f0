"""Draw the three captcha sets, and load them again: `python generate_captcha.py`.

The drawing itself is in captcha_cnn/drawing.py, the form of a set in captcha_cnn/dataset.py.
Importing this module does nothing, and it needs no TensorFlow.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from captcha_cnn.cli import parse, run_main
from captcha_cnn.dataset import (
    MANIFEST,
    SetState,
    list_image_files,
    load_folder,
    load_image,
    read_manifest,
    set_state,
)
from captcha_cnn.drawing import check_drawable, draw_files, image_filename, random_label
from captcha_cnn.files import folder_lock, write_json
from captcha_cnn.parallel import parallel_map
from config import CaptchaError, Config, escape_unprintable


class Generate:
    """Draws the training, validation and test set that a Config describes."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def check_path(self) -> None:
        """Make the three folders where they are missing."""
        for _, folder, _ in self.config.sets:
            if os.path.lexists(folder) and not os.path.isdir(folder):
                raise CaptchaError(
                    f"{escape_unprintable(folder)} must be a folder for captchas, but is a file: name "
                    "another folder"
                )
            os.makedirs(folder, exist_ok=True)

    def gen_captcha(self, keep: bool = False) -> None:
        """Draw what is missing of the three sets, and say what is there already.

        An interrupted set, and one whose images were deleted, is completed. With `keep`, sets drawn
        with another seed or count, and the user's own images, are used as they are.

        Raises:
            CaptchaError: a folder holds other images than those asked for, or some but not all of the
                folders hold the user's own. Nothing is drawn.
        """
        self.check_path()
        states = [set_state(self.config, *each, keep) for each in self.config.sets]
        for state in states:
            if state.message:
                print(state.message, flush=True)
        missing = [state for state in states if state.to_draw]
        if not missing:
            return
        self._check_own_images(missing[0].folder)
        check_drawable(self.config)
        with contextlib.ExitStack() as stack:
            for state in missing:
                flag = f"--{state.name}-folder"
                stack.enter_context(folder_lock(state.folder, flag, "draws captchas", hidden=True))
            for state in missing:
                count = state.manifest["count"]
                if set_state(
                    self.config, state.name, state.folder, count, keep
                ).to_draw:  # still, now it is locked
                    self._draw_set(state)

    def _check_own_images(self, missing: str) -> None:
        for _, folder, _ in self.config.sets:
            if read_manifest(folder) is None and list_image_files(folder):
                missing, own = escape_unprintable(missing), escape_unprintable(folder)
                raise CaptchaError(
                    f"{missing} must hold images of yours, as {own} does, since drawn captchas would train "
                    "or test for something else: put some there"
                )

    def _draw_set(self, state: SetState) -> None:
        name, folder, manifest = state.name, state.folder, state.manifest
        existing = set(os.listdir(folder))
        files = [image_filename(random_label(self.config, name, i)[0], i) for i in range(manifest["count"])]
        indices = [i for i, file in enumerate(files) if file not in existing]
        write_json(Path(folder, MANIFEST), manifest | {"complete": False})
        work = functools.partial(draw_files, self.config, name, folder)
        try:
            for _ in parallel_map(work, indices, f"Drawing {name}"):
                pass
        except OSError as error:
            raise CaptchaError(
                f"{escape_unprintable(folder)} could not be drawn to the end ({error.strerror or error}): "
                "the images drawn so far are kept, and the next run goes on from there"
            ) from error
        write_json(Path(folder, MANIFEST), manifest | {"complete": True})
        print(f"{escape_unprintable(folder)}: {manifest['count']} captchas drawn", flush=True)


class ReadData:
    """Reads labelled images as arrays, as a Config describes them."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def read_data(self, path: str | os.PathLike[str]) -> tuple[np.ndarray, str]:
        """One image, uint8 [H, W], grayscale, and its label, from the name of the file.

        Raises:
            ImageError: not an image, damaged, of another size, or no valid label in its name.
        """
        return load_image(path, self.config)

    def label2vec(self, label: str) -> np.ndarray:
        """The one-hot vector of a label, float32 [L * K]: '1327' has ones at 1, 13, 22 and 37."""
        length, alphabet = self.config.char_num, self.config.alphabet
        if len(label) != length or not set(label) <= set(alphabet):
            raise CaptchaError(f"a label must be {length} characters of {alphabet}, not {label!r}")
        vector = np.zeros((length, len(alphabet)), np.float32)
        vector[np.arange(length), [alphabet.index(character) for character in label]] = 1
        return vector.reshape(-1)

    def vec2label(self, vector: np.ndarray) -> str:
        """The label of a one-hot vector, or of one score per character, [L * K]: the best of each place."""
        length, alphabet = self.config.char_num, self.config.alphabet
        if np.size(vector) != length * len(alphabet):
            raise CaptchaError(
                f"a label's vector must have {length * len(alphabet)} values, not {np.size(vector)}"
            )
        classes = np.reshape(vector, (length, len(alphabet))).argmax(axis=1)
        return "".join(alphabet[i] for i in classes)

    def load_data(self, folder: str) -> tuple[np.ndarray, np.ndarray, int]:
        """All images of a folder, in the order of their file names.

        Returns:
            images, uint8 [N, H, W]; label vectors, float32 [N, L * K]; N.
        Raises:
            CaptchaError: as captcha_cnn.dataset.load_folder does.
        """
        images, labels, _ = load_folder(folder, self.config)
        return images, np.stack([self.label2vec(label) for label in labels]), len(labels)


def main(arguments: Sequence[str]) -> int:
    """Draw the three sets."""
    Generate(parse(arguments, "Draw the training, validation and test captchas.")).gen_captcha()
    return 0


if __name__ == "__main__":
    run_main(main)
