"""What training does to each picture before it learns from it, anew each time.

A captcha stays the same captcha when it is moved, when its symbols come closer and when a line is
drawn over it: one picture serves as many, and the network cannot learn it by heart.
"""

from __future__ import annotations

import math

import numpy as np

from config import Config

PIXELS_PER_DOT = 320  # of the dots that clutter() draws
DOT = np.array([[0, 0, 1, 1, 1, 2, 2], [0, 1, 0, 1, 2, 1, 2]])  # rows and columns of its pixels


def augment(images: np.ndarray, config: Config, random: np.random.Generator) -> np.ndarray:
    """Symbols brought together, pictures distorted, noise drawn over them.

    Args:
        images: uint8 [B, H, W]; left as they are.
    Returns:
        uint8 [B, H, W].
    """
    return clutter(distort(overlap(images, config, random), config, random), config, random)


def overlap(images: np.ndarray, config: Config, random: np.random.Generator) -> np.ndarray:
    """The symbols of each picture pushed towards each other, some of them over each other.

    Symbols drawn over each other are what a trained network still reads wrong: few pictures have
    them, and moving whole pictures makes no more. A picture is cut where there is least ink near the
    place where one symbol should end and the next begin.

    Args:
        images: uint8 [B, H, W]; left as they are.
    Returns:
        uint8 [B, H, W].
    """
    batch, height, width = images.shape
    symbol, gaps = width / config.char_num, config.char_num - 1
    closer = random.integers(0, round(config.overlap * symbol), (batch, gaps), endpoint=True)  # pixels
    start = random.integers(0, closer.sum(axis=1), endpoint=True)
    places = start[:, None] - np.pad(closer.cumsum(axis=1), [[0, 0], [1, 0]])  # of each part, [B, L]
    ink, ground = ink_and_ground(images)
    drawn = images.sum(axis=1, dtype=np.int32) * np.sign(ink - ground)[:, None]  # [B, W], more where ink is
    middles = symbol * np.arange(1, config.char_num)
    near = [slice(int(middle - symbol / 2), int(middle + symbol / 2)) for middle in middles]
    pushed = np.empty_like(images)
    canvas = np.empty((height, 3 * width), np.uint8)  # wide enough for parts that leave the picture
    for i, picture in enumerate(images):
        cuts = [0, *(each.start + int(drawn[i, each].argmin()) for each in near), width]
        darker_or_lighter = np.minimum if ink[i] < ground[i] else np.maximum
        canvas.fill(ground[i])
        for place, begin, end in zip(places[i] + width, cuts, cuts[1:], strict=False):
            there = canvas[:, begin + place : end + place]
            darker_or_lighter(there, picture[:, begin:end], out=there)
        pushed[i] = canvas[:, width : 2 * width]
    return pushed


def distort(images: np.ndarray, config: Config, random: np.random.Generator) -> np.ndarray:
    """Each picture moved, scaled and slanted at random; the edge fills what comes free.

    Half of each change is common to the picture, half varies along it, so that no two symbols change
    alike.

    Args:
        images: uint8 [B, H, W].
    Returns:
        uint8 [B, H, W], each pixel the nearest of the old ones.
    """
    height, width = config.height, config.width
    y = np.arange(0.5, height, dtype=np.float32)[:, None] - height / 2  # [H, 1], 0 in the middle
    x = np.arange(0.5, width, dtype=np.float32) - width / 2  # [W]
    knots = np.linspace(-width / 2, width / 2, config.char_num + 1)
    common = random.uniform(-0.5, 0.5, (len(images), 5))
    varying = random.uniform(-0.5, 0.5, (len(images), 4, len(knots)))
    distorted = np.empty_like(images)
    for picture, target, every, each in zip(images, distorted, common, varying, strict=True):
        across, down, taller, slant = (
            (whole + np.interp(x, knots, part)).astype(np.float32)
            for whole, part in zip(every, each, strict=False)
        )
        rows = y * np.exp(config.scale * taller) + height * (0.5 + config.shift * down)  # [H, W]
        columns = x * np.exp(np.float32(config.scale * every[4])) + width * (0.5 + config.shift * across)
        columns = columns + y * (config.shear * slant)
        places = rows.clip(0, height - 1).astype(np.int32) * width
        places += columns.clip(0, width - 1).astype(np.int32)
        picture.reshape(-1).take(places, out=target, mode="clip")
    return distorted


def clutter(images: np.ndarray, config: Config, random: np.random.Generator) -> np.ndarray:
    """A thin arc and dots drawn over some of the pictures, in a grey near that of their ink.

    Where pictures are few, a network learns the noise that each of them happens to have.

    Args:
        images: uint8 [B, H, W]; changed in place, and returned.
    """
    batch, height, width = images.shape
    ink, ground = ink_and_ground(images)
    grey = (ink + random.uniform(0, 0.2, batch) * (ground - ink)).astype(np.uint8)

    angle = np.pi * (random.uniform(-0.1, 0.1, (batch, 1)) + np.linspace(0, 1, 2 * width))
    across = random.uniform(0.3, 0.5, (batch, 1))
    middle, bend = random.uniform(0.2, 0.8, (batch, 1)), random.uniform(-0.3, 0.3, (batch, 1))
    arc = np.stack([middle + bend * np.sin(angle), 0.5 + across * np.cos(angle)])  # [2, B, points]
    dots = random.random((2, batch, math.ceil(height * width / PIXELS_PER_DOT), 1))
    sizes = np.array([height, width]).reshape(2, 1, 1)
    dots = (dots * sizes[..., None] + DOT[:, None, None]).reshape(2, batch, -1)
    rows, columns = np.concatenate([arc * sizes, dots], axis=2).clip(0, sizes - 1).astype(np.intp)

    some = np.flatnonzero(random.random(batch) < config.clutter)
    images[some[:, None], rows[some], columns[some]] = grey[some, None]
    return images


def ink_and_ground(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The greys furthest from and nearest to most of each picture: uint8 [B, H, W] to float64 [B] twice."""
    low, mean, high = (of(images, axis=(1, 2)).astype(float) for of in (np.min, np.mean, np.max))
    dark = mean - low > high - mean
    return np.where(dark, low, high), np.where(dark, high, low)
