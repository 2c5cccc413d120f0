"""Train the initial weights that come with the program, on captchas of many styles.

    pip install -r requirements-styles.txt      the fonts
    python -m benchmarks.initial_weights        writes captcha_cnn/weights/styles.npz

Training has three phases, each on other captchas and with a smaller learning rate than the one before.
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
from typing import Any, NamedTuple

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
OTHER_IMAGES = 1000  # for validation, and as many for the test
SEEDS = {"validation": 2, "test": 3}


class Phase(NamedTuple):
    """A part of the training."""

    images: int
    epochs: int
    alpha: float  # the learning rate
    seed: int  # of the captchas


PHASES = (Phase(200_000, 3, 4e-3, 1), Phase(128_000, 2, 1e-3, 4), Phase(128_000, 2, 2.5e-4, 5))
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


def draw_set(config: Config, count: int, seed: int) -> Dataset:
    """So many captchas of many styles."""
    lengths, size = (config.min_length, config.max_length), (config.width, config.height)
    images, labels = draw_styles(count, seed, config.alphabet, lengths, size)
    label2vec = ReadData(config).label2vec
    return Dataset(images, np.stack([label2vec(label) for label in labels]))


def train(phase: Phase, begin: InitialWeights | None, folder: str) -> tuple[InitialWeights, str]:
    """Draw the sets of a phase, and train; a training that the folder has is resumed.

    Args:
        begin: the weights of the phase before.
        folder: for checkpoints and TensorBoard.
    Returns:
        the weights, and how well they read.
    """
    folders: dict[str, Any] = {f"{name}_folder": f"{folder}/{name}" for name in ("checkpoint", "tensorboard")}
    config = Config(**SETTINGS, **folders, Epoch=phase.epochs, alpha=phase.alpha)
    load_tensorflow()
    begun = load_latest(config.checkpoint_folder) if list_checkpoints(config.checkpoint_folder) else None
    training_set = draw_set(config, phase.images, phase.seed)
    validation_set, test_set = (draw_set(config, OTHER_IMAGES, seed) for seed in SEEDS.values())
    _, test = driver.run_model(config, training_set, validation_set, test_set, begun or begin)
    saved = load_latest(config.checkpoint_folder)
    weights = of_checkpoint(saved, "captchas of many styles")
    weights.weights[TEMPERATURE] = saved.weights[TEMPERATURE]  # the calibrated one
    results = (("Validation", Metrics(*saved.progress["best"])), ("Test", test))
    lines = [
        f"{name}: {metrics.accuracy:.2%} of characters, {metrics.captcha_accuracy:.2%} of captchas right"
        for name, metrics in results
        if metrics
    ]
    return weights, "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Train, write the weights, and say how well they read."""
    parser: argparse.ArgumentParser = OneLineErrorParser(
        "Train the initial weights that come with the program."
    )
    parser.prog = "python -m benchmarks.initial_weights"
    parser.add_argument("--folder", metavar="FOLDER", help="keep checkpoints there, and resume from them")
    parser.add_argument("--to", type=Path, default=SHIPPED, metavar="FILE", help="default: %(default)s")
    options = parser.parse_args(arguments)
    check_fonts()
    weights: InitialWeights | None = None
    with tempfile.TemporaryDirectory() as temporary, atomic_write(options.to) as file:
        written = Path(temporary, "weights.npz")  # NumPy adds this ending to other names
        for number, phase in enumerate(PHASES, 1):
            weights, result = train(phase, weights, f"{options.folder or temporary}/phase-{number}")
            print(f"Phase {number}\n{result}", flush=True)
            write_weights(written, weights)
        shutil.copyfile(written, file)
    print(f"{options.to}: {options.to.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    run_main(main)
