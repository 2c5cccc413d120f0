"""Weights between the initial ones and those that a training made of them (Wortsman et al. 2022, WiSE-FT).

Few images teach a network what they look like, and let it forget what it knew of others. A mean of the
weights before and after reads better than either, where the initial weights read a good part already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from captcha_cnn.batches import add_augmented_copies
from captcha_cnn.checkpoint import Checkpoint
from captcha_cnn.dataset import Dataset
from captcha_cnn.metrics import EvalResult, Metrics
from captcha_cnn.progress import log
from config import Config

SHARES = (0.5, 0.75, 1.0)  # of the trained weights in the mean: held-out images choose
SHARE_OF_FOLDS = 0.75  # in the models of the folds, while they label images for self-training


@contextlib.contextmanager
def interpolated(session: Any, model: Any, initial: Mapping[str, np.ndarray], share: float) -> Iterator[None]:
    """Inside the block, inference uses the mean of the initial and the trained weights.

    Args:
        model: cnn_model.CNN. initial: weights by name; without any, nothing changes.
        share: of the trained weights, from 0 to 1; with 1, nothing changes.
    """
    if share == 1 or not initial:
        yield
        return
    trained = session.run({name: model.weights[name] for name in initial})
    try:
        for name, values in initial.items():
            model.weights[name].load(values + np.float32(share) * (trained[name] - values), session)
        yield
    finally:  # training goes on with its own
        for name, values in trained.items():
            model.weights[name].load(values, session)


def keep_best_mean(
    session: Any,
    model: Any,
    checkpoint: Checkpoint,
    validation: Dataset,
    config: Config,
    evaluate: Callable[[Any, Any, Dataset], EvalResult],
) -> None:
    """Replace the best weights by a mean with the initial ones, where that reads validation images better.

    Only for the user's own labelled images without cross-validation, which chooses by itself: drawn captchas
    are as many as wanted.

    Args:
        model: cnn_model.CNN. evaluate: driver.evaluate().
    """
    initial, chosen, best = checkpoint.start(session), 1.0, None
    if not initial or not config.images or config.fixed_length:
        return
    data = add_augmented_copies(validation, config)
    checkpoint.use_best_of_training(session)
    for share in SHARES:  # few images are soon learned by heart: more of these weights must be clearly better
        with interpolated(session, model, initial, share):
            found = Metrics.from_result(evaluate(session, model, data))
            if found.improves_on(best):
                chosen, best = share, found
                checkpoint.keep_best(session)
    checkpoint.use_best(session)
    if chosen < 1:
        parts = f"{chosen:.0%} of the trained weights and {1 - chosen:.0%} of the initial ones"
        log(f"Their mean reads the validation images better, and is kept: {parts}")
