"""Readers that come trained, from PyPI: what there is to be had without training anything.

    ddddocr            (sml2h3, MIT) a general reader of captchas with some 8,200 symbols; its older
                       network is its default, `beta=True` its newer one
    captcha-whisperer  (fxaxg, MIT) a CRNN for letters and digits

Each is used as its own documentation shows, one PNG at a time, and helped where the alphabet is
known: `nearest` turns a letter that cannot be into the digit that looks like it, or into the
other case. ddddocr 1.6 has `set_ranges` for that, but it drops from the finished answer what is not
in range: of 600 captchas not one more was right with it, and `nearest` gained three.
"""

from __future__ import annotations

import importlib
import io
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from PIL import Image

from benchmarks.common import missing
from config import Config

LOOKALIKES = dict(zip("ODQIJLZASGTBP", "0001112456789", strict=True))  # capitals for digits


class Reading(NamedTuple):
    """What a reader made of the pictures."""

    raw: list[str]  # answers as given
    answers: list[str]  # answers brought to the alphabet by `nearest`
    milliseconds: float  # a picture


def ddddocr(beta: bool) -> Callable[[bytes], str]:
    """ddddocr's reader of text, with its newer network or its default one."""
    reader = package("ddddocr").DdddOcr(show_ad=False, beta=beta)
    return lambda png: str(reader.classification(png))


def captcha_whisperer() -> Callable[[bytes], str]:
    """captcha-whisperer's reader. Version 0.1.0 never answers with a 0, but often with a Q for it."""
    reader = package("captcha_whisperer").CaptchaRecognizer()
    return lambda png: str(reader.recognize_bytes(png)["text"])


READERS: dict[str, Callable[[], Callable[[bytes], str]]] = {
    "ddddocr": lambda: ddddocr(beta=False),
    "ddddocr beta": lambda: ddddocr(beta=True),
    "captcha-whisperer": captcha_whisperer,
}


def read(name: str, images: Sequence[Image.Image], config: Config) -> Reading:
    """Read pictures with one of READERS, one at a time, as PNG files in memory.

    The time is that of reading alone: the network is loaded and used once before.

    Args:
        images: captchas as drawn, in colour.

    Raises:
        CaptchaError: the reader is not installed.
    """
    reader = READERS[name]()
    files = [png(image) for image in images]
    for file in files[:1]:
        reader(file)
    begun = time.perf_counter()
    raw = [reader(file) for file in files]
    seconds = time.perf_counter() - begun
    return Reading(raw, [nearest(text, config.alphabet) for text in raw], 1000 * seconds / max(1, len(raw)))


def nearest(text: str, alphabet: str) -> str:
    """The text with what the alphabet lacks in the other case, or as the digit that looks like it.

    What has neither in the alphabet stays as it is, which is wrong in any case.
    """
    found = []
    for symbol in text:
        others = (symbol, symbol.swapcase(), LOOKALIKES.get(symbol.upper(), symbol))
        found.append(next((other for other in others if other in alphabet), symbol))
    return "".join(found)


def png(image: Image.Image) -> bytes:
    """The picture as a PNG file in memory."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def package(name: str) -> Any:
    """Import a reader's package.

    Raises:
        CaptchaError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise missing(name.replace("_", "-"), "requirements.txt") from None
