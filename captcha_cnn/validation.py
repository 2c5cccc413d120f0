"""Validation during a training: its lines and curves, and which weights are the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from captcha_cnn import plateau, progress
from captcha_cnn.augment import drawn_once
from captcha_cnn.batches import add_augmented_copies
from captcha_cnn.checkpoint import TrainState
from captcha_cnn.dataset import Dataset
from captcha_cnn.distributed import Workers
from captcha_cnn.metrics import MIN_ODDS_RATIO, EvalResult, Metrics
from captcha_cnn.summaries import SummaryWriter, summary_images
from config import Config

# With many drawn captchas, nearly all are soon read, and an improvement must be larger than MIN_ODDS_RATIO:
# measured in section 9 of docs/how-it-works.md.
MANY_IMAGES = 2000
ODDS_RATIO_OF_MANY = 1.2


@dataclass
class Validator:
    """Evaluates the validation set where it is due, and has the best weights kept."""

    config: Config
    state: TrainState
    data: Dataset  # the validation set, which may be empty
    clock: progress.TrainingClock
    writer: SummaryWriter
    evaluate: Callable[..., list[EvalResult]]  # of any number of sets
    keep_best: Callable[[], None]
    workers: Workers

    def __post_init__(self) -> None:
        config = self.config
        self.with_copies = self.data if config.fixed_length else add_augmented_copies(self.data, config)
        many = drawn_once(config) and config.generate_num[0] >= MANY_IMAGES
        self.odds_ratio = ODDS_RATIO_OF_MANY if many else MIN_ODDS_RATIO
        self.last: Metrics | None = None  # result of the last validation

    def validate_if_due(self, epoch: int, batch: Dataset) -> None:
        """Validate where a line or a point of the curves is due and this step has none yet."""
        state, config = self.state, self.config
        printed, on_curves = (
            progress.is_due(state.step, n) for n in (config.print_per_batch, config.save_per_batch)
        )
        if not (printed or on_curves) or state.last_eval_step == state.step:
            return
        # Not all epochs are printed where they are shorter than that.
        if printed and epoch > state.epoch and not config.fixed_length:
            state.epoch = epoch
            progress.log(f"Epoch : {epoch + 1}")
        metrics = self.validate(batch, printed, on_curves)
        if not state.warned and plateau.warning_is_due(state, metrics, config):
            progress.log(progress.chance_level_warning(metrics, config))
            state.warned = True

    def validate(self, batch: Dataset, printed: bool = True, on_curves: bool = True) -> Metrics:
        """Evaluate the batch and the validation set; keep the weights where they are the best so far.

        Where the number of steps is fixed, the last weights are kept. Without a validation set, the
        batch is returned in its place. Of several workers, task 0 does all this alone.
        """
        own = None if self.workers.task else self._validate(batch, printed, on_curves)
        metrics: Metrics = self.workers.decided(self.state, own)
        return metrics

    def _validate(self, batch: Dataset, printed: bool, on_curves: bool) -> Metrics:
        state, fixed, count = self.state, self.config.fixed_length, len(self.data.images)
        with self.clock.training.paused():
            of_batch, *results = self.evaluate(batch, *[self.with_copies] * (count > 0))
            result = results[0] if results else of_batch
            selection = Metrics.from_result(result)
            result = EvalResult(*(each[: count or len(batch.images)] for each in result))
            improved = selection.improves_on(None if fixed else state.best, self.odds_ratio)
            self.last = selection
            if improved:
                state.best, state.best_step = selection, state.step
                self.keep_best()
            state.last_eval_step = state.step
            trained, metrics = Metrics.from_result(of_batch), Metrics.from_result(result)
            shown = metrics if count else None
            if on_curves:
                self.draw_curves(trained, shown, result)
            if printed:
                progress.log(progress.status_line(state.step, trained, shown, improved and not fixed))
        return metrics

    def conclude(self) -> None:
        """At the end, keep the last weights where they are the best, and warn where nothing was learned.

        With drawn captchas, any margin counts: weights can become a little better for many steps.
        """
        state = self.state
        of_last_weights = drawn_once(self.config) and state.last_eval_step == state.step
        if of_last_weights and self.last and state.best and self.last.improves_on(state.best, 1.0):
            state.best, state.best_step = self.last, state.step
            self.keep_best()
            progress.log("The last weights read the validation images a little better, and are kept")
        if state.best and progress.at_chance_level(state.best, self.config) and not state.warned:
            progress.log(progress.chance_level_warning(state.best, self.config))

    def draw_curves(self, batch: Metrics, validation: Metrics | None, result: EvalResult) -> None:
        """A point of each curve, and now and then the images."""
        step, config = self.state.step, self.config
        others = {"learning_rate": config.alpha} | self.clock.as_scalars()
        self.writer.add_metrics(step, batch, validation, others)
        if validation and progress.is_due(step, config.checkpoint_per_batch):
            self.writer.add_images(step, summary_images(result, self.data.images, config))
