"""Command lines: the parser made from Config's fields, and errors as one sentence."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from config import CLASSIC, CaptchaError, Config, escape_unprintable

# Augmentation and dropout make up for images that are seen again and again. Where each image is new, they
# only hide how wide characters are, which tells O from 0.
WITH_FRESH = dict.fromkeys(("shift", "scale", "shear", "squeeze", "noise"), 0.0) | {"keep_prob": 1.0}


class OneLineErrorParser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line."""

    def __init__(self, description: str) -> None:
        super().__init__(os.path.basename(sys.argv[0]), description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:  # noqa: D102
        self.exit(2, f"{self.prog}: {escape_unprintable(message)}; see {self.prog} --help\n")


def make_parser(description: str) -> OneLineErrorParser:
    """A parser whose result has those fields of Config that the command line names.

    Every field is a flag, named after it with dashes. A value that is not a number where one is
    expected is passed on as it is, so that Config alone says what is allowed.
    """
    parser = OneLineErrorParser(description)
    for f in fields(Config):
        old_name, help = f.metadata["old_name"], f.metadata["help"]
        default, options = _argument(f.name, f.default)
        flags = [flag_of(name) for name in (f.name, f.name.lower(), old_name) if name]
        note = f"; the old spelling --{old_name} works for one more release" if old_name else ""
        parser.add_argument(
            *dict.fromkeys(flags),  # --Epoch is --epoch too
            dest=f.name,
            default=argparse.SUPPRESS,
            help=f"{help} (default: {default}{note})",
            **options,
        )
    parser.add_argument(
        "--classic",
        action="store_const",
        const=CLASSIC,
        default={},
        help="the published network and settings, for what no other flag names",
    )
    return parser


def flag_of(name: str) -> str:
    """The flag of a setting: --keep-prob."""
    return f"--{name.replace('_', '-')}"


def _argument(name: str, default: Any) -> tuple[str, dict[str, Any]]:
    """How `--help` shows the default of a setting, and what argparse needs to know of it."""
    kind = type(default)
    if kind is bool:
        return "no", {"action": argparse.BooleanOptionalAction}
    if kind is tuple:
        options = {"type": parse_number(int), "nargs": len(default), "metavar": "N"}
        return " ".join(map(str, default)), options
    if kind is range:
        return "".join(map(str, default)), {"metavar": "CHARACTERS"}
    if kind is str:
        is_folder = name.endswith("_folder") or name in ("images", "unlabelled")
        metavar = "FOLDER" if is_folder else "FILE" if name == "labels" else "NAME"
        return default or "none", {"metavar": metavar}
    return str(default), {"type": parse_number(kind), "metavar": "N" if kind is int else "X"}


def given_settings(values: dict[str, Any]) -> dict[str, Any]:
    """The settings that a parsed command line names, those of --classic and --fresh included."""
    return {**(WITH_FRESH if values.get("fresh") else {}), **values.pop("classic"), **values}


def parse(arguments: Sequence[str], description: str) -> Config:
    """The Config that a command line asks for.

    Raises:
        ConfigError: a value that cannot be used.
        SystemExit: `--help` (status 0), or an unknown flag (2).
    """
    return Config(**given_settings(vars(make_parser(description).parse_args(arguments))))


def parse_number(kind: type) -> Callable[[str], Any]:
    """A converter from text to a number of that kind; other text stays text."""

    def convert(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return text

    return convert


def shell_command(*words: str) -> str:
    """A command as one can paste it into a shell."""
    return escape_unprintable(shlex.join(words))


def next_command(script: str, config: Config, *arguments: str) -> str:
    """A command that goes on with the run of that Config."""
    folder = config.checkpoint_folder
    flags = [] if folder == Config.checkpoint_folder else ["--checkpoint-folder", folder]
    return shell_command("python", script, *flags, *arguments)


def missing_package(program: str, name: str, requirements: str) -> CaptchaError:
    """The error for a package that is not installed.

    Args:
        requirements: the file that lists it.
    """
    return CaptchaError(f"{program} needs {name}, which is not installed: pip install -r {requirements}")


def run_main(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run as a script: main(arguments) returns the exit status; an expected error becomes one sentence.

    Status: 1 for work that could not be done, 2 for settings that cannot be used, 130 for
    Ctrl-C. A traceback means a bug.
    """
    program = os.path.basename(sys.argv[0])
    # This process is ours alone, so TensorFlow's variables may be set in it. oneDNN's kernels are off by
    # default on CPUs without AVX-512, where a training step takes 1.6 times as long without them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what goes wrong is raised
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # or TensorFlow complains that it finds no GPU
    os.environ.setdefault(
        "ORT_DISABLE_TELEMETRY", "1"
    )  # ONNX Runtime tells its maker of each model otherwise
    for stream in (sys.stdout, sys.stderr):  # a file name may hold what the terminal cannot print
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has closed it: `python driver.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        status = 130
    except (CaptchaError, OSError, MemoryError) as error:
        print(f"{program}: {str(error) or 'not enough memory'}", file=sys.stderr)
        status = error.status if isinstance(error, CaptchaError) else 1
    sys.exit(status)
