"""Backgrounds of captchas: gradients, textures and faint words."""

from __future__ import annotations

import math
import string

import numpy as np
from PIL import Image, ImageDraw

from captcha_cnn.styles.choices import Style, between, chance, pick, random_font
from captcha_cnn.styles.fonts import load_font


def draw_ground(random: np.random.Generator, style: Style, size: tuple[int, int]) -> Image.Image:
    """The background: plain, or with what the style has of gradients and textures."""
    effects, ground = style.effects, style.ground
    if not effects & BACKGROUNDS:
        return Image.new("L", size, ground)
    contrast = min((ink - ground for ink in style.inks), key=abs)  # signed
    values: np.ndarray = np.full((size[1], size[0]), ground, np.float32)
    towards = 0.45 * style.strength * contrast  # the text stays visible
    if "gradient" in effects:
        values = ramp(random, size, ground, ground + towards)
    for name, texture in TEXTURES.items():
        if name in effects:
            values = values + towards * between(random, 0.5, 1) * texture(random, size)
    image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if "words" in effects:
        _draw_words(random, style, image, ground + 0.5 * contrast * between(random, 0.4, 1))
    return image


def ramp(random: np.random.Generator, size: tuple[int, int], first: float, last: float) -> np.ndarray:
    """Luminance that changes from the first to the last value in a random direction, [H, W]."""
    width, height = size
    angle = pick(random, (0, math.pi / 2, math.pi, between(random, 0, 2 * math.pi)))
    x, y = (
        np.linspace(-1, 1, width, dtype=np.float32)[None],
        np.linspace(-1, 1, height, dtype=np.float32)[:, None],
    )
    if chance(random, 0.2):
        share = np.minimum(1, x**2 + y**2)
    else:
        share = (math.cos(angle) * x + math.sin(angle) * y) / (abs(math.cos(angle)) + abs(math.sin(angle)))
        share = (share + 1) / 2
    return np.asarray(first + (last - first) * share)


def _blobs(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Smooth clouds, -1 to 1, [H, W]."""
    columns, rows = int(random.integers(3, 14)), int(random.integers(2, 8))
    coarse = Image.fromarray(random.random((rows, columns), np.float32) * 2.4 - 1.2)
    return np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))


def _texture(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Noise of grains of 1 to 4 pixels, -1 to 1, [H, W]."""
    grain = int(random.integers(1, 5))
    shape = (math.ceil(size[1] / grain), math.ceil(size[0] / grain))
    noise = random.random(shape, np.float32) * 2 - 1
    return noise.repeat(grain, axis=0).repeat(grain, axis=1)[: size[1], : size[0]]


def _stripes(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Stripes in some direction, sharp or soft, -1 to 1, [H, W]."""
    x, y = np.arange(size[0], dtype=np.float32)[None], np.arange(size[1], dtype=np.float32)[:, None]
    angle = pick(random, (0, math.pi / 2, math.pi / 4, between(random, 0, math.pi)))
    period = between(random, 3, 0.6 * size[1])
    waves = np.sin((math.cos(angle) * x + math.sin(angle) * y) * (2 * math.pi / period))
    return np.asarray(np.sign(waves) if chance(random, 0.5) else waves)


def _grid(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Thin lines in both directions, 0 or 1.5, [H, W]."""
    x, y = np.arange(size[0])[None], np.arange(size[1])[:, None]
    step_x, step_y = (int(random.integers(4, max(6, size[1] // 2))) for _ in range(2))
    return np.asarray(1.5 * ((x % step_x == 0) | (y % step_y == 0)))


def _checkers(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A chessboard, 0 or 1, [H, W]."""
    x, y = np.arange(size[0])[None], np.arange(size[1])[:, None]
    step = int(random.integers(2, max(4, size[1] // 3)))
    return np.asarray((x // step + y // step) % 2)


def _tiles(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Rectangles of different values, -1 to 1, [H, W]."""
    columns, rows = int(random.integers(2, 12)), int(random.integers(1, 5))
    tiles = Image.fromarray(random.random((rows, columns), np.float32) * 2 - 1)
    return np.asarray(tiles.resize(size, Image.Resampling.NEAREST))


TEXTURES = {
    "blobs": _blobs,
    "texture": _texture,
    "stripes": _stripes,
    "grid": _grid,
    "checkers": _checkers,
    "tiles": _tiles,
}
BACKGROUNDS = frozenset(TEXTURES) | {"gradient", "words"}


def _draw_words(random: np.random.Generator, style: Style, image: Image.Image, colour: float) -> None:
    """Small faint characters all over the background."""
    draw = ImageDraw.Draw(image)
    size = max(6, round(style.capital * between(random, 0.3, 0.6)))
    font = load_font(random_font(random, "A1"), size)
    length = int(random.integers(1, 6))
    for _ in range(int(random.integers(4, 30 // length + 5))):
        word = "".join(pick(random, string.digits + string.ascii_uppercase) for _ in range(length))
        x, y = random.random() * image.width - size / 2, random.random() * image.height - size / 2
        draw.text((x, y), word, round(colour), font)
