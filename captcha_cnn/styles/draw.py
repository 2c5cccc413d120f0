"""Drawing a captcha of a random style.

Each image has a style of its own: fonts, colours, a background, and a few of EFFECTS, drawn anew.
No system is copied, but what captcha systems do to their text occurs here in some image. A third of
the images have at most two effects, and are easy to read.

Images are drawn in grayscale: the luminance of the RGB colours that were chosen. Drawing with
colours and converting afterwards gives the same image, since both are linear, in three times the time.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from captcha_cnn.images import fit_image
from captcha_cnn.parallel import parallel_map
from captcha_cnn.styles.background import draw_ground, ramp
from captcha_cnn.styles.choices import (
    Style,
    between,
    chance,
    luminance,
    pick,
    random_label,
    random_style,
)
from captcha_cnn.styles.distractors import draw_distractors
from captcha_cnn.styles.text import Text, distort, draw_text, fit_text, image_size, text_position
from captcha_cnn.styles.warp import random_wave, transform_mesh


def draw_styles(
    count: int, seed: int, alphabet: str, lengths: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, list[str]]:
    """Many captchas, drawn on all cores; image i depends on (seed, i) alone.

    Returns:
        uint8 [count, H, W] and the labels.
    """
    work = functools.partial(_draw_chunk, seed, alphabet, lengths, size)
    images = np.empty((count, size[1], size[0]), np.uint8)
    labels: list[str] = []
    for drawn, their_labels in parallel_map(work, range(count), "drawing captchas of many styles"):
        images[len(labels) : len(labels) + len(drawn)] = drawn
        labels += their_labels
    return images, labels


def _draw_chunk(
    seed: int, alphabet: str, lengths: tuple[int, int], size: tuple[int, int], indices: Sequence[int]
) -> tuple[np.ndarray, list[str]]:
    """The images of these numbers, and their labels."""
    drawn = []
    for index in indices:
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(index,))))
        drawn.append(draw_styled(random, alphabet, lengths, size))
    return np.stack([image for image, _ in drawn]), [label for _, label in drawn]


def draw_styled(
    random: np.random.Generator, alphabet: str, lengths: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, str]:
    """One captcha of a random style, and its label.

    Args:
        alphabet: characters that labels may have. Most images use a part of it, such as the digits.
        lengths: the smallest and the largest number of characters, each as likely as any between.
        size: (width, height) of the result, in pixels. The image is drawn at a random size, and
            scaled and padded as own images are.
    Returns:
        uint8 [H, W] grayscale, and the label.
    """
    label = random_label(random, alphabet, lengths)
    style = random_style(random, label, size)
    text = fit_text(distort(random, style, draw_text(random, style, label)), style)
    width, height = image_size(random, style, text, size)
    left, top = text_position(random, text, (width, height))
    image = draw_ground(random, style, (width, height))
    draw_distractors(random, style, image, (left, top, *text.mask.size), behind=True)
    _paint_text(random, style, image, text, (left, top))
    draw_distractors(random, style, image, (left, top, *text.mask.size), behind=False)
    image = _finish(random, style, image, min(top, height - top - text.mask.height))
    return fit_image(np.asarray(image), size), label


def _paint_text(
    random: np.random.Generator, style: Style, image: Image.Image, text: Text, place: tuple[int, int]
) -> None:
    """Draw the text into the image, with its shadow."""
    x, y = place
    distance = max(1, round(style.capital * between(random, 0.03, 0.1)))
    direction = pick(random, ((1, 1), (-1, -1), (1, 0), (-1, 1)))
    dx, dy = distance * direction[0], distance * direction[1]
    paint, ink = text.paint, style.inks[0]
    if "emboss" in style.effects:
        image.paste(min(255, style.ground + 90), (x - dx, y - dy), text.mask)
        image.paste(max(0, style.ground - 90), (x + dx, y + dy), text.mask)
        if chance(random, 0.5):
            paint, ink = None, style.ground
    elif "shadow" in style.effects:
        shade = round(style.ground + (ink - style.ground) * between(random, 0.25, 0.6))
        image.paste(shade, (x + dx, y + dy), text.mask)
    if "ink gradient" in style.effects and not paint:
        second = round(ink + (style.ground - ink) * between(random, 0.2, 0.6))
        paint = Image.fromarray(ramp(random, text.mask.size, ink, second).astype(np.uint8))
    if paint:
        image.paste(paint, place, text.mask)
    else:
        image.paste(ink, place, text.mask)


def _finish(random: np.random.Generator, style: Style, image: Image.Image, margin: int) -> Image.Image:
    """What happens to the image after everything is drawn.

    Args:
        margin: pixels between the text and the upper or lower border, the nearer one.
    """
    effects = style.effects
    if "ripple" in effects:
        image = _ripple(random, image, margin + 0.04 * image.height)
    if "invert" in effects:
        image = ImageChops.difference(image, _inverted_region(random, image.size))
    if effects & {"noise", "salt"}:
        image = _add_noise(random, style, image)
    if "frame" in effects:
        width = 1 if image.height < 40 else int(random.integers(1, 3))
        box = (0, 0, image.width - 1, image.height - 1)
        ImageDraw.Draw(image).rectangle(box, outline=luminance(random, (0, 200)), width=width)
    if "blur" in effects:
        radius = style.capital * between(random, 0.015, 0.05)
        image = image.filter(pick(random, (ImageFilter.GaussianBlur, ImageFilter.BoxBlur))(radius))
    if "sharpen" in effects:
        image = image.filter(pick(random, (ImageFilter.SHARPEN, ImageFilter.EDGE_ENHANCE)))
    return _encode(random, style, image)


def _ripple(random: np.random.Generator, image: Image.Image, margin: float) -> Image.Image:
    """The whole image in waves that leave the text inside."""
    horizontal = chance(random, 0.3)
    amplitude = min(4 * margin, 0.8 * image.height)
    fields = [random_wave(random, amplitude, "x" if horizontal else "y")]
    if chance(random, 0.3):
        fields.append(random_wave(random, amplitude / 2, "x"))
    # The border pixels are repeated outside: a mesh has none there.
    pad = math.ceil(0.35 * image.height)
    values = np.pad(np.asarray(image), pad, mode="edge")
    padded = Image.fromarray(values)
    size = padded.size
    warped = padded.transform(
        size, Image.Transform.MESH, transform_mesh(size, fields), Image.Resampling.BILINEAR
    )
    return warped.crop((pad, pad, pad + image.width, pad + image.height))


def _inverted_region(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """255 where an image is inverted, else 0: stripes, an ellipse or a half."""
    width, height = size
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    kind = pick(random, ("stripes", "chessboard", "ellipse", "half", "band"))
    if kind == "stripes":
        step = height * between(random, 0.3, 1.2)
        for i in range(0, math.ceil(width / step), 2):
            draw.rectangle((i * step, 0, (i + 1) * step - 1, height), 255)
    elif kind == "chessboard":
        step = height * between(random, 0.2, 0.5)
        for row in range(math.ceil(height / step)):
            for i in range(row % 2, math.ceil(width / step), 2):
                draw.rectangle((i * step, row * step, (i + 1) * step - 1, (row + 1) * step - 1), 255)
    elif kind == "ellipse":
        x, radius = width * random.random(), height * between(random, 0.4, 1.2)
        draw.ellipse((x - radius, height / 2 - radius / 2, x + radius, height / 2 + radius / 2), 255)
    elif kind == "half":
        draw.rectangle((0, 0, width * between(random, 0.3, 0.7), height), 255)
    else:
        y = height * between(random, 0.2, 0.7)
        draw.rectangle((0, y, width, y + height * between(random, 0.1, 0.4)), 255)
    return mask


def _add_noise(random: np.random.Generator, style: Style, image: Image.Image) -> Image.Image:
    """Gaussian noise, and single pixels black and white."""
    values: np.ndarray = np.asarray(image, np.float32)
    if "noise" in style.effects:
        deviation = between(random, 4, 35) * style.strength
        values = values + deviation * random.standard_normal(values.shape, np.float32)
    if "salt" in style.effects:
        share = between(random, 0.01, 0.12) * style.strength
        chosen = random.random(values.shape, np.float32)
        salt = 255.0 if chance(random, 0.7) else 0.0
        values = np.where(chosen < share / 2, salt, np.where(chosen > 1 - share / 2, 0, values))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _encode(random: np.random.Generator, style: Style, image: Image.Image) -> Image.Image:
    """What storing an image does to it: fewer pixels, fewer colours, JPEG."""
    effects = style.effects
    if "rescale" in effects and style.capital > 14:
        scale = between(random, max(0.4, 10 / style.capital), 1.3)
        method = pick(random, (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC))
        size = image.size
        image = image.resize((max(1, round(size[0] * scale)), max(1, round(size[1] * scale))), method)
        image = image.resize(size, Image.Resampling.BICUBIC) if chance(random, 0.5) else image
    nearest = min(style.inks, key=lambda ink: abs(ink - style.ground))
    contrast = nearest - style.ground
    if "black and white" in effects:
        threshold = style.ground + contrast * (0.3 if "ink gradient" in effects else 0.5)
        image = image.point(lambda value: 255 * (value > threshold))
    elif "posterise" in effects:
        fewest = math.ceil(255 / abs(contrast))  # steps that still tell the ink from the background
        step = 255 / int(random.integers(fewest, fewest + 4))
        image = image.point(lambda value: round(round(value / step) * step))
    elif "palette" in effects:
        image = image.convert("RGB").convert("P").convert("L")  # the colours of the web, dithered
    if "jpeg" in effects:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=int(random.integers(30, 96)))
        image = Image.open(stream).convert("L")
    return image
