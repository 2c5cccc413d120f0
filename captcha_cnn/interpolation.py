"""Weights between the initial ones and those that a training made of them (Wortsman et al. 2022, WiSE-FT).

Few images teach a network what they look like, and let it forget what it knew of others. A mean of the
weights before and after reads better than either, where the initial weights read a good part already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

SHARES = (0.5, 0.75, 1.0)  # of the trained weights in the mean: cross-validation chooses
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
