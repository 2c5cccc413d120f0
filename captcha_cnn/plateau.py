"""Help for a training that learns nothing: captchas of many styles, drawn for it, to begin with.

CTC begins on a plateau: the network answers with the blank or with the most frequent characters, and its
loss hardly falls. With hard images or few of them it may stay there, or learn the training images by
heart. Drawn captchas of the same alphabet, length and size teach it what characters look like, and
after them the user's images are learned in a few hundred steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from captcha_cnn.batches import Batch, NextBatch, batches_from
from captcha_cnn.checkpoint import TrainState
from captcha_cnn.dataset import Dataset, label_vectors
from captcha_cnn.labels import image_order
from captcha_cnn.metrics import Metrics
from captcha_cnn.progress import at_chance_level, chance_loss
from captcha_cnn.styles import STYLE_CHARACTERS, draw_styles
from config import Config

PLATEAU_STEPS = 500  # after which a run on the plateau is helped
PLATEAU_SHARE = 0.6  # of the loss of guessing; a network that reads has less than a third
DRAWN_IMAGES = 8000
DRAWN_STEPS = 2000
HELP_LINE = (
    f"The validation loss is still near that of guessing: the next {DRAWN_STEPS} steps train on drawn "
    "captchas with the same characters, then training goes on with yours"
)


def on_plateau(metrics: Metrics | None, config: Config) -> bool:
    """Whether the loss is not much better than that of guessing."""
    return metrics is None or metrics.loss > PLATEAU_SHARE * chance_loss(config)


def needs_help(state: TrainState, config: Config) -> bool:
    """Whether the run has sat on the plateau for PLATEAU_STEPS and was not helped yet."""
    sits = state.step >= PLATEAU_STEPS and state.last_eval_step == state.step
    can_be_helped = config.network == "ctc" and not config.fixed_length and state.drawn_from < 0
    return can_be_helped and sits and on_plateau(state.best, config)


def should_stop(state: TrainState, config: Config) -> bool:
    """Early stopping: whether the validation of this step is `patience` steps after the best."""
    stagnant = state.last_eval_step == state.step and state.step - state.best_step >= config.patience
    return stagnant and patience_counts(state, config)


def patience_counts(state: TrainState, config: Config) -> bool:
    """Whether stagnant steps may end the training: not while it is on the plateau and can be helped."""
    if state.round or config.fixed_length:
        return False  # the number of steps is fixed
    if not on_plateau(state.best, config):
        return True
    if config.network == "classic":
        return False  # it takes more than 1,000 steps to leave the plateau, and Epoch ends it otherwise
    return state.drawn_from >= 0 and state.step >= drawn_end(state) + config.patience


def warning_is_due(state: TrainState, metrics: Metrics, config: Config) -> bool:
    """Whether the run is at chance level, and nothing is left that could help it."""
    helped = config.network == "classic" or config.fixed_length or state.drawn_from >= 0
    return helped and state.step >= drawn_end(state) + PLATEAU_STEPS and at_chance_level(metrics, config)


def drawn_end(state: TrainState) -> int:
    """The step at which the drawn captchas end; 0 where there are none."""
    return state.drawn_from + DRAWN_STEPS if state.drawn_from >= 0 else 0


def own_steps(state: TrainState) -> int:
    """Steps done on the training images, without those on drawn captchas."""
    if state.drawn_from < 0:
        return state.step
    return max(state.drawn_from, state.step - DRAWN_STEPS)


def steps_left(state: TrainState, config: Config, total: int) -> int:
    """Steps until training ends by early stopping, unless it improves, or with the last epoch.

    Args:
        total: steps of all epochs on the training images.
    """
    drawn = max(0, drawn_end(state) - state.step)
    stagnant = config.patience - (state.step - state.best_step)
    return max(0, min(stagnant, drawn + total - own_steps(state)))


def scheduled_batches(
    state: TrainState, train: Dataset, config: Config, next_batch: NextBatch
) -> Iterator[Batch]:
    """The batches from the present step on; drawn captchas first where the run is being helped."""
    end, drawn = drawn_end(state), iter(list[Batch]())
    if state.step < end:
        captchas = draw_for(config)
        coming = batches_from(state.step - state.drawn_from, captchas, config, next_batch)
        drawn = itertools.islice(coming, end - state.step)
    return itertools.chain(drawn, batches_from(own_steps(state), train, config, next_batch))


def draw_for(config: Config) -> Dataset:
    """Captchas of many styles with the alphabet, lengths and size of a Config.

    Characters that no font here has are drawn as others that are not in the alphabet: what
    characters have in common is learned all the same.
    """
    stand_ins = iter([c for c in STYLE_CHARACTERS if c not in config.alphabet])
    drawn_as = {c if c in STYLE_CHARACTERS else next(stand_ins, ""): c for c in config.alphabet}
    drawn_as.pop("", None)
    lengths = config.min_length, config.max_length
    size = config.width, config.height
    images, labels = draw_styles(DRAWN_IMAGES, config.seed, "".join(drawn_as), lengths, size)
    texts = ["".join(drawn_as[c] for c in label) for label in labels]
    if config.colour:
        images = np.broadcast_to(images[..., None], (*images.shape, 3))  # all three the same: takes no memory
    in_order = [image_order(text, config.alphabet) for text in texts]
    return Dataset(images, label_vectors(in_order, config))
