"""Augmentation: random changes to each training image, anew each time it is seen.

A captcha stays the same captcha when it is moved, when its characters come closer and when a line
is drawn over it: one image serves as many, and the network cannot learn it by heart.

Images are gray, [B, H, W], or in colour, [B, H, W, 3]. What is drawn over them is gray in both: a hue may
be what the captcha asks for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from config import Config

BILINEAR = Image.Resampling.BILINEAR
FULL_STRENGTH_EPOCHS = 100  # after which random_warp and dropout reach their full strength
FEW_IMAGES = 400  # from so many drawn captchas on, parts of images do not slope
CELLS = 1.5  # parts of an image as wide as high that random_warp moves by themselves
MOST_LINES = 3  # that add_lines() draws over an image
LINE_WIDTHS = (0.01, 0.07)  # as shares of the height
POINTS_OF_LINE = 16
PIXELS_PER_SAMPLE = 7  # of those that the background in colour is the median of
PIXELS_PER_DOT = 320  # of the dots that add_noise() draws
DOT = np.array([[0, 0, 1, 1, 1, 2, 2], [0, 1, 0, 1, 2, 1, 2]])  # rows and columns of its pixels


def augment(
    images: np.ndarray, config: Config, random: np.random.Generator, epoch: int, slope: float = 0.0
) -> np.ndarray:
    """Characters moved together, images warped, lines and noise drawn over them.

    Args:
        images: uint8 [B, H, W] or [B, H, W, 3]; not changed.
        epoch: how often each image was seen before.
        slope: as random_warp() has it.
    Returns:
        uint8, of the same shape.
    """
    if not config.augmented:
        return images
    if config.squeeze:
        images = squeeze_characters(images, config, random)
    images = random_warp(images, config, random, epoch, slope)
    if config.lines:
        images = add_lines(images, config, random)
    return add_noise(images, config, random)


def share_of_full_strength(epoch: int) -> float:
    """From 0 in the first epoch to 1 from FULL_STRENGTH_EPOCHS on: images seen often are learned by heart."""
    return min(epoch / FULL_STRENGTH_EPOCHS, 1.0)


def drawn_once(config: Config) -> bool:
    """Whether network ctc trains on a fixed set of drawn captchas, on which some choices were measured."""
    return config.network == "ctc" and not (config.own_images or config.fresh)


def squeeze_characters(images: np.ndarray, config: Config, random: np.random.Generator) -> np.ndarray:
    """The characters of each image pushed towards each other, some of them over each other.

    Characters drawn over each other are what a trained network still reads wrong: few images have
    them, and moving whole images makes no more. An image is cut at the column with the least
    foreground near the place where one character should end and the next begin.

    Args:
        images: uint8 [B, H, W] or [B, H, W, 3]; not changed.
    Returns:
        uint8, of the same shape.
    """
    batch, height, width = images.shape[:3]
    cell, gaps = width / config.max_length, config.max_length - 1
    closer = random.integers(0, round(config.squeeze * cell), (batch, gaps), endpoint=True)  # pixels
    start = random.integers(0, closer.sum(axis=1), endpoint=True)
    offsets = start[:, None] - np.pad(closer.cumsum(axis=1), [[0, 0], [1, 0]])  # of each part, [B, L]
    foreground, background = foreground_background(images)
    profile = foreground_per_column(images, foreground, background)
    middles = cell * np.arange(1, config.max_length)
    searched = [slice(int(middle - cell / 2), int(middle + cell / 2)) for middle in middles]
    squeezed = np.empty_like(images)
    # Wide enough for parts that leave the image.
    canvas = np.empty((height, 3 * width, *images.shape[3:]), np.uint8)
    for i, image in enumerate(images):
        cuts = [0, *(each.start + int(profile[i, each].argmin()) for each in searched), width]
        blend = blending(foreground[i], background[i])
        canvas[:] = background[i]
        for offset, begin, end in zip(offsets[i] + width, cuts, cuts[1:], strict=False):
            target = canvas[:, begin + offset : end + offset]
            blend(target, image[:, begin:end], out=target)
        squeezed[i] = canvas[:, width : 2 * width]
    return squeezed


def foreground_per_column(images: np.ndarray, foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
    """How much foreground each column has, [B, W]; only differences inside an image have a meaning."""
    if images.ndim == 3:
        total: np.ndarray = images.sum(axis=1, dtype=np.int32) * np.sign(foreground - background)[:, None]
    else:
        total = colour_distance(images, background[:, None, None]).sum(axis=1, dtype=np.int32)
    return total


def blending(foreground: np.ndarray, background: np.ndarray) -> Callable[..., np.ndarray]:
    """The function that lays two parts of an image over each other: the foreground of both is seen."""
    if not background.ndim:
        return np.minimum if foreground < background else np.maximum

    def further_from_background(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
        further = colour_distance(b, background) > colour_distance(a, background)
        np.copyto(out, b, where=further[..., None])  # out is a
        return out

    return further_from_background


def random_warp(
    images: np.ndarray, config: Config, random: np.random.Generator, epoch: int, slope: float = 0.0
) -> np.ndarray:
    """Each image shifted, scaled and sheared at random; the background fills what becomes free.

    Half of each change is common to the image, half varies from character to character, so that no
    two change alike. It begins at half the strength of the settings and grows with the epochs: many
    images show by themselves what captchas look like, few would be learned by heart.

    Args:
        images: uint8 [B, H, W] or [B, H, W, 3]; not changed.
        epoch: how often each image was seen before.
        slope: by how many pixels per column each part rises or falls at most.
    Returns:
        uint8, of the same shape, bilinear interpolation.
    """
    height, width = config.height, config.width
    cells = max(1, round(CELLS * width / height))
    edges = np.linspace(0, width, cells + 1).round().astype(int)  # of parts that move by themselves
    common = random.uniform(-0.5, 0.5, (5, len(images), 1))
    varying = random.uniform(-0.5, 0.5, (4, len(images), len(edges)))
    across, down, taller, slant = common[:4] + varying  # [B, L + 1] each
    strength = (1 + share_of_full_strength(epoch)) / 2
    shift, scale, shear = strength * config.shift, strength * config.scale, strength * config.shear
    columns = (edges - width / 2) * np.exp(scale * common[4]) + width * (0.5 + shift * across)
    rows = height * (0.5 + shift * down) + slope * width / cells * varying[1]
    half, aside = height / 2 * np.exp(scale * taller), height / 2 * shear * slant
    top = np.stack([columns - aside, rows - half], axis=2)  # [B, L + 1, 2], source of the upper ends
    bottom = np.stack([columns + aside, rows + half], axis=2)
    boxes = [(left, 0, right, height) for left, right in itertools.pairwise(edges.tolist())]
    _, background = foreground_background(images)
    warped = np.empty_like(images)
    for i, image in enumerate(images):
        corners = np.concatenate([top[i, :-1], bottom[i, :-1], bottom[i, 1:], top[i, 1:]], axis=1)
        mesh = list(zip(boxes, corners.tolist(), strict=True))
        warped[i] = Image.fromarray(image).transform(
            (width, height), Image.Transform.MESH, mesh, BILINEAR, fillcolor=as_pillow(background[i])
        )
    return warped


def largest_slope(config: Config, epoch: int) -> float:
    """By how many pixels per column the parts of training images rise or fall at most, in that epoch.

    Shear and slope together rotate characters. This is for few drawn captchas, which show few rotations:
    section 8 of docs/how-it-works.md has what was measured.
    """
    few = config.generate_num[0] < FEW_IMAGES
    return share_of_full_strength(epoch) * config.shear * (few and drawn_once(config))


def add_lines(images: np.ndarray, config: Config, random: np.random.Generator) -> np.ndarray:
    """One to three curves drawn over some of the images, in a gray near their foreground.

    Many systems draw lines through their characters. Where images are few, too few characters have
    been seen under a line.

    Args:
        images: uint8 [B, H, W] or [B, H, W, 3]; changed in place, and returned.
    """
    batch, height, width = images.shape[:3]
    gray = gray_between(images, random.uniform(0, 0.3, batch))
    along = np.linspace(0, 1, POINTS_OF_LINE)[:, None]
    weights = np.hstack([(1 - along) ** 2, 2 * along * (1 - along), along**2])  # of a quadratic Bezier curve
    for i in np.flatnonzero(random.random(batch) < config.lines):
        image = Image.fromarray(images[i])
        draw = ImageDraw.Draw(image)
        for _ in range(random.integers(1, MOST_LINES, endpoint=True)):
            ends = random.uniform(-0.1, 1.1, (3, 2)) * (width, height)
            if random.random() < 0.5:
                ends[:, 0].sort()  # from left to right
            line_width = max(1, round(random.uniform(*LINE_WIDTHS) * height))
            draw.line((weights @ ends).ravel().tolist(), as_pillow(gray[i]), line_width)
        images[i] = np.asarray(image)
    return images


def add_noise(images: np.ndarray, config: Config, random: np.random.Generator) -> np.ndarray:
    """A thin arc and dots drawn over some of the images, in a gray near their foreground.

    Where images are few, a network learns the noise that each of them happens to have.

    Args:
        images: uint8 [B, H, W] or [B, H, W, 3]; changed in place, and returned.
    """
    batch, height, width = images.shape[:3]
    gray = gray_between(images, random.uniform(0, 0.2, batch)).astype(np.uint8)

    angle = np.pi * (random.uniform(-0.1, 0.1, (batch, 1)) + np.linspace(0, 1, 2 * width))
    across = random.uniform(0.3, 0.5, (batch, 1))
    middle, bend = random.uniform(0.2, 0.8, (batch, 1)), random.uniform(-0.3, 0.3, (batch, 1))
    arc = np.stack([middle + bend * np.sin(angle), 0.5 + across * np.cos(angle)])  # [2, B, points]
    dots = random.random((2, batch, math.ceil(height * width / PIXELS_PER_DOT), 1))
    sizes = np.array([height, width]).reshape(2, 1, 1)
    dots = (dots * sizes[..., None] + DOT[:, None, None]).reshape(2, batch, -1)
    rows, columns = np.concatenate([arc * sizes, dots], axis=2).clip(0, sizes - 1).astype(np.intp)

    chosen = np.flatnonzero(random.random(batch) < config.noise)
    images[chosen[:, None], rows[chosen], columns[chosen]] = gray[chosen, None]
    return images


def gray_between(images: np.ndarray, share: Any) -> np.ndarray:
    """The gray, or in colour the three equal values, that far from foreground to background of each image.

    Args:
        share: float64 [B].
    Returns:
        float64 [B] or [B, 3].
    """
    foreground, background = foreground_background(images)
    if images.ndim == 3:
        gray: np.ndarray = foreground + share * (background - foreground)
        return gray
    foreground, background = foreground.mean(axis=1), background.mean(axis=1)
    return np.repeat((foreground + share * (background - foreground))[:, None], 3, axis=1)


def as_pillow(colour: np.ndarray) -> int | tuple[int, ...]:
    """A gray or a colour as Pillow takes it."""
    return tuple(map(int, colour)) if colour.ndim else int(colour)


def colour_distance(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Sum of the differences of red, green and blue: [..., 3] and [..., 3] to int16 [...]."""
    differences = np.abs(pixels - colours.astype(np.int16))
    total: np.ndarray = differences[..., 0] + differences[..., 1] + differences[..., 2]  # faster than sum()
    return total


def foreground_background(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The grays furthest from and nearest to most of each image: uint8 [B, H, W] to float64 [B] twice.

    Of [B, H, W, 3] two colours, float64 [B, 3]: the background is the median of each channel, and the
    foreground is the colour of the pixel that is furthest from it.
    """
    if images.ndim == 4:
        pixels = images.reshape(len(images), -1, 3)
        background = np.median(pixels[:, ::PIXELS_PER_SAMPLE], axis=1).round()
        furthest = colour_distance(pixels, background[:, None]).argmax(axis=1)
        return pixels[np.arange(len(pixels)), furthest].astype(float), background
    low, mean, high = (reduce(images, axis=(1, 2)).astype(float) for reduce in (np.min, np.mean, np.max))
    is_dark = mean - low > high - mean
    return np.where(is_dark, low, high), np.where(is_dark, high, low)
