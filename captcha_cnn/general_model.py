"""The reader that comes with the program: the initial weights, which have seen captchas of many styles.

It reads before anything is trained. A model that is trained on images of one system reads that better.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from captcha_cnn.exported_model import PredictFn
from captcha_cnn.initial_weights import SHIPPED, read_weights
from captcha_cnn.numpy_network import log_probs
from captcha_cnn.restrict import restrict, restrict_answers
from config import Config

WIDTH, LENGTHS = 200, "2-8"  # of the captchas that the weights were trained on


def load_general_model(characters: str = "", char_num: int | str = "") -> tuple[Config, PredictFn]:
    """The settings, and a function that reads as captcha_cnn.exported_model.load_exported() explains it.

    Args:
        characters, char_num: the only ones that texts may have, as Config has them; all if empty.
    Raises:
        ConfigError: it has no such character or length.
    """
    return restrict_answers(*general_log_probs(), characters, char_num)


def general_log_probs() -> tuple[Config, Callable[[np.ndarray], np.ndarray]]:
    """The settings, and a function from images to the log softmax of each time step, [B, T, K + 1]."""
    config, weights = general_weights()
    return config, functools.partial(log_probs, weights=weights)


def general_weights(characters: str = "", char_num: int | str = "") -> tuple[Config, dict[str, np.ndarray]]:
    """The settings and the weights, by name, of that model; as load_general_model()."""
    initial = read_weights(SHIPPED)
    settings: dict[str, Any] = {"images": "any", "width": WIDTH, "char_num": LENGTHS, **initial.sizes}
    config = Config(characters=initial.characters, **settings)
    return restrict(config, initial.weights, characters, char_num)
