"""Captcha generators that others wrote, each in its default look and in an environment of its own.

`make_images` draws with one of SYSTEMS. On first use it makes the system's environment, a virtual
environment of Python or a folder of npm packages, outside of the project: in `captcha-systems` in
$XDG_CACHE_HOME, or else in ~/.cache. The drawing itself is in draw.py and draw.js, which run there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import string
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import filelock

from config import CaptchaError, escape_unprintable

PILLOW = "pillow==11.3.0"
READY = "ready"  # a file in an environment in which all is installed


class System(NamedTuple):
    """A captcha generator and its defaults."""

    description: str
    kind: str  # "python": from PyPI, drawn by draw.py; "npm": by draw.js
    packages: tuple[str, ...]  # pinned
    alphabet: str  # of its labels
    lengths: tuple[int, int]  # of its labels: shortest, longest
    ignores_case: bool  # its server, or the one in its documentation, takes letters of either case
    held_out: bool = False  # no choice is made on it: measured once all choices are made

    @property
    def folds_case(self) -> bool:
        """Whether its labels have letters of both cases that need not be told apart."""
        return self.ignores_case and self.alphabet not in (self.alphabet.upper(), self.alphabet.lower())

    @property
    def char_num(self) -> str:
        """The lengths of its labels, as --char-num takes them."""
        shortest, longest = self.lengths
        return f"{shortest}" if shortest == longest else f"{shortest}-{longest}"

    def as_counted(self, text: str) -> str:
        """The text in small letters, where the case is ignored."""
        return text.lower() if self.ignores_case else text


SYSTEMS = {
    "wheezy.captcha": System(
        "200x75 JPEG; characters warped, rotated, drawn over each other; a curve and dots",
        "python",
        (
            "wheezy.captcha==3.2.2",
            "wheezy.http==3.2.4",
            "wheezy.core==3.2.3",
            "font-caladea==0.0.2",
            "font-source-sans-pro==0.0.1",
            PILLOW,
        ),
        "ABCDEFGHJKLMNPQRSTUVWXYZ23456789",
        (4, 4),
        ignores_case=True,
    ),
    "django-simple-captcha": System(
        "about 75x33 PNG, each of another size; rotated letters, many dots, three lines",
        "python",
        ("django-simple-captcha==0.7.0", "django==5.2.19", PILLOW),
        string.ascii_uppercase,
        (4, 4),
        ignores_case=True,
    ),
    "multicolorcaptcha": System(
        "640x360 PNG in colour; 44 fonts, rotated digits, lines and circles; difficulty 2 of 0 to 5",
        "python",
        ("multicolorcaptcha==1.2.0", PILLOW),
        string.digits,
        (4, 4),
        ignores_case=False,
    ),
    "claptcha": System(
        "200x80 PNG; characters strongly warped, a line; the longer the text, the narrower",
        "python",
        ("claptcha==0.3.3", "font-source-serif-pro==0.0.1", PILLOW),
        string.ascii_uppercase,
        (4, 6),
        ignores_case=False,
    ),
    "flask-simple-captcha": System(
        "180x60 JPEG, white on black; letters move up and down; lines and ellipses as thick as they are",
        "python",
        ("flask-simple-captcha==5.5.5", "werkzeug==3.1.9", "pyjwt==2.15.1", PILLOW),
        "ABCDEFGHJKLMNPQRSTUVWXYZ",
        (6, 6),
        ignores_case=False,
        held_out=True,
    ),
    "easy-captcha-python": System(
        "130x48 PNG in colour; an outlined font that draws both cases alike; a curve, two circles",
        "python",
        ("easy-captcha-python==1.0.0", PILLOW),
        "23456789ABCDEFGHJKMNPQRSTUVWXYZabcdefghjkmnpqrstuvwxyz",
        (5, 5),
        ignores_case=True,
    ),
    "light-captcha": System(
        "250x80 PNG; small rotated digits with holes, long lines in nearly their colour",
        "python",
        ("light-captcha==0.0.5", PILLOW),
        string.digits,
        (6, 6),
        ignores_case=False,
    ),
    "svg-captcha": System(
        "150x50 SVG, rendered as PNG; an outlined font with a shadow, one curve",
        "npm",
        ("svg-captcha@1.4.0", "@resvg/resvg-js@2.6.2"),
        string.digits + string.ascii_letters,
        (4, 4),
        ignores_case=False,
    ),
    "trek-captcha": System(
        "200x70 GIF, one colour; letters on a wave that overlap, a curve",
        "npm",
        ("trek-captcha@0.4.0",),
        "abcdfhijklmnopqrstuvwxy",
        (5, 5),
        ignores_case=False,
        held_out=True,
    ),
    "captchapng": System(
        "80x30 PNG, transparent; two bitmap fonts, nothing else drawn",
        "npm",
        ("captchapng@0.0.1", "pnglib@0.0.1"),
        string.digits,
        (4, 4),
        ignores_case=False,
    ),
    "captcha-canvas": System(
        "300x100 PNG, transparent; skewed green characters, a line through them, smaller gray ones as decoys",
        "npm",
        ("captcha-canvas@3.4.0", "@napi-rs/canvas@0.1.80", "dejavu-fonts-ttf@2.37.3"),
        "0123456789ABCDEF",
        (6, 6),
        ignores_case=False,
    ),
}


def make_images(system: str, folder: str | os.PathLike[str], count: int, seed: int) -> None:
    """Draw captchas: `count` files with their labels in their names, the same ones for the same seed.

    Args:
        system: a name in SYSTEMS.
        folder: is made; must be empty.
    Raises:
        CaptchaError: the folder holds something, or pip, npm or the generator fails.
    """
    target = Path(folder).absolute()
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise CaptchaError(
            f"{escape_unprintable(target)} must be empty to be drawn into: name another folder"
        )
    program, variables = environment(system)
    command = [*program, str(drawing_script(system)), system, str(target), str(count), str(seed)]
    run(command, f"captchas of {system} could not be drawn", variables)


def drawing_script(system: str) -> Path:
    """The script that draws with the system."""
    return Path(__file__).with_name("draw.py" if SYSTEMS[system].kind == "python" else "draw.js")


def environment(system: str) -> tuple[list[str], dict[str, str]]:
    """The command that runs a script in the system's environment, and variables for it.

    The environment is made where it is missing; another process waits for it.

    Raises:
        CaptchaError: it cannot be made.
    """
    folder = environment_folder(system)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        if not (folder / READY).exists():
            shutil.rmtree(folder, ignore_errors=True)  # half made
            for command in install_commands(system, folder):
                run(command, f"the packages of {system} could not be installed")
            (folder / READY).touch()
    if SYSTEMS[system].kind == "python":
        return [str(python_in(folder)), "-I"], {}
    return [find_program("node", system)], {"NODE_PATH": str(folder / "node_modules")}


def install_commands(system: str, folder: Path) -> list[list[str]]:
    """The commands that install a system's packages into a folder, which they make.

    Raises:
        CaptchaError: npm is not installed.
    """
    packages = SYSTEMS[system].packages
    if SYSTEMS[system].kind == "python":
        pip = [str(python_in(folder)), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        return [[sys.executable, "-m", "venv", str(folder)], [*pip, *packages]]
    # The scripts of packages are not run: skia-canvas downloads a program in its own.
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    return [[find_program("npm", system), "install", *options, "--prefix", str(folder), *packages]]


def environment_folder(system: str) -> Path:
    """The folder of a system's environment: another one when its packages or our Python change."""
    made_of = [sys.base_prefix, sys.version, *SYSTEMS[system].packages]
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:8]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "captcha-systems" / f"{system}-{digest}"


def python_in(folder: Path) -> Path:
    """The Python of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def find_program(name: str, system: str) -> str:
    """The path of node or npm.

    Raises:
        CaptchaError: it is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise CaptchaError(f"{name} must be installed to draw captchas of {system}, but is not: get Node.js")
    return path


def run(command: Sequence[str], problem: str, variables: Mapping[str, str] | None = None) -> None:
    """Run a command whose output is of no interest.

    Raises:
        CaptchaError: it fails: the problem, and the last line that it wrote about an error.
    """
    done = subprocess.run(
        command,
        env={**os.environ, **(variables or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        lines = [line.strip() for line in done.stdout.splitlines() if "error" in line.lower()]
        reason = escape_unprintable(lines[-1]) if lines else f"status {done.returncode}"
        raise CaptchaError(f"{problem}: {reason}")
