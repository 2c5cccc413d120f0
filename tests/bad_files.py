"""Image files of every kind that cannot be used, and what is said of each."""

import io
import zlib

import numpy as np
from PIL import Image

RAMP = np.tile(np.linspace(0, 255, 37).round().astype(np.uint8), (23, 1))  # of TINY's size


def png(array=RAMP):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def jpeg():
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (23, 37), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def png_with_claimed_size(width, height):
    """A small PNG file whose header says that it has this size."""
    data = bytearray(png())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


NOISE = png(np.random.default_rng(0).integers(0, 255, (23, 37), dtype=np.uint8))
BAD_FILES = {  # content of the file, and how the message begins
    "empty": (b"", "an empty file"),
    "text": (b"not an image", "not an image: no PNG, JPEG, BMP, GIF or WEBP"),
    "cut_png": (NOISE[: len(NOISE) // 2], "damaged PNG: "),
    "cut_jpeg": (jpeg()[:-200], "damaged JPEG: "),
    "flipped": (NOISE[:60] + bytes(b ^ 0xFF for b in NOISE[60:70]) + NOISE[70:], "damaged PNG: "),
    "small": (png(RAMP[:, :36]), "another size: 36x23 px, not 37x23"),
    "huge": (png_with_claimed_size(5000, 5000), "another size: 5000x5000 px, not 37x23"),
    "bomb": (png_with_claimed_size(2**31 - 1, 2**31 - 1), "a huge size: far more pixels than a captcha has"),
    "folder": (None, "a folder"),
    "link": (None, "a broken link"),
}
BAD_NAMES = {
    "ab_1.png": "label of another length: 'ab' is not 3 characters",
    "abz_1.png": "label outside the alphabet: 'z' in 'abz' is not in abcde",
    "_1.png": "label of another length: '' is not 3 characters",
    "ab\n_1.png": r"label outside the alphabet: '\n' in 'ab\n' is not in abcde",
}


def write_bad_file(path, kind):
    data, _ = BAD_FILES[kind]
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("nowhere")
    else:
        path.write_bytes(data)
