"""Read captchas with a trained model: `python predict.py captcha.png more/`.

Prints a line a picture: path, text and confidence (the probability of the text among all
texts of its length), separated by tabs.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from config import Config, Parser, printable, run
from generate_captcha import PictureError, ReadData, visible_names
from runtime import SUFFIXES, Model, load_exported
from session import Saved, has_bfloat16, load, load_tensorflow, session_config

BATCH = 250  # pictures read at once: bounds memory


class Reading(NamedTuple):
    """What a picture says."""

    text: str
    confidence: float  # from 0 to 1


class Predictor:
    """Reads pictures with a checkpoint folder's best weights, or an exported file, and their settings."""

    def __init__(self, path: str = Config.checkpoint_folder) -> None:
        self.path = path

    @functools.cached_property
    def _saved(self) -> Saved:
        load_tensorflow()
        return load(self.path)

    @functools.cached_property
    def _exported(self) -> tuple[Config, Model] | None:
        """What is read with where it needs no TensorFlow."""
        if not self.path.endswith(SUFFIXES):
            return None
        settings, model = load_exported(self.path)
        return Config(**settings), model

    @property
    def config(self) -> Config:
        """The settings that the model was trained with."""
        return self._exported[0] if self._exported else self._saved.config

    @functools.cached_property
    def _model(self) -> Model:
        """As load_exported() explains it; of a checkpoint, made at the first picture."""
        if self._exported:
            return self._exported[1]
        tf = load_tensorflow()
        from cnn_model import frozen

        with tf.Graph().as_default():
            x, answers = frozen(self.config, self._saved.weights)
            codes = tf.constant([ord(symbol) for symbol in self.config.alphabet])
            answers = answers._replace(
                symbols=tf.gather(codes, answers.symbols), runner_up=tf.gather(codes, answers.runner_up)
            )
            session = tf.Session(config=session_config(has_bfloat16()))  # as in training
            model: Model = session.make_callable(list(answers), [x])
            return model

    def read(self, images: np.ndarray) -> list[Reading]:
        """Texts and confidences of uint8 [N, H, W] pictures."""
        readings = []
        for start in range(0, len(images), BATCH):
            codes, confidence, *_ = self._model(images[start : start + BATCH])
            texts = ["".join(map(chr, row)) for row in codes]
            readings += [Reading(*each) for each in zip(texts, confidence.tolist(), strict=True)]
        return readings


def main(arguments: Sequence[str]) -> int:
    """Read the pictures and folders named; 1 where a file could not be read."""
    parser = Parser("Read captchas with a trained model.")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a picture, or a folder of them")
    parser.add_argument(
        "--checkpoint-folder",
        default=Config.checkpoint_folder,
        help="folder of the model (default: %(default)s)",
    )
    parser.add_argument("--model", metavar="FILE", help="file that export.py wrote, to read with instead")
    options = parser.parse_args(arguments)
    predictor = Predictor(options.model or options.checkpoint_folder)
    reader = ReadData(predictor.config)
    paths = [inner for path in options.paths for inner in pictures(path)]
    failed = 0
    for start in range(0, len(paths), BATCH):
        names, images = [], []
        for path in paths[start : start + BATCH]:
            try:
                images.append(reader.read_picture(path))
                names.append(path)
            except PictureError as error:
                print(f"{printable(path)}: {error}", file=sys.stderr)
                failed += 1
        if images:
            for name, reading in zip(names, predictor.read(np.stack(images)), strict=True):
                print(f"{printable(name)}\t{reading.text}\t{reading.confidence:.4f}", flush=True)
    return 1 if failed else 0


def pictures(path: str) -> list[str]:
    """The path itself, or the files of the folder that it is, in name order."""
    return [os.path.join(path, name) for name in visible_names(path)] if os.path.isdir(path) else [path]


if __name__ == "__main__":
    run(main)
