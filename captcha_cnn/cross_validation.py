"""Cross-validation: an honest figure from few labelled images, and a model that is trained on all of them.

The images are split into parts, the folds. For each fold, a model is trained on the other images and
reads those of the fold, which it has never seen. All readings together say how well such a model reads,
its confidences are calibrated on them, and they decide how many rounds of self-training help, and how much
of the initial weights is kept. Then the model that is kept is trained on all images, in the same way.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from captcha_cnn import readings
from captcha_cnn.calibration import fit_temperature, set_temperature
from captcha_cnn.checkpoint import (
    CROSS_VALIDATION,
    FOLD,
    CheckpointData,
    TrainState,
    fold_folders,
    list_checkpoints,
    load_latest,
    newest_of_run,
    resume_version_error,
)
from captcha_cnn.dataset import Dataset, no_images
from captcha_cnn.files import write_json
from captcha_cnn.initial_weights import InitialWeights
from captcha_cnn.interpolation import SHARE_OF_FOLDS, SHARES, interpolated
from captcha_cnn.metrics import Metrics, accuracy_line
from captcha_cnn.own_sets import OwnSets
from captcha_cnn.progress import log
from captcha_cnn.readings import Readings, read_dataset
from captcha_cnn.run_folders import reserve_folders
from captcha_cnn.tf_runtime import GracefulStop
from config import CaptchaError, Config

TrainModel: TypeAlias = Callable[
    [Config, tuple[Dataset, ...], CheckpointData | InitialWeights | None, OwnSets, GracefulStop],
    tuple[TrainState, Metrics | None],
]


class Pooled(NamedTuple):
    """What the models of all folds say together, in the order of the images."""

    rounds: int  # of self-training that help
    share: float  # of the trained weights in the mean that reads best: see captcha_cnn.interpolation
    temperatures: list[float]  # of such means after no round, after one, and so on
    readings: Readings  # with the rounds that help


def run(
    train_model: TrainModel,
    config: Config,
    sets: tuple[Dataset, Dataset],
    initial: InitialWeights | None,
    own: OwnSets,
    saved: CheckpointData | None,
) -> tuple[TrainState, Metrics | None]:
    """Train a model for each fold, which reads the images of the fold, and then the one that is kept.

    What an interrupted run has done is not done again when it is resumed.

    Args:
        train_model: driver.train_model().
        sets: the images to train on, and the test set, which may be empty.
        saved: the run to resume; without it, an earlier one in the checkpoint folder is archived.
    Returns:
        of the model that is kept, as driver.run_model().
    """
    (train, test), none, folder = sets, no_images(config), config.checkpoint_folder
    with reserve_folders(config, saved is not None, own.record), GracefulStop() as stop:
        record = Path(folder, CROSS_VALIDATION)
        if not record.exists():
            pooled = pool(list(read_folds(train_model, config, train, initial, own, stop)))
            write_json(record, pooled._asdict())
        pooled = read_record(record)
        log(report(pooled, config))
        begin = load_latest(folder) if list_checkpoints(folder) else initial
        plan = own._replace(
            rounds=pooled.rounds,
            temperatures=pooled.temperatures,
            share=pooled.share,
            is_first=False,
        )
        state, result = train_model(config, (train, none, test), begin, plan, stop)
        readings.report(pooled.readings, own.record["train"], config)
        for fold in fold_folders(folder):  # of no use any more
            shutil.rmtree(fold)
    return state, result


def read_record(path: Path) -> Pooled:
    """What the folds have said, as it was recorded.

    Raises:
        VersionError: another version of this program wrote it.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    try:
        return Pooled(**values | {"readings": Readings(*values["readings"])})
    except TypeError as error:
        raise resume_version_error(str(error)) from None


def read_folds(
    train_model: TrainModel,
    config: Config,
    train: Dataset,
    initial: InitialWeights | None,
    own: OwnSets,
    stop: GracefulStop,
) -> Iterator[list[dict[str, Any]]]:
    """What each fold's model reads in the images of the fold, after each stage of its training."""
    for number, of_fold in enumerate(fold_sets(train, config.folds), 1):
        log(start_line(number, of_fold, config))
        fold = fold_config(config, number)
        os.makedirs(fold.checkpoint_folder, exist_ok=True)
        begin = newest_of_run(fold.checkpoint_folder) or initial
        left = config.folds + 1 - number
        plan = own._replace(share=SHARE_OF_FOLDS, models_left=left, is_first=number == 1)
        state, _ = train_model(fold, (*of_fold, no_images(config)), begin, plan, stop)
        yield state.stages


def fold_config(config: Config, number: int) -> Config:
    """The settings of a fold's model, which has folders of its own in those of the run."""
    name = f"{FOLD}{number}"
    return replace(
        config,
        checkpoint_folder=os.path.join(config.checkpoint_folder, name),
        tensorboard_folder=os.path.join(config.tensorboard_folder, name),
    )


def fold_sets(images: Dataset, folds: int) -> Iterator[tuple[Dataset, Dataset]]:
    """For each fold, the other images, and the images of the fold."""
    numbers = np.arange(len(images.images)) % folds
    for number in range(folds):
        inside = numbers == number
        yield (
            Dataset(images.images[~inside], images.labels[~inside]),
            Dataset(images.images[inside], images.labels[inside]),
        )


def read_held_out(
    state: TrainState,
    reader: tuple[Any, Any],
    held_out: Dataset,
    initial: Mapping[str, np.ndarray],
    config: Config,
) -> None:
    """Note what a fold's model reads in the images of the fold, with calibrated confidences.

    For each share of the trained weights once, after this round of self-training.

    Args:
        reader: the session, and cnn_model.CNN. initial: weights by name.
    """
    if state.stages and state.stages[-1]["round"] == state.round:  # before the run was interrupted
        return
    found = []
    for share in SHARES:
        with interpolated(*reader, initial, share):
            try:
                temperature = fit_temperature(*reader, *held_out)
                readings = list(read_dataset(*reader, held_out, config))
            finally:  # training goes on without one
                set_temperature(*reader, 1.0)
        of_stage = {"round": state.round, "share": share}
        found.append(of_stage | {"temperature": temperature, "readings": readings})
    state.stages += found


def pool(stages: Sequence[Sequence[dict[str, Any]]]) -> Pooled:
    """The readings of all folds, after the rounds of self-training that help, with the share that helps.

    A later stage is taken where its odds of the labels are better, as for validation results.

    Args:
        stages: of each fold, what read_held_out() said after each round of the training.
    Raises:
        CaptchaError: the training of a fold came to nothing.
    """
    temperatures: dict[float, list[float]] = {}
    best = None
    for stage in zip(*stages, strict=True):
        mean = sum(math.log(each["temperature"]) for each in stage) / len(stage)
        temperatures.setdefault(stage[0]["share"], []).append(math.exp(mean))
        readings = interleave([Readings(*each["readings"]) for each in stage])
        metrics = Metrics(
            0.0, 0.0, readings.correct, len(readings.texts), float(np.mean(readings.label_probs))
        )
        if metrics.improves_on(best):
            best, chosen, kept = metrics, stage[0], readings
    if best is None:
        raise CaptchaError("no weights are worth keeping, the loss was not finite: try a smaller --alpha")
    return Pooled(chosen["round"], chosen["share"], temperatures[chosen["share"]], kept)


def interleave(folds: Sequence[Readings]) -> Readings:
    """The readings in the order of the images: of fold_sets(), image i is in fold i modulo the folds."""
    places = [(i, number) for number, fold in enumerate(folds) for i in range(len(fold.texts))]
    return Readings(
        *([getattr(folds[number], name)[i] for i, number in sorted(places)] for name in Readings._fields)
    )


def start_line(number: int, sets: tuple[Dataset, Dataset], config: Config) -> str:
    """What is said before the training of a fold's model."""
    trained, held_out = (len(data.images) for data in sets)
    return f"Fold {number} of {config.folds}: trained on {trained} images, to read the {held_out} others"


def report(pooled: Pooled, config: Config) -> str:
    """How well the folds' models read, and what of the self-training has helped."""
    readings = pooled.readings
    lines = [accuracy_line("Cross-validation", readings.correct, len(readings.texts))]
    if config.unlabelled:
        helped = {0: "did not help", 1: "helped in 1 round"}.get(
            pooled.rounds, f"helped in {pooled.rounds} rounds"
        )
        lines.append(f"Self-training {helped}; the model that is kept is trained in the same way")
    lines.append(f"The model that is kept is trained on all {len(readings.texts)} images")
    return "\n".join(lines)
