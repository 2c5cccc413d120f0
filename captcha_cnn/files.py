"""Files that are written completely or not at all, and folders that one process uses at a time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from config import CaptchaError, escape_unprintable

LOCK = "lock"  # name of the lock file in a folder of ours; hidden in a folder of images


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A hidden path to write to, which replaces `path` once all is written; after an error it is removed."""
    temporary = path.with_name(f".{path.name}.part{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to fill, which replaces `folder` once all is written; after an error it is removed.

    Raises:
        CaptchaError: `folder` holds something other than an earlier version; it is left as it is.
    """
    new, old = (folder.with_name(f".{folder.name}.{word}{os.getpid()}") for word in ("part", "old"))
    try:
        yield new
        if os.path.lexists(folder):
            if not names_in(folder) <= names_in(new):
                raise CaptchaError(
                    f"{escape_unprintable(folder)} must be an earlier export to be replaced, but holds "
                    "something else: move it away, or name another folder with --to"
                )
            folder.replace(old)
        new.replace(folder)
    finally:
        for each in (new, old):
            shutil.rmtree(each, ignore_errors=True)


def names_in(folder: Path) -> set[str]:
    """The relative paths of everything inside; of what is not a folder, or is a link, its own path."""
    if folder.is_symlink() or not folder.is_dir():
        return {str(folder)}
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file completely or not at all."""
    with atomic_write(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")  # a file's name may need it


@contextlib.contextmanager
def folder_lock(folder: str, flag: str, work: str = "trains", hidden: bool = False) -> Iterator[None]:
    """Reserve a folder for this process, and make it where it is missing.

    The operating system ends the lock with the process: a lock file left behind does no harm.

    Args:
        flag: names another folder on the command line.
        work: what the other process does there, for the message.
        hidden: use a hidden lock file and remove it in the end.
    Raises:
        CaptchaError: another process has reserved it.
    """
    os.makedirs(folder, exist_ok=True)
    path = Path(folder, f".{LOCK}" if hidden else LOCK)
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        process = "another process"
        with contextlib.suppress(OSError, ValueError):  # Windows does not let others read a locked file
            process = f"process {int(path.read_text(encoding='ascii'))}"
        raise CaptchaError(
            f"{escape_unprintable(folder)} must be used by one process at a time, but {process} {work} "
            f"there: wait for it, or name another folder with {flag}"
        ) from None
    try:
        with contextlib.suppress(PermissionError):  # Windows, as above
            path.write_text(str(os.getpid()), encoding="ascii")
        yield
    finally:
        if hidden:  # while it is still locked: whoever locks the removed file sees that and tries again
            with contextlib.suppress(OSError):
                path.unlink()
        lock.release()
