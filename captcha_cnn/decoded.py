"""Images of sets that are too large for memory: decoded once into a file, and read from there.

The file is an uncompressed archive that `numpy.load` opens, with these arrays for N files of a folder:

    images     uint8 [N, H, W] or [N, H, W, 3]; zeros where a file is no image
    checksums  uint32 [N], CRC-32 of each image
    sizes      int64 [N], bytes of each file          times  int64 [N], nanoseconds of its last change
    names      uint8, the paths inside the folder, each with a zero byte behind it
    manifest   uint8, JSON: the folder, how images were decoded, and which files are no images

Images are read with ordinary reads, not through a memory map: its pages would count as memory of the
process, and a file that another program cuts short would kill the process without a word.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import os
import shutil
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np

from captcha_cnn.files import folder_lock
from captcha_cnn.images import ImageError, image_for
from captcha_cnn.labels import BadFile
from captcha_cnn.parallel import parallel_map
from config import CaptchaError, Config, escape_unprintable

FORMAT = 1
IN_MEMORY = 2**28  # bytes of decoded images up to which a set is held in memory
IMAGE_SETTINGS = ("width", "height", "colour", "own_images", "stretch", "skip_top", "skip_bottom")
READ_AHEAD = getattr(os, "POSIX_FADV_WILLNEED", None)
LOCAL_HEADER = 30  # bytes of an archive's header before an array's name; the last four say its length
SERIAL_LIMIT = 1000  # images that one process decodes before others have started to help


class DamagedFileError(CaptchaError):
    """A file of decoded images that is not as it was written."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{escape_unprintable(path)} must be as it was written, but is damaged or was changed: "
            "delete it, and run the command again, which decodes the images anew; --resume goes on with a "
            "training"
        )


class DecodedImages:
    """Images in such a file: an array of which what is indexed is read.

    A slice or whole numbers give an array, uint8 [B, H, W]. A mask, bool [N], selects images without reading
    them. Several threads may use it.

    Args:
        source: the file of the archive, open without a buffer. begin: where its images begin, in bytes.
        checksums: uint32, of all its images. rows: int64 [N], which of these are meant.
    """

    def __init__(
        self, source: BinaryIO, begin: int, shape: Sequence[int], checksums: np.ndarray, rows: np.ndarray
    ) -> None:
        self._source, self._begin, self._all_checksums, self._rows = source, begin, checksums, rows
        self.shape = (len(rows), *shape)
        self._lock = threading.Lock()  # between moving to a place in the file and reading there

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i : i + 1][0] for i in range(len(self)))

    def __getitem__(self, chosen: Any) -> Any:
        if isinstance(chosen, np.ndarray) and chosen.dtype == bool:
            return self.select(np.flatnonzero(chosen))
        return self._read(self._rows[chosen])

    def select(self, numbers: Sequence[int] | np.ndarray) -> DecodedImages:
        """Those images, in that order, without reading them."""
        selected = copy.copy(self)  # with the same lock
        selected._rows = self._rows[np.asarray(numbers, int)]
        selected.shape = (len(selected), *self.shape[1:])
        return selected

    @property
    def checksums(self) -> np.ndarray:
        """CRC-32 of each image, uint32 [N]."""
        found: np.ndarray = self._all_checksums[self._rows]
        return found

    def _read(self, rows: np.ndarray) -> np.ndarray:
        images = np.empty([len(rows), *self.shape[1:]], np.uint8)
        size, places = images[:1].nbytes, [self._begin + int(row) * images[:1].nbytes for row in rows]
        with self._lock, _one_line_errors(self._source.name):
            if READ_AHEAD is not None:  # a disk reads several places at once, or in the order that it likes
                for place in places:
                    os.posix_fadvise(self._source.fileno(), place, size, READ_AHEAD)
            for image, place, row in zip(images, places, rows, strict=True):
                self._source.seek(place)
                complete = self._source.readinto(image) == size  # type: ignore[attr-defined]
                if not complete or zlib.crc32(image.data) != self._all_checksums[row]:
                    raise DamagedFileError(self._source.name)
        return images


Images: TypeAlias = np.ndarray | DecodedImages


class Listing(NamedTuple):
    """Files of a folder, and what shows that they have changed."""

    names: np.ndarray  # as the archive has them
    sizes: np.ndarray
    times: np.ndarray

    @staticmethod
    def of(folder: str, paths: Sequence[str]) -> Listing:
        """Look at those files; one that is gone has size and time -1."""
        found = np.full([2, len(paths)], -1, np.int64)
        for i, path in enumerate(paths):
            with contextlib.suppress(OSError):
                status = os.stat(os.path.join(folder, path))
                found[:, i] = status.st_size, status.st_mtime_ns
        names = "".join(f"{path}\0" for path in paths).encode(errors="surrogateescape")
        return Listing(np.frombuffer(names, np.uint8), *found)

    def difference(self, other: Listing) -> str:
        """What has changed from the other to this, for people; empty where nothing has."""
        if all(np.array_equal(a, b) for a, b in zip(self, other, strict=True)):
            return ""
        now, before = self._files(), other._files()
        new, gone = len(now.keys() - before.keys()), len(before.keys() - now.keys())
        changed = sum(before.get(name, found) != found for name, found in now.items())
        return f"{new:,} files are new, {gone:,} are gone, {changed:,} have changed"

    def _files(self) -> dict[bytes, tuple[int, int]]:
        names = self.names.tobytes().split(b"\0")[:-1]
        found = zip(self.sizes.tolist(), self.times.tolist(), strict=True)
        return dict(zip(names, found, strict=True))


class Archive(NamedTuple):
    """An open file of decoded images."""

    images: DecodedImages
    listing: Listing
    manifest: dict[str, Any]


def image_checksums(images: Images) -> np.ndarray:
    """CRC-32 of each image, uint32 [N]."""
    if isinstance(images, DecodedImages):
        return images.checksums
    return np.array([zlib.crc32(np.ascontiguousarray(image).data) for image in images], np.uint32)


def is_large(count: int, config: Config) -> bool:
    """Whether so many images are too many for memory."""
    return count * int(np.prod(config.image_shape)) > IN_MEMORY


def decoded_images(folder: str, paths: Sequence[str], config: Config) -> tuple[DecodedImages, list[BadFile]]:
    """Files of a folder from the file of its decoded images, which is written where it is missing or too old.

    Args:
        paths: inside the folder.
    Returns:
        an image for each path, zeros where it is none; the files that are no images.
    Raises:
        CaptchaError: the file cannot be written or read.
    """
    target, shown = archive_path(folder, config), escape_unprintable(folder)
    listing, wanted = Listing.of(folder, paths), _manifest(folder, config)
    archive, reason = _open_if_usable(target, wanted, listing)
    if archive is None:
        if reason:
            print(f"{shown}: decoded again, since {reason}", flush=True)
        with folder_lock(config.decoded_folder, "--decoded-folder", "decodes images"):
            write(target, wanted, listing, paths, config)
        archive = open_archive(target)
    return archive.images, [BadFile(paths[i], *why) for i, *why in archive.manifest["bad"]]


def archive_path(folder: str, config: Config) -> Path:
    """The file for the images of a folder."""
    place = os.path.realpath(folder)
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()
    return Path(config.decoded_folder, f"{os.path.basename(place) or 'images'}-{digest[:8]}.npz")


def _manifest(folder: str, config: Config) -> dict[str, Any]:
    settings = {name: getattr(config, name) for name in IMAGE_SETTINGS}
    return {"format": FORMAT, "folder": os.path.realpath(folder)} | settings


def _open_if_usable(target: Path, wanted: dict[str, Any], listing: Listing) -> tuple[Archive | None, str]:
    """The archive, or why it must be written again; neither where there is none."""
    try:
        archive = open_archive(target)
    except FileNotFoundError:
        return None, ""
    except DamagedFileError:
        return None, f"{escape_unprintable(target)} is damaged"
    for name, value in wanted.items():
        if (found := archive.manifest.get(name)) != value:
            return None, f"it was decoded with {name} {escape_unprintable(found)}"
    difference = listing.difference(archive.listing)
    return (None, difference) if difference else (archive, "")


# ---------------------------------------------------------------------- the file


def write(
    target: Path, manifest: dict[str, Any], listing: Listing, paths: Sequence[str], config: Config
) -> None:
    """Decode all files into an archive, on all cores; it appears once it is complete.

    Raises:
        CaptchaError: there is no room for it, or it cannot be written.
    """
    folder, count = manifest["folder"], len(paths)
    needed = count * int(np.prod(config.image_shape))
    temporary = target.with_name(f".{target.name}.part")  # of a killed process, it is written over
    try:
        if (free := shutil.disk_usage(target.parent).free) < needed:
            raise OSError(f"{free / 1e9:.1f} GB are free")
        parts = parallel_map(
            functools.partial(decode_files, folder, config),
            paths,
            f"Decoding {escape_unprintable(folder)}",
            SERIAL_LIMIT,
        )
        with zipfile.ZipFile(temporary, "w") as archive:
            checksums, bad = _write_images(archive, parts, (count, *config.image_shape))
            text = json.dumps(manifest | {"bad": bad}).encode()
            others = {"checksums": checksums, "manifest": np.frombuffer(text, np.uint8)}
            for name, array in (listing._asdict() | others).items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array)
        temporary.replace(target)
    except OSError as error:
        raise CaptchaError(
            f"{escape_unprintable(target.parent)} must have room for {needed / 1e9:.1f} GB of decoded "
            f"images, but cannot be written to ({error.strerror or error}): make room there, or name another "
            "folder with --decoded-folder"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _write_images(
    archive: zipfile.ZipFile, parts: Iterator[list[np.ndarray | BadFile]], shape: tuple[int, ...]
) -> tuple[np.ndarray, list[tuple[int, str, str]]]:
    """Write the images one after the other; their checksums, and the numbers of files without one."""
    checksums, bad, count = np.zeros(shape[0], np.uint32), [], 0
    with archive.open("images.npy", "w", force_zip64=True) as file:
        about = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, about)
        for part in parts:
            for image in part:
                if isinstance(image, BadFile):
                    bad.append((count, image.category, image.reason))
                    image = np.zeros(shape[1:], np.uint8)
                file.write(image.data)
                checksums[count] = zlib.crc32(image.data)
                count += 1
    return checksums, bad


def decode_files(folder: str, config: Config, paths: Sequence[str]) -> list[np.ndarray | BadFile]:
    """The image of each path inside a folder, uint8 [H, W], as the model sees it, or why there is none."""
    found: list[np.ndarray | BadFile] = []
    for path in paths:
        try:
            found.append(np.ascontiguousarray(image_for(os.path.join(folder, path), config)))
        except ImageError as error:
            found.append(BadFile(path, error.category, str(error)))
    return found


def open_archive(path: Path) -> Archive:
    """An archive that write() has written; it stays open.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is not as it was written.
    """
    with _one_line_errors(str(path)):
        with np.load(path) as arrays:
            others = {name: arrays[name] for name in (*Listing._fields, "checksums", "manifest")}
        with zipfile.ZipFile(path) as archive:
            header = archive.getinfo("images.npy").header_offset
        source = path.open("rb", buffering=0)
        source.seek(header + LOCAL_HEADER - 4)
        lengths = np.frombuffer(source.read(4), "<u2")  # of the name and of what follows it
        source.seek(header + LOCAL_HEADER + int(lengths.sum()))
        np.lib.format.read_magic(source)
        shape, _, _ = np.lib.format.read_array_header_1_0(source)
        images = DecodedImages(source, source.tell(), shape[1:], others.pop("checksums"), np.arange(shape[0]))
        manifest = json.loads(others.pop("manifest").tobytes())
        return Archive(images, Listing(**others), manifest)


@contextlib.contextmanager
def _one_line_errors(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        raise DamagedFileError(path) from None
