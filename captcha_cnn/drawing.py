"""Drawing captchas with the `captcha` library, reproducibly and fast."""

from __future__ import annotations

import functools
import math
import os
import random
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import captcha.image
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from captcha_cnn.dataset import MANIFEST, SetState
from captcha_cnn.files import atomic_write, write_json
from captcha_cnn.parallel import parallel_map
from config import CaptchaError, Config, ConfigError, escape_unprintable

BILINEAR = Image.Resampling.BILINEAR
FREQUENT = 5  # one in so many characters is drawn from the frequent ones alone, where some are named
FONTS_HEIGHT = 60  # px of an image for which the library's font sizes are made; they grow with the height

core: Any = Image.core  # type: ignore[attr-defined]  # Pillow's inner functions: see _is_exact()
library: Any = captcha.image  # takes its random numbers from library.secrets


class SeededSecrets(random.Random):
    """Seeded random numbers with the three methods that the captcha library uses of `secrets`."""

    def randbelow(self, n: int) -> int:
        """A whole number from 0 to below n; randrange(n) gives the same in twice the time."""
        bits, getrandbits = n.bit_length(), self.getrandbits
        while (number := getrandbits(bits)) >= n:
            pass
        return number

    def randbits(self, k: int) -> int:
        """A whole number of k random bits."""
        return self.getrandbits(k)


def draw_captcha(config: Config, set_name: str, index: int) -> tuple[str, Image.Image]:
    """Label and RGB image number `index` of a set, as draw_pixels() draws it."""
    label, pixels = draw_pixels(config, set_name, index)
    return label, Image.fromarray(pixels)


def draw_pixels(config: Config, set_name: str, index: int, frequent: str = "") -> tuple[str, np.ndarray]:
    """Label and pixels of image number `index` of a set, uint8 [H, W, 3]; the same for the same seed.

    Each image has a random stream of its own, seeded with (seed, set, index): it does not matter
    which process draws it, and no two sets share random numbers.

    Args:
        frequent: characters that are drawn more often: one place in FREQUENT has one of them.
    """
    label, stream = random_label(config, set_name, index, frequent)
    return label, _generate(image_captcha(config.width, config.height), label, stream)


def _generate(image_captcha: PixelCaptcha, label: str, stream: SeededSecrets) -> np.ndarray:
    secrets, library.secrets = library.secrets, stream  # the library takes no seed
    try:
        return image_captcha.generate_pixels(label)
    finally:
        library.secrets = secrets


def random_label(config: Config, set_name: str, index: int, frequent: str = "") -> tuple[str, SeededSecrets]:
    """The label of that image, and the random stream that goes on with its pixels."""
    stream = SeededSecrets(f"{config.seed}/{set_name}/{index}")
    length, more = config.min_length, config.max_length - config.min_length
    if more:
        length += stream.randbelow(more + 1)

    def character() -> str:
        return stream.choice(frequent if frequent and not stream.randbelow(FREQUENT) else config.alphabet)

    return "".join(character() for _ in range(length)), stream


class PixelCaptcha(captcha.image.ImageCaptcha):
    """The library's captchas as arrays."""

    def generate_pixels(self, chars: str) -> np.ndarray:
        """The pixels of generate_image(), uint8 [H, W, 3]."""
        return np.asarray(self.generate_image(chars))


class FastImageCaptcha(PixelCaptcha):
    """Draws the same pixels as the library, from the same random numbers, in less than half the time.

    The mask of a character is drawn once, and the spaces between characters, which nobody sees,
    are not drawn. Colours must be nearly opaque, as the library's own are. Pillow's methods make a
    Python object of each step, which takes as long as the step itself where images are as small as
    characters: what these methods call, on Pillow's core images, is called directly.
    """

    def generate_pixels(self, chars: str) -> np.ndarray:
        """The pixels of what generate_image() would make, uint8 [H, W, 3]."""
        background = library.random_color(238, 255)
        color = library.random_color(10, 200, library.secrets.randbelow(36) + 220)
        image = self.create_captcha_image(chars, color, background)
        self.create_noise_dots(image, color)
        self.create_noise_curve(image, color)
        return smooth(np.asarray(image))

    def create_captcha_image(
        self, chars: str, color: tuple[int, ...], background: tuple[int, ...]
    ) -> Image.Image:
        """The characters in a row, an RGB image, without the noise."""
        secrets = library.secrets
        characters = []
        for c in chars:
            if secrets.randbits(32) / 2**32 > self.word_space_probability:
                characters.append(self._warped_character(" ", color))
            characters.append(self._warped_character(c, color))
        length = sum(w for w, _, _ in characters)
        average = int(length / len(chars))
        largest_overlap = int(self.word_offset_dx * average)
        x = int(average * 0.1)
        image = Image.new("RGB", (max(length, self._width), self._height), background)
        for w, h, character in characters:
            if character:
                y = int((self._height - h) / 2)
                mask = character.convert("L").point(self.lookup_table, None)
                image.im.paste(character, (x, y, x + w, y + h), mask)
            x += w - secrets.randbelow(largest_overlap + 1)
        return image if length <= self._width else image.resize((self._width, self._height))

    def _warped_character(self, c: str, color: tuple[int, ...]) -> tuple[int, int, Any]:
        """Width and height of a character, and its RGBA core image, rotated and warped; None for a space."""
        secrets = library.secrets
        font = secrets.choice(self.truefonts)
        left, top, w, h = _glyph_bbox(font, c)
        x, y = (
            low + secrets.randbelow(high - low + 1)
            for low, high in (self.character_offset_dx, self.character_offset_dy)
        )
        words = struct.unpack("<7I", secrets.randbits(7 * 32).to_bytes(28, "little"))
        if c == " ":
            return w, h, None
        turn, wide, tall, *corners = [word / 2**32 for word in words]
        # The offset matters only to what it pushes over the left or upper edge.
        mask = _glyph_mask(font, c, x if left < 1 else 0, y if top < 1 else 0)
        character = core.fill("RGBA", mask.size, (0, 0, 0, 0))
        character.paste(color, (0, 0, *mask.size), mask.im)
        low, high = self.character_rotate
        character = _rotate(character, low + turn * (high - low))
        (low_x, high_x), (low_y, high_y) = self.character_warp_dx, self.character_warp_dy
        dx = w * wide * (high_x - low_x) + low_x
        dy = h * tall * (high_y - low_y) + low_y
        x1, y1, x2, y2 = (int(share * (d + d) - d) for share, d in zip(corners, (dx, dy) * 2, strict=True))
        w2, h2 = w + abs(x1) + abs(x2), h + abs(y1) + abs(y2)
        quad = (x1, y1, -x1, h2 - y2, w2 + x2, h2 + y2, w2 - x2, -y1)
        return w, h, _warp(_resize(character, (w2, h2)), (w, h), quad)


def _rotate(image: Any, degrees: float) -> Any:
    """Image.rotate() of a core image, RGBA, bilinear, expanded to what it becomes."""
    width, height = image.size
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    middle_x, middle_y = width / 2, height / 2
    x = cos * -middle_x + sin * -middle_y + middle_x
    y = -sin * -middle_x + cos * -middle_y + middle_y
    corners = (0, 0), (width, 0), (width, height), (0, height)
    xs, ys = zip(*[(cos * i + sin * j + x, -sin * i + cos * j + y) for i, j in corners], strict=True)
    size = math.ceil(max(xs)) - math.floor(min(xs)), math.ceil(max(ys)) - math.floor(min(ys))
    left, top = -(size[0] - width) / 2.0, -(size[1] - height) / 2.0
    matrix = (cos, sin, cos * left + sin * top + x, -sin, cos, -sin * left + cos * top + y)
    rotated = core.new("RGBa", size)  # Pillow interpolates colours multiplied by alpha
    box = (0, 0, *size)
    rotated.transform(box, image.convert("RGBa", 0), Image.Transform.AFFINE, matrix, BILINEAR, 1)
    return rotated.convert("RGBA", 0)


def _resize(image: Any, size: tuple[int, int]) -> Any:
    """Image.resize() of a core image, RGBA, bicubic."""
    if image.size == size:
        return image
    box = (0, 0, *image.size)
    return image.convert("RGBa", 0).resize(size, Image.Resampling.BICUBIC, box).convert("RGBA", 0)


def _warp(image: Any, size: tuple[int, int], quad: tuple[int, ...]) -> Any:
    """Image.transform() of a core image, RGBA, by a QUAD, to the nearest pixel."""
    left, top, x1, y1, x2, y2, x3, y3 = quad
    across, down = 1.0 / size[0], 1.0 / size[1]
    columns = left, (x3 - left) * across, (x1 - left) * down, (x2 - x1 - x3 + left) * across * down
    rows = top, (y3 - top) * across, (y1 - top) * down, (y2 - y1 - y3 + top) * across * down
    warped = core.new("RGBA", size)
    method, nearest = Image.Transform.QUAD, Image.Resampling.NEAREST
    warped.transform((0, 0, *size), image, method, columns + rows, nearest, 1)
    return warped


@functools.cache
def _glyph_bbox(font: ImageFont.FreeTypeFont, character: str) -> tuple[int, ...]:
    """Left, top, right and bottom of a character drawn at (1, 1)."""
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    return tuple(int(edge) for edge in draw.multiline_textbbox((1, 1), character, font))


@functools.cache
def _glyph_mask(font: ImageFont.FreeTypeFont, character: str, x: int, y: int) -> Image.Image:
    """How much a character drawn at (x, y) covers of each pixel, mode L, without the empty edges."""
    _, _, w, h = _glyph_bbox(font, character)
    mask = Image.new("L", (w + x, h + y))
    ImageDraw.Draw(mask).text((x, y), character, 255, font)
    return mask.crop(mask.getbbox())


def smooth(image: np.ndarray) -> np.ndarray:
    """What ImageFilter.SMOOTH makes of an image: uint8 [H, W, 3], H and W at least 3.

    Each pixel becomes the mean of the nine around it, in which it counts five times. Those at the edge stay.
    """
    height, channels = len(image), image.shape[2]
    smoothed = image.reshape(height, -1).copy()
    values = smoothed.astype(np.uint16)
    columns = values[:-2] + values[1:-1] + values[2:]
    total = 4 * values[1:-1, channels:-channels]
    for start, stop in ((None, -2 * channels), (channels, -channels), (2 * channels, None)):
        total += columns[:, start:stop]
    smoothed[1:-1, channels:-channels] = (total + 6) // 13  # the nearest: no total lies between two
    result: np.ndarray = smoothed.reshape(image.shape)
    return result


@functools.cache
def image_captcha(width: int, height: int) -> PixelCaptcha:
    """What draws captchas of that size."""
    sizes = tuple(max(1, round(size * height / FONTS_HEIGHT)) for size in (42, 50, 56))
    fast, slow = (kind(width, height, font_sizes=sizes) for kind in (FastImageCaptcha, PixelCaptcha))
    return fast if _is_exact(fast, slow) else slow


def _is_exact(fast: PixelCaptcha, slow: PixelCaptcha) -> bool:
    """Whether both draw the same, which another version of Pillow may change."""
    try:
        pixels, expected = (_generate(each, "W8g0", SeededSecrets("Pillow")) for each in (fast, slow))
    except (AttributeError, TypeError, ValueError):
        return False
    return np.array_equal(pixels, expected)


def check_drawable(config: Config) -> None:
    """Raise a ConfigError for a character that the library's font does not have."""
    font = image_captcha(config.width, config.height).truefonts[-1]
    missing_glyph = bytes(font.getmask("\uffff"))  # no font has this character
    for character in config.alphabet:
        if bytes(font.getmask(character)) == missing_glyph:
            raise ConfigError(
                "characters must be characters that the captcha library's font has, to be drawn, not "
                f"{character!r}: leave it out, or put your own images in the folders"
            )


def image_filename(label: str, index: int) -> str:
    """The name of a drawn image: its label and its number."""
    return f"{label}_{index:06d}.png"


def draw_files(config: Config, set_name: str, folder: str, indices: Sequence[int], frequent: str = "") -> int:
    """Draw those images of a set into the folder; each file appears once it is complete."""
    for index in indices:
        label, image = draw_pixels(config, set_name, index, frequent)
        with atomic_write(Path(folder, image_filename(label, index))) as temporary:
            temporary.write_bytes(encode_png(image))
    return len(indices)


def draw_set(config: Config, state: SetState) -> None:
    """Draw what is missing of a set, with its manifest.

    Raises:
        CaptchaError: an image could not be written.
    """
    name, folder, manifest = state.name, state.folder, state.manifest
    existing = set(os.listdir(folder))
    files = [image_filename(random_label(config, name, i)[0], i) for i in range(manifest["count"])]
    indices = [i for i, file in enumerate(files) if file not in existing]
    write_json(Path(folder, MANIFEST), manifest | {"complete": False})
    work = functools.partial(draw_files, config, name, folder)
    try:
        for _ in parallel_map(work, indices, f"Drawing {name}"):
            pass
    except OSError as error:
        raise CaptchaError(
            f"{escape_unprintable(folder)} could not be drawn to the end ({error.strerror or error}): "
            "the images drawn so far are kept, and the next run goes on from there"
        ) from error
    write_json(Path(folder, MANIFEST), manifest | {"complete": True})
    print(f"{escape_unprintable(folder)}: {manifest['count']} captchas drawn", flush=True)


def encode_png(image: Image.Image | np.ndarray) -> bytes:
    """An RGB image, or its pixels, uint8 [H, W, 3], as a PNG file.

    Pillow's own encoder takes twice the time to choose filters that make these images no smaller.
    """
    pixels = np.asarray(image)
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # a 0 before each row: "no filter"
    rows[:, 1:] = pixels.reshape(height, -1)
    chunks = {
        b"IHDR": struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0),  # 8 bits, RGB
        b"IDAT": zlib.compress(rows.data, 1),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
