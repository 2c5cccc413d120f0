"""The training, validation and test set of a user's own images.

The split depends on the seed and on what the images show, not on their names or order, so that a
second run makes the same. It is recorded with the checkpoints, and nothing is moved or copied.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from captcha_cnn.checkpoint import SPLIT, TrainState
from captcha_cnn.dataset import Dataset, labelled_set, no_images
from captcha_cnn.decoded import SERIAL_LIMIT, Images, decoded_images, is_large
from captcha_cnn.distributed import ALONE, Workers
from captcha_cnn.images import ImageError, image_for
from captcha_cnn.labels import FILE_NAMES, labelled_files, normalize_label
from captcha_cnn.own_images import OwnImage, OwnImages, describe, is_inside
from captcha_cnn.parallel import parallel_map
from captcha_cnn.progress import log
from captcha_cnn.self_training import ROUNDS, load_unlabelled
from config import CaptchaError, Config, escape_unprintable

HELD_OUT_SHARE = 0.1  # of the images for validation, and as many for test
SETS = ("train", "validation", "test")

LoadImages: TypeAlias = Callable[[Sequence[str]], Images]  # of paths inside a folder


class Reader(Protocol):
    """What is needed of generate_captcha.ReadData."""

    def load_set(self, folder: str) -> Dataset:
        """All images of a folder, and their label vectors."""


class OwnSets(NamedTuple):
    """What belongs to a run beside the three sets, most of it to one on own images."""

    record: dict[str, Any]  # which file is in which set
    unlabelled: np.ndarray | None  # uint8 [N, H, W]
    rounds: int = ROUNDS  # of self-training, at most
    temperatures: Sequence[float] = ()  # from cross-validation: before and after each round
    share: float = 1.0  # of the trained weights in what is kept: see captcha_cnn.interpolation
    models_left: int = 0  # that are to be trained after this one, as long as it
    is_first: bool = True  # of the models that are trained
    workers: Workers = ALONE  # processes that train together

    def calibration(self, state: TrainState, validation: Dataset) -> Dataset | float:
        """What captcha_cnn.calibration.calibrate() needs at this point of a training."""
        return self.temperatures[state.round] if self.temperatures else validation


NO_OWN_SETS = OwnSets({}, None)  # of drawn captchas


def load_own_sets(found: OwnImages, given: Collection[str], reader: Reader) -> tuple[list[Dataset], OwnSets]:
    """The three sets of images that were found, what is recorded of them, and the unlabelled images.

    Says what was found.
    """
    if found.config.images:
        log(describe(found))
    data, record = load_split(found, given, reader)
    if not found.config.unlabelled:
        return data, OwnSets(record, None)
    folder, images = found.config.unlabelled, found.config.images
    if images and found.source == FILE_NAMES and is_inside(folder, images):
        raise CaptchaError(
            f"{escape_unprintable(folder)} must lie outside of {escape_unprintable(images)}, all of whose "
            "images, in sub-folders too, have labels in their names: move it, or write labels.csv"
        )
    unlabelled = load_unlabelled(found.config, data)
    return data, OwnSets(record | {"unlabelled": unlabelled.paths}, unlabelled.images)


def split_images(
    images: Sequence[OwnImage], config: Config, given: Collection[str]
) -> dict[str, list[OwnImage]]:
    """The images of each set, by its name; no image is in two. All are trained on with cross-validation.

    They are sorted by a hash of the seed and their pixels. A validation or test folder that the user
    names takes the place of that set.
    """
    order = sorted(images, key=lambda image: sha256(f"{config.seed} {image.digest}".encode()).digest())
    count = 0 if config.folds > 1 else max(1, round(HELD_OUT_SHARE * len(order)))
    sets, begin = {}, 0
    for name in ("validation", "test"):
        end = begin if f"{name}_folder" in given else begin + count
        sets[name], begin = order[begin:end], end
    return {"train": order[begin:]} | sets


def load_split(
    found: OwnImages, given: Collection[str], reader: Reader
) -> tuple[list[Dataset], dict[str, Any]]:
    """The three sets of images that were found, and the record of which is in which.

    An image that a folder named for validation or test has too is left out of the others.
    """
    config, sets = found.config, split_images(found.images, found.config, given)
    from_folders = {
        name: reader.load_set(folder) for name, folder, _ in config.sets if f"{name}_folder" in given
    }
    seen = {sha256(image.tobytes()).digest() for data in from_folders.values() for image in data.images}
    load = image_loader(config.images, [image.path for images in sets.values() for image in images], config)
    data = {}
    for name in SETS:
        if name in from_folders:
            data[name] = from_folders[name]
            continue
        if not sets[name]:
            data[name] = no_images(config)
            continue
        data[name] = loaded = load_labelled({image.path: image.label for image in sets[name]}, config, load)
        if not seen:
            continue
        kept = np.array([sha256(image.tobytes()).digest() not in seen for image in loaded.images])
        data[name] = Dataset(loaded.images[kept], loaded.labels[kept])
        sets[name] = [image for image, keep in zip(sets[name], kept, strict=True) if keep]
        if not kept.any():
            raise CaptchaError(
                f"{escape_unprintable(config.images)} must hold other images than the folders named for "
                "validation and test, but all are there too: name other folders"
            )
    return [data[name] for name in SETS], _record(sets, found, from_folders)


def _record(
    sets: Mapping[str, Sequence[OwnImage]], found: OwnImages, from_folders: Iterable[str]
) -> dict[str, Any]:
    """Which file is in which set, in the order of training; a set from another folder has none.

    Copies of an image are in no set, and are named beside it.
    """
    config = found.config
    record: dict[str, Any] = {"images": config.images and os.path.abspath(config.images), "seed": config.seed}
    record["labels"] = config.labels and os.path.abspath(config.labels)
    for name in SETS:
        record[name] = [image.path for image in sets[name]]
    return record | {"copies": found.copies, "from folders": list(from_folders)}


def load_labelled(labels: Mapping[str, str], config: Config, load: LoadImages) -> Dataset:
    """Own images as the model sees them, and their labels.

    Args:
        labels: by the path inside the folder. load: of image_loader().
    Raises:
        CaptchaError: an image is gone or damaged.
    """
    return labelled_set(load(list(labels)), list(labels.values()), config)


def image_loader(folder: str, paths: Sequence[str], config: Config) -> LoadImages:
    """What gives the images of some of these paths inside a folder; all from one file if they are many.

    Raises:
        CaptchaError: an image is gone or damaged.
    """
    if not is_large(len(paths), config):
        return functools.partial(load_recorded, folder, config=config)
    order = sorted(paths)
    images, bad = decoded_images(folder, order, config)
    if bad:
        raise _missing_image(folder, bad[0].name, bad[0].reason)
    number = {path: i for i, path in enumerate(order)}
    return lambda chosen: images.select([number[path] for path in chosen])


def load_recorded(folder: str, paths: Sequence[str], config: Config) -> np.ndarray:
    """Images of a run as the model sees them, uint8 [N, H, W].

    Args:
        paths: inside the folder.
    Raises:
        CaptchaError: an image is gone or damaged.
    """
    work, title = functools.partial(_load_part, folder, config), f"Loading {escape_unprintable(folder)}"
    return np.concatenate(list(parallel_map(work, paths, title, SERIAL_LIMIT)))


def _load_part(folder: str, config: Config, paths: Sequence[str]) -> np.ndarray:
    images = []
    for path in paths:
        try:
            images.append(image_for(os.path.join(folder, path), config))
        except ImageError as error:
            raise _missing_image(folder, path, error) from None
    return np.stack(images)


def _missing_image(folder: str, path: str, reason: object) -> CaptchaError:
    return CaptchaError(
        f"{escape_unprintable(os.path.join(folder, path))} must stay as it was when the run began, but "
        f"cannot be used ({reason}): bring it back"
    )


# ---------------------------------------------------------------------- the record


class Split(NamedTuple):
    """Which of the user's own images is in which set."""

    images: str  # absolute path of the folder
    labels: str  # absolute path of the file that names the labels, or ""
    sets: dict[str, list[str]]  # paths inside the folder, by the name of the set
    unlabelled: list[str]  # paths inside the folder of unlabelled images
    from_folders: list[str]  # the sets that are read from folders of their own


def read_split(checkpoint_folder: str) -> Split | None:
    """What was recorded beside the checkpoints; None where nothing was.

    Raises:
        CaptchaError: it is damaged.
    """
    path = Path(checkpoint_folder, SPLIT)
    try:
        record = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
        sets = {name: list(map(str, record[name])) for name in SETS}
        unlabelled = list(map(str, record.get("unlabelled", [])))
        from_folders = record.get("from folders", [name for name in SETS if not sets[name]])
        return Split(str(record["images"]), str(record["labels"]), sets, unlabelled, from_folders)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise CaptchaError(
            f"{escape_unprintable(path)} must say which image is in which set, but is damaged: train anew"
        ) from None


def reload_sets(config: Config, reader: Reader) -> tuple[list[Dataset], OwnSets]:
    """The three sets of a run to resume, and its unlabelled images.

    Raises:
        CaptchaError: an image, its label or the record is gone.
    """
    split = read_split(config.checkpoint_folder)
    if not split:
        raise CaptchaError(
            f"{escape_unprintable(config.checkpoint_folder)} must hold {SPLIT} to resume a run with "
            "--images, but does not: bring it back, or train anew without --resume"
        )
    found = labelled_files(config.images, config.labels).labels if config.images else {}
    data, used = [], [path for name in SETS for path in split.sets[name] if path in found]
    load = image_loader(config.images, used, config)
    for name, folder, _ in config.sets:
        paths = split.sets[name]
        if missing := [path for path in paths if path not in found]:
            raise CaptchaError(
                f"{escape_unprintable(config.images)} must hold the labelled images that the run began "
                f"with, but not {escape_unprintable(missing[0])}: bring it back, or train anew "
                "without --resume"
            )
        labels = {path: normalize_label(found[path], config.ignore_case) for path in paths}
        if name in split.from_folders:
            data.append(reader.load_set(folder))
        else:
            data.append(load_labelled(labels, config, load) if paths else no_images(config))
    own = load_recorded(config.unlabelled, split.unlabelled, config) if split.unlabelled else None
    return data, OwnSets(split.sets, own)
