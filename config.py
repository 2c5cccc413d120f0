"""Every setting of the project, checked at birth, and the command line made from it.

`Config` is passed whole to whatever needs a setting; every size that follows from
the settings is a property here. Importing this module does nothing.

The letters used for shapes, here and in every other file:

    B pictures of a batch    H rows       W columns of a picture   C channels
    T columns of the last map, which CTC reads from left to right
    K symbols of the alphabet (class K is CTC's blank)   L symbols of a captcha
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

DOWNSAMPLING = (16, 8)  # rows and columns of a picture to one of the last map: the convolutions' strides
SEPARATORS = r'_./\:*?"<>|'  # end a label, or cannot stand in a file name everywhere


class CaptchaError(Exception):
    """What stops the program: one sentence on what was wanted, what was found, what to do."""

    status = 1  # of the process that ends with it


class ConfigError(CaptchaError):
    """A setting that cannot be used."""

    status = 2


def printable(text: str) -> str:
    """The text with what a terminal cannot show, line ends among it, escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def option(default: Any, help: str) -> Any:
    """A field with its default and the sentence that `--help` prints."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Config:
    """All settings. `Config.width` is the default; `Config(width=200).width` is 200.

    Where a training default differs from the classic one, the comment says what the classic
    value was and how well captchas were read with it, other settings alike: of 10,000 pictures held
    out, after 4,000 steps on 100 training pictures, one run each, 97.89% with the defaults. `driver.py
    --epoch 1000 --patience 4000 --generate-num 100 500 10000` with one flag changed makes these runs.

    Raises:
        ConfigError: a value that cannot be used; names the field and what is allowed.
    """

    width: int = option(160, "width of a captcha, in pixels")
    height: int = option(60, "height of a captcha, in pixels")
    char_num: int = option(4, "symbols in a captcha")
    characters: Iterable[Any] = option(range(10), "the alphabet, as one word: 0123456789")
    train_folder: str = option("train", "folder of the pictures to train on")
    validation_folder: str = option("validation", "folder of the pictures that choose the best weights")
    test_folder: str = option("test", "folder of the pictures read once, at the end")
    tensorboard_folder: str = option("tensorboard", "folder of the curves")
    checkpoint_folder: str = option(
        "checkpoints", "folder of the run: the best weights, settings, what to resume from"
    )
    generate_num: tuple[int, int, int] = option(
        (5000, 500, 500), "pictures to draw for training, validation and test"
    )
    # alpha: classic 0.001, with which 97.77% of captchas were read; on 5,000 pictures, after 10 epochs
    # without clutter, 99.69% where 0.004 read 99.78%.
    alpha: float = option(4e-3, "learning rate")
    # Epoch: classic 100, which stops 1,000 pictures after 3,200 steps, while they still improve.
    Epoch: int = option(10000, "times to go through the training pictures at most")
    # batch_size: classic 64, which takes twice as long a step.
    batch_size: int = option(32, "training pictures a step")
    # keep_prob: classic 0.5, which read 98.21%, but on those 5,000 pictures 99.77% where 0.9 read 99.78%.
    keep_prob: float = option(0.9, "share of the values that dropout keeps, after the last convolution")
    # shift, scale, shear: classic none, with which 95.57% were read. They grow from half of this in the
    # first hundred epochs.
    shift: float = option(0.06, "share of its width and height by which a training picture moves, at most")
    scale: float = option(0.15, "share by which a training picture is made larger or smaller, at most")
    shear: float = option(0.3, "slant of a training picture, in pixels to the side a row, at most")
    # overlap: classic none, with which 97.39% were read.
    overlap: float = option(0.3, "share of a symbol's width by which two come closer in training, at most")
    # clutter: classic none, with which 96.75% were read.
    clutter: float = option(0.5, "share of the training pictures over which an arc and dots are drawn")
    print_per_batch: int = option(20, "steps from one printed line to the next")
    save_per_batch: int = option(20, "steps from one point of TensorBoard's curves to the next")
    checkpoint_per_batch: int = option(100, "steps from one checkpoint to resume from to the next")
    patience: int = option(1000, "steps without a better validation result before training stops")
    seed: int = option(0, "where all random numbers start: pictures, weights, order, dropout")

    def __post_init__(self) -> None:
        whole = {  # smallest and largest value
            "width": (8, 4096),
            "height": (8, 4096),
            "char_num": (1, 64),
            "Epoch": (1, 10**9),
            "batch_size": (1, 10**6),
            "print_per_batch": (1, 10**9),
            "save_per_batch": (1, 10**9),
            "checkpoint_per_batch": (1, 10**9),
            "patience": (1, 10**9),
            "seed": (0, 2**31 - 1),
        }
        for name, (low, high) in whole.items():
            self._check_whole(name, getattr(self, name), low, high)
        self._check_share("alpha", zero=False, one=True)
        self._check_share("keep_prob", zero=False, one=True)
        for name in ("shift", "scale", "shear", "overlap"):
            self._check_share(name, zero=True, one=False)
        self._check_share("clutter", zero=True, one=True)
        self._check_counts()
        self._check_alphabet()
        self._check_folders()
        if self.columns < 2 * self.char_num - 1:
            raise ConfigError(
                f"width must leave a column for each of {self.char_num} symbols and one between two equal "
                f"ones, {2 * self.char_num - 1} in all; {self.width} px make {self.columns}: "
                f"use a width of at least {DOWNSAMPLING[1] * (2 * self.char_num - 2) + 1}"
            )

    # ------------------------------------------------------------------ derived sizes

    @property
    def alphabet(self) -> str:
        """The K symbols; a symbol's place in it is its class."""
        return str(self.characters)

    @property
    def columns(self) -> int:
        """T, the columns of the last map."""
        return math.ceil(self.width / DOWNSAMPLING[1])

    @property
    def rows(self) -> int:
        """The rows of the last map."""
        return math.ceil(self.height / DOWNSAMPLING[0])

    @property
    def sets(self) -> tuple[tuple[str, str, int], ...]:
        """(name, folder, pictures to draw) of the training, validation and test set."""
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
    def _check_whole(name: str, value: Any, low: int, high: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"{name} must be a whole number from {low} to {high}, not {value!r}")

    def _check_share(self, name: str, zero: bool, one: bool) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and (0 < value < 1 or (zero and value == 0) or (one and value == 1))):
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
            self._check_whole("generate_num", count, 1, 10**8)
        self._set("generate_num", tuple(counts))

    def _check_alphabet(self) -> None:
        if not isinstance(self.characters, Iterable):
            raise ConfigError(f"characters must be symbols such as 0123456789, not {self.characters!r}")
        symbols = [str(symbol) for symbol in self.characters]
        for symbol in symbols:
            if len(symbol) != 1 or not symbol.isprintable() or symbol.isspace() or symbol in SEPARATORS:
                raise ConfigError(
                    "characters must be single printable symbols, none of them a space or one of "
                    f"{SEPARATORS} (labels are file names), not {symbol!r}"
                )
        twice = sorted({symbol for symbol in symbols if symbols.count(symbol) > 1})
        if twice or len(symbols) < 2:
            found = f"{twice[0]!r} twice" if twice else repr("".join(symbols))
            raise ConfigError(f"characters must be at least two different symbols, not {found}")
        self._set("characters", "".join(symbols))

    def _check_folders(self) -> None:
        taken: dict[str, str] = {}
        for name in (f.name for f in fields(self) if f.name.endswith("_folder")):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip() or "\0" in value:
                raise ConfigError(f"{name} must be the path of a folder, not {value!r}")
            other = taken.setdefault(os.path.realpath(value), name)
            if other != name:
                raise ConfigError(f"{name} and {other} must be different folders, both are {value!r}")


def parse(arguments: Sequence[str], description: str) -> Config:
    """The Config that a command line asks for.

    Raises:
        ConfigError: a value that cannot be used.
        SystemExit: `--help` (status 0), or a flag that there is not (2).
    """
    return Config(**vars(settings_parser(description).parse_args(arguments)))


def settings_parser(description: str) -> Parser:
    """A parser whose result has those fields of Config that the command line names.

    Every field is a flag, named after it with dashes. A value that is no number where one is
    wanted is handed on as it is, so that Config alone says what is allowed.
    """
    parser = Parser(description=description)
    for f in fields(Config):
        flag = f"--{f.name.replace('_', '-')}"
        default: Any = f.default
        form: dict[str, Any]
        kind = type(default)
        if kind is tuple:
            form = {"type": number(int), "nargs": len(default), "metavar": "N"}
            default = " ".join(map(str, default))
        elif kind is range:
            form = {"metavar": "SYMBOLS"}
            default = "".join(map(str, default))
        elif kind is str:
            form = {"metavar": "FOLDER"}
        else:
            form = {"type": number(kind), "metavar": "N" if kind is int else "X"}
        parser.add_argument(
            *dict.fromkeys([flag, flag.lower()]),  # --Epoch is --epoch too
            dest=f.name,
            default=argparse.SUPPRESS,
            help=f"{f.metadata['help']} (default: {default})",
            **form,
        )
    return parser


def number(kind: type) -> Callable[[str], Any]:
    """Text to a number of that kind; what is none stays text."""

    def convert(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return text

    return convert


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line."""

    def __init__(self, description: str) -> None:
        super().__init__(os.path.basename(sys.argv[0]), description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:  # noqa: D102
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Be a script: main(arguments) gives the exit status; what stops it becomes one sentence.

    Status: 1 for work that could not be done, 2 for settings that cannot be used, 130 for
    Ctrl-C. A traceback means a bug.
    """
    program = os.path.basename(sys.argv[0])
    for stream in (sys.stdout, sys.stderr):  # a file name may hold what the terminal cannot print
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has gone: `python driver.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        status = 130
    except (CaptchaError, OSError, MemoryError) as error:
        print(f"{program}: {str(error) or 'not enough memory'}", file=sys.stderr)
        status = error.status if isinstance(error, CaptchaError) else 1
    sys.exit(status)
