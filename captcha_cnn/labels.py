"""The label of each image in a folder: from its file name, or from a file that lists them."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from config import CaptchaError, escape_unprintable, lower_case

LABELS_FILES = ("labels.csv", "labels.tsv", "labels.txt")
IGNORED_FILES = {"captchas.json", "Thumbs.db", "desktop.ini"}  # left out silently, as hidden files are
FILE_NAMES = "file names"  # where labels are from, if not from a list
LABEL_END = re.compile(r"[_. (]")  # 8818_17.png, 8818.1.png, 8818 (2).png
FILE_COLUMNS = {"file", "filename", "file_name", "image", "img", "image_name", "path", "name"}
LABEL_COLUMNS = {"label", "labels", "text", "code", "captcha", "value", "words", "transcription"}
RIGHT_TO_LEFT = {"R", "AL"}  # bidirectional classes of Unicode: Hebrew and others, Arabic letters


class BadFile(NamedTuple):
    """A file that is left out."""

    name: str
    category: str
    reason: str


class LabelledFiles(NamedTuple):
    """What was found in a folder."""

    labels: dict[str, str]  # by the path inside the folder, sorted
    bad: list[BadFile]
    unlabelled: int  # files that the list of labels does not name
    source: str  # where the labels are from: FILE_NAMES, or the name of a list


def image_order(text: str, alphabet: str) -> str:
    """A text in the order in which its characters stand in the image, from left to right, and back.

    It is the same text, but for an alphabet that is written from right to left alone (Arabic, Hebrew):
    there the first character of a text is the rightmost one in the image.
    """
    return text[::-1] if _directions(alphabet) == {True} else text


def mixes_directions(alphabet: str) -> bool:
    """Whether some characters are written from right to left, and others from left to right."""
    return _directions(alphabet) == {True, False}


def _directions(alphabet: str) -> set[bool]:
    """Whether characters are written from right to left; combining marks have no direction."""
    return {c in RIGHT_TO_LEFT for c in map(unicodedata.bidirectional, alphabet) if c != "NSM"}


def label_in_name(name: str) -> str:
    """What stands before the first `_`, `.`, space or `(` of a file's name."""
    return LABEL_END.split(name, maxsplit=1)[0]


def check_folder(folder: str) -> None:
    """Raise a CaptchaError where there is no such folder."""
    if not os.path.isdir(folder):
        found = "is a file: name the folder" if os.path.exists(folder) else "does not exist: check the path"
        raise CaptchaError(f"{escape_unprintable(folder)} must be a folder of images, but {found}")


def list_files(folder: str) -> list[str]:
    """The sorted paths of all files in a folder and its sub-folders, without hidden ones.

    Paths are relative to the folder, with `/` on every system.

    Raises:
        CaptchaError: it is no folder, or it or a sub-folder cannot be read.
    """
    check_folder(folder)
    paths = []
    try:
        for place, folders, names in os.walk(folder, onerror=_raise):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            inside = Path(place).relative_to(folder)
            paths += [(inside / name).as_posix() for name in names if is_visible(name)]
    except OSError as error:
        raise CaptchaError(
            f"{escape_unprintable(error.filename or folder)} must be a folder of images, but cannot be read "
            f"({error.strerror or error}): change its permissions"
        ) from None
    return sorted(paths)


def _raise(error: OSError) -> None:
    raise error


def is_visible(name: str) -> bool:
    """Whether a file is one of the user's, and not hidden or left there by the system."""
    return not name.startswith(".") and name not in IGNORED_FILES


def labelled_files(folder: str, labels_file: str = "") -> LabelledFiles:
    """The labels of the images in a folder and its sub-folders.

    Args:
        labels_file: a file that lists them; otherwise it is searched in the folder, and where there is
            none, the labels are in the names of the images.
    Raises:
        CaptchaError: the folder or the file cannot be read.
    """
    paths = list_files(folder)
    listed = [name for name in LABELS_FILES if name in paths]
    if len(listed) > 1 and not labels_file:
        raise CaptchaError(
            f"{escape_unprintable(folder)} must hold one list of labels, but holds {' and '.join(listed)}: "
            "name the one to use with --labels"
        )
    if not labels_file and not listed:
        labels = {path: label_in_name(os.path.basename(path)) for path in paths}
        return LabelledFiles(labels, [], 0, FILE_NAMES)
    labels_file = labels_file or os.path.join(folder, listed[0])
    pairs, name = read_labels_file(labels_file), os.path.basename(labels_file)
    itself = os.path.relpath(os.path.realpath(labels_file), os.path.realpath(folder))
    images = [path for path in paths if path not in LABELS_FILES and path != Path(itself).as_posix()]
    return match_labels([(path_inside(file, folder), label) for file, label in pairs], images, name)


def path_inside(file: str, folder: str) -> str:
    """The path inside the folder of a file that a list names, perhaps with the folder or as absolute path."""
    path = file.replace("\\", "/")
    if os.path.isabs(path):
        path = os.path.relpath(path, os.path.abspath(folder))
    name = os.path.normpath(path).replace(os.sep, "/")
    if os.path.lexists(os.path.join(folder, name)):
        return name
    return name.removeprefix(f"{os.path.basename(os.path.abspath(folder))}/")


def read_labels_file(path: str) -> list[tuple[str, str]]:
    """(file, label) of each line of a list, with a comma, semicolon, tab or space between them.

    A first line that names the columns, such as `label,file`, says which is which.

    Raises:
        CaptchaError: it cannot be read, is not UTF-8, or is empty.
    """
    shown = escape_unprintable(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CaptchaError(
            f"{shown} must be a list of files and labels, but cannot be read ({error.strerror}): "
            "check --labels"
        ) from None
    except UnicodeDecodeError:
        raise CaptchaError(f"{shown} must be UTF-8, but is not: save it as UTF-8") from None
    try:
        rows = _rows(text, _delimiter(path, text))
    except csv.Error as error:
        raise CaptchaError(
            f"{shown} must be a list of files and labels, but is not ({error}): check its quotes"
        ) from None
    columns = find_columns(rows[0][1]) if rows else None
    file_column, label_column = columns or (0, 1)
    pairs = []
    for number, row in rows[1 if columns else 0 :]:
        cells = dict(enumerate(row))
        pairs.append((cells.get(file_column) or f"line {number}", cells.get(label_column, "")))
    if not pairs:
        raise CaptchaError(f"{shown} must list files and labels, but is empty: write a line for each image")
    return pairs


def _rows(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Number and cells of each line that is not empty."""
    if delimiter == " " and '"' not in text:  # a file's name may have spaces, a label has none
        rows = [line.rsplit(None, 1) for line in text.splitlines()]
    else:
        skip = delimiter in " ,;"
        lines = io.StringIO(text, newline="")
        rows = list(csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=skip))
    stripped = [(number, [cell.strip() for cell in row]) for number, row in enumerate(rows, 1)]
    return [(number, row) for number, row in stripped if any(row)]


def _delimiter(path: str, text: str) -> str:
    first = text.strip().split("\n")[0]
    candidates = "\t" if path.lower().endswith(".tsv") else "\t,;"
    return next((each for each in candidates if each in first), " ")


def find_columns(header: Sequence[str]) -> tuple[int, int] | None:
    """Positions of file and label where the first line names the columns."""
    names = [cell.lower() for cell in header]
    file = next((i for i, name in enumerate(names) if name in FILE_COLUMNS), None)
    label = next((i for i, name in enumerate(names) if name in LABEL_COLUMNS), None)
    return None if file is None or label is None else (file, label)


def match_labels(pairs: Iterable[tuple[str, str]], paths: Sequence[str], source: str) -> LabelledFiles:
    """Labels of the files that exist; a listed name without its sub-folder is enough where it is unique.

    Composed and decomposed Unicode (as macOS writes file names) are the same name.
    """
    source = escape_unprintable(source)
    by_path: dict[str, str] = {}
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_path[unicodedata.normalize("NFC", path)] = path
        by_name.setdefault(unicodedata.normalize("NFC", os.path.basename(path)), []).append(path)
    labels: dict[str, str] = {}
    bad = {}
    for listed, label in pairs:
        name = unicodedata.normalize("NFC", listed)
        found = [by_path[name]] if name in by_path else by_name.get(name, [])
        if not found:
            bad[name] = BadFile(name, "no such file", f"{source} names it, but there is no such file")
        elif len(found) > 1:
            bad[name] = BadFile(name, "several files", f"{len(found)} files in sub-folders have this name")
        elif not label:
            bad[found[0]] = BadFile(found[0], "no label", f"{source} has no label for it")
        elif labels.setdefault(found[0], label) != label:
            shown = f"{escape_unprintable(labels[found[0]])!r} and {escape_unprintable(label)!r}"
            bad[found[0]] = BadFile(found[0], "two labels", f"two labels, {shown}")
    kept = {path: labels[path] for path in sorted(labels) if path not in bad}
    unlabelled = len(set(paths) - set(labels) - set(bad))
    return LabelledFiles(kept, list(bad.values()), unlabelled, source)


def normalize_label(label: str, ignore_case: bool) -> str:
    """The label with composed Unicode characters, and in small letters where the case is ignored."""
    label = unicodedata.normalize("NFC", label)
    return lower_case(label) if ignore_case else label
