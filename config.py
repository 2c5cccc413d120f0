"""Every setting of the project, validated on construction.

`Config` is passed whole to whatever needs a setting, and every size that follows from the
settings is a property here. Importing this module does nothing.

The letters used for shapes, here and in every other file:

    B images in a batch   H height and W width of an image, in pixels   C channels
    T time steps: the columns of the last feature map, read from left to right
    K characters in the alphabet (class K is CTC's blank)   L characters in a captcha
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

DOWNSAMPLING = (16, 8)  # rows and columns of an image for one of the last feature map
SEPARATORS = r'_./\:*?"<>|'  # they end a label, or cannot stand in a file name everywhere
NETWORKS = ("ctc", "classic")


class CaptchaError(Exception):
    """An expected error: one sentence with what was expected, what was found and how to fix it."""

    status = 1  # exit status of the process that ends with it


class ConfigError(CaptchaError):
    """A setting that cannot be used."""

    status = 2


def escape_unprintable(text: object) -> str:
    """The text with characters that a terminal cannot show, line ends included, escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def setting(default: Any, help: str, allowed: Any = None, old_name: str = "") -> Any:
    """A field of Config.

    Args:
        help: the sentence that `--help` prints.
        allowed: the smallest and largest integer, or an interval of numbers such as "(0, 1]".
        old_name: an earlier name of the flag.
    """
    return field(default=default, metadata={"help": help, "allowed": allowed, "old_name": old_name})


@dataclass(frozen=True)
class Config:
    """All settings. `Config.width` is the default; `Config(width=200).width` is 200.

    `Config.classic()` has the published settings. Where a default differs from the published
    value, the comment says why: whole captchas read right, of 10,000 test images, after 4,000
    steps on 100 training images, one run each of version 1; 97.89% with the defaults. The command is
    `driver.py --epoch 1000 --patience 4000 --generate-num 100 500 10000` and one flag.

    Raises:
        ConfigError: a value that cannot be used; names the field and what is allowed.
    """

    width: int = setting(160, "width of a captcha image, in pixels", (8, 4096))
    height: int = setting(60, "height of a captcha image, in pixels", (8, 4096))
    char_num: int = setting(4, "characters in a captcha", (1, 64))
    characters: Iterable[Any] = setting(range(10), "the alphabet, as one word: 0123456789")
    train_folder: str = setting("train", "folder of the training images")
    validation_folder: str = setting("validation", "folder of the images that choose the best weights")
    test_folder: str = setting("test", "folder of the images that are read once, at the end")
    tensorboard_folder: str = setting("tensorboard", "folder of the TensorBoard event files")
    checkpoint_folder: str = setting("checkpoints", "folder of the checkpoints: weights, settings, progress")
    generate_num: tuple[int, int, int] = setting(
        (5000, 500, 500), "images to draw for training, validation and test", (1, 10**8)
    )
    network: str = setting("ctc", "ctc: three convolutions and CTC; classic: the published network")
    # alpha: classic 0.001, with which 97.77% were read; on 5,000 training images, after 10 epochs
    # without noise, 99.69% where 0.004 read 99.78%.
    alpha: float = setting(4e-3, "learning rate", "(0, 1]")
    # Epoch: classic 100, which stops after 3,200 steps on 1,000 images, while they still improve.
    Epoch: int = setting(10000, "largest number of passes over the training images", (1, 10**9))
    # batch_size: classic 64, with which a step takes twice as long.
    batch_size: int = setting(32, "training images in a step", (1, 10**6))
    # keep_prob: classic 0.5, which read 98.21%, but on those 5,000 images 99.77% where 0.9 read 99.78%.
    keep_prob: float = setting(0.9, "share that dropout keeps, after each convolution", "(0, 1]")
    # shift, scale, shear: classic none, with which 95.57% were read. They start at half of the
    # value and reach it in the hundredth epoch.
    shift: float = setting(0.06, "augmentation: largest shift, as a share of width and height", "[0, 1)")
    scale: float = setting(0.15, "augmentation: largest change of size, as a share", "[0, 1)")
    shear: float = setting(0.3, "augmentation: largest slant, in pixels to the side per row", "[0, 1)")
    # squeeze: classic none, with which 97.39% were read.
    squeeze: float = setting(
        0.3, "augmentation: how far characters move together, as a share of their width", "[0, 1)", "overlap"
    )
    # noise: classic none, with which 96.75% were read.
    noise: float = setting(
        0.5, "augmentation: share of the images that get an arc and dots", "[0, 1]", "clutter"
    )
    print_per_batch: int = setting(20, "steps from one printed line to the next", (1, 10**9))
    save_per_batch: int = setting(
        20, "steps from one point of the TensorBoard curves to the next", (1, 10**9)
    )
    checkpoint_per_batch: int = setting(100, "steps from one checkpoint to the next", (1, 10**9))
    patience: int = setting(
        1000, "steps without a better validation result before early stopping", (1, 10**9)
    )
    seed: int = setting(0, "seed of all random numbers: images, weights, order, dropout", (0, 2**31 - 1))

    @classmethod
    def classic(cls, **changes: Any) -> Config:
        """The published settings and network, without augmentation; `changes` replaces some of them."""
        return cls(**CLASSIC | changes)

    def __post_init__(self) -> None:
        for f in fields(self):
            value, allowed = getattr(self, f.name), f.metadata["allowed"]
            if isinstance(allowed, str):
                self._check_share(f.name, value, allowed)
            elif allowed and f.name != "generate_num":
                self._check_integer(f.name, value, *allowed)
        self._check_counts()
        self._check_alphabet()
        self._check_folders()
        self._check_network()

    # ------------------------------------------------------------------ derived sizes

    @property
    def alphabet(self) -> str:
        """The K characters; the index of a character is its class."""
        return str(self.characters)

    @property
    def time_steps(self) -> int:
        """T, the columns of the last feature map."""
        return math.ceil(self.width / DOWNSAMPLING[1])

    @property
    def feature_map_height(self) -> int:
        """The rows of the last feature map."""
        return math.ceil(self.height / DOWNSAMPLING[0])

    @property
    def augmented(self) -> bool:
        """Whether training images are changed at random."""
        return any((self.shift, self.scale, self.shear, self.squeeze, self.noise))

    @property
    def sets(self) -> tuple[tuple[str, str, int], ...]:
        """(name, folder, images to draw) of the training, validation and test set."""
        folders = (self.train_folder, self.validation_folder, self.test_folder)
        return tuple(zip(("train", "validation", "test"), folders, self.generate_num, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """All settings as JSON has them: `Config(**config.as_dict()) == config`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"generate_num": list(self.generate_num)}

    # ------------------------------------------------------------------ checks

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # a frozen dataclass has no other way

    @staticmethod
    def _check_integer(name: str, value: Any, low: int, high: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"{name} must be a whole number from {low} to {high}, not {value!r}")

    def _check_share(self, name: str, value: Any, allowed: str) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        zero, one = allowed.startswith("["), allowed.endswith("]")
        if not (is_number and (0 < value < 1 or (zero and value == 0) or (one and value == 1))):
            low = "from 0 (included)" if zero else "above 0"
            high = "to 1 (included)" if one else "to below 1"
            raise ConfigError(f"{name} must be a number {low} {high}, not {value!r}")
        self._set(name, float(value))

    def _check_counts(self) -> None:
        counts = self.generate_num
        if not isinstance(counts, tuple | list) or len(counts) != 3:
            raise ConfigError(
                f"generate_num must be three whole numbers (train, validation, test), not {counts!r}"
            )
        for count in counts:
            self._check_integer("generate_num", count, 1, 10**8)
        self._set("generate_num", tuple(counts))

    def _check_alphabet(self) -> None:
        if not isinstance(self.characters, Iterable):
            raise ConfigError(f"characters must be an alphabet such as 0123456789, not {self.characters!r}")
        alphabet = [str(character) for character in self.characters]
        for character in alphabet:
            usable = len(character) == 1 and character.isprintable() and not character.isspace()
            if not usable or character in SEPARATORS:
                raise ConfigError(
                    "characters must be single printable characters, none of them a space or one of "
                    f"{SEPARATORS} (labels are file names), not {character!r}"
                )
        twice = sorted({character for character in alphabet if alphabet.count(character) > 1})
        if twice or len(alphabet) < 2:
            found = f"{twice[0]!r} twice" if twice else repr("".join(alphabet))
            raise ConfigError(f"characters must be at least two different characters, not {found}")
        self._set("characters", "".join(alphabet))

    def _check_folders(self) -> None:
        taken: dict[str, str] = {}
        for name in (f.name for f in fields(self) if f.name.endswith("_folder")):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip() or "\0" in value:
                raise ConfigError(f"{name} must be the path of a folder, not {value!r}")
            other = taken.setdefault(os.path.realpath(value), name)
            if other != name:
                raise ConfigError(f"{name} and {other} must be different folders, both are {value!r}")

    def _check_network(self) -> None:
        if self.network not in NETWORKS:
            raise ConfigError(f"network must be one of {', '.join(NETWORKS)}, not {self.network!r}")
        needed = 2 * self.char_num - 1
        if self.network == "ctc" and self.time_steps < needed:
            raise ConfigError(
                f"width must leave a time step for each of {self.char_num} characters and one between two "
                f"equal ones, {needed} in all; {self.width} px make {self.time_steps}: "
                f"use a width of at least {DOWNSAMPLING[1] * (needed - 1) + 1}"
            )


# What differs from the defaults in "Captcha Generation and Recognition Using a Convolutional Neural
# Network" (besthub.dev; its code is AwesomeTang/Captcha_CNN on GitHub).
CLASSIC: dict[str, Any] = {
    "alpha": 1e-3,
    "Epoch": 100,
    "batch_size": 64,
    "keep_prob": 0.5,
    "network": "classic",
    **dict.fromkeys(("shift", "scale", "shear", "squeeze", "noise"), 0.0),
}
