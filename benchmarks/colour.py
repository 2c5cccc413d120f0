"""The row "colour": captchas that plain luminance cannot read, drawn with Pillow.

Two kinds. In RED, only the red characters are the answer; the others are blue or green, and as bright. In
HUE, characters and background have nearly the same luminance, and differ in hue. Each run is
`python driver.py --images FOLDER` in an empty folder, and reads test images that are not among the
labelled ones.
"""

from __future__ import annotations

import colorsys
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.runs import last_match, run_script
from captcha_cnn.images import contrast_grayscale, to_grayscale

CHARACTERS = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
LABELLED_IMAGES, TEST_IMAGES = 300, 1000
SEED = 100  # of the images and of the training
HEIGHT, CELL = 60, 26  # pixels: of an image, and from one character to the next
FONT_SIZES = (30, 40)
RED_LENGTH, OTHERS = 4, (2, 3)  # characters in RED that are red, and that are not
RED_HUES, OTHER_HUES = (0.97, 1.03), (0.3, 0.7)  # of 1: red; green to blue
HUE_LENGTH = 5
LUMINANCE = (0.299, 0.587, 0.114)
NOISE = 3.0  # standard deviation of each colour of a pixel
EXAMPLES = 3  # images of each kind in the figure


def colour_of(hue: float, luminance: float) -> tuple[int, ...]:
    """The colour of that hue, 0 to 1, made darker or paler until it has that luminance, 0 to 255."""
    full = 255 * np.array(colorsys.hsv_to_rgb(hue % 1, 0.9, 1))
    bright = float(full @ LUMINANCE)
    if luminance < bright:
        values = full * luminance / bright
    else:
        values = full + (255 - full) * (luminance - bright) / (255 - bright)
    return tuple(values.round().astype(int).tolist())


def draw_red(stream: random.Random) -> tuple[str, Image.Image]:
    """A captcha of which only the red characters are to be typed: these, and the RGB image."""
    count = stream.choice(OTHERS)
    is_red = [True] * RED_LENGTH + [False] * count
    stream.shuffle(is_red)
    text = stream.choices(CHARACTERS, k=len(is_red))
    colours = [
        colour_of(stream.uniform(*(RED_HUES if red else OTHER_HUES)), stream.uniform(70, 110))
        for red in is_red
    ]
    background = colour_of(stream.random(), stream.uniform(215, 245))
    image = draw_text(text, colours, background, stream)
    return "".join(c for c, red in zip(text, is_red, strict=True) if red), image


def draw_hue(stream: random.Random) -> tuple[str, Image.Image]:
    """A captcha whose characters differ from their background in hue alone: its text and RGB image."""
    text = stream.choices(CHARACTERS, k=HUE_LENGTH)
    hue, luminance, apart = stream.random(), stream.uniform(90, 180), stream.uniform(0.3, 0.7)
    hues = [hue + apart + stream.uniform(-0.05, 0.05) for _ in text]
    colours = [colour_of(each, luminance + stream.uniform(-2, 2)) for each in hues]
    return "".join(text), draw_text(text, colours, colour_of(hue, luminance), stream)


def draw_text(
    text: list[str], colours: list[tuple[int, ...]], background: tuple[int, ...], stream: random.Random
) -> Image.Image:
    """Characters in a row, each rotated and in its colour, an RGB image with noise."""
    image = Image.new("RGB", (CELL * len(text) + 20, HEIGHT), background)
    for i, (character, colour) in enumerate(zip(text, colours, strict=True)):
        mask = Image.new("L", (HEIGHT, HEIGHT))
        font = ImageFont.load_default(stream.randint(*FONT_SIZES))
        ImageDraw.Draw(mask).text((HEIGHT / 2, HEIGHT / 2), character, 255, font, anchor="mm")
        mask = mask.rotate(stream.uniform(-25, 25), Image.Resampling.BICUBIC)
        left = 10 + CELL * i + CELL // 2 - HEIGHT // 2 + stream.randint(-3, 3)
        image.paste(colour, (left, stream.randint(-8, 8)), mask)
    noise = np.random.default_rng(stream.getrandbits(32)).normal(0, NOISE, (HEIGHT, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8))


def luminance_alone(image: Image.Image) -> Image.Image:
    """The image as Pillow makes it gray."""
    return image.convert("L")


class Kind(NamedTuple):
    """How a captcha is drawn, and what is done to it before it is a file."""

    draw: Callable[[random.Random], tuple[str, Image.Image]]
    change: Callable[[Image.Image], Image.Image] | None = None


RED, HUE = Kind(draw_red), Kind(draw_hue)
RUNS: dict[str, tuple[Kind, tuple[str, ...]]] = {  # kind of images, flags
    "only the red characters, in gray (the default)": (RED, ()),
    "only the red characters, with `--colour`": (RED, ("--colour",)),
    "equal luminance, in gray (the default)": (HUE, ()),
    "equal luminance, the files made gray by luminance": (HUE._replace(change=luminance_alone), ()),
}


def draw_number(kind: Kind, set_name: str, number: int) -> tuple[str, Image.Image]:
    """Label and image of that number; the same for the same number, and others for another set."""
    label, image = kind.draw(random.Random(f"{SEED}/{set_name}/{number}"))
    return label, kind.change(image) if kind.change else image


def write_images(folder: Path, kind: Kind, count: int) -> None:
    """Write so many labelled images of a kind into a new folder, which has the name of the set."""
    folder.mkdir()
    for number in range(count):
        label, image = draw_number(kind, folder.name, number)
        image.save(folder / f"{label}_{number:04d}.png")


def measure() -> Iterator[dict[str, Any]]:
    """Do the runs, one after the other, and yield the values of the row after each of them."""
    values = {}
    for name, (kind, flags) in RUNS.items():
        values[name] = train_and_read(kind, flags)
        print(f"  {name}: {values[name]}", flush=True)
        yield values


def train_and_read(kind: Kind, flags: tuple[str, ...]) -> dict[str, Any]:
    """One run of driver.py in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder, "images"), kind, LABELLED_IMAGES)
        write_images(Path(folder, "test"), kind, TEST_IMAGES)
        begin = time.monotonic()
        arguments = ("--images", "images", "--test-folder", "test", "--seed", str(SEED), *flags)
        printed, _ = run_script(folder, "driver.py", *arguments)
    right, count = last_match(r"Captcha accuracy: .* \((\d+) of (\d+)", printed)
    return {
        "labelled images": LABELLED_IMAGES,
        "test images": int(count),
        "captchas right": int(right),
        "characters right, %": float(last_match(r"Test accuracy: +([\d.]+)%", printed)[0]),
        "seconds in all": round(time.monotonic() - begin),
    }


def examples(path: Path) -> None:
    """Write a figure: images of RED, and of HUE in colour, by luminance, and as the network sees them."""
    drawn = [[kind.draw(random.Random(f"figure/{i}"))[1] for i in range(EXAMPLES)] for kind in (RED, HUE)]
    rows = [
        *drawn,
        [Image.fromarray(to_grayscale(image)) for image in drawn[1]],
        [Image.fromarray(contrast_grayscale(np.asarray(image))) for image in drawn[1]],
    ]
    width = max(image.width for image in drawn[0]) + 8
    page = Image.new("RGB", (EXAMPLES * width, len(rows) * (HEIGHT + 8)), "white")
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            page.paste(image, (column * width + 4, row * (HEIGHT + 8) + 4))
    page.save(path, optimize=True)
