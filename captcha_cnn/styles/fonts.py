"""Finding the font files that pip brings, and the characters that each of them can draw."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from config import CaptchaError

FONT_PATTERNS = (  # inside the folders of installed packages
    "fontpkg_*/files/*.[ot]tf",
    "font_*/files/*.[ot]tf",
    "captcha/data/*.ttf",
    "matplotlib/mpl-data/fonts/ttf/*.ttf",
)
# Fonts of mathematics and icons, and those whose strokes are too thin for a small image.
EXCLUDED_NAMES = re.compile(r"STIX(Non|Siz)|^cm(ex|sy|mi)|LastResort|Display\.ttf$|Thin|ExtraLight|Awesome")
CASE_TEST_LETTERS = "abdeghnqrt"  # their capitals have another shape
CASE_TEST_OVERLAP = 0.85  # of two masks of one size: more means the same shape (of bold ones, up to 0.79)
SMALL_CAPITALS = ("AmaticSC", "Cinzel")  # families whose lower-case letters are capitals of other strokes


def style_fonts() -> list[str]:
    """The paths of the font files found, sorted by name.

    Raises:
        CaptchaError: there is none.
    """
    found = {
        path.name: str(path)
        for folder in reversed(sys.path)  # of two files of one name, the one that comes first stays
        for pattern in FONT_PATTERNS
        for path in Path(folder or ".").glob(pattern)
        if not EXCLUDED_NAMES.search(path.name)
    }
    if not found:
        raise CaptchaError("no fonts found: install them with `pip install -r requirements-styles.txt`")
    return [found[name] for name in sorted(found)]


@functools.cache
def font_families() -> dict[str, list[str]]:
    """Paths of the font files of each family: its regular, bold and italic fonts."""
    families: dict[str, list[str]] = {}
    for path in style_fonts():
        families.setdefault(family_name(path), []).append(path)
    return families


def family_name(path: str) -> str:
    """The family of a font file, from its name: "PT_Sans-Web-Bold.ttf" is of the family "PT_Sans"."""
    name = re.split(r"[-\[.]", Path(path).name)[0]
    return re.sub(r"(General|Bold|Bol|Italic|Ita|Oblique|Regular)+$", "", name) or name


@functools.lru_cache(2000)
def load_font(path: str, size: int, weight: int = 400) -> ImageFont.FreeTypeFont:
    """A font of that size in pixels; a variable font gets the weight (100 to 900), as far as it can."""
    font = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    if "wght" not in Path(path).name:
        return font
    axes = font.get_variation_axes()
    values: list[float] = [
        min(max(weight, axis["minimum"] or 0), axis["maximum"] or 0)
        if axis["name"] == b"Weight"
        else axis["default"] or 0
        for axis in axes
    ]
    font.set_variation_by_axes(values)
    return font


@functools.cache
def capital_height(path: str) -> float:
    """Height of an upper-case letter (a digit, in a font without) divided by the font size."""
    font = load_font(path, 100)
    character = "H" if has_glyph(path, "H") else "0"
    _, top, _, bottom = font.getbbox(character, anchor="ls")
    return max(0.2, (bottom - top) / 100)


@functools.cache
def has_glyph(path: str, character: str) -> bool:
    """Whether the font has this character (else it draws a box in its place)."""
    font = load_font(path, 40)
    mask = font.getmask(character)
    return 0 not in mask.size and bytes(mask) != bytes(font.getmask("\uffff"))  # no font has this one


@functools.cache
def is_usable(path: str, character: str) -> bool:
    """Whether the font draws this character, a lower-case one not in the shape of its capital."""
    return has_glyph(path, character) and not (character.islower() and draws_capitals_only(path))


@functools.cache
def draws_capitals_only(path: str) -> bool:
    """Whether the lower-case letters of a font look like its capitals, smaller or not."""
    if family_name(path) in SMALL_CAPITALS:
        return True
    overlaps = [
        _overlap(_glyph_shape(path, letter), _glyph_shape(path, letter.upper()))
        for letter in CASE_TEST_LETTERS
        if has_glyph(path, letter) and has_glyph(path, letter.upper())
    ]
    return bool(overlaps) and float(np.median(overlaps)) > CASE_TEST_OVERLAP


def _glyph_shape(path: str, character: str) -> np.ndarray:
    """What a character covers of its bounding box, bool [24, 24]."""
    font = load_font(path, 60)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(character, anchor="ls"))
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), character, 255, font, anchor="ls")
    return np.asarray(image.resize((24, 24), Image.Resampling.BOX)) > 100


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((first & second).sum() / max(1, (first | second).sum()))
