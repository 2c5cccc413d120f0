"""Drawing captchas with the `captcha` library, reproducibly and fast."""

from __future__ import annotations

import functools
import os
import random
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import captcha.image
from PIL import Image, ImageDraw, ImageFont

from captcha_cnn.dataset import MANIFEST, SetState
from captcha_cnn.files import atomic_write, write_json
from captcha_cnn.parallel import parallel_map
from config import CaptchaError, Config, ConfigError, escape_unprintable

library: Any = captcha.image  # takes its random numbers from library.secrets


class SeededSecrets(random.Random):
    """Seeded random numbers with the three methods that the captcha library uses of `secrets`."""

    def randbelow(self, n: int) -> int:
        """A whole number from 0 to below n; randrange(n) gives the same in twice the time."""
        bits = n.bit_length()
        while (number := self.getrandbits(bits)) >= n:
            pass
        return number

    def randbits(self, k: int) -> int:
        """A whole number of k random bits."""
        return self.getrandbits(k)


def draw_captcha(config: Config, set_name: str, index: int) -> tuple[str, Image.Image]:
    """Label and RGB image number `index` of a set; the same for the same seed.

    Each image has a random stream of its own, seeded with (seed, set, index): it does not matter
    which process draws it, and no two sets share random numbers.
    """
    label, stream = random_label(config, set_name, index)
    secrets, library.secrets = library.secrets, stream  # the library takes no seed
    try:
        return label, _image_captcha(config.width, config.height).generate_image(label)
    finally:
        library.secrets = secrets


def random_label(config: Config, set_name: str, index: int) -> tuple[str, SeededSecrets]:
    """The label of that image, and the random stream that goes on with its pixels."""
    stream = SeededSecrets(f"{config.seed}/{set_name}/{index}")
    length, more = config.min_length, config.max_length - config.min_length
    if more:
        length += stream.randbelow(more + 1)
    return "".join(stream.choice(config.alphabet) for _ in range(length)), stream


class FastImageCaptcha(captcha.image.ImageCaptcha):
    """Draws the same pixels as the library, from the same random numbers, in half the time.

    The mask of a character is drawn once, and the spaces between characters, which nobody sees,
    are not drawn. Colours must be nearly opaque, as the library's own are.
    """

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
                mask = character.convert("L").point(self.lookup_table)
                image.paste(character, (x, int((self._height - h) / 2)), mask)
            x += w - secrets.randbelow(largest_overlap + 1)
        return image.resize((self._width, self._height))

    def _warped_character(self, c: str, color: tuple[int, ...]) -> tuple[int, int, Image.Image | None]:
        """Width and height of a character, and its RGBA image, rotated and warped; None for a space."""
        secrets = library.secrets
        font = secrets.choice(self.truefonts)
        left, top, w, h = _glyph_bbox(font, c)
        x, y = (
            low + secrets.randbelow(high - low + 1)
            for low, high in (self.character_offset_dx, self.character_offset_dy)
        )
        turn, wide, tall, *corners = [secrets.randbits(32) / 2**32 for _ in range(7)]
        if c == " ":
            return w, h, None
        # The offset matters only to what it pushes over the left or upper edge.
        mask = _glyph_mask(font, c, x if left < 1 else 0, y if top < 1 else 0)
        character = Image.new("RGBA", mask.size)
        character.paste(color, (0, 0), mask)
        low, high = self.character_rotate
        character = character.rotate(low + turn * (high - low), Image.Resampling.BILINEAR, expand=True)
        (low_x, high_x), (low_y, high_y) = self.character_warp_dx, self.character_warp_dy
        dx = w * wide * (high_x - low_x) + low_x
        dy = h * tall * (high_y - low_y) + low_y
        x1, y1, x2, y2 = (int(share * (d + d) - d) for share, d in zip(corners, (dx, dy) * 2, strict=True))
        w2, h2 = w + abs(x1) + abs(x2), h + abs(y1) + abs(y2)
        quad = (x1, y1, -x1, h2 - y2, w2 + x2, h2 + y2, w2 - x2, -y1)
        return w, h, character.resize((w2, h2)).transform((w, h), Image.Transform.QUAD, quad)


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


@functools.cache
def _image_captcha(width: int, height: int) -> FastImageCaptcha:
    # The library's font sizes of 42, 50 and 56 px are made for 60 px of height: keep the proportion.
    sizes = tuple(max(1, round(size * height / 60)) for size in (42, 50, 56))
    return FastImageCaptcha(width, height, font_sizes=sizes)


def check_drawable(config: Config) -> None:
    """Raise a ConfigError for a character that the library's font does not have."""
    font = _image_captcha(config.width, config.height).truefonts[-1]
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


def draw_files(config: Config, set_name: str, folder: str, indices: Sequence[int]) -> int:
    """Draw those images of a set into the folder; each file appears once it is complete."""
    for index in indices:
        label, image = draw_captcha(config, set_name, index)
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


def encode_png(image: Image.Image) -> bytes:
    """An RGB image as a PNG file.

    Pillow's own encoder takes twice the time to choose filters that make these images no smaller.
    """
    width, height = image.size
    rows = image.tobytes("raw", "RGB", 3 * width + 1)  # a 0 behind each row: "no filter" for the next
    chunks = {
        b"IHDR": struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0),  # 8 bits, RGB
        b"IDAT": zlib.compress(b"\0" + rows[:-1], 1),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
