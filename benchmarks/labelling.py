"""How many labels, and how much of a person's time, label.py needs: `python -m benchmarks.labelling`.

A simulated person types the truth: 2 seconds to confirm a guess that is right, 4 to type another text. The
labelling, its models and its trainings are the real ones; a training takes its time while labels are typed,
as in the browser. With --wait the person waits for it: then the number of labels does not depend on the
machine's speed, and orders can be compared. Each model then reads images that are in no folder of the person.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.other_systems import drawn_images, in_order, label_of, link
from benchmarks.systems import SYSTEMS
from captcha_cnn.background_training import FIRST_LABELS, GROWTH, PROJECT, training_command
from captcha_cnn.cli import OneLineErrorParser, run_main
from captcha_cnn.labelling import MODEL, RANDOM_SHARE, Labelling, Settings
from captcha_cnn.numpy_model import NumpyModel, load_model
from captcha_cnn.tf_runtime import batch_slices
from config import CaptchaError

CONFIRM_SECONDS, TYPE_SECONDS = 2, 4
IMAGES = 2000  # of the person
ORDERS = {"mixture": RANDOM_SHARE, "random": 1.0}  # share of the images that are chosen at random
TARGET, READER = (
    0.99,
    0.97,
)  # of unseen images read right: labels are counted to the first, time to the second
NAMES = [name for name in SYSTEMS if not SYSTEMS[name].folds_case]  # label.py tells upper from lower case

Train = Callable[[Settings, int, int], Path]  # settings, labels, images without labels; the file of the model


class Point(NamedTuple):
    """One trained model."""

    labels: int  # that it was trained on
    typing_seconds: int  # of the person, until the training began
    ready_seconds: int  # the same when the model took over
    right: float  # share of the unseen images


def train(settings: Settings, labels: int, unlabelled: int) -> Path:
    """A training as label.py begins it, in the folder of the settings.

    Raises:
        CaptchaError: it failed.
    """
    Path(settings.work).mkdir(parents=True)
    command = training_command(settings, labels, unlabelled)
    # It would end when its input is closed.
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        status = process.wait()
    if status:
        log = Path(settings.work, "training.log").read_text(encoding="utf-8", errors="replace")
        raise CaptchaError(f"a training of {labels} labels failed: {log.strip()[-300:]}")
    return Path(settings.work, MODEL)


class Person:
    """Types the labels of a folder, one after the other, while models are trained.

    Args:
        truth: the label of each image, by its name. train: does a training.
        waits: whether nothing is typed during a training.
    """

    def __init__(self, settings: Settings, truth: dict[str, str], train: Train, waits: bool = False) -> None:
        self.labelling, self.truth, self._train, self.waits = Labelling(settings), truth, train, waits
        self.seconds = 0
        self._last, self._ready_at = 0, 0.0
        self._coming: tuple[Path, int, int] | None = None  # model, its labels, when its training began
        self.labelling.guesses.read_all()

    def label(self) -> Point | None:
        """Label the next image; where a new model is there, have it take over first, which is all then."""
        if point := self._take_over():
            return point
        if (item := self.labelling.next()) is None:
            raise CaptchaError("all images are labelled, and the model is not good enough")
        truth = self.truth[item.file]
        self.seconds += CONFIRM_SECONDS if item.guess == truth else TYPE_SECONDS
        self.labelling.record(item.file, truth)
        self._begin_training()
        return None

    def _begin_training(self) -> None:
        count = len(self.labelling.labels)
        if self._coming or count < max(FIRST_LABELS, round(GROWTH * self._last)):
            return
        settings = self.labelling.settings
        begin, unlabelled = time.monotonic(), len(self.truth) - count
        model = self._train(settings._replace(work=f"{settings.work}/{count}"), count, unlabelled)
        self._last, self._coming = count, (model, count, self.seconds)
        self._ready_at = self.seconds + time.monotonic() - begin

    def _take_over(self) -> Point | None:
        if not self._coming or (self.seconds < self._ready_at and not self.waits):
            return None
        model, count, begun = self._coming
        shutil.copyfile(model, Path(self.labelling.settings.work, MODEL))
        self.labelling.update_model()
        self.labelling.guesses.read_all()
        self._coming = None
        return Point(count, begun, max(self.seconds, math.ceil(self._ready_at)), 0.0)


def share_right(model: NumpyModel, paths: Sequence[Path]) -> float:
    """The share of images, labelled in their names, that a model reads right."""
    correct = 0
    for part in batch_slices(len(paths)):
        readings = model.read(np.stack([model.decode_image(str(path)) for path in paths[part]]))
        pairs = zip(readings, paths[part], strict=True)
        correct += sum(reading.text == label_of(path) for reading, path in pairs)
    return correct / len(paths)


def simulate(
    system: str, seed: int, order: str, most: int, waits: bool = False, trainer: Train = train
) -> list[Point]:
    """The models of one person, until one reaches TARGET, or with the last of at most so many labels.

    Args:
        order: one of ORDERS. waits: whether the person waits for each training.
    """
    drawn, row = drawn_images(system), SYSTEMS[system]
    images, test = in_order(drawn / "train"), in_order(drawn / "test")
    random.Random(seed).shuffle(images)
    files = {f"image-{seed}-{i}{path.suffix}": path for i, path in enumerate(images[:IMAGES])}
    truth = {name: label_of(path) for name, path in files.items()}
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as place:
        folder, work = Path(place, "images"), str(Path(place, "work"))
        link(folder, files)
        settings = Settings(str(folder), work, row.alphabet, row.char_num, TARGET, ORDERS[order])
        person = Person(settings, truth, trainer, waits)
        while not points or (points[-1].right < TARGET and points[-1].labels * GROWTH <= most):
            if point := person.label():
                right = share_right(load_model(Path(work, MODEL)), test)
                points.append(point._replace(right=right))
                said = f"{right:.1%} with {point.labels} labels, {point.typing_seconds} s of typing"
                print(f"  {system}, seed {seed}, {order}: {said}", flush=True)
    return points


def summary(points: Sequence[Point]) -> dict[str, Any]:
    """Labels until TARGET and the person's seconds until READER; None where they are not reached."""
    reached = {share: next((p for p in points if p.right >= share), None) for share in (TARGET, READER)}
    target, reader = reached[TARGET], reached[READER]
    return {
        f"labels until {TARGET:.0%}": target and target.labels,
        f"seconds until {READER:.0%}": reader and reader.typing_seconds,
        f"seconds until the reader of {READER:.0%} is there": reader and reader.ready_seconds,
        "models": [list(point) for point in points],
    }


def main(arguments: Sequence[str]) -> int:
    """Run the simulations that the command line names, and print a line of JSON for each."""
    parser: argparse.ArgumentParser = OneLineErrorParser("Simulate a person who labels captchas.")
    parser.add_argument(
        "--systems", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="only these"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each (default: 3)")
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS), help="only these")
    parser.add_argument("--most", type=int, default=800, metavar="N", help="labels at most (default: 800)")
    text = "the person waits for each training: the labels do not depend on the machine's speed"
    parser.add_argument("--wait", action="store_true", help=text)
    options = parser.parse_args(arguments)
    for system in options.systems:
        for seed in range(options.seeds):
            for order in options.orders:
                found = summary(simulate(system, seed, order, options.most, options.wait))
                about = {"system": system, "seed": seed, "order": order, "wait": options.wait}
                print(json.dumps(about | found), flush=True)
    return 0


if __name__ == "__main__":
    run_main(main)
