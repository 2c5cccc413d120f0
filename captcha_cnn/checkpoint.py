"""Checkpoints: a whole run on disk, saved, listed, loaded and archived.

A checkpoint holds all variables, the best weights so far, the settings that made them and the
progress of the training. None is ever without the others.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from captcha_cnn.files import write_json
from captcha_cnn.metrics import Metrics
from captcha_cnn.tf_runtime import error_reason, load_tensorflow
from config import CaptchaError, Config, ConfigError, escape_unprintable

FORMAT_VERSION = 2  # of what a checkpoint holds; 1 had no number
NAME = "state"  # a checkpoint's files are state-<step>.*
RECORD = "record"  # the tensor that holds format, settings and progress, as JSON
BEST = "best/"  # begins the names of the best weights, as inference uses them
INITIAL = "initial/"  # begins the names of the same weights as training has them, to begin another with
START = "start/"  # begins the names of the weights that training began with
SPLIT = "split.json"  # which of the user's own images is in which set
READINGS = "readings.csv"  # what the model reads in them
CROSS_VALIDATION = "cross-validation.json"  # what the models of all folds say
FOLD = "fold-"  # begins the names of the folders of the models of cross-validation
MAX_TO_KEEP = 3  # newest checkpoints: where one is damaged, the one before it is used


class VersionError(CaptchaError):
    """A checkpoint of another version of this program."""


@dataclass
class TrainState:
    """The progress of a training: with the variables, all it needs to go on as if never interrupted."""

    dataset_hash: str  # SHA-256 of the training and validation set
    step: int = 0  # steps done
    last_eval_step: int = -1  # the step of the last validation
    best: Metrics | None = None  # of the validation images with their augmented copies
    best_step: int = 0  # steps after which the best weights were kept
    epoch: int = -1  # the last one that was printed
    workers: int = 1  # processes that train together
    warned: bool = False  # that the loss is at chance level
    drawn_from: int = -1  # the step from which drawn captchas helped it off the plateau
    round: int = 0  # of self-training; 0 before the first
    round_from: int = 0  # the step from which it trains
    own_labels: list[str] = field(default_factory=list)  # what is trained on of unlabelled images, or ""
    stages: list[dict[str, Any]] = field(default_factory=list)  # of a fold: readings before and after rounds
    trained: bool = False  # everything is done but the calibration
    finished: bool = False
    seconds: float = 0.0  # since the first step
    training_seconds: float = 0.0  # the same without validation and saving

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TrainState:
        """The inverse of dataclasses.asdict() and JSON.

        Raises:
            VersionError: another version of this program wrote it.
        """
        try:
            return TrainState(**values | {"best": values["best"] and Metrics(*values["best"])})
        except (KeyError, TypeError) as error:
            raise resume_version_error(str(error)) from None


def resume_version_error(difference: str) -> VersionError:
    """The error for a run that this version of the program cannot resume."""
    return VersionError(
        f"a run must be of this version of the program to be resumed, but is of another ({difference}): "
        "resume it with that, or train anew without --resume"
    )


class CheckpointData(NamedTuple):
    """What a checkpoint holds for those who read captchas or resume a training."""

    path: str  # that its files' names begin with
    config: Config
    progress: dict[str, Any]
    weights: dict[str, np.ndarray]  # the best ones, by name
    initial: dict[str, np.ndarray]  # the same with batch normalisation, for another training
    start: dict[str, np.ndarray]  # those that training began with; empty for random ones
    variables: frozenset[str]  # names of all that it holds


class Checkpoint:
    """Saves and restores a whole run. To be made when the graph is complete but for this.

    Args:
        weights: the variables that inference needs, by name.
        inference_weights: what is kept of each as the best.
        with_start: whether what training began with is kept too.
    """

    def __init__(
        self,
        config: Config,
        weights: dict[str, Any],
        inference_weights: dict[str, Any],
        with_start: bool = False,
    ) -> None:
        import tensorflow.compat.v1 as tf

        self._config = config
        zeros = tf.zeros_initializer()

        def copies(begin: str) -> dict[str, Any]:
            return {
                name: tf.get_variable(begin + name, v.shape, initializer=zeros, trainable=False)
                for name, v in weights.items()
            }

        best, initial = copies(BEST), copies(INITIAL)
        self._start = copies(START) if with_start else {}
        self._keep = tf.group(*[tf.assign(best[name], v) for name, v in inference_weights.items()])
        self._keep_initial = tf.group(*[tf.assign(initial[name], v) for name, v in weights.items()])
        self._keep_start = tf.group(*[tf.assign(v, weights[name]) for name, v in self._start.items()])
        self._use = tf.group(*[tf.assign(v, best[name]) for name, v in weights.items()])
        self._use_unfolded = tf.group(*[tf.assign(v, initial[name]) for name, v in weights.items()])
        self._text = tf.placeholder(tf.string, [])
        self._record = tf.assign(tf.get_variable(RECORD, initializer="", trainable=False), self._text)
        self._saver = tf.train.Saver(max_to_keep=MAX_TO_KEEP, save_relative_paths=True)
        self.path = ""  # of the last one saved or restored

    def keep_best(self, session: Any) -> None:
        """Remember the present weights as the best; the next save() writes them."""
        session.run([self._keep, self._keep_initial])

    def keep_start(self, session: Any) -> None:
        """Remember the present weights as those that training begins with, where they are wanted."""
        session.run(self._keep_start)

    def start(self, session: Any) -> dict[str, np.ndarray]:
        """The weights that training began with, by name; empty where they are not kept."""
        found: dict[str, np.ndarray] = session.run(self._start)
        return found

    def keep_calibrated(self, session: Any) -> None:
        """Remember the best weights, which are in use, with their temperature."""
        session.run(self._keep)

    def use_best(self, session: Any) -> None:
        """Replace the present weights by the best."""
        session.run(self._use)

    def use_best_of_training(self, session: Any) -> None:
        """Replace the present weights by the best as training has them, with batch normalisation."""
        session.run(self._use_unfolded)

    def save(self, session: Any, progress: dict[str, Any]) -> None:
        """Save the run as it is at progress["step"]."""
        record = {"format": FORMAT_VERSION, "config": self._config.as_dict(), "progress": progress}
        session.run(self._record, {self._text: json.dumps(record)})
        path = os.path.join(self._config.checkpoint_folder, NAME)
        self.path = self._saver.save(session, path, progress["step"], write_meta_graph=False)

    def restore(self, session: Any, path: str) -> None:
        """Restore all variables, and go on from the checkpoints that the folder has."""
        self._saver.restore(session, path)
        self.path = path
        existing = list_checkpoints(self._config.checkpoint_folder)
        self._saver.recover_last_checkpoints(list(reversed(existing)))


def checkpoint_files(folder: str) -> list[tuple[int, bool, Path]]:
    """(step, whether it is complete, path) of each file of a checkpoint in a folder."""
    name = re.compile(rf"{NAME}-(\d+)\.(?:index|data-\d+-of-\d+)(\.tempstate\d+)?")
    matches = [(name.fullmatch(path.name), path) for path in Path(folder).glob(f"{NAME}-*")]
    return [(int(match[1]), match[2] is None, path) for match, path in matches if match]


def list_checkpoints(folder: str) -> list[str]:
    """The paths that the names of each checkpoint's files begin with, newest first; damaged ones too."""
    steps = sorted({step for step, complete, _ in checkpoint_files(folder) if complete}, reverse=True)
    return [os.path.join(folder, f"{NAME}-{step}") for step in steps]


def remove_stale_files(folder: str) -> None:
    """Remove what killed runs have left: incomplete files, and more checkpoints than are kept."""
    kept = {os.path.basename(path) for path in list_checkpoints(folder)[:MAX_TO_KEEP]}
    for step, complete, path in checkpoint_files(folder):
        if not complete or f"{NAME}-{step}" not in kept:
            path.unlink()


def read_checkpoint(path: str) -> CheckpointData:
    """All of a checkpoint, every tensor compared with its checksum.

    Raises:
        VersionError: another version of this program wrote it.
        CaptchaError: it is damaged; says why.
    """
    import tensorflow.compat.v1 as tf

    try:
        reader = tf.train.load_checkpoint(path)
        tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
        record = json.loads(tensors[RECORD])
        found = record.get("format", 1)
        if found == FORMAT_VERSION:
            weights, initial, start = (
                {name.removeprefix(begin): v for name, v in tensors.items() if name.startswith(begin)}
                for begin in (BEST, INITIAL, START)
            )
            run = path, Config(**record["config"]), record["progress"]
            return CheckpointData(*run, weights, initial, start, frozenset(tensors))
    except Exception as error:  # the reader raises nearly anything on damaged data
        reason = error_reason(error) if isinstance(error, tf.errors.OpError) else error
        raise CaptchaError(f"{escape_unprintable(path)} is damaged ({reason})") from None
    raise VersionError(
        f"{escape_unprintable(path)} must have checkpoint format {FORMAT_VERSION}, but has format {found}, "
        "of another version of this program: use it with that version, or train anew"
    )


def load_latest(folder: str) -> CheckpointData:
    """The newest undamaged checkpoint of a folder; says which damaged ones it passes over.

    Raises:
        CaptchaError: there is none, or it is of another version.
    """
    damaged = []
    for path in list_checkpoints(folder):
        try:
            data = read_checkpoint(path)
        except VersionError:
            raise
        except CaptchaError as error:
            damaged.append(str(error))
        else:
            for each in damaged:
                print(f"{each}: the checkpoint before it is used", file=sys.stderr)
            return data
    found = f"all its checkpoints are damaged: {damaged[0]}" if damaged else "holds none"
    raise CaptchaError(
        f"{escape_unprintable(folder)} must hold a trained model, but {found}: train one with "
        "`python driver.py`, or name the folder of another"
    )


def newest_of_run(folder: str) -> CheckpointData | None:
    """The newest checkpoint of a run, or of the models of its cross-validation; None where there is none.

    Its settings are those of the run.

    Raises:
        CaptchaError: all are damaged, or of another version.
    """
    load_tensorflow()
    if list_checkpoints(folder):
        return load_latest(folder)
    for fold in fold_folders(folder):
        if list_checkpoints(str(fold)):
            found = load_latest(str(fold))
            curves = os.path.dirname(found.config.tensorboard_folder)
            config = replace(found.config, checkpoint_folder=folder, tensorboard_folder=curves)
            return found._replace(config=config)
    return None


def fold_folders(folder: str) -> list[Path]:
    """The folders in that one which belong to the models of cross-validation."""
    return sorted(path for path in Path(folder).glob(f"{FOLD}*") if path.is_dir())


def initial_state(dataset_hash: str, config: Config, saved: CheckpointData | None) -> TrainState:
    """The state of a new run, or of the one to resume.

    Raises:
        CaptchaError: the images are others than those of the run to resume.
    """
    state = TrainState.from_dict(saved.progress) if saved else TrainState(dataset_hash)
    if state.dataset_hash != dataset_hash:
        raise CaptchaError(
            f"the images must be those that the run in {escape_unprintable(config.checkpoint_folder)} began "
            "with, but are others: bring those back, or train anew without --resume"
        )
    return state


def settings_to_resume(saved: Config, wanted: Config, given: Iterable[str]) -> Config:
    """The settings of a saved run, with the folders that this command line names.

    Args:
        given: names of the settings that the command line names.
    Raises:
        ConfigError: another setting is asked for than the run has.
    """
    folders = {name: getattr(wanted, name) for name in given if name.endswith("_folder")}
    for name in given:
        old, new = getattr(saved, name), getattr(wanted, name)
        if name not in folders and old != new:
            raise ConfigError(
                f"{name} must be {old!r} to resume the run in {escape_unprintable(wanted.checkpoint_folder)}"
                f", not {new!r}: leave it out, or train anew without --resume"
            )
    return replace(saved, **folders | {"checkpoint_folder": wanted.checkpoint_folder})


def archive_previous_run(folder: str) -> str | None:
    """Move an earlier run into a folder of its own inside, which is returned; None where there is none.

    It is `previous`, or `previous-2` and so on where that exists. No run is ever deleted.
    """
    if not list_checkpoints(folder) and not fold_folders(folder):
        return None
    places = (Path(folder, f"previous-{n}" if n > 1 else "previous") for n in itertools.count(1))
    place = next(each for each in places if not each.exists())
    place.mkdir()
    others = *(Path(folder, name) for name in (SPLIT, READINGS, CROSS_VALIDATION)), *fold_folders(folder)
    for path in (*(path for _, _, path in checkpoint_files(folder)), *others):
        if path.exists():
            path.replace(place / path.name)
    Path(folder, "checkpoint").unlink(missing_ok=True)
    return str(place)


def record_split(folder: str, split: dict[str, Any] | None) -> None:
    """Write which of the user's own images is in which set beside the checkpoints, or that none is."""
    if split:
        write_json(Path(folder, SPLIT), split)
    else:
        Path(folder, SPLIT).unlink(missing_ok=True)  # of a run that ended before its first checkpoint
