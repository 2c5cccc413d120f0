"""Warping the text of a captcha, or all of its image, by waves, lenses and perspective."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from captcha_cnn.styles.choices import Style, between, pick

Field = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def random_fields(random: np.random.Generator, style: Style, size: tuple[int, int]) -> list[Field]:
    """Displacements of the text, each as a function of coordinates from its centre."""
    effects, (width, height) = style.effects, size
    fields: list[Field] = []
    if "waves" in effects:
        kinds = pick(random, ("y", "y", "x", "xy", "yy"))
        fields += [random_wave(random, style.strength * height, kind) for kind in kinds]
    if "perspective" in effects:
        p, q = (between(random, -0.6, 0.6) * style.strength for _ in range(2))
        fields.append(lambda x, y: (q * x * y / height, p * y * x / width))
    if "split" in effects:
        shift = between(random, -0.2, 0.2) * style.strength * style.capital
        fields.append(lambda x, y: (shift * np.tanh(20 * y / height) + 0 * x, 0 * x * y))
    if "lens" in effects:
        fields.append(_lens(random, style.strength, size))
    return fields


def random_wave(random: np.random.Generator, size: float, kind: str) -> Field:
    """A sine wave that moves pixels along x or y, with a random wavelength; size limits its amplitude."""
    wavelength = size * math.exp(between(random, math.log(0.8), math.log(5))) + 6
    slope = between(random, 0.25, 0.9) if kind == "y" else between(random, 0.2, 0.7)
    amplitude = min(slope * wavelength / (2 * math.pi), 0.25 * size)
    phase = between(random, 0, 2 * math.pi)

    def wave(along: np.ndarray) -> np.ndarray:
        return amplitude * np.sin(2 * math.pi * along / wavelength + phase)

    if kind == "y":
        return lambda x, y: (0 * x, wave(x + 0 * y))
    return lambda x, y: (wave(y + 0 * x), 0 * y)


def _lens(random: np.random.Generator, strength: float, size: tuple[int, int]) -> Field:
    """A part of the text larger, smaller or turned around a point."""
    width, height = size
    centre = between(random, -width / 3, width / 3)
    radius = height * between(random, 0.5, 1.2)
    growth = between(random, -0.45, 0.45) * strength
    angle = between(random, -0.5, 0.5) * strength

    def lens(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        near = np.exp(-((x - centre) ** 2 + y**2) / radius**2)
        dx, dy = (x - centre) * near, y * near
        return growth * dx - angle * dy, growth * dy + angle * dx

    return lens


def warp_padded(
    mask: Image.Image, paint: Image.Image | None, fields: list[Field]
) -> tuple[Image.Image, Image.Image | None]:
    """Text warped in an image that is large enough for all of it."""
    dx, dy, _, _ = _displacement(mask.size, fields)
    pad_x, pad_y = (math.ceil(1.2 * float(np.abs(d).max())) + 2 for d in (dx, dy))
    size = (mask.width + 2 * pad_x, mask.height + 2 * pad_y)
    padded = Image.new("L", size)
    padded.paste(mask, (pad_x, pad_y))
    mesh = transform_mesh(size, fields)
    warped = padded.transform(size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
    if not paint:
        return warped, None
    padded.paste(paint.resize((1, 1), Image.Resampling.BOX).resize(size))
    padded.paste(paint, (pad_x, pad_y))
    return warped, padded.transform(size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def _displacement(
    size: tuple[int, int], fields: list[Field]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Displacements [N, M] along x and y at the nodes of a mesh, and the nodes' x [M] and y [N]."""
    width, height = size
    cell = max(5.0, min(width, height) / 7)
    xs = np.linspace(0, width, max(2, round(width / cell)) + 1).round()
    ys = np.linspace(0, height, max(2, round(height / cell)) + 1).round()
    x, y = xs[None] - width / 2, ys[:, None] - height / 2
    dx = dy = np.zeros((len(ys), len(xs)))
    for field in fields:
        more_x, more_y = field(x, y)
        dx, dy = dx + more_x, dy + more_y
    return dx, dy, xs, ys


def transform_mesh(
    size: tuple[int, int], fields: list[Field]
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """The mesh for Image.transform(): rectangles of the result, and the corners where each comes from."""
    dx, dy, xs, ys = _displacement(size, fields)
    source = np.stack([xs[None] + dx, ys[:, None] + dy], axis=-1)
    quads = np.concatenate([source[:-1, :-1], source[1:, :-1], source[1:, 1:], source[:-1, 1:]], axis=-1)
    left, top = np.meshgrid(xs[:-1], ys[:-1])
    right, bottom = np.meshgrid(xs[1:], ys[1:])
    boxes = np.stack([left, top, right, bottom], axis=-1).astype(int)
    return list(
        zip(map(tuple, boxes.reshape(-1, 4).tolist()), map(tuple, quads.reshape(-1, 8).tolist()), strict=True)
    )
