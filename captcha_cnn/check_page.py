"""`generate_captcha.py --check FOLDER`: what training would find in a folder, and a page with samples."""

from __future__ import annotations

import argparse
import os
import random
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from captcha_cnn.files import atomic_write
from captcha_cnn.images import decode_image, image_for
from captcha_cnn.initial_weights import find_initial_weights, own_image_settings
from captcha_cnn.labels import image_order
from captcha_cnn.own_images import OwnImage, OwnImages, check_given, check_outside, describe, find_images
from captcha_cnn.own_sets import split_images
from captcha_cnn.report import data_url, load_template
from config import CaptchaError, Config, ConfigError, escape_unprintable

PAGE = "check.html"
TEMPLATE = "check.html"
MARK = '<meta name="generator" content="captcha_cnn check">'  # in every page; other files are not replaced
SAMPLES = 60
MAX_LEFT_OUT = 500  # files on the page
SAMPLE_HEIGHT = 120  # px; larger images are made smaller, as the page shows them at half of it


def add_check_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this module to the command line."""
    parser.add_argument(
        "--check", metavar="FOLDER", help="draw nothing: say what driver.py --images FOLDER would find"
    )
    parser.add_argument(
        "--page", metavar="FILE", help=f"file for the page of samples that --check writes (default: {PAGE})"
    )


def check_images(folder: str | None, page: str | None, given: Mapping[str, Any]) -> bool:
    """Say what is in a folder of own images and write a page with samples, where one is named.

    Args:
        folder: what --check names. page: what --page names.
        given: the settings that the command line names.
    Returns:
        whether a folder was named.
    Raises:
        ConfigError: flags that do not go together.
        CaptchaError: the folder cannot be used, or the page not be written.
    """
    if folder is None:
        if page is not None:
            raise ConfigError("--page needs --check FOLDER")
        for name in ("images", "unlabelled"):
            if given.get(name):
                raise ConfigError(f"--{name} draws no captchas: use --check FOLDER, or driver.py to train")
        check_given(Config(**given), given)
        return False
    if given.get("images") or not folder:
        raise ConfigError("--check must name one folder, in place of --images")
    given = {**given, "images": folder}
    config, target = Config(**given), Path(page or PAGE)
    check_outside(config, os.fspath(target))
    _check_replaceable(target)
    found = find_images(own_image_settings(config, find_initial_weights(config), given), given)
    print(describe(found), flush=True)
    sizes = _set_sizes(found, given)
    print(f"  Sets:       {', '.join(f'{name} {size}' for name, size in sizes.items())}")
    _write(target, render(found, sizes))
    print(f"Page: {escape_unprintable(target)}", flush=True)
    return True


def _check_replaceable(path: Path) -> None:
    """Raise a CaptchaError where a file that is no page of ours would be overwritten."""
    if not os.path.lexists(path):
        return
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            ours = MARK in file.read(2000)
    except OSError:
        ours = False
    if not ours:
        raise CaptchaError(
            f"{escape_unprintable(path)} must be an earlier page of --check to be replaced, but is something "
            "else: move it away, or name another file with --page"
        )


def _write(path: Path, page: str) -> None:
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise CaptchaError(
            f"{escape_unprintable(path)} could not be written ({error.strerror or error}): make room there, "
            "or name another file with --page"
        ) from error


def _set_sizes(found: OwnImages, given: Iterable[str]) -> dict[str, str]:
    """What is in each of the sets, by its name."""
    sets, folds = split_images(found.images, found.config, set(given)), found.config.folds
    folders = {name: f"all of {escape_unprintable(folder)}" for name, folder, _ in found.config.sets}
    sizes = {name: f"{len(images):,}" if images else folders[name] for name, images in sets.items()}
    if folds > 1:  # all images are trained on
        sizes = {name: size for name, size in sizes.items() if sets[name] or f"{name}_folder" in given}
        sizes["train"] += f" in {folds} folds"
    return sizes


# ---------------------------------------------------------------------- the page


class Sample(NamedTuple):
    """An image on the page."""

    label: str
    name: str
    original: str  # as URL
    seen: str  # what the network sees, as URL


class Bar(NamedTuple):
    """A row of a chart."""

    name: str
    images: int
    share: float  # of the largest number


def render(found: OwnImages, set_sizes: Mapping[str, str]) -> str:
    """The page, which needs no other file."""
    config, images = found.config, found.images
    chosen = random.Random(config.seed).sample(images, min(SAMPLES, len(images)))
    characters = Counter(character for image in images for character in image.label)
    lengths = Counter(len(image.label) for image in images)
    sizes = Counter(image.size for image in images)
    return str(
        load_template(TEMPLATE).render(
            mark=MARK,
            title=f"Images in {escape_unprintable(config.images)}",
            folder=escape_unprintable(config.images),
            found=found,
            config=config,
            copies=sum(map(len, found.copies.values())),
            animated=sum(image.animated for image in images),
            set_sizes=set_sizes,
            right_to_left=image_order(config.alphabet, config.alphabet) != config.alphabet,
            sample_width=max(160, 30 + round(60 * config.width / config.height)),  # px; images are 60 px high
            samples=[make_sample(image, config) for image in chosen],
            characters=bars({character: characters[character] for character in config.alphabet}),
            lengths=bars({str(length): lengths[length] for length in sorted(lengths)}),
            sizes=bars({f"{w} × {h}": count for (w, h), count in sizes.most_common(12)}),  # noqa: RUF001
            more_sizes=max(0, len(sizes) - 12),
            left_out=[
                {"name": escape_unprintable(bad.name), "reason": bad.reason}
                for bad in found.left_out[:MAX_LEFT_OUT]
            ],
        )
    )


def bars(counts: Mapping[str, int]) -> list[Bar]:
    """The rows of a chart."""
    largest = max(counts.values(), default=1) or 1
    return [Bar(name, count, count / largest) for name, count in counts.items()]


def make_sample(image: OwnImage, config: Config) -> Sample:
    """An image as its file shows it, and as the network sees it."""
    path = os.path.join(config.images, image.path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's opinions on metadata
        with Image.open(path) as opened:
            deep = opened.mode.startswith(("I", "F"))  # more than 8 bits, which a page cannot show
            original = Image.fromarray(decode_image(path)) if deep else opened.convert("RGBA")
    original.thumbnail((16 * SAMPLE_HEIGHT, SAMPLE_HEIGHT))
    seen = Image.fromarray(image_for(path, config))
    return Sample(
        escape_unprintable(image.label), escape_unprintable(image.path), data_url(original), data_url(seen)
    )
