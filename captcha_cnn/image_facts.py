"""What is known of each image of a folder beside its pixels; of a large folder, it is kept in a file."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from captcha_cnn.decoded import SERIAL_LIMIT, Listing, archive_path, is_large
from captcha_cnn.images import ImageError, decode_image, to_rgb
from captcha_cnn.labels import BadFile
from captcha_cnn.parallel import parallel_map
from config import Config, escape_unprintable

FORMAT = 1
ONE_COLOUR = 16  # largest difference of pixels that are taken as of one colour, of 255


class ImageFacts(NamedTuple):
    """What is known of an image."""

    size: tuple[int, int]  # width and height, in pixels
    digest: str  # SHA-256 of its size and pixels
    rows: tuple[float, float]  # those that are not of one colour begin and end there, as shares of the height
    animated: bool


NO_IMAGE = ImageFacts((0, 0), "00" * 32, (0.0, 0.0), False)


def look_through(folder: str, paths: Sequence[str], config: Config) -> list[ImageFacts | BadFile]:
    """What is known of the image of each path inside a folder, or why there is none.

    If they are too many for memory, it is kept beside the decoded images until a file changes.
    """
    if not is_large(len(paths), config):
        return _look(folder, paths)
    listing = Listing.of(folder, paths)
    digest = hashlib.sha256(f"{FORMAT} {os.path.realpath(folder)}".encode(errors="surrogateescape"))
    for array in listing:
        digest.update(array.data)
    archive = archive_path(folder, config)
    kept = archive.with_name(f"{archive.stem}-facts.npz")
    try:
        return _read(kept, digest.digest(), paths)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):  # none, old or damaged
        found = _look(folder, paths)
    with contextlib.suppress(OSError):  # a full disk: then they are looked through again at the next start
        _write(kept, digest.digest(), found)
    return found


def _look(folder: str, paths: Sequence[str]) -> list[ImageFacts | BadFile]:
    work, title = functools.partial(_look_at, folder), f"Looking through {escape_unprintable(folder)}"
    return [each for part in parallel_map(work, paths, title, SERIAL_LIMIT) for each in part]


def _look_at(folder: str, paths: Sequence[str]) -> list[ImageFacts | BadFile]:
    found: list[ImageFacts | BadFile] = []
    for name in paths:
        path = os.path.join(folder, name)
        try:
            rgb = decode_image(path, convert=to_rgb)
        except ImageError as error:
            found.append(BadFile(name, error.category, str(error)))
            continue
        height, width, _ = rgb.shape
        digest = hashlib.sha256(b"%d %d " % (height, width) + rgb.tobytes()).hexdigest()
        found.append(ImageFacts((width, height), digest, _used_rows(rgb), _is_animated(path)))
    return found


def _used_rows(rgb: np.ndarray) -> tuple[float, float]:
    """Where the rows of an image begin and end that are not of one colour, as shares of its height."""
    differences = rgb.max(axis=1).astype(int) - rgb.min(axis=1)  # [h, 3]
    used = np.flatnonzero((differences > ONE_COLOUR).any(axis=1))
    return (float(used[0] / len(rgb)), float((used[-1] + 1) / len(rgb))) if len(used) else (0.0, 1.0)


def _is_animated(path: str) -> bool:
    if not path.lower().endswith((".gif", ".webp", ".png")):
        return False
    try:
        with Image.open(path) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # Pillow raises nearly anything on damaged data; the first frame was decoded
        return False


def _write(path: Path, digest: bytes, found: Sequence[ImageFacts | BadFile]) -> None:
    """Write what _read() reads; it appears once it is complete."""
    bad = {i: each[1:] for i, each in enumerate(found) if isinstance(each, BadFile)}
    facts = [NO_IMAGE if isinstance(each, BadFile) else each for each in found]
    digests = np.frombuffer(bytes.fromhex("".join(each.digest for each in facts)), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.npz")
    try:
        np.savez(
            temporary,
            files=np.frombuffer(digest, np.uint8),
            size=np.array([each.size for each in facts], np.int32),
            digest=digests.reshape(-1, 32),
            rows=np.array([each.rows for each in facts]),
            animated=np.array([each.animated for each in facts]),
            bad=np.frombuffer(json.dumps(bad).encode(), np.uint8),
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path, digest: bytes, paths: Sequence[str]) -> list[ImageFacts | BadFile]:
    """What _write() has written of these paths.

    Raises:
        OSError, ValueError and others: there is nothing, or it is of other files, or damaged.
    """
    with np.load(path) as arrays:
        if arrays["files"].tobytes() != digest:
            raise ValueError("files have changed")
        columns = [arrays[name] for name in ImageFacts._fields]
        bad = json.loads(arrays["bad"].tobytes())
    size, digests, rows, animated = columns[0].tolist(), columns[1], columns[2].tolist(), columns[3].tolist()
    found: list[ImageFacts | BadFile] = [
        ImageFacts(tuple(size[i]), digests[i].tobytes().hex(), tuple(rows[i]), animated[i])
        for i in range(len(paths))
    ]
    for i, why in bad.items():
        found[int(i)] = BadFile(paths[int(i)], *why)
    return found
