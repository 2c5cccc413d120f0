"""Train a captcha reader on the CPU: `python driver.py`.

Draws the captchas that are missing, loads them, trains until the validation result stops getting
better, keeps the best weights, and reads the test set once with them.

TensorFlow is imported inside functions, so that `--help` need not wait for it.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from tqdm import tqdm

from captcha_cnn import (
    batches,
    checkpoint,
    cross_validation,
    distributed,
    fresh,
    initial_weights,
    plateau,
    progress,
    readings,
    self_training,
    tf_runtime,
)
from captcha_cnn.augment import augment, largest_slope
from captcha_cnn.cli import given_settings, make_parser, next_command, run_main
from captcha_cnn.dataset import Dataset, dataset_hash
from captcha_cnn.interpolation import interpolated, keep_best_mean
from captcha_cnn.metrics import EvalResult, Metrics
from captcha_cnn.own_images import check_given, check_outside, find_images, find_unlabelled
from captcha_cnn.own_sets import NO_OWN_SETS, OwnSets, load_own_sets, reload_sets
from captcha_cnn.parallel import prefetch
from captcha_cnn.run_folders import reserve_folders
from captcha_cnn.summaries import SummaryWriter, check_events_folder
from captcha_cnn.validation import Validator
from config import CaptchaError, Config, escape_unprintable
from generate_captcha import Generate, ReadData


def next_batch(
    data: Dataset, config: Config, epoch: int, first: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches of one epoch, augmented: x uint8 [B, H, W] and y float32 [B, L * K].

    Order and augmentation depend on (seed, epoch, batch) alone.

    Args:
        first: the batch to begin with.
    """
    if isinstance(data, fresh.FreshCaptchas):
        yield from data.batches(epoch, first)
        return
    slope, order = largest_slope(config, epoch), batches.shuffled_batches(len(data.images), config, epoch)
    for batch, chosen in list(enumerate(order))[first:]:
        random = batches.random_stream(config.seed, batches.AUGMENTATION, epoch, batch)
        yield augment(data.images[chosen], config, random, epoch, slope=slope), data.labels[chosen]


def feed_data(model: Any, x: np.ndarray, y: np.ndarray, keep_prob: float = 1.0) -> dict[Any, Any]:
    """The feed_dict for a batch."""
    return {model.x: x, model.y: y, model.keep_prob: keep_prob}


def evaluate(session: Any, model: Any, data: Dataset) -> EvalResult:
    """Read all images, without dropout and with the averaged weights."""
    fetches = [model.loss, model.likelihood, model.predictions.chars, model.labels]
    parts = [
        session.run(fetches, feed_data(model, data.images[part], data.labels[part]))
        for part in tf_runtime.batch_slices(len(data.images))
    ]
    return EvalResult(*(np.concatenate(each) for each in zip(*parts, strict=True)))


class Trainer:
    """One run: `build()` its graph, `fit()` the weights, `finish()` with calibration and test."""

    def __init__(
        self,
        config: Config,
        state: checkpoint.TrainState,
        stop: tf_runtime.GracefulStop,
        own: OwnSets = NO_OWN_SETS,
    ) -> None:
        self.config, self.state, self.stop, self.own = config, state, stop, own
        self.workers, self.share = own.workers, own.workers.share(config)

    def build(self, start: checkpoint.CheckpointData | initial_weights.InitialWeights | None) -> None:
        """Add the model and what saves it to the default graph.

        `start` is the checkpoint to resume, or weights to begin with.
        """
        tf = tf_runtime.load_tensorflow()
        from cnn_model import CNN

        self.model = CNN.build(self.share, self.workers)
        weights = self.model.weights, self.model.inference_weights
        self.checkpoint = checkpoint.Checkpoint(self.config, *weights, initial_weights.are_used(self.config))
        self.initialize = tf.global_variables_initializer()
        self.initial = start if isinstance(start, initial_weights.InitialWeights) else None
        self.saved_path = ""
        if isinstance(start, checkpoint.CheckpointData):
            self.saved_path = start.path
            if others := start.variables ^ {v.op.name for v in tf.global_variables()}:
                raise checkpoint.resume_version_error(min(others))

    def fit(self, train: Dataset, validation: Dataset) -> None:
        """Train until early stopping or the last epoch, from `state` on, and keep the best weights.

        Raises:
            TrainingInterrupted: by a signal; the run is saved as it is.
            CaptchaError: the loss was never finite.
        """
        state, config, bfloat16 = self.state, self.config, tf_runtime.bfloat16_support()
        lines = [tf_runtime.arithmetic_line(bfloat16)]
        with self.workers.session(tf_runtime.session_config(bfloat16)) as self.session:
            self.session.run(self.initialize)
            if self.saved_path:
                self.checkpoint.restore(self.session, self.saved_path)
                lines.append(f"Resuming after step {state.step}")
            elif self.initial:
                begin = self.session, self.model.weights, self.initial, config
                lines.append(initial_weights.load_initial_weights(*begin))
                self.checkpoint.keep_start(self.session)
            self.workers.align(self.session)
            self.start = self.checkpoint.start(self.session)
            if self.own.is_first:
                progress.log("\n".join(lines))
            curves = config.tensorboard_folder, self.session, state.last_eval_step + 1
            with self.workers.first_only(SummaryWriter, *curves) as self.writer:
                self.train(train, validation)
        if state.best is None:
            raise CaptchaError(
                "no weights are worth keeping, the loss was never finite: try a smaller --alpha"
            )

    def finish(self, train: Dataset, validation: Dataset, test: Dataset) -> Metrics | None:
        """Calibrate the best weights, save them, and read the test set with them, all in float32."""
        tf = tf_runtime.load_tensorflow()
        from captcha_cnn.calibration import calibrate

        with tf.Session(config=tf_runtime.session_config()) as session:
            self.checkpoint.restore(session, self.checkpoint.path or self.saved_path)
            self.checkpoint.use_best(session)
            if not self.state.finished:
                with self.stop.interruptible():
                    keep_best_mean(session, self.model, self.checkpoint, validation, self.config, evaluate)
                    calibrate(session, self.model, self.own.calibration(self.state, validation))
                self.checkpoint.keep_calibrated(session)
                self.checkpoint.use_best(session)
                self.state.finished = True
                self.checkpoint.save(session, asdict(self.state))
            with self.stop.interruptible():
                if self.config.images and not self.config.fixed_length:
                    by_name = {"train": train, "validation": validation, "test": test}
                    found = readings.read_recorded(session, self.model, by_name, self.own.record, self.config)
                    readings.report(*found, self.config)
                return Metrics.from_result(evaluate(session, self.model, test)) if len(test.images) else None

    def train(self, train: Dataset, validation: Dataset) -> None:
        """The training loop: validate, save, train a step, until it ends or is interrupted."""
        state, config = self.state, self.config
        self.clock = progress.TrainingClock(state.seconds, state.training_seconds)
        self.saved_step = state.step if state.last_eval_step >= 0 else -1
        self.total_steps = config.Epoch * batches.steps_per_epoch(train.size, self.share.batch_size)
        results = self.clock, self.writer, self.evaluate, self.keep_best, self.workers
        self.validator = Validator(config, state, validation, *results)
        try:
            bar = tqdm(bar_format="{desc}", disable=None, leave=False, dynamic_ncols=True)
            with bar as self.bar, fresh.processes(train, plateau.own_steps(state)):
                done = False
                while not done:
                    sets = train, self.own.unlabelled
                    coming = self_training.scheduled_batches(state, sets, self.share, next_batch)
                    with contextlib.closing(prefetch(coming)) as prepared:
                        watched = fresh.watch(prepared, train)
                        done = self.run_steps(watched, train) and not self.begin_round()
        except CaptchaError:  # an interruption, an image that cannot be read, a killed process
            self.save(again=False)
            self.stop.check()  # a signal to all processes ends those that draw, too
            raise
        self.workers.align(self.session)  # the best weights, too, which task 0 alone has kept
        self.validator.conclude()
        state.trained = state.best is not None
        self.save()

    def run_steps(self, prepared: Iterator[batches.Batch], train: Dataset) -> bool:
        """Go through the batches until there is a reason to stop; False where other batches are to come."""
        state, config = self.state, self.config
        for epoch, x, y in prepared:
            self.validator.validate_if_due(epoch, Dataset(x, y))
            if plateau.needs_help(state, config):
                state.drawn_from = state.step
                progress.log(plateau.HELP_LINE)
                return False
            if plateau.should_stop(state, config):
                progress.log(f"No improvement for over {config.patience} steps, auto-stopping....")
                return True
            if progress.is_due(state.step, config.checkpoint_per_batch):
                self.workers.align(self.session)
                self.save(again=False)
            self.stop.check()
            if not math.isfinite(self.train_step(x, y, batches.keep_prob(config, epoch))):
                progress.log(progress.not_finite_line(state))
                return True
        data = train if train.size else self_training.own_labelled(state, self.own.unlabelled, config)
        if data.size:
            last = max(0, min(plateau.own_steps(state), self.total_steps) - 1)
            _, x, y = next(batches.batches_from(last, data, self.share, next_batch))
            self.validator.validate(Dataset(x, y))
        return True

    def train_step(self, x: np.ndarray, y: np.ndarray, keep_prob: float) -> float:
        """One step on a batch; its loss."""
        feed = feed_data(self.model, x, y, keep_prob)
        _, loss = self.session.run([self.model.train_op, self.model.training_loss], feed)
        self.state.step += 1
        self.clock.count_step(len(x) * self.workers.count)
        plan = self.total_steps, self.own.rounds, self.own.models_left
        left = self_training.steps_left(self.state, self.config, *plan)
        self.bar.set_description_str(self.clock.describe(self.state.step, left, self.config), refresh=False)
        self.bar.update()
        return float(loss)

    def begin_round(self) -> bool:
        """Label the unlabelled images for a round of self-training; False where training ends."""
        state, config, own, reader = self.state, self.config, self.own, (self.session, self.model)
        with self.clock.training.paused(), self.stop.interruptible():
            if config.fixed_length and len(self.validator.data.images):
                cross_validation.read_held_out(state, reader, self.validator.data, self.start, config)
            if own.unlabelled is None or not self_training.round_is_due(state, config, own.rounds):
                self_training.log_summary(state, config)
                return False
            calibration = own.calibration(state, self.validator.data)
            with interpolated(*reader, self.start, own.share):
                labels = self_training.read_labels(*reader, own.unlabelled, calibration, config)
        progress.log(self_training.start_round(state, labels, config))
        return any(labels)

    def evaluate(self, *sets: Dataset) -> list[EvalResult]:
        """Read all images of each set; a signal interrupts it."""
        with self.stop.interruptible():
            return [evaluate(self.session, self.model, data) for data in sets]

    def keep_best(self) -> None:
        """Keep the present weights as the best, or their mean with the initial ones."""
        with interpolated(self.session, self.model, self.start, self.own.share):
            self.checkpoint.keep_best(self.session)

    def save(self, again: bool = True) -> None:
        """Save the whole run; not again where this step is saved already, unless told to."""
        state = self.state
        if self.workers.task or (self.saved_step == state.step and not again):
            return
        with self.clock.training.paused():
            state.seconds, state.training_seconds = self.clock.total.seconds, self.clock.training.seconds
            self.checkpoint.save(self.session, asdict(state))
        self.saved_step = state.step


def run_model(
    config: Config,
    train: Dataset,
    validation: Dataset,
    test: Dataset,
    start: checkpoint.CheckpointData | initial_weights.InitialWeights | None = None,
    own: OwnSets = NO_OWN_SETS,
) -> tuple[checkpoint.TrainState, Metrics | None]:
    """Train, keep the best weights, and read the test set once with them.

    Args:
        start: the checkpoint to resume, or weights to begin with.
        own: what belongs to the user's own images beside the sets.
    Returns:
        the state of the training, and the result of the test set; None where that is empty.
    Raises:
        CaptchaError: a folder or images that cannot be used, or no weights worth keeping.
        TrainingInterrupted: by Ctrl-C or SIGTERM; everything is saved.
    """
    resumed = isinstance(start, checkpoint.CheckpointData)
    folders = own.workers.first_only(reserve_folders, config, resumed, own.record)
    with folders, tf_runtime.GracefulStop() as stop:
        return train_model(config, (train, validation, test), start, own, stop)


def train_model(
    config: Config,
    sets: Sequence[Dataset],
    start: checkpoint.CheckpointData | initial_weights.InitialWeights | None,
    own: OwnSets,
    stop: tf_runtime.GracefulStop,
) -> tuple[checkpoint.TrainState, Metrics | None]:
    """run_model() in folders that are reserved."""
    tf = tf_runtime.load_tensorflow()
    train, validation, _ = sets
    saved = start if isinstance(start, checkpoint.CheckpointData) else None
    digest = own.workers.digest(dataset_hash(train, validation, own.unlabelled))
    state = checkpoint.initial_state(digest, config, saved)
    own.workers.decided(state)
    with tf.Graph().as_default():
        trainer = Trainer(config, state, stop, own)
        trainer.build(start)
        with tf_runtime.one_line_errors(config.checkpoint_folder), own.workers.collectives():
            if not state.trained:
                trainer.fit(train, validation)
            own.workers.leave()
            return state, None if own.workers.task else trainer.finish(*sets)


def load_sets(
    config: Config, given: Collection[str], saved: checkpoint.CheckpointData | None = None
) -> tuple[Config, list[Dataset], OwnSets, initial_weights.InitialWeights | None]:
    """The three sets, and what the Config becomes with what is found from the user's own images.

    Args:
        given: names of the settings that the user names.
        saved: the run to resume.
    Returns:
        the Config; training, validation and test set; what belongs to own images; initial weights.
    """
    check_given(config, () if saved else given)
    check_outside(config)
    initial = None if saved and config.folds < 2 else initial_weights.find_initial_weights(config, saved)
    if config.own_images and saved:
        return config, *reload_sets(config, ReadData(config)), initial
    if config.own_images:
        find = find_images if config.images else find_unlabelled
        found = find(initial_weights.own_image_settings(config, initial, given), given)
        return found.config, *load_own_sets(found, given, ReadData(found.config)), initial
    files, reader = Generate(config).gen_captcha(keep=True), ReadData(config)
    sets = [reader.load_set(folder, files.get(folder)) for _, folder, _ in config.sets]
    return config, [fresh.FreshCaptchas(config)] * config.fresh + sets, NO_OWN_SETS, initial


def main(arguments: Sequence[str]) -> int:
    """Draw what is missing, load, train, test."""
    parser = make_parser("Train a captcha reader.")
    parser.add_argument("--resume", action="store_true", help="resume the run in the checkpoint folder")
    distributed.add_flags(parser)
    values = vars(parser.parse_args(arguments))
    resume, addresses, task = (values.pop(name) for name in ("resume", "workers", "task"))
    given = given_settings(values)
    config, saved = Config(**given), None
    workers = distributed.join(addresses, task, config, resume)
    check_events_folder(config.tensorboard_folder)
    if resume and not workers.task and (saved := checkpoint.newest_of_run(config.checkpoint_folder)):
        config = checkpoint.settings_to_resume(saved.config, config, given)
    elif resume:
        progress.log(f"Nothing to resume in {escape_unprintable(config.checkpoint_folder)}: a new run begins")
    config = workers.agree(config, saved)
    load = functools.partial(workers.load_sets, (Generate, ReadData), NO_OWN_SETS)
    config, sets, own, initial = (load if workers.count > 1 else load_sets)(config, given, saved)
    progress.log(progress.sizes_line(*sets))
    try:
        train, validation, test = sets
        if config.folds > 1:
            state, result = cross_validation.run(train_model, config, (train, test), initial, own, saved)
        else:
            state, result = run_model(config, train, validation, test, saved or initial, own)
    except tf_runtime.TrainingInterrupted as interrupted:
        command = next_command("driver.py", config, "--resume", *workers.flags)
        progress.log(f"Stopped; everything is saved. Go on: {command}")
        return interrupted.status
    if result:
        progress.log(progress.test_report(result))
    progress.log(progress.closing_lines(state, config))
    return 0


if __name__ == "__main__":
    run_main(main)
