"""A model that answers with a part of its characters or lengths only.

The last layer has a column of weights for each character. Without the columns of the others, the network
gives them no probability, and the decoder adds up the texts that are left: their probabilities are exact.
The same comes of the network's log probabilities without these columns, made to add up to 1 again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from captcha_cnn.exported_model import PredictFn
from captcha_cnn.labels import image_order
from captcha_cnn.numpy_ctc import PAST_END, decode
from config import Config, ConfigError

OUTPUT_LAYERS = {"ctc": "ctc_head/", "classic": "output/"}  # what the names of their weights begin with


def add_restriction_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of what is read, with the names that they have in training."""
    for flag, what in (("--characters", "characters"), ("--char-num", "lengths, such as 4-5")):
        help_text = f"read these {what} only (default: all that the model reads)"
        parser.add_argument(flag, default="", metavar="TEXT", help=help_text)


def restrict(
    config: Config, weights: dict[str, np.ndarray], characters: str = "", char_num: int | str = ""
) -> tuple[Config, dict[str, np.ndarray]]:
    """The settings and weights of a model that answers with these characters and lengths.

    Args:
        weights: by name.
        characters, char_num: as Config has them; empty for all that the model has.
    Raises:
        ConfigError: the model has no such character or length.
    """
    wanted, kept = restrict_config(config, characters, char_num)
    classes = len(config.alphabet)
    if config.network == "classic":
        columns = [place * classes + i for place in range(config.max_length) for i in kept]
    else:
        columns = [*kept, classes]  # the last is the blank's
    begin = OUTPUT_LAYERS[config.network]
    restricted = {
        name: values[..., columns] if name.startswith(begin) else values for name, values in weights.items()
    }
    return wanted, restricted


def restrict_answers(
    config: Config,
    log_probs: Callable[[np.ndarray], np.ndarray],
    characters: str = "",
    char_num: int | str = "",
) -> tuple[Config, PredictFn]:
    """The same of a model of network ctc whose weights are out of reach, such as an exported file.

    Args:
        log_probs: images to the log softmax of each time step, [B, T, K + 1].
        characters, char_num: as restrict() has them.
    Returns:
        The settings; a function that reads as captcha_cnn.exported_model.load_exported() explains it.
    Raises:
        ConfigError: the model has no such character or length.
    """
    wanted, kept = restrict_config(config, characters, char_num)
    codes = np.array([*map(ord, wanted.alphabet), 0])  # the last is that of PAST_END, -1
    leftwards = image_order(wanted.alphabet, wanted.alphabet) != wanted.alphabet

    def predict(images: np.ndarray) -> tuple[np.ndarray, ...]:
        columns = log_probs(images)[..., [*kept, len(config.alphabet)]].astype(np.float64)
        columns -= np.logaddexp.reduce(columns, axis=2, keepdims=True)
        answers = decode(columns, wanted.min_length, wanted.max_length)
        if leftwards:
            answers = answers._replace(
                chars=_reverse(answers.chars, answers.chars),
                char_probs=_reverse(answers.char_probs, answers.chars),
                runner_up=_reverse(answers.runner_up, answers.runner_up),
            )
        return tuple(answers._replace(chars=codes[answers.chars], runner_up=codes[answers.runner_up]))

    return wanted, predict


def _reverse(values: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Values of characters, [B, L], from the order of the image to that of a text written leftwards."""
    lengths, places = (texts != PAST_END).sum(axis=1, keepdims=True), np.arange(texts.shape[1])
    order = np.where(places < lengths, lengths - 1 - places, places)
    return np.take_along_axis(values, order, axis=1)


def restrict_config(config: Config, characters: str, char_num: int | str) -> tuple[Config, list[int]]:
    """The settings that restrict() returns, and the classes of the characters that are left."""
    wanted = replace(config, characters=characters or config.alphabet, char_num=char_num or config.char_num)
    if unknown := set(wanted.alphabet) - set(config.alphabet):
        raise ConfigError(
            f"characters must be some of those that the model reads, {config.alphabet}, but "
            f"{min(unknown)!r} is none: leave it out"
        )
    if not config.min_length <= wanted.min_length <= wanted.max_length <= config.max_length:
        raise ConfigError(
            f"char_num must be within the lengths that the model reads, {config.char_num}, not "
            f"{wanted.char_num}: name others, or train with --char-num {wanted.char_num}"
        )
    kept = [i for i, character in enumerate(config.alphabet) if character in wanted.alphabet]
    return replace(wanted, characters="".join(config.alphabet[i] for i in kept)), kept
