"""What training does to each picture before it learns from it, anew each time.

A captcha stays the same captcha when it is moved, when its symbols come closer and when a line is
drawn over it: one picture serves as many, and the network cannot learn it by heart.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from PIL import Image

from config import Config

OFTEN = 100  # times that a picture must have been seen to be distorted in full
PIXELS_PER_DOT = 320  # of the dots that clutter() draws
DOT = np.array([[0, 0, 1, 1, 1, 2, 2], [0, 1, 0, 1, 2, 1, 2]])  # rows and columns of its pixels


def augment(images: np.ndarray, config: Config, random: np.random.Generator, seen: int) -> np.ndarray:
    """Symbols brought together, pictures distorted, noise drawn over them.

    Args:
        images: uint8 [B, H, W]; left as they are.
        seen: how often each was trained on before.
    Returns:
        uint8 [B, H, W].
    """
    return clutter(distort(overlap(images, config, random), config, random, seen), config, random)


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


def distort(images: np.ndarray, config: Config, random: np.random.Generator, seen: int) -> np.ndarray:
    """Each picture moved, scaled and slanted at random; the ground fills what comes free.

    Half of each change is common to the picture, half varies from symbol to symbol, so that no two
    change alike. It begins half as strong as the settings say and grows as pictures are seen again:
    many show by themselves what captchas look like, few would be learned by heart.

    Args:
        images: uint8 [B, H, W]; left as they are.
        seen: how often each was trained on before.
    Returns:
        uint8 [B, H, W], each pixel between the four nearest of the old ones.
    """
    height, width = config.height, config.width
    edges = np.linspace(0, width, config.char_num + 1).round().astype(int)  # of the symbols; they move
    common = random.uniform(-0.5, 0.5, (5, len(images), 1))
    varying = random.uniform(-0.5, 0.5, (4, len(images), len(edges)))
    across, down, taller, slant = common[:4] + varying  # [B, L + 1] each
    strength = (1 + min(seen / OFTEN, 1)) / 2
    shift, scale, shear = strength * config.shift, strength * config.scale, strength * config.shear
    columns = (edges - width / 2) * np.exp(scale * common[4]) + width * (0.5 + shift * across)
    rows = height * (0.5 + shift * down)
    half, aside = height / 2 * np.exp(scale * taller), height / 2 * shear * slant
    top = np.stack([columns - aside, rows - half], axis=2)  # [B, L + 1, 2], where the upper end comes from
    bottom = np.stack([columns + aside, rows + half], axis=2)
    boxes = [(left, 0, right, height) for left, right in itertools.pairwise(edges.tolist())]
    _, ground = ink_and_ground(images)
    distorted = np.empty_like(images)
    for i, picture in enumerate(images):
        corners = np.concatenate([top[i, :-1], bottom[i, :-1], bottom[i, 1:], top[i, 1:]], axis=1)
        distorted[i] = Image.fromarray(picture).transform(
            (width, height),
            Image.Transform.MESH,
            list(zip(boxes, corners.tolist(), strict=True)),
            Image.Resampling.BILINEAR,
            fillcolor=int(ground[i]),
        )
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
