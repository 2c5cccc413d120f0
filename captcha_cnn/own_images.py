"""A user's own labelled images: what is found from them.

Nothing in the folder is moved, copied or changed. captcha_cnn/own_sets.py splits them into three sets.
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from captcha_cnn.cli import flag_of
from captcha_cnn.dataset import check_label, report_left_out
from captcha_cnn.decoded import SERIAL_LIMIT
from captcha_cnn.image_facts import look_through
from captcha_cnn.images import ImageError
from captcha_cnn.labels import BadFile, labelled_files, list_files, mixes_directions, normalize_label
from config import CaptchaError, Config, ConfigError, escape_unprintable

MIN_CHAR_WIDTH = 20  # pixels of the model's width for each character
WIDEST_SHARE = 0.98  # of the images that fit into the model's width at full height
SKIPPED = ("skip_top", "skip_bottom")  # settings: rows that are not read
MAX_USED_ROWS = 0.5  # of the height: where less is used by the images, only that is read
MIN_IMAGES = 10  # different ones that a training needs
MIN_STEPS = 2000  # about, from initial weights; as many more as there are images
FEW_IMAGES = 200  # with less, cross-validation takes the place of validation and test images
FOLDS = 5
FEW_IMAGES_STEPS = 300  # and 4 for each image: the number is fixed, no validation result ends training
MIN_LENGTH_SHARE = 1 / 200  # of the labels; a length that fewer have is taken as a mistake
MIN_CHARACTER_SHARE = 1 / 50  # of the average character's count; one with less is taken as a mistake
MAX_STRETCH, MAX_WIDTH = 10.0, 4096  # of Config


class OwnImage(NamedTuple):
    """One labelled image that can be used."""

    path: str  # inside the folder
    label: str
    size: tuple[int, int]  # these are of ImageFacts
    digest: str
    rows: tuple[float, float]
    animated: bool


class OwnImages(NamedTuple):
    """What was found in a folder."""

    config: Config  # with what was found
    images: list[OwnImage]  # no two the same
    copies: dict[str, list[str]]  # paths of identical images, by the path of the one that is used
    left_out: list[BadFile]
    unlabelled: int
    source: str  # where the labels are from, as in LabelledFiles


def check_given(config: Config, given: Collection[str]) -> None:
    """Raise a ConfigError for settings that would do nothing beside each other, or mix two sets.

    Args:
        given: names of the settings that the user names.
    """
    alone = {"train_folder", "generate_num", "fresh"} if config.own_images else {"stretch", *SKIPPED}
    if not config.images:
        alone |= {"labels", "folds"} | ({"validation_folder"} if config.unlabelled else set())
    alone |= {"train_folder"} if config.fresh else {"frequent"}
    for name in sorted(alone & set(given)):
        if getattr(config, name) == getattr(Config, name):
            continue
        reason = "--images FOLDER is missing"
        if config.own_images and name in ("train_folder", "generate_num", "fresh"):
            reason = "--images FOLDER is split into the three sets" if config.images else "nothing is drawn"
        elif name == "train_folder":
            reason = "--fresh draws the training images anew for each step"
        elif name == "frequent":
            reason = "--fresh is missing"
        raise ConfigError(f"{name} must be left out, since {reason}")
    for name in ("validation_folder", "test_folder"):
        if config.images and name in given and is_inside(getattr(config, name), config.images):
            raise ConfigError(
                f"{name} must lie outside of {escape_unprintable(config.images)}, all of whose images, in "
                "sub-folders too, are split into the three sets: move it, or leave it out"
            )


def check_outside(config: Config, page: str = "") -> None:
    """Raise a ConfigError where something would be written into a folder of the user's images.

    Args:
        page: what is written, where it is not the folders of a training.
    """
    names = ("checkpoint_folder", "tensorboard_folder", "decoded_folder")
    places = {"--page": page} if page else {flag_of(name): getattr(config, name) for name in names}
    for flag, path in places.items():
        for folder in filter(None, (config.images, config.unlabelled)):
            if is_inside(path, folder):
                raise ConfigError(
                    f"{escape_unprintable(path)} must lie outside of {escape_unprintable(folder)}, into "
                    f"which nothing is ever written: name another place with {flag}"
                )


def is_inside(path: str, folder: str) -> bool:
    """Whether a path is that of the folder or of something in it."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def find_images(config: Config, given: Collection[str] = ()) -> OwnImages:
    """Look through the folder `config.images`, and set what its images say.

    Files that are left out are named on standard error.

    Args:
        given: names of the settings that the user names; they are kept.
    Raises:
        CaptchaError: the folder has no usable labels or images; says what is missing.
    """
    check_given(config, given)
    given = set(given)
    found = labelled_files(config.images, config.labels)
    labels = {path: normalize_label(label, config.ignore_case) for path, label in found.labels.items()}
    images, bad = _look_through(config.images, labels, config)
    images, mistakes = _without_mistakes(images, config, given)
    images, copies, conflicts = _without_copies(images)
    left_out = [*found.bad, *bad, *mistakes, *conflicts]
    report_left_out(config.images, left_out, len(found.labels) + len(found.bad))
    if len(images) < MIN_IMAGES:
        advice = "label more" if images else "correct what is named above" if left_out else "put some there"
        raise CaptchaError(
            f"{escape_unprintable(config.images)} must hold at least {MIN_IMAGES} different labelled images, "
            f"but holds {len(images) or 'none'} that can be used: {advice}"
        )
    config = replace(config, **_settings(images, config, given))
    if mixes_directions(config.alphabet):
        print(
            f"{escape_unprintable(config.images)}: labels with characters of both writing directions must be "
            "in the order in which they stand in the image, from left to right",
            file=sys.stderr,
            flush=True,
        )
    return OwnImages(config, images, copies, left_out, found.unlabelled, found.source)


def find_unlabelled(config: Config, given: Collection[str]) -> OwnImages:
    """The settings for a folder `config.unlabelled` where no image is labelled.

    Args:
        given: names of the settings that the user names; characters and lengths must be among them.
    Raises:
        CaptchaError: something is missing that labels would say, or the folder has few usable images.
    """
    shown = escape_unprintable(config.unlabelled)
    if missing := {"characters", "char_num"} - set(given):
        raise ConfigError(
            f"{' and '.join(sorted(missing))} must be named where no image is labelled, such as --characters "
            "0123456789 --char-num 4: name them, or labelled images with --images"
        )
    if config.start_from == "none" or config.network == "classic":
        raise ConfigError(
            "initial weights must read the images where none is labelled: leave out --start-from none and "
            "--network classic, or name labelled images with --images"
        )
    paths = list_files(config.unlabelled)[:SERIAL_LIMIT]
    images, _ = _look_through(config.unlabelled, dict.fromkeys(paths, ""), config)
    if len(images) < MIN_IMAGES:
        raise CaptchaError(
            f"{shown} must hold at least {MIN_IMAGES} images, but holds {len(images) or 'none'} that can be "
            "used: put more there"
        )
    found = _geometry(images, config, set(given), config.max_length) | {"print_per_batch": 200}
    config = replace(config, **{name: value for name, value in found.items() if name not in given})
    return OwnImages(config, [], {}, [], 0, "")


def _look_through(
    folder: str, labels: Mapping[str, str], config: Config
) -> tuple[list[OwnImage], list[BadFile]]:
    images, bad = [], []
    facts = look_through(folder, list(labels), config)
    for (path, label), found in zip(labels.items(), facts, strict=True):
        if isinstance(found, BadFile):
            bad.append(found)
        else:
            images.append(OwnImage(path, label, *found))
    return images, bad


def _without_mistakes(
    images: Sequence[OwnImage], config: Config, given: set[str]
) -> tuple[list[OwnImage], list[BadFile]]:
    """Leave out labels that cannot be right: what the user names, or most other labels, rule them out."""
    lengths = Counter(len(image.label) for image in images)
    counts = Counter(character for image in images for character in set(image.label))
    average = sum(counts.values()) / max(1, len(counts))
    kept, bad = [], []
    for image in images:
        try:
            check_label(image.label, config, {"char_num", "characters"} & given)
            _check_frequency(image.label, lengths, counts, average, given)
        except ImageError as error:
            bad.append(BadFile(image.path, error.category, str(error)))
        else:
            kept.append(image)
    return kept, bad


def _check_frequency(
    label: str, lengths: Counter[int], counts: Counter[str], average: float, given: set[str]
) -> None:
    total, shown = sum(lengths.values()), escape_unprintable(label)
    if "char_num" not in given and lengths[len(label)] < MIN_LENGTH_SHARE * total:
        raise ImageError(
            "label of a rare length",
            f"{shown!r} has {len(label)} characters, as {lengths[len(label)]} of {total} labels have: "
            "correct it, or allow it with --char-num",
        )
    rare = [c for c in label if counts[c] < MIN_CHARACTER_SHARE * average]
    if "characters" not in given and rare:
        raise ImageError(
            "label with a rare character",
            f"{escape_unprintable(rare[0])!r} in {shown!r} is in {counts[rare[0]]} of {total} labels: "
            "correct it, or allow it with --characters",
        )


def _without_copies(
    images: Iterable[OwnImage],
) -> tuple[list[OwnImage], dict[str, list[str]], list[BadFile]]:
    """Of identical images one is used; where their labels differ, none is."""
    by_digest: dict[str, list[OwnImage]] = {}
    for image in images:
        by_digest.setdefault(image.digest, []).append(image)
    kept, copies, bad = [], {}, []
    for first, *others in by_digest.values():
        labels = sorted({image.label for image in (first, *others)})
        if len(labels) > 1:
            shown = " and ".join(repr(escape_unprintable(label)) for label in labels)
            reason = f"the same image has the labels {shown}"
            bad += [BadFile(image.path, "identical images, two labels", reason) for image in (first, *others)]
            continue
        kept.append(first)
        if others:
            copies[first.path] = [image.path for image in others]
    return kept, copies, bad


def _settings(images: Sequence[OwnImage], config: Config, given: set[str]) -> dict[str, Any]:
    """What the images say, for what the user does not name: characters, lengths, size.

    Raises:
        CaptchaError: all labels are the same, or have one character.
    """
    labels = [image.label for image in images]
    shown = escape_unprintable(config.images)
    if len(set(labels)) < 2:
        raise CaptchaError(
            f"{shown} must hold different labels, but all {len(labels)} images are labelled "
            f"{escape_unprintable(labels[0])!r}: put the text of each image before the first _ of its file "
            "name, or list them in labels.csv"
        )
    characters = "".join(sorted(set("".join(labels))))
    if len(characters) < 2 and "characters" not in given:
        raise CaptchaError(
            f"{shown} must hold labels of at least two different characters, but all have "
            f"{escape_unprintable(characters)!r} alone: correct them, or name the alphabet with --characters"
        )
    shortest, longest = min(map(len, labels)), max(map(len, labels))
    found: dict[str, Any] = {"characters": characters, "char_num": f"{shortest}-{longest}"}
    found |= _geometry(images, config, given, longest if "char_num" not in given else config.max_length)
    folds = found["folds"] = number_of_folds(len(images), config, given)
    if config.start_from != "none":
        steps = FEW_IMAGES_STEPS + 4 * len(images) if folds > 1 else MIN_STEPS + len(images)
        found["Epoch"] = math.ceil(steps * config.batch_size / len(images))
    if folds > 1:
        found["print_per_batch"] = 200
    return {name: value for name, value in found.items() if name not in given or name == "folds"}


def _geometry(images: Sequence[OwnImage], config: Config, given: set[str], length: int) -> dict[str, Any]:
    """Which rows are read, and at which size.

    Args:
        length: the most characters of an image.
    """
    found: dict[str, Any] = {}
    if given & {*SKIPPED}:  # what is found for the other one may leave no row
        skipped = config.skip_top, config.skip_bottom
    else:
        skipped = found["skip_top"], found["skip_bottom"] = _unused_rows(images)
    used = 1 - sum(skipped)
    height = config.height
    aspects = sorted(width / height / used for width, height in (image.size for image in images))
    aspect = aspects[math.ceil(WIDEST_SHARE * len(aspects)) - 1]
    needed = MIN_CHAR_WIDTH * length
    found["stretch"] = min(MAX_STRETCH, max(1.0, needed / (height * aspect)))
    stretch = config.stretch if "stretch" in given else found["stretch"]
    found["width"] = min(MAX_WIDTH, max(round(height * aspect * stretch), needed))
    return found


def number_of_folds(count: int, config: Config, given: set[str]) -> int:
    """In how many parts so many images are split for cross-validation; 1 for none.

    Raises:
        ConfigError: cross-validation is asked for where it cannot be.
    """
    others = {
        "--network classic": config.network == "classic",
        "--start-from none": config.start_from == "none",
        "--validation-folder": "validation_folder" in given,
    }
    reasons = [name for name, holds in others.items() if holds]
    if config.folds > 1 and reasons:
        raise ConfigError(
            f"folds must be left out with {reasons[0]}: validation images end such a training, and "
            "cross-validation has none"
        )
    if config.folds > count:
        raise ConfigError(f"folds must be at most the number of images, {count}, not {config.folds}")
    if config.folds:
        return config.folds
    return 1 if reasons or count >= FEW_IMAGES else FOLDS


def _unused_rows(images: Sequence[OwnImage]) -> tuple[float, float]:
    """What nearly all images leave empty at the top and at the bottom, if it is much; else 0."""
    others = math.floor((1 - WIDEST_SHARE) * len(images))
    top = sorted(image.rows[0] for image in images)[others]
    bottom = 1 - sorted(image.rows[1] for image in images)[-1 - others]
    if 1 - top - bottom > MAX_USED_ROWS:
        return 0.0, 0.0
    return math.floor(1000 * top) / 1000, math.floor(1000 * bottom) / 1000


def describe(found: OwnImages) -> str:
    """A few lines that say what was found."""
    config, images = found.config, found.images
    sizes = Counter(image.size for image in images)
    shown = [f"{width}x{height} px ({count})" for (width, height), count in sizes.most_common(3)]
    others = f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
    copies = sum(map(len, found.copies.values()))
    animated = sum(image.animated for image in images)
    lengths = Counter(len(image.label) for image in images)
    lines = [
        f"{escape_unprintable(config.images)}: {len(images)} images with labels from {found.source}",
        f"  Left out:   {copies} copies, {found.unlabelled} without a label, {len(found.left_out)} for "
        "other reasons",
        f"  Characters: {len(config.alphabet)}, {escape_unprintable(config.alphabet)}",
        "  Lengths:    " + ", ".join(f"{length} ({lengths[length]})" for length in sorted(lengths)),
        f"  Sizes:      {', '.join(shown)}{others}; read at {config.width}x{config.height} px",
    ]
    if config.skip_top or config.skip_bottom:
        skipped = f"the upper {config.skip_top:.0%} and the lower {config.skip_bottom:.0%} of the height"
        lines.append(f"  Not read:   {skipped}")
    if animated:
        lines.append(f"  Animated:   {animated}; the first frame of each is read")
    return "\n".join(lines)
