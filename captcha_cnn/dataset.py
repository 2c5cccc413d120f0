"""A captcha set: a folder of images with their labels in their file names (`1327_000042.png`).

A drawn set also holds its manifest, `captchas.json`, which records how it was drawn. A folder
without it is somebody's own: it can be loaded, and is never drawn into.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from captcha_cnn.images import ImageError, decode_image
from captcha_cnn.parallel import parallel_map
from config import CaptchaError, Config, escape_unprintable

MANIFEST = "captchas.json"
IGNORED_FILES = {MANIFEST, "Thumbs.db", "desktop.ini"}  # left out silently, as hidden files are
SERIAL_LIMIT = 3000  # images that one process loads before others have started to help
SHAPE_KEYS = {"width", "height", "char_num", "characters"}  # of a manifest: what a model must agree with
MAX_BAD_SHARE = 0.1  # of a folder's files; loading fails above it
MAX_BAD_SHOWN = 10  # bad files that are named one by one


class BadFile(NamedTuple):
    """A file that is left out."""

    name: str
    category: str
    reason: str


class Dataset(NamedTuple):
    """A captcha set in memory."""

    images: np.ndarray  # uint8 [N, H, W]
    labels: np.ndarray  # one-hot, float32 [N, L * K]


def dataset_hash(*sets: Dataset) -> str:
    """SHA-256 of images and labels."""
    digest = hashlib.sha256()
    for data in sets:
        digest.update(data.images.data)
        digest.update(data.labels.data)
    return digest.hexdigest()


def list_image_files(folder: str) -> list[str]:
    """The sorted file names in a folder, without hidden files and those that systems leave there."""
    return sorted(
        name for name in os.listdir(folder) if not name.startswith(".") and name not in IGNORED_FILES
    )


def label_from_filename(name: str, config: Config) -> str:
    """The label in a file's name: what stands before the first `_` or the extension.

    Composed and decomposed Unicode (as macOS writes file names) are the same label.

    Raises:
        ImageError: not a label of that length and alphabet.
    """
    label = os.path.splitext(name)[0].split("_")[0]
    if not set(label) <= set(config.alphabet):
        label = unicodedata.normalize("NFC", label)
    if len(label) != config.char_num:
        raise ImageError(
            "label of another length", f"{escape_unprintable(label)!r} is not {config.char_num} characters"
        )
    for character in label:
        if character not in config.alphabet:
            raise ImageError(
                "label outside the alphabet",
                f"{escape_unprintable(character)!r} in {escape_unprintable(label)!r} is not in "
                f"{config.alphabet}",
            )
    return label


def load_image(path: str | os.PathLike[str], config: Config) -> tuple[np.ndarray, str]:
    """One labelled image: uint8 [H, W], grayscale, and its label.

    Raises:
        ImageError: not an image, damaged, of another size, or no valid label in its name.
    """
    label = label_from_filename(os.path.basename(path), config)
    return decode_image(path, (config.width, config.height)), label


def load_folder(folder: str, config: Config) -> tuple[np.ndarray, list[str], list[str]]:
    """All images of a folder, in the order of their file names.

    Bad files are left out. On standard error ten are named, one of each category first, and the
    others are counted.

    Returns:
        images, uint8 [N, H, W]; N labels; the N file names.
    Raises:
        CaptchaError: no such folder, no images, more than a tenth of the files bad, or a set whose
            drawing was interrupted.
    """
    shown = escape_unprintable(folder)
    if not os.path.isdir(folder):
        raise CaptchaError(f"{shown} must be a folder of images, but does not exist: check the path")
    manifest = read_manifest(folder)
    if manifest and not manifest["complete"]:
        raise CaptchaError(
            f"{shown} must be a complete set, but its drawing was interrupted: run generate_captcha.py again"
        )
    names = list_image_files(folder)
    images, labels, bad = [], [], []
    for image_part, label_part, bad_part in parallel_map(
        functools.partial(_load_files, config, folder), names, f"Loading {shown}", SERIAL_LIMIT
    ):
        images.append(image_part)
        labels += label_part
        bad += bad_part
    if bad:
        report_bad_files(shown, bad, len(names))
    if not labels:
        example = (config.alphabet * config.char_num)[: config.char_num]
        raise CaptchaError(
            f"{shown} must hold images with their labels in their names, such as {example}_000042.png, "
            "but holds none that can be used: put some there, or delete the folder to have captchas drawn"
        )
    left_out = {each.name for each in bad}
    return np.concatenate(images), labels, [name for name in names if name not in left_out]


def _load_files(
    config: Config, folder: str, names: Sequence[str]
) -> tuple[np.ndarray, list[str], list[BadFile]]:
    images, labels, bad = [], [], []
    for name in names:
        try:
            image, label = load_image(os.path.join(folder, name), config)
        except ImageError as error:
            bad.append(BadFile(name, error.category, str(error)))
        else:
            images.append(image)
            labels.append(label)
    shape = (len(images), config.height, config.width)
    return np.asarray(images, np.uint8).reshape(shape), labels, bad


def report_bad_files(shown: str, bad: list[BadFile], total: int) -> None:
    """Name bad files on standard error.

    Raises:
        CaptchaError: they are more than a tenth of all.
    """
    first: dict[str, BadFile] = {}
    for each in bad:
        first.setdefault(each.category, each)
    ordered = list(dict.fromkeys([*first.values(), *bad]))  # one of each category, then the others in order
    lines = [f"{shown}: {len(bad)} of {total} files left out"]
    lines += [f"  {escape_unprintable(each.name)}: {each.reason}" for each in ordered[:MAX_BAD_SHOWN]]
    if len(bad) > MAX_BAD_SHOWN:
        counts = Counter(each.category for each in bad)
        categories = ", ".join(f"{count} {category}" for category, count in counts.most_common())
        lines.append(f"  and {len(bad) - MAX_BAD_SHOWN} more; in all: {categories}")
    print("\n".join(lines), file=sys.stderr, flush=True)
    if len(bad) > MAX_BAD_SHARE * total:
        raise CaptchaError(
            f"{shown} must hold at most a tenth of bad files, but {len(bad)} of {total} are: "
            "check width, height, char_num and characters, or remove the bad files"
        )


def make_manifest(config: Config, set_name: str, count: int) -> dict[str, Any]:
    """How a set is drawn: all that its pixels and labels depend on."""
    return {
        "set": set_name,
        "count": count,
        "seed": config.seed,
        "width": config.width,
        "height": config.height,
        "char_num": config.char_num,
        "characters": config.alphabet,
        "captcha": version("captcha"),
        "pillow": version("pillow"),
    }


def read_manifest(folder: str) -> dict[str, Any] | None:
    """The manifest of the set in that folder; None where there is none.

    Raises:
        CaptchaError: it cannot be read.
    """
    path = Path(folder, MANIFEST)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("complete"), bool):
        raise CaptchaError(
            f"{escape_unprintable(path)} must be the manifest of a drawn set, but cannot be read: delete it "
            "to use the images beside it as your own, or the folder to draw it anew"
        )
    return manifest


class SetState(NamedTuple):
    """What is known of a set before anything is drawn."""

    name: str
    folder: str
    manifest: dict[str, Any]  # of the set that is asked for
    to_draw: bool
    message: str  # for the user, where a drawn set is used as it is


def set_state(config: Config, name: str, folder: str, count: int, keep: bool) -> SetState:
    """Whether a set is there, or is to be drawn or completed.

    Args:
        keep: use a set drawn with another seed or count, and the user's own images, as they are.
    Raises:
        CaptchaError: the folder holds other images than those asked for.
    """
    shown, flag = escape_unprintable(folder), f"--{name}-folder"
    wanted, found = make_manifest(config, name, count), read_manifest(folder)
    files = list_image_files(folder)
    if found is None:
        if files and not keep:
            raise CaptchaError(
                f"{shown} must be empty to draw captchas into, but holds {len(files)} files that this "
                f"program did not draw: name another folder with {flag}"
            )
        return SetState(name, folder, wanted, not files, "")
    differences = [key for key in wanted if found.get(key) != wanted[key]]
    changed = ", ".join(f"{key} {found.get(key)} (asked for: {wanted[key]})" for key in differences)
    if not differences:
        endings = {file.rpartition("_")[2] for file in files}
        complete = found["complete"] and all(f"{i:06d}.png" in endings for i in range(count))
        message = f"{shown}: {count} captchas are there already" if complete else ""
        return SetState(name, folder, wanted, not complete, message)
    if keep and found.get("complete") and not SHAPE_KEYS & set(differences):
        remaining = f"; {len(files)} of its images are left" if len(files) < found.get("count", 0) else ""
        return SetState(
            name, folder, wanted, False, f"{shown}: used as it is, drawn with {changed}{remaining}"
        )
    raise CaptchaError(
        f"{shown} holds captchas drawn with {changed}: ask for those, delete the folder to draw it anew, "
        f"or name another with {flag}"
    )
