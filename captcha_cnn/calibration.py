"""Calibration: one temperature that makes the confidences honest (Guo et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from captcha_cnn.dataset import Dataset
from captcha_cnn.decoded import Images
from captcha_cnn.tf_runtime import batch_slices

TEMPERATURE_PRIOR = 2.0  # nats that a temperature of e or 1/e costs
LARGEST_TEMPERATURE = 4.0


def fit_temperature(session: Any, model: Any, images: Images, labels: Any) -> float:
    """Set, and return, the temperature by which the logits are divided so that the labels are most probable.

    Where all images are read right, the lowest temperature would win; the prior says that the best is
    rarely far from 1, and weighs as much as a few images. Without images, it is 1.

    Args:
        model: cnn_model.CNN. images: uint8 [N, H, W]. labels: one-hot, float32 [N, L * K].
    """
    inverse_temperature = model.weights["inverse_temperature"]
    batches = [
        (session.run(model.logits, {model.x: images[part]}), labels[part])
        for part in batch_slices(len(images))
    ]

    def negative_log_posterior(log_temperature: float) -> float:
        inverse_temperature.load(math.exp(-log_temperature), session)
        probs = [session.run(model.label_prob, {model.logits: logits, model.y: y}) for logits, y in batches]
        log_prob = sum(float(np.log(each + 1e-30).sum()) for each in probs)
        return TEMPERATURE_PRIOR * log_temperature**2 - log_prob

    limit = math.log(LARGEST_TEMPERATURE)
    best = golden_section(negative_log_posterior, -limit, limit, 0.01)
    inverse_temperature.load(math.exp(-best), session)
    return math.exp(best)


def set_temperature(session: Any, model: Any, temperature: float) -> None:
    """Divide the logits by that temperature."""
    model.weights["inverse_temperature"].load(1 / temperature, session)


def calibrate(session: Any, model: Any, calibration: Dataset | float) -> None:
    """Divide the logits by a temperature: a given one, or that which fits labelled images."""
    if isinstance(calibration, Dataset):
        fit_temperature(session, model, *calibration)
    else:
        set_temperature(session, model, calibration)


def golden_section(function: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """Where a function with one minimum between `low` and `high` is smallest."""
    golden = (math.sqrt(5) - 1) / 2
    first, second = high - golden * (high - low), low + golden * (high - low)
    at_first, at_second = function(first), function(second)
    while high - low > tolerance:
        if at_first < at_second:
            high, second, at_second = second, first, at_first
            first = high - golden * (high - low)
            at_first = function(first)
        else:
            low, first, at_first = first, second, at_second
            second = low + golden * (high - low)
            at_second = function(second)
    return (low + high) / 2
