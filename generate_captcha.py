"""Draw the three captcha sets, and load them again: `python generate_captcha.py`.

The drawing itself is in captcha_cnn/drawing.py, the form of a set in captcha_cnn/dataset.py.
Importing this module does nothing, and it needs no TensorFlow.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

import numpy as np

from captcha_cnn import dataset
from captcha_cnn.check_page import add_check_flags, check_images
from captcha_cnn.cli import given_settings, make_parser, run_main
from captcha_cnn.decoded import Images
from captcha_cnn.drawing import check_drawable, draw_set
from captcha_cnn.files import folder_lock
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

    def gen_captcha(self, keep: bool = False) -> dict[str, list[str]]:
        """Draw what is missing of the three sets, and say what is there already.

        An interrupted set, and one whose images were deleted, is completed. With `keep`, sets drawn
        with another seed or count, and the user's own images, are used as they are.

        Returns:
            the sorted names of the files in each folder in which nothing was drawn.
        Raises:
            CaptchaError: a folder holds other images than those asked for, or some but not all of the
                folders hold the user's own. Nothing is drawn.
        """
        self.check_path()
        states = [dataset.set_state(self.config, *each, keep) for each in self.config.sets]
        for state in states:
            if state.message:
                print(state.message, flush=True)
        missing = [state for state in states if state.to_draw]
        if missing:
            dataset.check_own_images(self.config, missing[0].folder)
            check_drawable(self.config)
        with contextlib.ExitStack() as stack:
            for state in missing:
                flag = f"--{state.name}-folder"
                stack.enter_context(folder_lock(state.folder, flag, "draws captchas", hidden=True))
            for name, folder, manifest, *_ in missing:
                state = dataset.set_state(self.config, name, folder, manifest["count"], keep)
                if state.to_draw:  # still, now it is locked
                    draw_set(self.config, state)
        return {state.folder: state.files for state in states if not state.to_draw}


class ReadData:
    """Reads labelled images as arrays, as a Config describes them."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def read_data(self, path: str | os.PathLike[str]) -> tuple[np.ndarray, str]:
        """One image, uint8 [H, W], or [H, W, 3] in colour, and its label, from the name of the file.

        Raises:
            ImageError: not an image, damaged, of another size, or no valid label in its name.
        """
        return dataset.load_image(path, self.config)

    def label2vec(self, label: str) -> np.ndarray:
        """The one-hot vector of a label, float32 [L * K]: '1327' has ones at 1, 13, 22 and 37."""
        vector: np.ndarray = dataset.label_vectors([label], self.config)[0]
        return vector

    def vec2label(self, vector: np.ndarray) -> str:
        """The label of a one-hot vector, or of one score per character, [L * K]: the best of each place.

        Where lengths differ, it ends at the first place in which no score is above 0.
        """
        return dataset.label_of_vector(vector, self.config)

    def load_data(
        self, folder: str, files: Sequence[str] | None = None
    ) -> tuple[Images, np.ndarray | dataset.LabelVectors, int]:
        """All images of a folder, in the order of their file names.

        Args:
            files: the sorted names of its files, where they are known.
        Returns:
            images, uint8 [N, H, W]; label vectors, float32 [N, L * K]; N. Where they are too large for
            memory, they are no arrays, but are indexed like them.
        Raises:
            CaptchaError: as captcha_cnn.dataset.load_folder does.
        """
        images, labels = dataset.load_folder(folder, self.config, files)
        return *dataset.labelled_set(images, labels, self.config), len(labels)

    def load_set(self, folder: str, files: Sequence[str] | None = None) -> dataset.Dataset:
        """The same images and label vectors, without their number."""
        return dataset.Dataset(*self.load_data(folder, files)[:2])


def main(arguments: Sequence[str]) -> int:
    """Draw the three sets, or look at images of the user's own."""
    parser = make_parser("Draw the training, validation and test captchas, or check images of your own.")
    add_check_flags(parser)
    given = given_settings(vars(parser.parse_args(arguments)))
    if not check_images(given.pop("check"), given.pop("page"), given):
        Generate(Config(**given)).gen_captcha()
    return 0


if __name__ == "__main__":
    run_main(main)
