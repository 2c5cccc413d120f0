"""Decoding image files of any kind safely, to grayscale of one size."""

from __future__ import annotations

import io
import math
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from config import CaptchaError, Config, escape_unprintable

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
MAX_PIXELS = 2**24  # of an image that is scaled
MAX_FILE_SIZE = 2**27  # bytes: more than an image of the largest size takes
MAX_BUFFERED_SIZE = 2**20  # bytes of a file that is read at once

# Of contrast_grayscale(): luminance, which is taken where nothing is better, and all multiples of 0.1.
GRAY_WEIGHTS = np.array(
    [(0.299, 0.587, 0.114), *((r / 10, g / 10, (10 - r - g) / 10) for r in range(11) for g in range(11 - r))]
)
GRAY_SAMPLES = 2000  # pixels, about, that are looked at
MIN_COLOUR_DISTANCE = 30.0  # from the background, in RGB
MIN_CONTRAST = 0.03  # of 1; less counts as none

Converter: TypeAlias = Callable[[Image.Image], np.ndarray]
ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


class ImageError(CaptchaError):
    """An image that cannot be used: `category` groups such errors, the text says what is wrong here."""

    def __init__(self, category: str, detail: str = "") -> None:
        super().__init__(f"{category}: {detail}" if detail else category)
        self.category = category


def image_for(image: ImageSource, config: Config, max_pixels: int | None = None) -> np.ndarray:
    """One image as the model of that Config sees it, uint8 [H, W], grayscale; [H, W, 3] with `colour`.

    Drawn captchas must have the model's size, and stay as they are to the pixel. A model of own
    images (`--images`) reads images of any size and colours: the rows that are read are made gray by
    contrast_grayscale(), unless it reads colour, and scaled and padded by fit_image().

    Args:
        image: as decode_image() takes it.
        max_pixels: that an image of any size may have in all; MAX_PIXELS unless given.
    Raises:
        ImageError: not an image, damaged, or of a size that cannot be used.
    """
    size = config.width, config.height
    if not config.own_images:
        return decode_image(image, size, to_rgb if config.colour else to_grayscale)

    def small_to_rgb(opened: Image.Image) -> np.ndarray:
        _check_size(opened, None, max_pixels)
        return to_rgb(opened)

    rgb = decode_image(image, convert=small_to_rgb)
    first = min(round(config.skip_top * len(rgb)), len(rgb) - 1)
    last = max(first + 1, len(rgb) - round(config.skip_bottom * len(rgb)))
    read = rgb[first:last]
    return fit_image(read if config.colour else contrast_grayscale(read), size, config.stretch)


def fit_image(image: np.ndarray, size: tuple[int, int], stretch: float = 1.0) -> np.ndarray:
    """An image scaled to fit into `size`, and padded with its own background.

    The background is the median of the pixels at the border, of each colour by itself. An image of that
    size is returned as it is.

    Args:
        image: uint8 [h, w], grayscale, or [h, w, 3]. size: (width, height) of the result, in pixels.
        stretch: horizontal scale divided by vertical scale, for narrow images of many characters.
    Returns:
        uint8 [H, W] or [H, W, 3], bicubic interpolation.
    """
    width, height = size
    rows, columns = image.shape[:2]
    if (columns, rows) == size:
        return image
    vertical = min(height / rows, width / (columns * stretch))
    scaled_size = (
        min(width, max(1, round(columns * stretch * vertical))),
        min(height, max(1, round(rows * vertical))),
    )
    scaled = np.asarray(Image.fromarray(image).resize(scaled_size, Image.Resampling.BICUBIC))
    border = np.concatenate([scaled[0], scaled[-1], scaled[:, 0], scaled[:, -1]])
    background = np.median(border, axis=0).round()
    fitted = np.full((height, width, *image.shape[2:]), background, np.uint8)
    top, left = (height - scaled_size[1]) // 2, (width - scaled_size[0]) // 2
    fitted[top : top + scaled_size[1], left : left + scaled_size[0]] = scaled
    return fitted


def decode_image(
    image: ImageSource, size: tuple[int, int] | None = None, convert: Converter | None = None
) -> np.ndarray:
    """One image, uint8 [H, W], grayscale unless `convert` makes another; what is transparent becomes white.

    The size is compared before anything is decoded, so that a small file that claims a huge
    image costs nothing. Of an animation, the first frame is decoded.

    Args:
        image: a path, a file's bytes, a PIL image, or an array, uint8 [H, W], [H, W, 3] or [H, W, 4].
        size: (width, height) that is expected, in pixels; None takes any up to MAX_PIXELS.
        convert: makes the array of the image; to_grayscale() unless given.
    Raises:
        ImageError: not an image, damaged, or of another size.
    """
    category, convert = "damaged", convert or to_grayscale
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's opinions on metadata
            if isinstance(image, np.ndarray):
                image = _from_array(image)
            if isinstance(image, Image.Image):
                _check_size(image, size)
                return convert(image)
            with (
                io.BytesIO(image) if isinstance(image, bytes) else open_image_file(image) as stream,
                Image.open(stream, formats=FORMATS) as opened,
            ):
                category = f"damaged {opened.format}"
                return _decode_opened(opened, stream, size, convert)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageError("a huge size", "far more pixels than a captcha has") from None
    except UnidentifiedImageError:
        raise ImageError("not an image", f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
    except PermissionError:
        raise ImageError("not readable", "permission denied") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise ImageError(category, escape_unprintable(error)) from error


def _decode_opened(
    opened: Image.Image, stream: BinaryIO | io.BytesIO, size: tuple[int, int] | None, convert: Converter
) -> np.ndarray:
    _check_size(opened, size)
    if opened.format != "PNG":
        return convert(opened)
    opened.verify()  # the checksums, which decoding ignores
    stream.seek(0)
    with Image.open(stream, formats=["PNG"]) as again:
        _check_size(again, size)
        return convert(again)


def _check_size(image: Image.Image, size: tuple[int, int] | None, max_pixels: int | None = None) -> None:
    max_pixels = max_pixels or MAX_PIXELS
    if size and image.size != size:
        raise ImageError("another size", "{}x{} px, not {}x{}".format(*image.size, *size))
    if not image.width * image.height:
        raise ImageError("not an image", f"{image.width}x{image.height} px")
    if image.width * image.height > max_pixels:
        raise ImageError("a huge size", f"{image.width}x{image.height} px, not at most {max_pixels:,} in all")


def to_grayscale(image: Image.Image) -> np.ndarray:
    """An image of any of Pillow's modes as uint8 [H, W].

    Modes I and F have no fixed range: values up to 255 are taken as 8 bits, larger ones as 16.
    """
    if image.mode.startswith("I") or image.mode == "F":  # convert("L") would cut them off at 255
        values = np.asarray(image, np.float64)
        is_8_bit = image.mode in ("I", "F") and values.max() <= 255
        return np.clip(values / (1 if is_8_bit else 257) + 0.5, 0, 255).astype(np.uint8)
    return np.asarray(_on_white(image).convert("L"), np.uint8)


def to_rgb(image: Image.Image) -> np.ndarray:
    """An image of any of Pillow's modes as uint8 [H, W, 3]."""
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(to_grayscale(image)[..., None], 3, axis=2)
    return np.asarray(_on_white(image).convert("RGB"), np.uint8)


def _on_white(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def contrast_grayscale(rgb: np.ndarray) -> np.ndarray:
    """Gray in which what differs from the background by its colour alone stays visible.

    Luminance makes some colours equal. As in Lu, Xu and Jia 2012 (Real-time Contrast Preserving
    Decolorization), gray is a weighted mean of red, green and blue, and the best of 66 combinations of
    weights is taken: that which keeps most of the contrast between the background and the other pixels.
    The background is the median colour: a frame would hide it at the border.

    Args:
        rgb: uint8 [h, w, 3].
    Returns:
        uint8 [h, w]; gray images stay as they are.
    """
    if (rgb == rgb[..., :1]).all():
        return rgb[..., 0]
    rows, columns, _ = rgb.shape
    step = max(1, math.isqrt(rows * columns // GRAY_SAMPLES))
    samples = rgb[::step, ::step].reshape(-1, 3)
    differences = samples - np.median(samples, axis=0)
    distances = np.linalg.norm(differences, axis=1)
    others = distances > MIN_COLOUR_DISTANCE
    contrasts = np.abs(differences[others] @ GRAY_WEIGHTS.T) / distances[others, None]
    # The logarithm: it counts for more that no colour is lost than that one is strong.
    scores = np.log(contrasts + MIN_CONTRAST).sum(axis=0)
    gray: np.ndarray = rgb @ GRAY_WEIGHTS[scores.argmax()] + 0.5
    return gray.astype(np.uint8)


def open_image_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A file open for reading; a small one is in memory, where Pillow's many short reads cost less.

    Raises:
        ImageError: it does not exist, or cannot be an image.
    """
    try:
        found = os.stat(path)
    except PermissionError:
        raise
    except (OSError, ValueError):
        raise ImageError("a broken link" if os.path.islink(path) else "no such file") from None
    if stat.S_ISDIR(found.st_mode):
        raise ImageError("a folder")
    if not stat.S_ISREG(found.st_mode):
        raise ImageError("not a file")
    if found.st_size == 0:
        raise ImageError("an empty file")
    if found.st_size > MAX_FILE_SIZE:
        raise ImageError("a huge file", f"{found.st_size:,} bytes, not at most {MAX_FILE_SIZE:,}")
    if found.st_size > MAX_BUFFERED_SIZE:
        return open(path, "rb")
    return io.BytesIO(Path(path).read_bytes())


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise ImageError(
            "not an image",
            f"an array must be uint8 [H, W], [H, W, 3] or [H, W, 4], not {array.dtype} {list(array.shape)}",
        )
    return Image.fromarray(array)
