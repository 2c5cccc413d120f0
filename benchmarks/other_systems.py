"""The row "systems": what a user gets from labelled captchas of a system that this project does not draw.

Each run is `python driver.py --images FOLDER` in an empty folder, and reads test images that are not
among the labelled ones. It may have images without labels beside the labelled ones, or no labels at all:
then it is told the alphabet and the lengths. Runs that the record has are not repeated.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from captcha_cnn.initial_weights import SHIPPED
from captcha_cnn.metrics import EvaluationReport, Metrics, evaluate_predictions, wilson_interval
from captcha_cnn.progress import at_chance_level, chance_loss
from config import CaptchaError
from predict import Predictor

COUNTS = (25, 50, 100, 200, 500, 1000, 2000)  # labelled images
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
    unlabelled: int = 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this row."""
    group = parser.add_argument_group("the row systems")
    group.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="NAME", help="only these"
    )
    group.add_argument(
        "--counts", nargs="+", type=int, default=COUNTS, metavar="N", help="labelled images (default: all)"
    )
    group.add_argument(
        "--unlabelled",
        nargs="+",
        type=int,
        default=(0,),
        metavar="N",
        help=f"images without labels, of the {TRAINING_IMAGES:,} less the labelled ones (default: 0)",
    )
    group.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS, help="initial weights")
    group.add_argument("--again", action="store_true", help="repeat the runs that the record has")


def planned_runs(options: argparse.Namespace, seeds: Sequence[int]) -> list[Run]:
    """The runs asked for that can be: those of the first seed first, and of a seed those of few images."""
    names = sorted(options.systems, key=lambda name: SYSTEMS[name].held_out)
    combinations = itertools.product(seeds, options.starts, options.unlabelled, options.counts, names)
    runs = [Run(name, count, seed, start, others) for seed, start, others, count, name in combinations]
    return [run for run in runs if is_possible(run, seeds[0])]


def is_possible(run: Run, first_seed: int) -> bool:
    """Whether there are images enough for it, and it is not another run by another name.

    Without any label there is no choice of initial weights, and without any image no seed matters.
    """
    enough = run.labelled + run.unlabelled <= TRAINING_IMAGES
    if run.labelled:
        return enough
    return enough and run.start == "auto" and (run.unlabelled > 0 or run.seed == first_seed)


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
    done = set() if options.again else {run for run in found if is_done(found[run])}
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


def is_done(result: Mapping[str, Any]) -> bool:
    """Whether a run in the record needs no repetition: it succeeded, with the initial weights of today."""
    return "failed" not in result and (result["start"] != STARTS[0] or has_current_weights(result))


def has_current_weights(result: Mapping[str, Any]) -> bool:
    """Whether the initial weights of a result are those that come with the program today."""
    return bool(result.get("weights") == weights_digest())


@functools.cache
def weights_digest() -> str:
    """What the initial weights that come with the program are known by in the record."""
    return hashlib.sha256(SHIPPED.read_bytes()).hexdigest()[:8]


def run_of(result: Mapping[str, Any]) -> Run:
    """The run that a result in the record is of."""
    return Run(
        **{name: result[name] for name in Run._fields if name in result}
    )  # an earlier one: 0 unlabelled


def run_text(result: Mapping[str, Any]) -> str:
    """The run that a result is of, for people."""
    others = f" + {result['unlabelled']} unlabelled" if result.get("unlabelled") else ""
    return "{system}, {labelled} labelled{}, seed {seed}, --start-from {start}".format(others, **result)


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
    """A folder with `train` and `test` of a system; drawn where it is missing.

    Raises:
        CaptchaError: they cannot be drawn.
    """
    folder = image_folder(system)
    if not folder.exists():
        print(f"  drawing {TRAINING_IMAGES + TEST_IMAGES} captchas of {system}", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as new:
            make_images(system, new / "train", TRAINING_IMAGES, TRAINING_SEED)
            make_images(system, new / "test", TEST_IMAGES + SPARE_IMAGES, TEST_SEED)
            keep_others(new / "test", new / "train")
    return folder


def image_folder(system: str) -> Path:
    """Where the images of a system are, or will be: beside its environment."""
    drawn_by = drawing_script(system).read_bytes()
    sizes = (TRAINING_IMAGES, TEST_IMAGES, SPARE_IMAGES, TRAINING_SEED, TEST_SEED)
    digest = hashlib.sha256(repr((environment_folder(system).name, drawn_by, sizes)).encode()).hexdigest()
    return environment_folder(system).parent / "images" / f"{system}-{digest[:8]}"


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


def lay_out(drawn: Path, run: Run, folder: Path) -> None:
    """Make the folders of a run, `images`, `unlabelled` and `test`; one without images is not made.

    Of one seed, few labelled images are among many, and all counts have the same unlabelled ones.
    """
    images = in_order(drawn / "train")
    random.Random(run.seed).shuffle(images)
    labelled, others = images[: run.labelled], images[len(images) - run.unlabelled :]
    test = in_order(drawn / "test")
    if labelled:
        test = [path for path in test if can_be_read(label_of(path), run.system, map(label_of, labelled))]
    link(folder / "images", {path.name: path for path in labelled})
    link(folder / "unlabelled", {f"image-{i}{path.suffix}": path for i, path in enumerate(others)})
    link(folder / "test", {path.name: path for path in test})


def can_be_read(label: str, system: str, known: Iterable[str]) -> bool:
    """Whether known labels have all characters of a label and its length, or a shorter and a longer one.

    driver.py leaves out test images for which they have not, and refuses a folder with many of those.
    """
    fold, labels = (str.lower if SYSTEMS[system].folds_case else str), list(known)
    lengths = [len(each) for each in labels]
    return set(fold(label)) <= set(fold("".join(labels))) and min(lengths) <= len(label) <= max(lengths)


def link(folder: Path, files: Mapping[str, Path]) -> None:
    """Make a folder of files under those names."""
    if files:
        folder.mkdir()
    for name, path in files.items():
        try:
            os.link(path, folder / name)
        except OSError:  # on another disk
            shutil.copyfile(path, folder / name)


def label_of(path: Path) -> str:
    """The label in the name of a drawn file."""
    return path.name.partition("_")[0]


# ---------------------------------------------------------------------- a run


def command(run: Run) -> list[str]:
    """The arguments of driver.py in the folder of a run."""
    system, arguments = SYSTEMS[run.system], ["--test-folder", "test", "--seed", str(run.seed)]
    if run.unlabelled:
        arguments = ["--unlabelled", "unlabelled", *arguments]
    if run.labelled:
        arguments = ["--images", "images", *arguments]
    else:
        arguments += ["--characters", system.alphabet, "--char-num", system.char_num]
    if system.folds_case:
        arguments.append("--ignore-case")
    return arguments if run.start == "auto" else [*arguments, "--start-from", run.start]


def train_and_read(run: Run, drawn: Path, jobs: int) -> dict[str, Any]:
    """One run in an empty folder.

    Args:
        drawn: the folder of images of its system.
    """
    result: dict[str, Any] = run._asdict() | {
        "version": VERSION,
        "day": date.today().isoformat(),
        "jobs": jobs,
    }
    if run.start == STARTS[0]:
        result["weights"] = weights_digest()
    try:
        if run.labelled or run.unlabelled:
            with tempfile.TemporaryDirectory() as folder:
                lay_out(drawn, run, Path(folder))
                result |= run_driver(run, folder)
        else:
            result |= in_subprocess(read_without_training, run.system, drawn / "test")
    except CaptchaError as error:
        result["failed"] = str(error)
    said = result.get("failed") or "{captchas right} captchas right, {total seconds} s".format(**result)
    print(f"  {run_text(result)}: {said}", flush=True)
    return result


def run_driver(run: Run, folder: str) -> dict[str, Any]:
    """What driver.py says in the folder of a run, its checkpoint, and predict.py of the confidences."""
    begin = time.monotonic()
    printed, peak = run_script(folder, "driver.py", *command(run))
    seconds = time.monotonic() - begin
    # Status 1: it left out images, such as those with a character that it took for a typing error.
    report, _ = run_script(folder, "predict.py", "--labelled", "test", accepted=(0, 1))
    return {
        "total seconds": round(seconds, 1),
        "peak memory, GB": round(peak / 1e9, 2),
        **read_output(printed),
        **read_calibration(report),
        **in_subprocess(read_training, os.path.join(folder, "checkpoints")),
    }


def read_without_training(system: str, folder: Path) -> dict[str, Any]:
    """What the general weights read in the test images."""
    begin = time.monotonic()
    report = read_untrained(system, in_order(folder))
    return {
        "total seconds": round(time.monotonic() - begin, 1),
        "captchas right": report.correct,
        "test images left out": 0,
        "character accuracy": round(report.chars_correct / report.chars, 4),
        "calibration error": round(report.calibration_error, 4),
    }


def read_untrained(system: str, paths: Sequence[Path]) -> EvaluationReport:
    """How well the general weights read images, with the alphabet and the lengths of their system."""
    row = SYSTEMS[system]
    predictions = Predictor(None, row.alphabet, row.char_num).read(list(paths))
    return evaluate_predictions(
        [row.as_counted(label_of(path)) for path in paths],
        [row.as_counted(each.text) for each in predictions],
        [each.confidence for each in predictions],
        None,
    )


def read_output(printed: str) -> dict[str, Any]:
    """What driver.py printed of the test images, and of the accuracy to expect.

    Those that were left out, such as those with a character that no labelled image has, are not read right.
    """
    right, count = map(int, last_match(r"Captcha accuracy: .* \((\d+) of (\d+)", printed))
    characters = float(last_match(r"Test accuracy: +([\d.]+)%", printed)[0]) / 100
    found = {
        "captchas right": right,
        "test images left out": TEST_IMAGES - count,
        "character accuracy": round(count / TEST_IMAGES * characters, 4),
    }
    # The program reports it itself where it has cross-validated, which it does with few labels.
    for text in re.findall(r"Cross-validation accuracy: .* \((\d+ of \d+)", printed)[-1:]:
        reported, images = map(int, text.split(" of "))
        low, high = wilson_interval(reported, images)
        inside = low <= right / TEST_IMAGES <= high
        found |= {"reported right": reported, "reported images": images, "inside interval": inside}
    return found


def read_calibration(printed: str) -> dict[str, float]:
    """The calibration error that predict.py printed, as a share; nothing where it has read nothing."""
    found = re.search(r"Expected calibration error: ([\d.]+)%", printed)
    return {"calibration error": round(float(found[1]) / 100, 4)} if found else {}


def read_training(checkpoints: str) -> dict[str, Any]:
    """What the checkpoint says of the training; of its validation where there was one."""
    saved = load_latest(checkpoints)
    progress = saved.progress
    found = {
        "steps": progress["step"],
        "best step": progress["best_step"],
        "training seconds": round(progress["training_seconds"], 1),
        "loss of guessing": round(chance_loss(saved.config), 4),
        "drawn captchas from step": progress.get("drawn_from", -1),  # -1: not needed
    }
    if progress.get("best"):
        best = Metrics(*progress["best"])
        found["validation loss"] = round(best.loss, 4)
        found["ended on the plateau"] = at_chance_level(best, saved.config)
    return found
