"""Every setting of the project, validated on construction.

`Config` is passed whole to whatever needs a setting; sizes that follow from settings are properties.

The letters used for shapes, here and in every other file:

    B images in a batch   H height and W width of an image, in pixels   C channels
    T time steps: the columns of the last feature map, read from left to right
    K characters in the alphabet (class K is CTC's blank)   L characters in a captcha, or the most of them
    D units of the dense layer
Where images are said to be [B, H, W], this is in gray; with Config.colour they are [B, H, W, 3].
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

DOWNSAMPLING = (16, 8)  # rows and columns of an image for one of the last feature map
SEPARATORS = r'_./\:*?"<>|('  # they end a label, or cannot stand in a file name everywhere
NETWORKS = ("ctc", "classic")
ANY_VALUE = ("images", "labels", "unlabelled", "start_from", "ignore_case", "colour", "fresh", "frequent")


class CaptchaError(Exception):
    """An expected error: one sentence with what was expected, what was found and how to fix it."""

    status = 1  # exit status of the process that ends with it


class ConfigError(CaptchaError):
    """A setting that cannot be used."""

    status = 2


def escape_unprintable(text: object) -> str:
    """The text with characters that a terminal cannot show, line ends included, escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def lower_case(text: str) -> str:
    """The text in small letters, without those that are written as two characters."""
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


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

    `Config.classic()` has the published settings; docs/how-it-works.md says why the defaults differ.

    Raises:
        ConfigError: a value that cannot be used; names the field and what is allowed.
    """

    width: int = setting(160, "width of a captcha image, in pixels", (8, 4096))
    height: int = setting(60, "height of a captcha image, in pixels", (8, 4096))
    char_num: int | str = setting(4, "characters in a captcha, or the fewest and the most of them: 4-6")
    characters: Iterable[Any] = setting(range(10), "the alphabet, as one word: 0123456789")
    train_folder: str = setting("train", "folder of the training images")
    validation_folder: str = setting("validation", "folder of the images that choose the best weights")
    test_folder: str = setting("test", "folder of the images that are read once, at the end")
    tensorboard_folder: str = setting("tensorboard", "folder of the TensorBoard event files")
    checkpoint_folder: str = setting("checkpoints", "folder of the checkpoints: weights, settings, progress")
    decoded_folder: str = setting("decoded", "folder of the decoded images of sets too large for memory")
    images: str = setting("", "folder of your own labelled images, to be split; other defaults apply")
    labels: str = setting("", "file that names the label of each image in --images")
    folds: int = setting(0, "parts of --images for cross-validation; 1: none; 0: 5 below 200 images", (0, 50))
    unlabelled: str = setting("", "folder of images without labels, like those in --images, to train on too")
    ignore_case: bool = setting(False, "take capital letters in labels as small ones")
    stretch: float = setting(1.0, "horizontal scale of --images, divided by the vertical one", "[0.1, 10]")
    skip_top: float = setting(0.0, "share of the height of --images that is not read, at the top", "[0, 1)")
    skip_bottom: float = setting(0.0, "the same at the bottom", "[0, 1)")
    colour: bool = setting(False, "read red, green and blue, not gray, where the colour carries the answer")
    generate_num: tuple[int, int, int] = setting(
        (5000, 500, 500), "images to draw for training, validation and test", (1, 10**8)
    )
    fresh: bool = setting(False, "draw new training images for each step, unaugmented, in other processes")
    frequent: str = setting("", "characters that --fresh draws more often, such as those that look alike")
    network: str = setting("ctc", "ctc: three convolutions and CTC; classic: the published network")
    channels: int = setting(16, "feature maps of the first convolution of network ctc", (1, 512))
    dense: int = setting(0, "units of a dense layer after them; 0: no such layer", (0, 1024))
    start_from: str = setting("auto", "initial weights: a checkpoint folder, none, or auto: for --images")
    alpha: float = setting(4e-3, "learning rate", "(0, 1]")
    Epoch: int = setting(10000, "largest number of passes over the training images", (1, 10**9))
    batch_size: int = setting(32, "training images in a step", (1, 10**6))
    keep_prob: float = setting(0.9, "share that dropout keeps; of drawn captchas, from epoch 100", "(0, 1]")
    # The augmentation starts at half of these three values and reaches them in the hundredth epoch.
    shift: float = setting(0.06, "augmentation: largest shift, as a share of width and height", "[0, 1)")
    scale: float = setting(0.15, "augmentation: largest change of size, as a share", "[0, 1)")
    shear: float = setting(0.3, "augmentation: largest slant, in pixels to the side per row", "[0, 1)")
    squeeze: float = setting(0.3, "augmentation: how far characters move together", "[0, 1)", "overlap")
    noise: float = setting(0.5, "augmentation: share of images that get noise", "[0, 1]", "clutter")
    lines: float = setting(0.0, "augmentation: share of images that get lines", "[0, 1]")
    print_per_batch: int = setting(20, "steps from one printed line to the next", (1, 10**9))
    save_per_batch: int = setting(20, "steps from one point of TensorBoard's curves to the next", (1, 10**9))
    checkpoint_per_batch: int = setting(100, "steps from one checkpoint to the next", (1, 10**9))
    patience: int = setting(1000, "stagnant steps before early stopping", (1, 10**9))
    seed: int = setting(0, "seed of all random numbers: images, weights, order, dropout", (0, 2**31 - 1))

    @classmethod
    def classic(cls, **changes: Any) -> Config:
        """The published settings and network, without augmentation; `changes` replaces some of them."""
        return cls(**CLASSIC | changes)

    def __post_init__(self) -> None:
        for f in fields(self):
            value, allowed = getattr(self, f.name), f.metadata["allowed"]
            if f.name in ANY_VALUE:
                self._check_type(f.name, value, type(f.default))
            if isinstance(allowed, str):
                self._check_number(f.name, value, allowed)
            elif allowed and f.name != "generate_num":
                self._check_integer(f.name, value, *allowed)
        self._check_counts()
        self._check_alphabet()
        self._check_folders()
        self._check_lengths()
        self._check_network()
        if self.skip_top + self.skip_bottom >= 1:
            found = f"{self.skip_top:g} and {self.skip_bottom:g}"
            raise ConfigError(f"skip_top and skip_bottom must be less than 1 in all, not {found}")

    @property
    def alphabet(self) -> str:
        """The K characters; the index of a character is its class."""
        return str(self.characters)

    @property
    def min_length(self) -> int:
        """The fewest characters of a captcha."""
        return int(str(self.char_num).split("-")[0])

    @property
    def max_length(self) -> int:
        """L, the most characters of a captcha."""
        return int(str(self.char_num).split("-")[-1])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of an image: (H, W), or (H, W, 3) in colour."""
        return (self.height, self.width, 3) if self.colour else (self.height, self.width)

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
        return any((self.shift, self.scale, self.shear, self.squeeze, self.noise, self.lines))

    @property
    def own_images(self) -> bool:
        """Whether the images are the user's own, of any size; else they are drawn."""
        return bool(self.images or self.unlabelled)

    @property
    def fixed_length(self) -> bool:
        """Whether training has a fixed number of steps, and no validation result chooses its weights."""
        return self.folds > 1 or bool(self.unlabelled and not self.images)

    @property
    def sets(self) -> tuple[tuple[str, str, int], ...]:
        """(name, folder, images to draw) of the training, validation and test set; `fresh` has no first."""
        folders = (self.train_folder, self.validation_folder, self.test_folder)
        sets = tuple(zip(("train", "validation", "test"), folders, self.generate_num, strict=True))
        return sets[1:] if self.fresh else sets

    def as_dict(self) -> dict[str, Any]:
        """All settings as JSON has them: `Config(**config.as_dict()) == config`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"generate_num": list(self.generate_num)}

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # a frozen dataclass has no other way

    @staticmethod
    def _check_type(name: str, value: Any, kind: type) -> None:
        if not isinstance(value, kind):
            raise ConfigError(f"{name} must be {'text' if kind is str else 'True or False'}, not {value!r}")

    @staticmethod
    def _check_integer(name: str, value: Any, low: int, high: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"{name} must be a whole number from {low} to {high}, not {value!r}")

    def _check_number(self, name: str, value: Any, allowed: str) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        low, high = map(float, allowed[1:-1].split(","))
        ends = [low] * allowed.startswith("[") + [high] * allowed.endswith("]")  # that are allowed
        if not is_number or not (low < value < high or value in ends):
            least = f"from {low:g} (included)" if low in ends else f"above {low:g}"
            most = f"to {high:g} (included)" if high in ends else f"to below {high:g}"
            raise ConfigError(f"{name} must be a number {least} {most}, not {value!r}")
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
        if self.ignore_case:
            alphabet = list(dict.fromkeys(map(lower_case, alphabet)))
        for character in alphabet:
            usable = len(character) == 1 and character.isprintable() and not character.isspace()
            if not usable or (character in SEPARATORS and not self.own_images):
                raise ConfigError(
                    "characters must be single printable characters, none of them a space or one of "
                    f"{SEPARATORS} (labels are file names), not {character!r}"
                )
        twice = sorted({character for character in alphabet if alphabet.count(character) > 1})
        if twice or len(alphabet) < 2:
            found = f"{twice[0]!r} twice" if twice else repr("".join(alphabet))
            raise ConfigError(f"characters must be at least two different characters, not {found}")
        if unknown := sorted(set(self.frequent) - set(alphabet)):
            raise ConfigError(f"frequent must be characters of the alphabet, not {unknown[0]!r}")
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

    def _check_lengths(self) -> None:
        value = self.char_num
        text = "-".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
        found = re.fullmatch("([0-9]{1,2})(-[0-9]{1,2})?", text)
        low, high = (int(found[1]), int((found[2] or found[1]).strip("-"))) if found else (0, 0)
        if not 1 <= low <= high <= 64:
            expected = "a whole number from 1 to 64, or a range such as 4-6"
            raise ConfigError(f"char_num must be {expected}, not {value!r}")
        self._set("char_num", low if low == high else f"{low}-{high}")

    def _check_network(self) -> None:
        if self.network not in NETWORKS:
            raise ConfigError(f"network must be one of {', '.join(NETWORKS)}, not {self.network!r}")
        if self.network == "classic" and isinstance(self.char_num, str):
            raise ConfigError(f"char_num must be one number for network classic, not {self.char_num!r}")
        needed = 2 * self.max_length - 1
        if self.network == "ctc" and self.time_steps < needed:
            raise ConfigError(
                f"width must leave a time step for each of {self.max_length} characters and one between two "
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
