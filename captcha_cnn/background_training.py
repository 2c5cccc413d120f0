"""Training beside the labelling: `driver.py --images` in processes of lower priority, one at a time.

The process that is started here runs driver.py, and then writes the trained weights for NumPy. So
the page's own process never imports TensorFlow. It ends when the one that started it does, even killed.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock

from captcha_cnn.batches import steps_per_epoch
from captcha_cnn.label_file import NAME
from captcha_cnn.labelling import MODEL, Labelling, Settings
from captcha_cnn.numpy_model import export_checkpoint
from captcha_cnn.own_images import FEW_IMAGES_STEPS, MIN_STEPS
from captcha_cnn.own_sets import HELD_OUT_SHARE
from config import CaptchaError, Config

PROJECT = Path(__file__).parent.parent
DRIVER = PROJECT / "driver.py"
LOG = "training.log"
CHECKPOINTS, TENSORBOARD, UNFINISHED = "checkpoints", "tensorboard", "training"  # folders in that of the work
FIRST_LABELS = 20
GROWTH = 1.5  # labels of a training, divided by those of the one before
MIN_UNLABELLED = 20  # images without labels that self-training is worth its time for
PRIORITY = 10  # of Unix, where 0 is normal and 19 the lowest
ERROR = "driver.py: "  # what its last line begins with where it fails
STOP_SECONDS = 8.0  # that driver.py has to save what it has
BUSY = 75  # exit status where another process trains already (EX_TEMPFAIL of sysexits.h)


class BackgroundTraining:
    """Trains when there are enough new labels, and says how it went."""

    def __init__(self, labelling: Labelling) -> None:
        self._labelling, self._lock = labelling, threading.Lock()
        self._last = labelling.guesses.model.labels  # of the last training that was begun
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._begun, self._training, self.failed = 0.0, 0, ""

    @property
    def due_at(self) -> int:
        """How many labels begin the next training."""
        return max(FIRST_LABELS, round(GROWTH * self._last))

    def start_if_due(self) -> None:
        """Begin a training unless one runs, or there are too few new labels."""
        with self._lock:
            count = len(self._labelling.labels)
            if self._training or count < self.due_at:
                return
            unlabelled = sum(map(self._labelling.is_open, self._labelling.order))
            command = training_command(self._labelling.settings, count, unlabelled)
            before, self._last, self._training = self._last, count, count
            self._begun = time.monotonic()
            try:
                self._process = subprocess.Popen(
                    command,
                    cwd=PROJECT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                self._training, self.failed = 0, f"it could not be started ({error})"
                return
            self._thread = threading.Thread(target=self._wait, args=(self._process, before), daemon=True)
            self._thread.start()

    def _wait(self, process: subprocess.Popen[bytes], before: int) -> None:
        status = process.wait()
        with self._lock:
            self.failed = ""
            if status == BUSY:
                self._last = before  # the other process may end without a model
            elif status:
                log = Path(self._labelling.settings.work, LOG)
                self.failed = error_in(log) or f"it ended with status {status}, {log} says more"
            self._process, self._training = None, 0
        try:
            self._labelling.update_model()
        except (CaptchaError, OSError) as error:
            self.failed = str(error)

    def status(self) -> dict[str, Any]:
        """What the page shows, for JSON."""
        return {
            "training": self._training,
            "training_seconds": round(time.monotonic() - self._begun) if self._training else 0,
            "training_failed": self.failed,
            "next_training": self.due_at,
        }

    def close(self) -> None:
        """End a training that runs."""
        process = self._process
        if process and process.stdin:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS + 2)
        if self._thread:
            self._thread.join(1)


def training_command(settings: Settings, count: int, unlabelled: int) -> list[str]:
    """The command of a training on so many labels, and so many images without one.

    The steps are those of cross-validation: few, since few labels are soon learned by heart. Its
    folds are left out, which would take six times as long: the random images say how good the model is.
    """
    folder, work = os.path.abspath(settings.folder), os.path.abspath(settings.work)
    steps = min(FEW_IMAGES_STEPS + 4 * count, MIN_STEPS + count)
    trained = count - 2 * max(1, round(HELD_OUT_SHARE * count))
    epochs = math.ceil(steps / steps_per_epoch(trained, Config.batch_size))
    flags = ["--images", folder, "--labels", os.path.join(folder, NAME), "--folds", "1"]
    flags += ["--epoch", str(epochs)]
    flags += ["--checkpoint-folder", os.path.join(work, UNFINISHED, CHECKPOINTS)]
    flags += ["--tensorboard-folder", os.path.join(work, UNFINISHED, TENSORBOARD)]
    if unlabelled >= MIN_UNLABELLED:
        flags += ["--unlabelled", folder]
    for flag, value in (("--characters", settings.characters), ("--char-num", settings.char_num)):
        flags += [flag, value] if value else []
    return [sys.executable, "-m", "captcha_cnn.background_training", work, str(count), str(DRIVER), *flags]


def error_in(log: Path) -> str:
    """The sentence that driver.py ended with; empty where it ended without one."""
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")
        return lines[-1].removeprefix(ERROR) if lines[-1].startswith(ERROR) else ""
    return ""


# ---------------------------------------------------------------------- the process that trains


def main(arguments: Sequence[str]) -> int:
    """Run driver.py with those flags, and keep its model; the exit status.

    Args:
        arguments: the folder of the work, the number of labels, driver.py, its flags.
    """
    work, count, *command = arguments
    if hasattr(os, "nice"):
        os.nice(PRIORITY)
    lock = filelock.FileLock(Path(work, "training.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        return BUSY
    with lock, Path(work, LOG).open("wb") as log:
        shutil.rmtree(Path(work, UNFINISHED), ignore_errors=True)
        process = subprocess.Popen(
            [sys.executable, *command], cwd=work, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        threading.Thread(target=_end_with_parent, args=(process,), daemon=True).start()
        if status := process.wait():
            return status
        try:
            keep_model(Path(work), int(count))
        except (CaptchaError, OSError) as error:
            log.write(f"{ERROR}{error}\n".encode())
            return 1
    return 0


def keep_model(work: Path, count: int) -> None:
    """Replace the earlier checkpoints and model by those of a finished training."""
    trained, kept = (
        [folder / name for name in (CHECKPOINTS, TENSORBOARD)] for folder in (work / UNFINISHED, work)
    )
    export_checkpoint(str(trained[0]), work / f"new-{MODEL}", count)
    for new, old in zip(trained, kept, strict=True):
        shutil.rmtree(old, ignore_errors=True)
        new.replace(old)
    shutil.rmtree(work / UNFINISHED, ignore_errors=True)
    (work / f"new-{MODEL}").replace(work / MODEL)


def _end_with_parent(process: subprocess.Popen[bytes]) -> None:
    """Wait until standard input is closed, as it is when the parent is gone, and end the training."""
    while os.read(0, 1):  # no buffer: its lock would be held when this process ends by itself
        pass
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
