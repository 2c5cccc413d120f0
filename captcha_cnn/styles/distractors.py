"""Lines, curves, shapes and dots that are drawn over a captcha, or behind its text."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from captcha_cnn.styles.choices import DISTRACTORS, Style, between, chance, luminance, pick

Box = tuple[int, int, int, int]  # left, top, width, height
Points = list[tuple[float, float]]


def draw_distractors(
    random: np.random.Generator, style: Style, image: Image.Image, text: Box, behind: bool
) -> None:
    """Draw lines, shapes and dots into the image, those behind the text or those in front of it."""
    names = sorted(style.behind if behind else (style.effects & DISTRACTORS) - style.behind)
    for name in names:
        if name == "dots":
            _draw_dots(random, style, image)
        else:
            _draw_strokes(random, style, image, text, name)


def _draw_strokes(
    random: np.random.Generator, style: Style, image: Image.Image, text: Box, name: str
) -> None:
    """Draw some lines, curves or shapes of one width into the image."""
    width = style.capital * between(random, 0.02, 0.1)
    # All strokes together hide at most about a third of the text, and less of text that is hard to read.
    groups = len(style.effects & set(STROKES))
    hidden = 0.18 if style.effects & {"low contrast", "hollow", "emboss", "pattern"} else 0.33
    most = hidden * text[3] / max(1, width) / STROKE_LENGTHS[name] / groups
    count = 1 + int(random.random() * min(10 * style.strength, most)) if name != "strike" else 1
    zoom = 2 if chance(random, 0.5) else 1  # strokes drawn at twice the size become smooth
    mask = Image.new("L", (image.width * zoom, image.height * zoom))
    colours = 1 if chance(random, 0.5) else min(3, count)
    left, top, text_width, text_height = (zoom * edge for edge in text)
    for _ in range(colours):
        mask.paste(0, (0, 0, *mask.size))
        draw = ImageDraw.Draw(mask)
        for _ in range(math.ceil(count / colours)):
            STROKES[name](random, draw, (left, top, text_width, text_height), max(1, round(zoom * width)))
        image.paste(_distractor_colour(random, style), (0, 0), mask.reduce(zoom) if zoom > 1 else mask)


def _distractor_colour(random: np.random.Generator, style: Style) -> int:
    """The text's luminance, one between the text and the background, or any."""
    ink = pick(random, style.inks)
    if chance(random, 0.45):
        return ink
    if chance(random, 0.12):
        return style.ground  # cuts the characters
    if chance(random, 0.6):
        return round(ink + (style.ground - ink) * random.random())
    return luminance(random, (0, 255))


def _draw_line(random: np.random.Generator, draw: ImageDraw.ImageDraw, text: Box, width: int) -> None:
    """A straight line, across the image or anywhere, or a broken one."""
    w, h = _canvas_size(draw)
    if chance(random, 0.2):
        points = random.random((2, int(random.integers(3, 6))))
        draw.line(_points(w * points[0], h * points[1]), 255, width, joint="curve")
        return
    if chance(random, 0.5):
        ends = (-1.0, h * between(random, -0.2, 1.2), w + 1.0, h * between(random, -0.2, 1.2))
    else:
        x1, y1, x2, y2 = random.random(4).tolist()
        ends = (x1 * w, y1 * h, x2 * w, y2 * h)
    draw.line(ends, 255, width)


def _draw_curve(random: np.random.Generator, draw: ImageDraw.ImageDraw, text: Box, width: int) -> None:
    """A sine or a Bezier curve."""
    w, h = _canvas_size(draw)
    t = np.linspace(0, 1, 24)
    if chance(random, 0.5):
        wavelength, phase = between(random, 0.25, 1.5), between(random, 0, 6.28)
        middle, amplitude = between(random, 0.2, 0.8), between(random, 0.1, 0.5)
        x, y = t, middle + amplitude * np.sin(6.28 * t / wavelength + phase)
    else:
        weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3])
        points = random.random((2, 4)) * 1.2 - 0.1
        if chance(random, 0.5):
            points[0].sort()
        x, y = points @ weights
    draw.line(_points(x * w, y * h), 255, width)


def _draw_shape(random: np.random.Generator, draw: ImageDraw.ImageDraw, text: Box, width: int) -> None:
    """The outline of an ellipse, an arc or a rectangle."""
    w, h = _canvas_size(draw)
    size_x, size_y = h * between(random, 0.15, 1.2), h * between(random, 0.15, 1.0)
    x, y = w * random.random() - size_x / 2, h * random.random() - size_y / 2
    box = (x, y, x + size_x, y + size_y)
    kind = pick(random, ("ellipse", "circle", "arc", "arc", "rectangle"))
    if kind == "circle":
        draw.ellipse((x, y, x + size_y, y + size_y), outline=255, width=width)
    elif kind == "ellipse":
        draw.ellipse(box, outline=255, width=width)
    elif kind == "rectangle":
        draw.rectangle(box, outline=255, width=width)
    else:
        start = between(random, 0, 360)
        draw.arc(box, start, start + between(random, 60, 220), 255, width)


def _draw_strike(random: np.random.Generator, draw: ImageDraw.ImageDraw, text: Box, width: int) -> None:
    """A line, a wave or a zigzag along the text, from its first character to its last."""
    left, top, w, h = text
    if chance(random, 0.25):
        y = random.random(int(random.integers(3, 10)))
        x = np.linspace(0, w, len(y))
        draw.line(_points(left + x, top + h * y), 255, width + 1, joint="curve")
        return
    t = np.linspace(0, 1, 24)
    y1, y2 = between(random, 0.25, 0.75), between(random, 0.25, 0.75)
    bend = between(random, 0, 0.3) if chance(random, 0.6) else 0
    wave = bend * np.sin(t * between(random, 3, 14) + between(random, 0, 6.28))
    x = left + w * (t * 1.1 - 0.05)
    draw.line(_points(x, top + h * (y1 + (y2 - y1) * t + wave)), 255, width + 1)


STROKES = {"lines": _draw_line, "curves": _draw_curve, "shapes": _draw_shape, "strike": _draw_strike}
STROKE_LENGTHS = {"lines": 0.8, "curves": 1.5, "shapes": 0.8, "strike": 1}  # divided by the image's width


def _canvas_size(draw: ImageDraw.ImageDraw) -> tuple[int, int]:
    width, height = draw.im.size
    return width, height


def _points(x: np.ndarray, y: np.ndarray) -> Points:
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _draw_dots(random: np.random.Generator, style: Style, image: Image.Image) -> None:
    """Dots of one size, few or many, or discs."""
    draw = ImageDraw.Draw(image)
    if chance(random, 0.2):
        _draw_discs(random, style, draw)
        return
    size = min(int(random.integers(1, 5)), max(1, round(style.capital / 8)))
    covered = between(random, 0.005, 0.07) * style.strength  # share of the image
    count = min(400, max(5, round(covered * image.width * image.height / size**2)))
    colours = [_distractor_colour(random, style) for _ in range(pick(random, (1, 1, 4)))]
    is_round = size > 2 and chance(random, 0.5)
    places = (random.random((count, 2)) * image.size).astype(int).tolist()
    for i, (x, y) in enumerate(places):
        colour = colours[i % len(colours)]
        if size == 1:
            image.putpixel((x, y), colour)
        elif is_round:
            draw.ellipse((x, y, x + size - 1, y + size - 1), colour)
        else:
            draw.rectangle((x, y, x + size - 1, y + size - 1), colour)


def _draw_discs(random: np.random.Generator, style: Style, draw: ImageDraw.ImageDraw) -> None:
    """Filled circles of several sizes, too few to hide a character."""
    w, h = _canvas_size(draw)
    for _ in range(int(random.integers(3, 16))):
        radius = style.capital * between(random, 0.04, 0.15)
        x, y = w * random.random(), h * random.random()
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), _distractor_colour(random, style))
