"""Drawing the text of a captcha: characters one by one, then distorted as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from captcha_cnn.styles.choices import (
    HEIGHTS,
    MIN_CHARACTER_HEIGHT,
    Style,
    between,
    chance,
    font_with,
    pick,
    random_font,
)
from captcha_cnn.styles.fonts import capital_height, is_usable, load_font
from captcha_cnn.styles.warp import random_fields, warp_padded

ASPECT_RATIOS = (1.7, 5.0)  # width divided by height


@dataclass(frozen=True)
class Text:
    """The text of an image before it has its place there."""

    mask: Image.Image  # how much it covers of each pixel
    paint: Image.Image | None  # luminance of each pixel where characters differ


def draw_text(random: np.random.Generator, style: Style, label: str) -> Text:
    """The characters in a row."""
    effects, strength = style.effects, style.strength
    gap = between(random, 0.02, 0.2)
    if "overlap" in effects:
        gap = -between(random, 0.02, 0.25) * strength
    elif "wide" in effects:
        gap = between(random, 0.2, 1.2) * strength
    jitter = style.capital * (between(random, 0.05, 0.6) * strength if "jitter" in effects else 0)
    centred = "jitter" in effects and chance(random, 0.3)
    shape = _character_shape(random, style)
    glyphs = [_draw_character(random, style, c, shape) for c in label]
    mean_width = sum(mask.width for mask, _ in glyphs) / len(glyphs)
    places = []
    x = 0.0
    for i, (mask, top) in enumerate(glyphs):
        y = (-mask.height / 2 if centred else top) + between(random, -jitter, jitter)
        places.append((round(x), round(y)))
        narrower = min(mask.width, glyphs[min(i + 1, len(glyphs) - 1)][0].width)
        spread = between(random, 0.7, 1.3)
        x += mask.width + spread * gap * (mean_width if gap > 0 else narrower)
    return _compose(style, [mask for mask, _ in glyphs], places, chance(random, 0.15))


def _compose(style: Style, masks: list[Image.Image], places: list[tuple[int, int]], exclusive: bool) -> Text:
    """The masks of the characters in one image; where they overlap, nothing remains if exclusive."""
    top = min(y for _, y in places)
    left = min(x for x, _ in places)
    width = max(x + mask.width for mask, (x, _) in zip(masks, places, strict=True)) - left
    height = max(y + mask.height for mask, (_, y) in zip(masks, places, strict=True)) - top
    text = Image.new("L", (width, height))
    paint = Image.new("L", (width, height), style.inks[0]) if len(set(style.inks)) > 1 else None
    for mask, (x, y), ink in zip(masks, places, style.inks, strict=True):
        corner = (x - left, y - top)
        box = (*corner, corner[0] + mask.width, corner[1] + mask.height)
        if paint:
            paint.paste(ink, corner, mask.point(lambda value: 255 * (value > 0)))
        if exclusive and "overlap" in style.effects:
            text.paste(ImageChops.difference(text.crop(box), mask), corner)
        else:
            text.paste(255, corner, mask)
    return Text(text, paint)


def _character_shape(random: np.random.Generator, style: Style) -> Callable[[], tuple[float, ...]]:
    """A function that gives rotation, slant, size and width of the next character."""
    effects, strength = style.effects, style.strength
    angle = math.radians(between(random, 5, 45)) * strength if "rotation" in effects else 0.0
    slant = between(random, -0.5, 0.5) * strength if "slant" in effects else 0.0
    same_slant = chance(random, 0.6)
    spread = between(random, 0.1, 0.4) * strength if "sizes" in effects else 0.0
    stretch = math.exp(between(random, -0.3, 0.3)) if chance(random, 0.2) else 1.0

    def shape() -> tuple[float, ...]:
        return (
            between(random, -angle, angle),
            slant if same_slant else between(random, -slant, slant),
            1 - between(random, 0, spread),
            stretch * (1 + between(random, -spread, spread) / 2),
        )

    return shape


def _draw_character(
    random: np.random.Generator, style: Style, character: str, shape: Callable[[], tuple[float, ...]]
) -> tuple[Image.Image, float]:
    """What a character covers of each pixel, and where its upper edge is, from the baseline."""
    path = style.font
    if "fonts" in style.effects:
        path = random_font(random, character)
    elif not is_usable(path, character):
        path = font_with(random, character)
    angle, slant, scale, stretch = shape()
    size = max(6, round(style.capital * scale / capital_height(path)))
    font = load_font(path, size, style.weight)
    hollow = "hollow" in style.effects
    left, top, right, bottom = (
        int(edge) for edge in font.getbbox(character, anchor="ls", stroke_width=style.stroke)
    )
    mask = Image.new("L", (max(1, right - left), max(1, bottom - top)))
    draw = ImageDraw.Draw(mask)
    draw.fontmode = "L" if style.is_smooth else "1"
    draw.text((-left, -top), character, 255, font, anchor="ls", stroke_width=style.stroke)
    if hollow:
        draw.text((-left, -top), character, 0, font, anchor="ls")
    turned = mask if (angle, slant, stretch) == (0, 0, 1) else _affine(mask, angle, slant, stretch)
    if "corners" in style.effects:
        turned = _move_corners(random, turned, 0.5 * style.strength)
    return turned, top + (mask.height - turned.height) / 2


def _affine(mask: Image.Image, angle: float, slant: float, stretch: float) -> Image.Image:
    """A mask rotated about its centre, slanted and stretched, in an image that holds all of it."""
    cos, sin = math.cos(angle), math.sin(angle)
    a, b, c, d = cos * stretch, cos * slant - sin, sin * stretch, sin * slant + cos  # [[a, b], [c, d]]
    w, h = mask.size
    width, height = math.ceil(abs(a) * w + abs(b) * h) + 2, math.ceil(abs(c) * w + abs(d) * h) + 2
    determinant = a * d - b * c
    ia, ib, ic, id_ = d / determinant, -b / determinant, -c / determinant, a / determinant
    x, y = w / 2 - ia * width / 2 - ib * height / 2, h / 2 - ic * width / 2 - id_ * height / 2
    coefficients = (ia, ib, x, ic, id_, y)
    turned = mask.transform((width, height), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return turned.crop(turned.getbbox())


def _move_corners(random: np.random.Generator, mask: Image.Image, share: float) -> Image.Image:
    """A mask whose corners are moved inwards, each by another part of that share of width and height."""
    w, h = mask.size
    outwards = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)]) * random.random((4, 2)) * share
    corners = (np.array([(0, 0), (0, 1), (1, 1), (1, 0)]) + outwards) * (w, h)  # of what is shown
    size = round(w * (1 + share / 2)), round(h * (1 + share / 2))
    quad = tuple(corners.ravel().tolist())
    moved = mask.transform(size, Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
    return moved.crop(moved.getbbox())


def distort(random: np.random.Generator, style: Style, text: Text) -> Text:
    """The text with what is drawn through it, warped, rotated and with the structure of its ink."""
    mask, paint = text.mask, text.paint
    if "strike" in style.effects and chance(random, 0.5):
        mask = _strike_through(random, style, mask)
    fields = random_fields(random, style, mask.size)
    if fields:
        mask, paint = warp_padded(mask, paint, fields)
    if "turn" in style.effects:
        # Long texts can be turned less: they would no longer fit.
        angle = style.strength * between(random, -1, 1) * min(25, math.degrees(style.height / mask.width))
        mask = mask.rotate(angle, Image.Resampling.BILINEAR, expand=True)
        paint = paint.rotate(angle, Image.Resampling.BILINEAR, expand=True) if paint else None
    if style.effects & {"pattern", "rough"}:
        mask = _structured(random, style, mask)
    box = mask.getbbox()
    return Text(mask.crop(box), paint.crop(box) if paint else None)


def _strike_through(random: np.random.Generator, style: Style, mask: Image.Image) -> Image.Image:
    """The text with a line or a zigzag along it, of its own ink."""
    mask = mask.copy()
    knots = int(random.integers(3, 9)) if chance(random, 0.4) else 2
    y = [mask.height * between(random, 0.25, 0.75) for _ in range(knots)]
    x = np.linspace(0, mask.width, knots).tolist()
    width = max(1, round(style.capital * between(random, 0.03, 0.12)))
    ImageDraw.Draw(mask).line(list(zip(x, y, strict=True)), 255, width, joint="curve")
    return mask


def _structured(random: np.random.Generator, style: Style, mask: Image.Image) -> Image.Image:
    """Ink that has a pattern, or rough edges."""
    values: np.ndarray = np.asarray(mask, np.float32)
    if "pattern" in style.effects and style.capital >= 24:
        ink = _pattern(random, mask.size, style.capital)
        values = values * (ink + (1 - ink) * between(random, 0, 0.5))
    if "rough" in style.effects:
        noise = random.random(values.shape, np.float32)
        if chance(random, 0.5):  # holes
            values = values * (noise > between(random, 0.1, 0.4) * style.strength)
        else:  # edges
            soft = np.asarray(mask.filter(ImageFilter.BoxBlur(1)), np.float32)
            soft = (soft + values) / 2  # thin strokes stay
            values = np.where(soft + 150 * style.strength * (noise - 0.5) > 110, 255, 0)
    return Image.fromarray(values.astype(np.uint8))


def _pattern(random: np.random.Generator, size: tuple[int, int], capital: float) -> np.ndarray:
    """Dots, hatching or checkers, bool [H, W]; at least half of it is True."""
    x, y = np.arange(size[0])[None], np.arange(size[1])[:, None]
    period = max(2, round(capital * between(random, 0.06, 0.14)))
    kind = pick(random, ("hatched", "hatched", "dotted", "checkered"))
    if kind == "dotted":
        period = max(3, period)
        middle = (period - 1) / 2
        return np.asarray((x % period - middle) ** 2 + (y % period - middle) ** 2 < (0.55 * period) ** 2)
    if kind == "checkered":
        return np.asarray((x // period + y // period) % 2 == 0)
    a, b = pick(random, ((1, 1), (1, -1), (0, 1), (1, 0), (1, 2)))
    period = max(3, period)
    return np.asarray((a * x + b * y) % period < 0.6 * period)


def fit_text(text: Text, style: Style) -> Text:
    """The text scaled down where it is larger than an image may be."""
    width, height = text.mask.size
    scale = min(1, 0.96 * HEIGHTS[1] / height, 0.96 * ASPECT_RATIOS[1] * max(style.height, height) / width)
    if scale == 1:
        return text
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Text(text.mask.resize(size), text.paint.resize(size) if text.paint else None)


def image_size(
    random: np.random.Generator, style: Style, text: Text, size: tuple[int, int]
) -> tuple[int, int]:
    """A size that holds the text, mostly not much wider than it."""
    height = max(style.height, math.ceil(text.mask.height * 1.04) + 1)
    needed = math.ceil(text.mask.width * 1.02) + 2
    smallest = max(needed, round(ASPECT_RATIOS[0] * height))
    # In a wider image, the text would be too small to read once it has the model's size.
    readable = size[0] * style.capital / MIN_CHARACTER_HEIGHT
    largest = max(smallest, round(min(ASPECT_RATIOS[1] * height, readable)))
    return smallest + round((largest - smallest) * random.random() ** 2.5), height


def text_position(random: np.random.Generator, text: Text, size: tuple[int, int]) -> tuple[int, int]:
    """Where the upper left corner of the text is in an image of that size: often in the middle."""
    free_x, free_y = size[0] - text.mask.width, size[1] - text.mask.height
    x = pick(random, (0.5, 0.5, 0.5, 0.05, 0.95, random.random()))
    y = pick(random, (0.5, 0.5, 0.5, random.random()))
    return round(free_x * x), round(free_y * y)
