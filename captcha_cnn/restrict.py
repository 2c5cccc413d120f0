"""A model that answers with a part of its characters or lengths only.

The last layer has a column of weights for each character. Without the columns of the others, the network
gives them no probability, and the decoder adds up the texts that are left: their probabilities are exact.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

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
    wanted = replace(wanted, characters="".join(config.alphabet[i] for i in kept))
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
