"""What people see of a running training: lines, times, what comes when."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

from captcha_cnn.checkpoint import READINGS, TrainState
from captcha_cnn.cli import next_command, shell_command
from captcha_cnn.dataset import Dataset
from captcha_cnn.metrics import Metrics, accuracy_line
from config import Config, escape_unprintable


class Stopwatch:
    """Counts seconds from its creation on, less those spent in `with stopwatch.paused():`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._since: float | None = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds counted so far."""
        return self._before + (0.0 if self._since is None else time.monotonic() - self._since)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the seconds of the block."""
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.monotonic()


class TrainingClock:
    """The seconds of a training, with and without validation and saving, and its speed."""

    def __init__(self, seconds: float, training_seconds: float) -> None:
        self.total, self.training = Stopwatch(seconds), Stopwatch(training_seconds)
        self._begin, self._training_begin = self.total.seconds, self.training.seconds
        self._steps, self._images = 0, 0

    def count_step(self, images: int) -> None:
        """A step on so many images was done."""
        self._steps += 1
        self._images += images

    def describe(self, step: int, steps_left: int, config: Config) -> str:
        """The progress bar: the step, the speed so far, and the time that so many steps will take."""
        seconds = self.total.seconds - self._begin
        left = duration(steps_left * seconds / self._steps)
        unless = "" if config.fixed_length else " unless it improves"
        return f"step {step}, {self._images / max(seconds, 1e-9):.0f} images/s, {left} left{unless}"

    def as_scalars(self) -> dict[str, float]:
        """Images a second of training, as a point of TensorBoard's curve, once there are any."""
        seconds = self.training.seconds - self._training_begin
        return {"images_per_second": self._images / seconds} if self._images and seconds > 0 else {}


def log(text: str) -> None:
    """Print a line at once, above the progress bar where there is one."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03; hours only where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def is_due(step: int, every: int) -> bool:
    """Whether something done every so many steps is done at this one, step 0 included."""
    return step % every == 0


def not_finite_line(state: TrainState) -> str:
    """What a loss means that is infinite or not a number."""
    return (
        f"The training loss is not finite at step {state.step}: training stops, the best weights, of step "
        f"{state.best_step}, are kept. Try a smaller --alpha."
    )


def sizes_line(*sets: Dataset) -> str:
    """How many images the training, validation and test set have."""
    return "Images for train :{}, for validation : {}, for test : {}".format(*(x.size for x in sets))


def status_line(step: int, train: Metrics, validation: Metrics | None, improved: bool) -> str:
    """The classic line, with the whole captchas of validation added, where there is validation."""
    line = f"Step {step:>5}, train_acc: {train.accuracy:>7.2%}, train_loss: {train.loss:>5.2f}"
    if not validation:
        return line
    return (
        f"{line}, val_acc: {validation.accuracy:>7.2%}, val_loss: {validation.loss:>5.2f}, "
        f"improved:{'*' if improved else ' '}, val_captcha_acc: {validation.captcha_accuracy:>7.2%}"
    )


def test_report(test: Metrics) -> str:
    """The classic line, and the whole captchas read right with their 95% interval."""
    line = f"Test accuracy: {test.accuracy:>7.2%}, loss: {test.loss:>5.2f}"
    return f"{line}\n{accuracy_line('Captcha', test.correct, test.images)}"


def chance_loss(config: Config) -> float:
    """The loss of a network that has learned nothing, which gives each character the same probability."""
    p = 1 / len(config.alphabet)
    return -math.log(p) if config.network == "ctc" else -p * math.log(p) - (1 - p) * math.log(1 - p)


def length_loss(config: Config) -> float:
    """What guessing the length adds to it, in nats per character; 0 where there is one length."""
    lengths = range(config.min_length, config.max_length + 1)
    return math.log(len(lengths)) * sum(1 / length for length in lengths) / len(lengths)


def at_chance_level(metrics: Metrics, config: Config) -> bool:
    """Whether the loss is hardly better than that of guessing the characters, their number known."""
    return metrics.loss > 0.9 * chance_loss(config)


def chance_level_warning(metrics: Metrics, config: Config) -> str:
    """What a loss at chance level means, and what to try."""
    guessing = chance_loss(config) + length_loss(config)
    return (
        f"The validation loss is still at chance level ({metrics.loss:.2f}; guessing gives "
        f"{guessing:.2f}): so far the network has learned nothing that helps with new images. "
        "Look at a few images: do their names say what they show? Then try more images, a smaller "
        "--alpha, or a --keep-prob nearer 1."
    )


def closing_lines(state: TrainState, config: Config) -> str:
    """How long a run took, where it is, and what to do next."""
    folder, labelled = config.checkpoint_folder, config.test_folder
    if config.images and labelled == Config.test_folder:  # it is a part of them
        labelled = config.images
    mistakes = next_command("predict.py", config, "--labelled", labelled)
    if config.folds > 1 and labelled == config.images:  # all were trained on
        mistakes = escape_unprintable(os.path.join(folder, READINGS))
    return "\n".join(
        [
            f"{state.step} steps in {duration(state.seconds)}, {duration(state.training_seconds)} of it "
            f"training; the best weights, of step {state.best_step}, are in {escape_unprintable(folder)}",
            f"Read a captcha:   {next_command('predict.py', config, 'captcha.png')}",
            f"See its mistakes: {mistakes}",
            f"Watch the curves: {shell_command('tensorboard', '--logdir', config.tensorboard_folder)}",
        ]
    )
