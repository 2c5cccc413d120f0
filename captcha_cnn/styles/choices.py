"""The random style of a captcha: its label, fonts, colours and effects."""

from __future__ import annotations

import functools
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from captcha_cnn.styles.fonts import font_families, is_usable
from config import CaptchaError

STYLE_CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
HEIGHTS = (22, 110)  # pixels, of an image before it is scaled to the model's size
LOW_CONTRASTS = (45.0, 85.0)  # between text and background, of luminance from 0 to 255
MIN_CHARACTER_HEIGHT = 10.0  # pixels of a capital, both as drawn and at the model's size

# What may happen to an image, with how often compared with the others.
EFFECTS = {
    # characters
    "rotation": 7.0, "slant": 2.0, "jitter": 7.0, "sizes": 4.0, "corners": 5.0, "fonts": 2.5, "overlap": 2.5,
    "wide": 3.0, "turn": 1.0,
    # the text as a whole
    "perspective": 1.2, "waves": 4.0, "lens": 1.0, "split": 0.4,
    # ink
    "hollow": 1.2, "stroke": 0.7, "shadow": 0.8, "emboss": 0.5, "pattern": 0.9, "rough": 0.9,
    "ink gradient": 0.8, "colours": 2.5, "low contrast": 1.2,
    # background
    "gradient": 1.2, "blobs": 1.2, "texture": 1.2, "stripes": 0.9, "grid": 0.9, "checkers": 0.5, "tiles": 0.6,
    "words": 0.8,
    # distractors
    "lines": 7.0, "curves": 4.0, "shapes": 1.2, "strike": 2.5, "dots": 5.0, "salt": 0.8, "noise": 1.5,
    "invert": 0.7, "frame": 0.8,
    # the image as a whole
    "ripple": 0.8, "blur": 1.0, "sharpen": 0.4, "black and white": 0.6, "posterise": 0.5, "rescale": 1.0,
    "jpeg": 2.0, "palette": 0.8,
}  # fmt: skip

# Effects that would hide the text of an image that has another one.
INCOMPATIBLE = {
    "low contrast": ("emboss", "hollow", "noise", "pattern", "texture", "black and white"),
    "emboss": ("black and white", "posterise", "hollow"),
    "hollow": ("pattern", "rough"),
}
NUMBERS_OF_EFFECTS = (0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8, 9, 11)  # about equally often
COMMON_FAMILIES = (
    "Arimo",
    "DejaVuSans",
    "DejaVuSerif",
    "DroidSansMono",
    "OpenSans",
    "PT_Serif",
    "Roboto",
    "STIX",
)
COMMON_SHARE = 0.25  # the share of fonts that is drawn from these families alone

Option = TypeVar("Option")


@dataclass(frozen=True)
class Style:
    """What the parts of an image have in common. Lengths are in pixels of the image as drawn."""

    effects: frozenset[str]
    strength: float  # of the effects, up to 1: less where there are many
    height: int  # of the image
    capital: float  # height of a capital
    font: str  # path of the font file
    weight: int  # of variable fonts
    ground: int  # luminance of the background
    inks: tuple[int, ...]  # luminance of each character
    stroke: int  # width of the outline
    is_smooth: bool  # whether the edges of characters are, as opposed to pixels of two values
    behind: frozenset[str]  # the distractors that are drawn behind the text, not in front of it


def chance(random: np.random.Generator, probability: float) -> bool:
    """True with that probability."""
    return random.random() < probability


def between(random: np.random.Generator, low: float, high: float) -> float:
    """A random number between the two."""
    return low + (high - low) * random.random()


def pick(random: np.random.Generator, options: Sequence[Option]) -> Option:
    """One of the options, each as likely as any other."""
    return options[int(random.random() * len(options))]


def random_label(random: np.random.Generator, alphabet: str, lengths: tuple[int, int]) -> str:
    """A label of one kind, such as digits and capitals, whose characters are equally likely."""
    digits = "".join(c for c in alphabet if c.isdigit())
    upper = "".join(c for c in alphabet if c.isupper())
    lower = "".join(c for c in alphabet if c.islower())
    frequent = (digits, upper, digits + upper) * 2  # as most systems have them
    kind = pick(random, [kind for kind in (*frequent, lower, digits + lower, alphabet, alphabet) if kind])
    return "".join(pick(random, kind) for _ in range(random.integers(*lengths, endpoint=True)))


def random_style(random: np.random.Generator, label: str, size: tuple[int, int]) -> Style:
    """The style of the image with this label, which gets that size at last."""
    count = pick(random, NUMBERS_OF_EFFECTS)
    effects = frozenset(_random_effects(random, count))
    height = round(math.exp(between(random, *map(math.log, HEIGHTS))))
    share = between(random, 0.3, 0.95) if chance(random, 0.4) else between(random, 0.45, 0.8)
    # The image has at most the model's width when it is scaled: many characters must be taller.
    smallest = MIN_CHARACTER_HEIGHT * max(1, height / size[1])
    capital = min(max(share * height, smallest), 0.95 * height)
    font = random_font(random, label)
    contrasts = LOW_CONTRASTS if "low contrast" in effects else (between(random, 90, 150), 255.0)
    ground, inks = _random_colours(random, contrasts, len(label) if "colours" in effects else 1)
    outlined = bool(effects & {"hollow", "stroke"})
    return Style(
        effects=effects,
        strength=between(random, 0.4, 1.0) * (1 if count < 6 else 0.75),
        height=height,
        capital=capital,
        font=font,
        weight=pick(random, (300, 400, 400, 500, 600, 700, 700, 900)),
        ground=ground,
        inks=inks * (1 if "colours" in effects else len(label)),
        stroke=max(1, round(capital * between(random, 0.02, 0.07))) if outlined else 0,
        is_smooth=not chance(random, 0.12),
        behind=frozenset(name for name in sorted(effects & DISTRACTORS) if chance(random, 0.3)),
    )


@functools.cache
def _cumulative_frequencies() -> tuple[list[str], np.ndarray]:
    cumulative = np.cumsum(list(EFFECTS.values()))
    return list(EFFECTS), cumulative / cumulative[-1]


def _random_effects(random: np.random.Generator, count: int) -> list[str]:
    """Names of up to that many effects, the frequent ones more often."""
    names, cumulative = _cumulative_frequencies()
    effects = [names[i] for i in np.searchsorted(cumulative, random.random(count))]
    hidden_by = {name for each in effects for name in INCOMPATIBLE.get(each, ())}
    return [name for name in effects if name not in hidden_by]


def random_font(random: np.random.Generator, characters: str) -> str:
    """The path of a font that has the characters, or at least the first, if there is one."""
    families = font_families()
    common = [name for name in COMMON_FAMILIES if name in families]
    for _ in range(50):
        names = common if common and chance(random, COMMON_SHARE) else list(families)
        path = pick(random, families[pick(random, names)])
        if all(is_usable(path, character) for character in characters):
            return path
    return font_with(random, characters[0])


def font_with(random: np.random.Generator, character: str) -> str:
    """The path of a font that has the character.

    Raises:
        CaptchaError: no font has it.
    """
    paths = [path for family in font_families().values() for path in family if is_usable(path, character)]
    if not paths:
        raise CaptchaError(
            f"characters must be characters that a font found has, not {character!r}: leave it out, "
            "or install more fonts with `pip install -r requirements-styles.txt`"
        )
    return pick(random, paths)


def _random_colours(
    random: np.random.Generator, contrasts: tuple[float, float], count: int
) -> tuple[int, tuple[int, ...]]:
    """Luminance of a background, and of inks that all are darker, or all lighter.

    Args:
        contrasts: the smallest and the largest difference between an ink and the background.
    """
    ground = 255 if chance(random, 0.3) else luminance(random, pick(random, ((0, 255), (190, 255), (0, 80))))
    if chance(random, 0.5) and ground < 128:
        ground = 255 - ground  # dark text on a light background is more frequent
    dark = ground > 128
    smallest, largest = contrasts
    low, high = (ground - largest, ground - smallest) if dark else (ground + smallest, ground + largest)
    low, high = max(0.0, min(low, 255.0)), max(0.0, min(high, 255.0))
    inks = []
    for _ in range(count):
        ink = luminance(random, (0, 255) if chance(random, 0.5) else ((0, 120) if dark else (140, 255)))
        inks.append(ink if low <= ink <= high else round(between(random, low, high)))
    return ground, tuple(inks)


def luminance(random: np.random.Generator, limits: tuple[int, int]) -> int:
    """Of a random RGB colour whose components are within the limits, as Pillow converts it."""
    low, high = limits
    red, green, blue = (low + (high - low) * random.random(3)).tolist()
    if chance(random, 0.3):
        red = green = blue  # gray
    return int(0.299 * red + 0.587 * green + 0.114 * blue + 0.5)


DISTRACTORS = frozenset(("lines", "curves", "shapes", "strike", "dots"))
