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
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from captcha_cnn.decoded import DecodedImages, Images, decoded_images, image_checksums, is_large
from captcha_cnn.images import ImageError, image_for
from captcha_cnn.labels import (
    BadFile,
    check_folder,
    image_order,
    is_visible,
    label_in_name,
    labelled_files,
    normalize_label,
)
from captcha_cnn.parallel import parallel_map
from captcha_cnn.tf_runtime import batch_slices
from config import CaptchaError, Config, escape_unprintable

MANIFEST = "captchas.json"
SERIAL_LIMIT = 3000  # images that one process loads before others have started to help
SHAPE_KEYS = {"width", "height", "char_num", "characters"}  # of a manifest: what a model must agree with
MAX_BAD_SHARE = 0.1  # of a folder's files; loading fails above it
MAX_BAD_SHOWN = 10  # bad files that are named one by one


class LabelVectors:
    """The one-hot vectors of N labels: an array, float32 [N, L * K], of which what is indexed is made.

    It takes 2 bytes for each character, and a mask, bool [N], selects as in an array.

    Args:
        classes: int16 [N, L], -1 past the end of a label. count: K, the characters of the alphabet.
    """

    def __init__(self, classes: np.ndarray, count: int) -> None:
        self._classes, self._count = classes, count

    def __len__(self) -> int:
        return len(self._classes)

    def __getitem__(self, chosen: Any) -> Any:
        classes = self._classes[chosen]
        if isinstance(chosen, np.ndarray) and chosen.dtype == bool:
            return LabelVectors(classes, self._count)
        return (classes[..., None] == np.arange(self._count)).astype(np.float32).reshape(len(classes), -1)


class Dataset(NamedTuple):
    """A captcha set: arrays, or where it is too large for memory, what is indexed like them."""

    images: Images  # uint8 [N, H, W], or [N, H, W, 3] with Config.colour
    labels: np.ndarray | LabelVectors  # one-hot, float32 [N, L * K]

    @property
    def size(self) -> int:
        """N, the images of an epoch."""
        return len(self.images)


def no_images(config: Config) -> Dataset:
    """A set without images."""
    labels = np.zeros([0, config.max_length * len(config.alphabet)], np.float32)
    return Dataset(np.zeros([0, *config.image_shape], np.uint8), labels)


def label_classes(labels: Sequence[str], config: Config) -> np.ndarray:
    """The classes of the characters of labels, in the order in which they stand in the image.

    Returns:
        int16 [N, L], -1 past the end of a label.
    Raises:
        CaptchaError: a label that the model cannot have.
    """
    shortest, length, alphabet = config.min_length, config.max_length, config.alphabet
    classes = np.full([len(labels), length], -1, np.int16)
    for row, label in zip(classes, labels, strict=True):
        if not shortest <= len(label) <= length or not set(label) <= set(alphabet):
            lengths = str(config.char_num).replace("-", " to ")
            raise CaptchaError(f"a label must be {lengths} characters of {alphabet}, not {label!r}")
        row[: len(label)] = [alphabet.index(character) for character in image_order(label, alphabet)]
    return classes


def label_of_vector(vector: np.ndarray, config: Config) -> str:
    """The label of a vector of label_vectors(), or of one score per character, [L * K].

    Raises:
        CaptchaError: it has another size.
    """
    shortest, length, alphabet = config.min_length, config.max_length, config.alphabet
    if np.size(vector) != length * len(alphabet):
        raise CaptchaError(
            f"a label's vector must have {length * len(alphabet)} values, not {np.size(vector)}"
        )
    scores = np.reshape(vector, (length, len(alphabet)))
    end = next((i for i in range(shortest, length) if scores[i].max() <= 0), length)
    return image_order("".join(alphabet[i] for i in scores[:end].argmax(axis=1)), alphabet)


def label_vectors(labels: Sequence[str], config: Config) -> np.ndarray:
    """The one-hot vectors of labels, float32 [N, L * K].

    Raises:
        CaptchaError: a label that the model cannot have.
    """
    vectors: np.ndarray = LabelVectors(label_classes(labels, config), len(config.alphabet))[:]
    return vectors


def labelled_set(images: Images, labels: Sequence[str], config: Config) -> Dataset:
    """A set of images and their labels, whose vectors are in memory where the images are.

    Raises:
        CaptchaError: a label that the model cannot have.
    """
    if isinstance(images, np.ndarray):
        return Dataset(images, label_vectors(labels, config))
    return Dataset(images, LabelVectors(label_classes(labels, config), len(config.alphabet)))


def dataset_hash(train: Dataset, validation: Dataset, unlabelled: np.ndarray | None = None) -> str:
    """SHA-256 of the checksums of images, of labels, and of images without labels, uint8 [N, H, W].

    It is the same in memory and on disk; there, checksums are known without reading the images.
    """
    digest = hashlib.sha256()
    for data in (train, validation):
        digest.update(image_checksums(data.images).data)
        for part in batch_slices(len(data.labels)):
            digest.update(data.labels[part].data)
    if unlabelled is not None:
        digest.update(image_checksums(unlabelled).data)
    return digest.hexdigest()


def list_image_files(folder: str) -> list[str]:
    """The sorted file names in a folder, without hidden files and those that systems leave there."""
    return sorted(name for name in os.listdir(folder) if is_visible(name))


def label_from_filename(name: str, config: Config) -> str:
    """The label in a file's name: what stands before the first `_`, `.`, space or `(`.

    Raises:
        ImageError: not a label of that length and alphabet.
    """
    return valid_label(label_in_name(name), config)


def valid_label(label: str, config: Config) -> str:
    """The label as the model of that Config answers it.

    Composed and decomposed Unicode (as macOS writes file names) are the same label.

    Raises:
        ImageError: not a label of that length and alphabet.
    """
    if config.ignore_case or not set(label) <= set(config.alphabet):
        label = normalize_label(label, config.ignore_case)
    check_label(label, config)
    return label


def check_label(label: str, config: Config, checked: Collection[str] = ("char_num", "characters")) -> None:
    """Raise an ImageError where a label has another length or other characters than the Config says.

    Args:
        checked: which of the two settings count.
    """
    if "char_num" in checked and not config.min_length <= len(label) <= config.max_length:
        raise ImageError(
            "label of another length",
            f"{escape_unprintable(label)!r} is not {str(config.char_num).replace('-', ' to ')} characters",
        )
    for character in label:
        if "characters" in checked and character not in config.alphabet:
            raise ImageError(
                "label outside the alphabet",
                f"{escape_unprintable(character)!r} in {escape_unprintable(label)!r} is not in "
                f"{config.alphabet}",
            )
        if not character.isprintable() or character.isspace():
            raise ImageError(
                "label with a space" if character.isspace() else "label with an unprintable character",
                f"{escape_unprintable(label)!r} has {escape_unprintable(character)!r} in it",
            )
    if not label:
        raise ImageError("no label", "nothing stands before the first _ . ( or space of its name")


def load_image(path: str | os.PathLike[str], config: Config) -> tuple[np.ndarray, str]:
    """One labelled image, as captcha_cnn.images.image_for() makes it, and its label.

    Raises:
        ImageError: not an image, damaged, of another size, or no valid label in its name.
    """
    label = label_from_filename(os.path.basename(path), config)
    return image_for(path, config), label


def load_folder(folder: str, config: Config, files: Sequence[str] | None = None) -> tuple[Images, list[str]]:
    """All images of a folder, in the order of their file names, and their labels.

    Bad files are left out, as load_parts() does. Where the images are too large for memory, they are read
    from a file: see captcha_cnn.decoded.

    Args:
        files: the sorted names of its files, where they are known.
    Raises:
        CaptchaError: as labels_in_folder(), load_parts() and decoded_images() do.
    """
    names, bad = labels_in_folder(folder, config, files=files)
    if is_large(len(names), config):
        return _load_large(folder, names, bad, config)
    images = np.empty([len(names), *config.image_shape], np.uint8)
    labels: list[str] = []
    for image_part, label_part, _ in load_parts(folder, names, bad, config):
        images[len(labels) : len(labels) + len(label_part)] = image_part
        labels += label_part
    return images[: len(labels)], labels


def load_parts(
    folder: str, names: Mapping[str, str], bad: Sequence[BadFile], config: Config
) -> Iterator[tuple[np.ndarray, list[str], list[str]]]:
    """Images of a folder, in the order of `names`, in parts.

    Bad files are left out. In the end, ten are named on standard error, one of each category first, and the
    others are counted.

    Args:
        names: the unchecked label of each file, by its name. bad: files that are left out already.
    Returns:
        of each part the images, uint8 [B, H, W]; B labels; the B file names.
    Raises:
        CaptchaError: no images, or more than a tenth of the files bad.
    """
    bad, total, work = list(bad), len(names) + len(bad), functools.partial(_load_files, config, folder)
    title = f"Loading {escape_unprintable(folder)}"
    for images, labels, kept, bad_part in parallel_map(work, list(names.items()), title, SERIAL_LIMIT):
        bad += bad_part
        yield images, labels, kept
    _check_loaded(folder, bad, total, config)


def _load_large(
    folder: str, names: Mapping[str, str], bad: Sequence[BadFile], config: Config
) -> tuple[DecodedImages, list[str]]:
    bad, labels, total = list(bad), dict[str, str](), len(names) + len(bad)
    for name, label in names.items():
        try:
            labels[name] = valid_label(label, config)
        except ImageError as error:
            bad.append(BadFile(name, error.category, str(error)))
    images, not_images = decoded_images(folder, list(names), config)
    for each in not_images:
        if labels.pop(each.name, None) is not None:
            bad.append(each)
    _check_loaded(folder, bad, total, config)
    return images[np.array([name in labels for name in names])], list(labels.values())


def _check_loaded(folder: str, bad: Sequence[BadFile], total: int, config: Config) -> None:
    """Name the files that are left out; raise a CaptchaError where they are too many, or all."""
    shown = escape_unprintable(folder)
    report_left_out(folder, bad, total)
    check_bad_share(shown, len(bad), total)
    if len(bad) == total:
        example = (config.alphabet * config.max_length)[: config.max_length]
        raise CaptchaError(
            f"{shown} must hold images with their labels in their names, such as {example}_000042.png, "
            "but holds none that can be used: put some there, or delete the folder to have captchas drawn"
        )


def labels_in_folder(
    folder: str, config: Config, labels_file: str = "", files: Sequence[str] | None = None
) -> tuple[dict[str, str], list[BadFile]]:
    """The label of each file, unchecked, and files without one.

    For a model of own images, or with a file that lists the labels, sub-folders are searched too.

    Args:
        files: the sorted names of the files in the folder, where they are known.
    Raises:
        CaptchaError: no such folder, or a set whose drawing was interrupted.
    """
    shown = escape_unprintable(folder)
    check_folder(folder)
    manifest = read_manifest(folder)
    if manifest and not manifest["complete"]:
        raise CaptchaError(
            f"{shown} must be a complete set, but its drawing was interrupted: run generate_captcha.py again"
        )
    if config.own_images or labels_file:
        found = labelled_files(folder, labels_file)
        return found.labels, found.bad
    return {name: label_in_name(name) for name in files or list_image_files(folder)}, []


def _load_files(
    config: Config, folder: str, names: Sequence[tuple[str, str]]
) -> tuple[np.ndarray, list[str], list[str], list[BadFile]]:
    images, labels, kept, bad = [], [], [], []
    for name, label in names:
        try:
            label = valid_label(label, config)
            image = image_for(os.path.join(folder, name), config)
        except ImageError as error:
            bad.append(BadFile(name, error.category, str(error)))
        else:
            images.append(image)
            labels.append(label)
            kept.append(name)
    shape = (len(images), *config.image_shape)
    return np.asarray(images, np.uint8).reshape(shape), labels, kept, bad


def report_left_out(folder: str, bad: Sequence[BadFile], total: int) -> None:
    """Name the files that are left out on standard error, one of each category first."""
    if not bad:
        return
    first: dict[str, BadFile] = {}
    for each in bad:
        first.setdefault(each.category, each)
    ordered = list(dict.fromkeys([*first.values(), *bad]))  # one of each category, then the others in order
    lines = [f"{escape_unprintable(folder)}: {len(bad)} of {total} files left out"]
    lines += [f"  {escape_unprintable(each.name)}: {each.reason}" for each in ordered[:MAX_BAD_SHOWN]]
    if len(bad) > MAX_BAD_SHOWN:
        counts = Counter(each.category for each in bad)
        categories = ", ".join(f"{count} {category}" for category, count in counts.most_common())
        lines.append(f"  and {len(bad) - MAX_BAD_SHOWN} more; in all: {categories}")
    print("\n".join(lines), file=sys.stderr, flush=True)


def check_bad_share(shown: str, bad: int, total: int) -> None:
    """Raise a CaptchaError where more than a tenth of the files of a folder are bad."""
    if bad > MAX_BAD_SHARE * total:
        raise CaptchaError(
            f"{shown} must hold at most a tenth of bad files, but {bad} of {total} are: "
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


def check_own_images(config: Config, missing: str) -> None:
    """Raise a CaptchaError where a folder holds own images, and captchas would be drawn into `missing`."""
    for _, folder, _ in config.sets:
        if read_manifest(folder) is None and list_image_files(folder):
            missing, own = escape_unprintable(missing), escape_unprintable(folder)
            raise CaptchaError(
                f"{missing} must hold images of yours, as {own} does, since drawn captchas would train "
                "or test for something else: put some there"
            )


class SetState(NamedTuple):
    """What is known of a set before anything is drawn."""

    name: str
    folder: str
    manifest: dict[str, Any]  # of the set that is asked for
    to_draw: bool
    message: str  # for the user, where a drawn set is used as it is
    files: list[str]  # the sorted names of those that are there


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
        if files and (not keep or config.fresh):  # own images would test for something else
            raise CaptchaError(
                f"{shown} must be empty to draw captchas into, but holds {len(files)} files that this "
                f"program did not draw: name another folder with {flag}"
            )
        return SetState(name, folder, wanted, not files, "", files)
    differences = [key for key in wanted if found.get(key) != wanted[key]]
    changed = ", ".join(f"{key} {found.get(key)} (asked for: {wanted[key]})" for key in differences)
    if not differences:
        endings = {file.rpartition("_")[2] for file in files}
        complete = found["complete"] and all(f"{i:06d}.png" in endings for i in range(count))
        message = f"{shown}: {count} captchas are there already" if complete else ""
        return SetState(name, folder, wanted, not complete, message, files)
    if keep and found.get("complete") and not SHAPE_KEYS & set(differences):
        remaining = f"; {len(files)} of its images are left" if len(files) < found.get("count", 0) else ""
        message = f"{shown}: used as it is, drawn with {changed}{remaining}"
        return SetState(name, folder, wanted, False, message, files)
    raise CaptchaError(
        f"{shown} holds captchas drawn with {changed}: ask for those, delete the folder to draw it anew, "
        f"or name another with {flag}"
    )
