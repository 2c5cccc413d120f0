"""Folders of a user's own labelled images, with random pixels: for tests that do not train."""

import itertools

import numpy as np
from PIL import Image


def random_image(number, size=(40, 20)):
    """The same for the same number, and another for another."""
    random = np.random.default_rng(number)
    return Image.fromarray(random.integers(0, 255, (size[1], size[0]), dtype=np.uint8))


def make_labels(count, length=3, characters="abcd"):
    """Labels in which all characters occur equally often, or nearly."""
    endless = itertools.cycle(itertools.product(characters, repeat=length))
    return ["".join(each) for each in itertools.islice(endless, count)]


def write_images(folder, labels, first=0, size=(40, 20)):
    """Write `label_number.png` for each label."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, label in enumerate(labels, first):
        random_image(number, size).save(folder / f"{label}_{number}.png")
    return folder


def snapshot(folder):
    """Bytes and time of change of everything in a folder."""
    return {
        path: (path.read_bytes() if path.is_file() else None, path.lstat().st_mtime_ns)
        for path in (folder, *folder.rglob("*"))
        if path.exists()
    }
