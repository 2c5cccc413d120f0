"""How a set too large for memory is best read, and what that costs: `python -m benchmarks.large_sets`.

Draws the captchas where they are missing. Each figure is of a process of its own; those that are compared
take turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ours
from benchmarks.measure import in_subprocess
from captcha_cnn import decoded
from captcha_cnn.cli import OneLineErrorParser, run_main
from captcha_cnn.dataset import Dataset
from config import Config
from generate_captcha import Generate, ReadData

FOLDER = "large-sets"  # holds the captchas and the file of their images, for the next time
STEPS = 300  # that are timed
BATCHES = 1500  # that are read without training


def settings(count: int) -> Config:
    """The settings of so many drawn captchas, in FOLDER."""
    folders = {f"{name}_folder": f"{FOLDER}/{name}" for name in ("train", "validation", "test", "decoded")}
    return Config(**folders, generate_num=(count, 1, 1))  # type: ignore[arg-type]


def forget(path: Path) -> None:
    """Have the operating system read the file from the disk the next time."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peak_memory() -> float:
    """The largest memory that this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------------- reading alone


def memory_map(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Reads images through a memory map."""
    images = decoded.open_archive(path).images
    mapped = np.memmap(path, np.uint8, "r", images._begin, images.shape)
    return lambda chosen: mapped[chosen]


def ordinary_reads(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Reads images as the program does, with read-ahead and checksums."""
    return decoded.open_archive(path).images.__getitem__


def without_read_ahead(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The same without asking the operating system for all images of a batch first."""
    decoded.READ_AHEAD = None
    return ordinary_reads(path)


FORMS = {each.__name__.replace("_", " "): each for each in (memory_map, ordinary_reads, without_read_ahead)}


def read(form: str, path: Path, cold: bool) -> tuple[float, float]:
    """Images a second that a form reads in random order, and the memory that grows by it, in MB."""
    if cold:
        forget(path)
    images, before, size = FORMS[form](path), peak_memory(), Config.batch_size
    count = len(decoded.open_archive(path).images)
    order = np.random.default_rng(1).permutation(count)[: size * BATCHES]
    begin = time.perf_counter()
    for start in range(0, len(order), size):
        images(order[start : start + size])
    return len(order) / (time.perf_counter() - begin), peak_memory() - before


def train(config: Config, path: Path, where: str) -> tuple[float, float]:
    """Training images a second, and the peak memory in MB.

    Args:
        where: the set is in memory, on disk, or on disk and not in the operating system's cache.
    """
    decoded.IN_MEMORY = 2**40 if where == "in memory" else 0
    if where == "on disk, not cached":
        forget(path)
    data: Dataset = ReadData(config).load_set(config.train_folder)
    return config.batch_size * STEPS / sum(ours.step_seconds(data, config, STEPS)), peak_memory()


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a line of JSON for each figure."""
    parser: argparse.ArgumentParser = OneLineErrorParser("Measure sets that are too large for memory.")
    parser.add_argument("--images", type=int, default=100_000, metavar="N", help="default: 100,000")
    parser.add_argument("--times", type=int, default=3, metavar="N", help="of each figure (default: 3)")
    options = parser.parse_args(arguments)
    config, decoded.IN_MEMORY = settings(options.images), 0
    Generate(config).gen_captcha()
    ReadData(config).load_set(config.train_folder)
    path = decoded.archive_path(config.train_folder, config)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(options.times):
        for form, cold in itertools.product(FORMS, (False, True)):
            name = f"{form}, {'not cached' if cold else 'cached'}"
            found.setdefault(name, []).append(in_subprocess(read, form, path, cold))
        for where in ("in memory", "on disk", "on disk, not cached"):
            name = f"training, set {where}"
            found.setdefault(name, []).append(in_subprocess(train, config, path, where))
    for name, values in found.items():
        print(json.dumps(_summary(name, values)), flush=True)
    return 0


def _summary(name: str, values: Sequence[tuple[float, float]]) -> dict[str, Any]:
    rates, memory = zip(*values, strict=True)
    return {
        "what": name,
        "images a second": round(statistics.mean(rates)),
        "each": [round(rate) for rate in rates],
        "MB": round(statistics.mean(memory)),
    }


if __name__ == "__main__":
    run_main(main)
