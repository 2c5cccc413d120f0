"""The file labels.csv of a folder, to which labels are added while others may add theirs.

A label is one line, appended in one write while the file is locked, and is on the disk before it counts
as recorded. A label that is corrected replaces the file as a whole, since two labels of one image would
contradict each other. An image that nobody can read has a line with an empty label, which training
leaves out.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock

from captcha_cnn.files import atomic_write
from captcha_cnn.labels import LABELS_FILES, find_columns, labelled_files, list_files, path_inside
from config import CaptchaError, escape_unprintable

NAME = LABELS_FILES[0]
HEADER = ["file", "label"]
LOCK_SECONDS = 10.0  # that another process may take for a label


class LabelFile:
    """The labels of the images in a folder. Several threads may use it, and several processes the file.

    Args:
        folder: of the images.
    Raises:
        CaptchaError: the folder cannot be written to, or its list of labels cannot be added to.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.path = folder, Path(folder, NAME)
        self.labels: dict[str, str] = {}  # by the path inside the folder; "" for an unreadable image
        self.images = [path for path in list_files(folder) if path not in LABELS_FILES]
        self._listed: set[str] = set()  # paths of the images that have a line
        self._seen: tuple[int, ...] = ()  # of the file, when it was read last
        self._lock = threading.RLock()
        self._check()
        self.refresh()

    def refresh(self) -> None:
        """Read the file again where another process has changed it.

        Raises:
            CaptchaError: it cannot be read any more.
        """
        with self._lock:
            if self._stamp() == self._seen:
                return
            self._seen = self._stamp()
            found = labelled_files(self.folder, str(self.path)) if any(self._seen) else None
            bad = found.bad if found else []
            unreadable = {each.name: "" for each in bad if each.category == "no label"}
            self.labels = (dict(found.labels) if found else {}) | unreadable
            self._listed = {*self.labels, *(each.name for each in bad)}

    def record(self, path: str, label: str) -> None:
        """Write the label of an image; it is on the disk when this returns.

        Args:
            path: inside the folder. label: "" where nobody can read the image.
        Raises:
            CaptchaError: another process keeps the file locked.
            OSError: it cannot be written.
        """
        with self._lock, self._locked():
            self.refresh()
            if path in self.labels and self.labels[path] == label:
                return
            if path in self._listed:
                self._replace(path, label)
            else:
                append_line(self.path, [path, label], HEADER)
            self.labels[path] = label
            self._listed.add(path)
            self._seen = self._stamp()

    def _stamp(self) -> tuple[int, ...]:
        """What another process changes with the file; zeros where it is missing or empty."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return 0, 0, 0
        return (found.st_ino, found.st_size, found.st_mtime_ns) if found.st_size else (0, 0, 0)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = filelock.FileLock(self.path.with_name(f".{NAME}.lock"), timeout=LOCK_SECONDS)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise CaptchaError(
                f"{escape_unprintable(self.path)} must be free within {LOCK_SECONDS:g} seconds, but another "
                "process keeps it: try again"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _replace(self, path: str, label: str) -> None:
        """Write the file anew with another label of an image; its line becomes the last."""
        name = os.path.basename(path)
        unique = sum(os.path.basename(each) == name for each in self.images) == 1
        own_names = {composed(path), *([composed(name)] if unique else [])}
        text = self.path.read_text(encoding="utf-8-sig")
        rows = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
        kept = [
            row for row in rows if row and composed(path_inside(row[0].strip(), self.folder)) not in own_names
        ]
        write_lines(self.path, [*kept, [path, label]])

    def _check(self) -> None:
        shown = escape_unprintable(self.folder)
        if not os.access(self.folder, os.W_OK):
            raise CaptchaError(
                f"{shown} must be a folder that {NAME} can be written into: change its permissions"
            )
        for other in LABELS_FILES[1:]:
            if os.path.exists(os.path.join(self.folder, other)):
                raise CaptchaError(
                    f"{shown} must have its labels in {NAME}, but has {other}: save it as {NAME}"
                )
        if any(self._stamp()):
            with self.path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
                first = next(filter(None, map(str.strip, file)), "")
            begin = escape_unprintable(first[:60])
            cells = next(csv.reader([first], skipinitialspace=True), [])
            if "\t" in first or len(cells) < 2 or find_columns(cells) not in (None, (0, 1)):
                raise CaptchaError(
                    f"{escape_unprintable(self.path)} must have the columns file and label with a comma "
                    f"between them, to be added to, but begins with {begin!r}: save it so"
                )


def write_lines(path: Path, lines: Sequence[Sequence[object]]) -> None:
    """Write a file of CSV completely or not at all, and wait until it is on the disk."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
        file.flush()
        os.fsync(file.fileno())


def append_line(path: Path, cells: Sequence[object], header: Sequence[str]) -> None:
    """Append a line of CSV in one write, and wait until it is on the disk; a new file begins with a header.

    A new file appears with its first line in it: others, who only read, never see it empty.

    Raises:
        OSError: it cannot be written.
    """
    if not os.path.lexists(path):
        write_lines(path, [header, cells])
        return
    line = io.StringIO()
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            line.write("" if file.read(1) == b"\n" else "\n")
        csv.writer(line, lineterminator="\n").writerows([cells] if size else [header, cells])
        data = line.getvalue().encode()
        try:
            if file.write(data) < len(data):  # the rest does not fit, and a part would be another label
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def composed(name: str) -> str:
    """A file's name in composed Unicode characters: macOS lists it in decomposed ones."""
    return unicodedata.normalize("NFC", name)


def can_be_listed(path: str) -> bool:
    """Whether a list of labels can name that file: one line of UTF-8, without spaces around it."""
    return path.isprintable() and path == path.strip() and "\\" not in path
