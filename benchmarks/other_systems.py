"""The row "systems": what a user gets from labelled captchas of a system that this project does not draw.

Each run is `python driver.py --images FOLDER` in an empty folder, and reads test images that are not
among the labelled ones. Runs that the record has are not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import load_package
from benchmarks.measure import in_subprocess
from benchmarks.runs import last_match, run_script
from benchmarks.systems import SYSTEMS, drawing_script, environment_folder, make_images
from captcha_cnn import VERSION
from captcha_cnn.checkpoint import load_latest
from captcha_cnn.files import atomic_folder
from captcha_cnn.metrics import Metrics
from captcha_cnn.progress import at_chance_level, chance_loss
from config import CaptchaError

COUNTS = (100, 200, 500, 1000, 2000)  # labelled images
STARTS = ("auto", "none")  # initial weights: those that come with the program, or random ones
SEEDS = 3  # runs of each, where --seeds does not say
RUNS = "runs of systems"  # the key of the runs in the record
TRAINING_IMAGES = 2600  # drawn; each run labels a part of them
TEST_IMAGES = 1000
SPARE_IMAGES = 200  # drawn in addition, in place of test images that are among the training images
TRAINING_SEED, TEST_SEED = 100, 101  # of the drawing: smaller ones drew images that choices were made on


class Run(NamedTuple):
    """What is run, which the record knows it by."""

    system: str
    labelled: int
    seed: int
    start: str


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this row."""
    group = parser.add_argument_group("the row systems")
    group.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="NAME", help="only these"
    )
    group.add_argument(
        "--counts", nargs="+", type=int, default=COUNTS, metavar="N", help="labelled images (default: all)"
    )
    group.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS, help="initial weights")
    group.add_argument("--again", action="store_true", help="repeat the runs that the record has")


def planned_runs(options: argparse.Namespace, seeds: Sequence[int]) -> list[Run]:
    """The runs asked for: those of the first seed first, and of a seed those of few images."""
    names = sorted(options.systems, key=lambda name: SYSTEMS[name].held_out)
    combinations = itertools.product(seeds, options.starts, options.counts, names)
    return [Run(name, count, seed, start) for seed, start, count, name in combinations]


def measure(
    options: argparse.Namespace, seeds: Sequence[int], earlier: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Do the runs that are missing, and yield the values of the row after each of them.

    Args:
        earlier: the values that the record has.
    Raises:
        CaptchaError: in the end, where a system could not be drawn or a run failed.
    """
    load_package("psutil")
    found = {run_of(each): each for each in earlier.get(RUNS, ()) if each["version"] == VERSION}
    done = set() if options.again else {run for run in found if "failed" not in found[run]}
    missing = [run for run in planned_runs(options, seeds) if run not in done]
    folders, problems = draw_all({run.system: None for run in missing})
    pool = ThreadPoolExecutor(options.jobs)  # a thread waits for the process of its run
    try:
        futures = [
            pool.submit(train_and_read, run, folders[run.system], options.jobs)
            for run in missing
            if run.system in folders
        ]
        for future in as_completed(futures):
            result = future.result()
            if "failed" in result:
                problems.append(f"{run_text(result)}: {result['failed']}")
            found[run_of(result)] = result
            yield {"test images": TEST_IMAGES, RUNS: [found[run] for run in sorted(found)]}
    finally:
        pool.shutdown(cancel_futures=True)
    if problems:
        raise CaptchaError("; ".join(problems))


def run_of(result: Mapping[str, Any]) -> Run:
    """The run that a result in the record is of."""
    return Run(*(result[name] for name in Run._fields))


def run_text(result: Mapping[str, Any]) -> str:
    """The run that a result is of, for people."""
    return "{system}, {labelled} labelled, seed {seed}, --start-from {start}".format(**result)


# ---------------------------------------------------------------------- images


def draw_all(names: Mapping[str, None]) -> tuple[dict[str, Path], list[str]]:
    """The folder of images of each system, and what went wrong with the others."""
    folders, problems = {}, []
    for name in names:
        try:
            folders[name] = drawn_images(name)
        except CaptchaError as error:  # the other systems can do without
            problems.append(str(error))
    return folders, problems


def drawn_images(system: str) -> Path:
    """A folder with `train` and `test` of a system; drawn where it is missing, beside its environment.

    Raises:
        CaptchaError: they cannot be drawn.
    """
    drawn_by = drawing_script(system).read_bytes()
    sizes = (TRAINING_IMAGES, TEST_IMAGES, SPARE_IMAGES, TRAINING_SEED, TEST_SEED)
    digest = hashlib.sha256(repr((environment_folder(system).name, drawn_by, sizes)).encode()).hexdigest()
    folder = environment_folder(system).parent / "images" / f"{system}-{digest[:8]}"
    if not folder.exists():
        print(f"  drawing {TRAINING_IMAGES + TEST_IMAGES} captchas of {system}", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as new:
            make_images(system, new / "train", TRAINING_IMAGES, TRAINING_SEED)
            make_images(system, new / "test", TEST_IMAGES + SPARE_IMAGES, TEST_SEED)
            keep_others(new / "test", new / "train")
    return folder


def keep_others(test: Path, train: Path) -> None:
    """Delete the test images that are identical to a training image, and all after the first 1,000 others."""
    known = {path.read_bytes() for path in train.iterdir()}
    others = [path for path in in_order(test) if path.read_bytes() not in known]
    if len(others) < TEST_IMAGES:
        raise CaptchaError(f"{TEST_IMAGES} test images must differ from the others, but {len(others)} do")
    for path in set(test.iterdir()) - set(others[:TEST_IMAGES]):
        path.unlink()


def in_order(folder: Path) -> list[Path]:
    """The images of a folder in the order in which they were drawn."""
    return sorted(folder.iterdir(), key=lambda path: path.stem.rpartition("_")[2])


def label_some(train: Path, count: int, seed: int, folder: Path) -> None:
    """Make a folder of `count` of the training images; of one seed, few are among many."""
    images = in_order(train)
    random.Random(seed).shuffle(images)
    folder.mkdir()
    for path in images[:count]:
        try:
            os.link(path, folder / path.name)
        except OSError:  # on another disk
            shutil.copyfile(path, folder / path.name)


# ---------------------------------------------------------------------- a run


def command(run: Run, test: str) -> list[str]:
    """The arguments of driver.py in the folder of a run."""
    arguments = ["--images", "images", "--test-folder", test, "--seed", str(run.seed)]
    if SYSTEMS[run.system].folds_case:
        arguments.append("--ignore-case")
    return arguments if run.start == "auto" else [*arguments, "--start-from", run.start]


def train_and_read(run: Run, drawn: Path, jobs: int) -> dict[str, Any]:
    """One run of driver.py in an empty folder.

    Args:
        drawn: the folder of images of its system.
    """
    result: dict[str, Any] = run._asdict() | {
        "version": VERSION,
        "day": date.today().isoformat(),
        "jobs": jobs,
    }
    with tempfile.TemporaryDirectory() as folder:
        label_some(drawn / "train", run.labelled, run.seed, Path(folder, "images"))
        begin = time.monotonic()
        try:
            printed, peak = run_script(folder, "driver.py", *command(run, str(drawn / "test")))
            result["total seconds"] = round(time.monotonic() - begin, 1)
            result["peak memory, GB"] = round(peak / 1e9, 2)
            result |= read_output(printed) | in_subprocess(read_training, os.path.join(folder, "checkpoints"))
        except CaptchaError as error:
            result["failed"] = str(error)
    said = result.get("failed") or "{captchas right} captchas right, {total seconds} s".format(**result)
    print(f"  {run_text(result)}: {said}", flush=True)
    return result


def read_output(printed: str) -> dict[str, Any]:
    """What driver.py printed of the test images.

    Those that it left out, such as those with a character that no labelled image has, are not read right.
    """
    right, count = last_match(r"Captcha accuracy: .* \((\d+) of (\d+)", printed)
    characters = float(last_match(r"Test accuracy: +([\d.]+)%", printed)[0]) / 100
    share = int(count) / TEST_IMAGES
    return {
        "captchas right": int(right),
        "test images left out": TEST_IMAGES - int(count),
        "character accuracy": round(share * characters, 4),
    }


def read_training(checkpoints: str) -> dict[str, Any]:
    """What the checkpoint says of the training."""
    saved = load_latest(checkpoints)
    progress = saved.progress
    best = Metrics(*progress["best"])
    return {
        "steps": progress["step"],
        "best step": progress["best_step"],
        "training seconds": round(progress["training_seconds"], 1),
        "validation loss": round(best.loss, 4),
        "loss of guessing": round(chance_loss(saved.config), 4),
        "ended on the plateau": at_chance_level(best, saved.config),
        "drawn captchas from step": progress.get("drawn_from", -1),  # -1: not needed
    }
