"""Pretrained readers from PyPI: what can be had without any training.

    ddddocr            (sml2h3, MIT) a general reader of captchas with some 8,200 characters; its older
                       network is its default, `beta=True` its newer one
    captcha-whisperer  (fxaxg, MIT) a CRNN for letters and digits

Each is used as its own documentation shows, one PNG at a time, and then helped with what is known of
the alphabet: `to_alphabet` turns a letter that cannot be there into the digit that looks like it, or
into the other case. ddddocr 1.6 has `set_ranges` for that, but it drops from the finished answer what
is not in range: of 600 captchas it got no more right, where `to_alphabet` gained three.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image

from benchmarks.common import load_package
from config import Config

LOOKALIKES = dict(zip("ODQIJLZASGTBP", "0001112456789", strict=True))  # capital letters and digits


class Answers(NamedTuple):
    """What a reader read in the images."""

    raw: list[str]  # as answered
    texts: list[str]  # after to_alphabet()
    milliseconds: float  # per image


def ddddocr(beta: bool) -> Callable[[bytes], str]:
    """ddddocr's reader of text, with its newer network or its default one."""
    reader = load_package("ddddocr").DdddOcr(show_ad=False, beta=beta)
    return lambda png: str(reader.classification(png))


def captcha_whisperer() -> Callable[[bytes], str]:
    """captcha-whisperer's reader. Version 0.1.0 never answers with a 0, but often with a Q for it."""
    reader = load_package("captcha_whisperer").CaptchaRecognizer()
    return lambda png: str(reader.recognize_bytes(png)["text"])


READERS: dict[str, Callable[[], Callable[[bytes], str]]] = {
    "ddddocr": lambda: ddddocr(beta=False),
    "ddddocr beta": lambda: ddddocr(beta=True),
    "captcha-whisperer": captcha_whisperer,
}


def read(name: str, images: Sequence[Image.Image], config: Config) -> Answers:
    """Read images with one of READERS, one at a time, as PNG files in memory.

    Only reading is timed: the network is loaded and used once before.

    Args:
        images: captchas as drawn, in colour.
    Raises:
        CaptchaError: the reader is not installed.
    """
    reader = READERS[name]()
    files = [png_bytes(image) for image in images]
    for file in files[:1]:
        reader(file)
    begin = time.perf_counter()
    raw = [reader(file) for file in files]
    seconds = time.perf_counter() - begin
    return Answers(
        raw, [to_alphabet(each, config.alphabet) for each in raw], 1000 * seconds / max(1, len(raw))
    )


def to_alphabet(text: str, alphabet: str) -> str:
    """The text with characters outside the alphabet in the other case, or as the digit that looks alike.

    A character for which the alphabet has neither stays as it is, which is wrong in any case.
    """
    found = []
    for character in text:
        candidates = (character, character.swapcase(), LOOKALIKES.get(character.upper(), character))
        found.append(next((each for each in candidates if each in alphabet), character))
    return "".join(found)


def png_bytes(image: Image.Image) -> bytes:
    """The image as a PNG file in memory."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
