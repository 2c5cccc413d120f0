"""Train the initial weights that come with the program, on captchas of many styles.

    pip install -r requirements-styles.txt      the fonts
    python -m benchmarks.initial_weights        writes captcha_cnn/weights/styles.npz

The captchas are drawn anew, in memory. Only what is written in the end is kept, unless `--folder` names a
folder for the checkpoints: then an interrupted training goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import driver
from captcha_cnn.checkpoint import list_checkpoints, load_latest
from captcha_cnn.cli import OneLineErrorParser, run_main
from captcha_cnn.dataset import Dataset
from captcha_cnn.files import atomic_write
from captcha_cnn.initial_weights import (
    OWN_IMAGES,
    SHIPPED,
    TEMPERATURE,
    InitialWeights,
    of_checkpoint,
    write_weights,
)
from captcha_cnn.metrics import Metrics
from captcha_cnn.styles import STYLE_CHARACTERS, draw_styles
from captcha_cnn.tf_runtime import load_tensorflow
from config import CaptchaError, Config
from generate_captcha import ReadData

REQUIREMENTS = Path(__file__).parent.parent / "requirements-styles.txt"
TRAINING_IMAGES = 200_000
OTHER_IMAGES = 1000  # for validation, and as many for the test
SEEDS = {"training": 1, "validation": 2, "test": 3}
EPOCHS = 3
SETTINGS: dict[str, Any] = {
    "images": "styles",  # not a folder: it says that the images are not those of generate_captcha.py
    "width": 200,
    "height": 60,
    "char_num": "2-8",
    "characters": STYLE_CHARACTERS,
    **{name: OWN_IMAGES[name] for name in ("channels", "dense")},
    # No image is seen more than three times, and styles differ by much more than augmentation can change.
    "keep_prob": 1.0,
    **dict.fromkeys(("squeeze", "noise", "shift", "scale", "shear"), 0.0),
    "patience": 10**9,  # the number of epochs ends it
    "print_per_batch": 1000,
    "save_per_batch": 1000,
    "checkpoint_per_batch": 2000,
}


def check_fonts() -> None:
    """Raise a CaptchaError where a package of requirements-styles.txt is missing."""
    missing = []
    for name in re.findall(r"^[\w-]+", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE):
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        others = f" and {len(missing) - 1} other packages" if len(missing) > 1 else ""
        raise CaptchaError(
            f"all fonts must be installed to train initial weights, but {missing[0]}{others} are missing: "
            f"pip install -r {REQUIREMENTS.name}"
        )


def draw_set(config: Config, name: str, count: int) -> Dataset:
    """So many captchas of many styles."""
    lengths, size = (config.min_length, config.max_length), (config.width, config.height)
    images, labels = draw_styles(count, SEEDS[name], config.alphabet, lengths, size)
    label2vec = ReadData(config).label2vec
    return Dataset(images, np.stack([label2vec(label) for label in labels]))


def train(counts: dict[str, int], epochs: int, folder: str) -> tuple[InitialWeights, Metrics, Metrics | None]:
    """Draw the three sets, and train; a training that the folder has is resumed.

    Args:
        counts: how many captchas each set has, by the names of SEEDS.
        folder: for checkpoints and TensorBoard.
    Returns:
        the weights, and the result of validation and of test.
    """
    folders: dict[str, Any] = {f"{name}_folder": f"{folder}/{name}" for name in ("checkpoint", "tensorboard")}
    config = Config(**SETTINGS, **folders, Epoch=epochs)
    load_tensorflow()
    begun = load_latest(config.checkpoint_folder) if list_checkpoints(config.checkpoint_folder) else None
    training_set, validation_set, test_set = (draw_set(config, name, counts[name]) for name in SEEDS)
    _, test = driver.run_model(config, training_set, validation_set, test_set, begun)
    saved = load_latest(config.checkpoint_folder)
    weights = of_checkpoint(saved, "captchas of many styles")
    weights.weights[TEMPERATURE] = saved.weights[TEMPERATURE]  # the calibrated one
    return weights, Metrics(*saved.progress["best"]), test


def main(arguments: Sequence[str]) -> int:
    """Train, write the weights, and say how well they read."""
    parser: argparse.ArgumentParser = OneLineErrorParser(
        "Train the initial weights that come with the program."
    )
    parser.prog = "python -m benchmarks.initial_weights"
    parser.add_argument(
        "--images", type=int, default=TRAINING_IMAGES, help="captchas to train on (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    parser.add_argument("--folder", metavar="FOLDER", help="keep checkpoints there, and resume from them")
    parser.add_argument("--to", type=Path, default=SHIPPED, metavar="FILE", help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.images < 1 or options.epochs < 1:
        parser.error("images and epochs must be more than 0")
    check_fonts()
    counts = {"training": options.images, "validation": OTHER_IMAGES, "test": OTHER_IMAGES}
    with tempfile.TemporaryDirectory() as folder, atomic_write(options.to) as temporary:
        weights, validation, test = train(counts, options.epochs, options.folder or folder)
        written = Path(folder, "weights.npz")  # NumPy adds this ending to other names
        write_weights(written, weights)
        shutil.copyfile(written, temporary)
    for name, metrics in (("Validation", validation), ("Test", test)):
        if metrics:
            right = f"{metrics.accuracy:.2%} of characters, {metrics.captcha_accuracy:.2%} of captchas right"
            print(f"{name}: {right}")
    print(f"{options.to}: {options.to.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    run_main(main)
