"""Work on many items in several processes, or in a thread while others are used."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

from tqdm import tqdm

from config import CaptchaError

CHUNK_SIZE = 100  # items that a process gets at once

Item = TypeVar("Item")
Result = TypeVar("Result")


def exit_with_parent() -> None:
    """Have this process end when the one that started it is gone, perhaps killed."""
    parent = parent_process()

    def wait() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def parallel_map(
    work: Callable[[Sequence[Item]], Result],
    items: Sequence[Item],
    title: str,
    serial_limit: int = CHUNK_SIZE,
) -> Iterator[Result]:
    """work(chunk) for each chunk of the items, in order, on all cores, with a progress bar.

    Args:
        work: a function that can be pickled, of a module other than the main script.
        serial_limit: up to so many items, starting processes takes longer than it saves.
    Raises:
        CaptchaError: a process was killed.
    """
    chunks = [items[i : i + CHUNK_SIZE] for i in range(0, len(items), CHUNK_SIZE)]
    workers = min(available_cores(), len(chunks)) if len(items) > serial_limit else 1
    total = len(items)
    with tqdm(total=total, desc=title, unit=" images", disable=None, leave=False, dynamic_ncols=True) as bar:
        if workers < 2:
            for chunk in chunks:
                yield work(chunk)
                bar.update(len(chunk))
            return
        advice = "close other programs and run the command again"
        with process_pool(workers, title, advice) as pool:
            with children_ignore_sigint(), without_main_module():
                results = pool.map(work, chunks)
            for chunk, result in zip(chunks, results, strict=True):
                yield result
                bar.update(len(chunk))


@contextlib.contextmanager
def process_pool(
    workers: int, title: str, advice: str, start: Callable[[], None] = exit_with_parent
) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes, which end with the block. Each starts when work is submitted.

    Args:
        title, advice: what needs the processes, and what to do where one was killed, for the error.
        start: what each process calls first.
    Raises:
        CaptchaError: a process was killed.
    """
    # Spawned, since a fork of a process that has TensorFlow's threads can hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), start)
    try:
        yield pool
    except BrokenProcessPool:
        raise CaptchaError(
            f"{title} needs its processes, but one was killed, perhaps for lack of memory: {advice}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def prefetch(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items, each made by a thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


@contextlib.contextmanager
def children_ignore_sigint() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C, which reaches the whole group: the parent stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def without_main_module() -> Iterator[None]:
    """Processes spawned inside do not import the main script.

    They need only our package. A script without `if __name__ == "__main__"` would run again in each.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
