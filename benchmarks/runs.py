"""The rows of accuracy: whole runs of the project's own commands, each in a folder of its own."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.common import load_package
from captcha_cnn.cli import parse
from config import CaptchaError, Config

ROOT = Path(__file__).parent.parent
OTHER_IMAGES = ("500", "10000")  # validation and test images of every run
MAX_WRONG = 40  # captchas read wrong that the record keeps of each run
SAMPLING_SECONDS = 0.05  # between two looks at the memory of a process


DrawSets: TypeAlias = Callable[[str, Config], None]  # draws the sets of a Config into a folder


def accuracy(
    count: int,
    seeds: Sequence[int],
    flags: Sequence[str] = (),
    jobs: int = 1,
    draw: DrawSets = lambda folder, config: None,
) -> dict[str, Any]:
    """Train with `python driver.py` on `count` images of each seed, and read 10,000 others.

    Args:
        jobs: runs at the same time. draw: what draws the sets, where driver.py is not to.
    """
    shares = iter(split_cores(jobs))
    with ThreadPoolExecutor(jobs, initializer=lambda: use_cores(next(shares))) as pool:
        # A thread waits for the process of its run.
        runs = list(pool.map(lambda seed: train_and_read(count, seed, flags, draw), seeds))
    return {"training images": count, "jobs": min(jobs, len(runs)), "runs": runs}


def split_cores(jobs: int) -> list[set[int]]:
    """The cores for each of so many runs at the same time, which would slow each other down on the same ones.

    Empty sets where there are fewer cores than that, or where a process cannot be kept on some of them.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [set(cores[first::jobs]) if len(cores) >= jobs else set() for first in range(jobs)]


def use_cores(cores: set[int]) -> None:
    """Keep this thread, and the processes that it starts, on these cores; anywhere if there are none."""
    if cores:
        os.sched_setaffinity(0, cores)


def train_and_read(count: int, seed: int, flags: Sequence[str], draw: DrawSets) -> dict[str, Any]:
    """One run of driver.py in an empty folder, and predict.py on its test set."""
    numbers = ["--generate-num", str(count), *OTHER_IMAGES, "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        draw(folder, parse([*numbers, *flags], "driver.py"))
        printed, peak = run_script(folder, "driver.py", *numbers, *flags)
        seconds = time.monotonic() - begin
        answers, _ = run_script(folder, "predict.py", "test")
    captchas = last_match(r"Captcha accuracy: .* \((\d+) of (\d+)", printed)
    closing = last_match(r"(\d+) steps in ([\d:]+), ([\d:]+) of it training; .* of step (\d+)", printed)
    right, confusions, wrong = compare_answers(answers, {"O": "0"})
    result = {
        "seed": seed,
        "test images": int(captchas[1]),
        "captchas right": int(captchas[0]),
        "captchas right with O as 0": right,
        "character accuracy": float(last_match(r"Test accuracy: +([\d.]+)%", printed)[0]) / 100,
        "steps": int(closing[0]),
        "best step": int(closing[3]),
        "training seconds": parse_duration(closing[2]),
        "total seconds": round(seconds, 1),
        "peak memory, GB": round(peak / 1e9, 2),
        "confusions": confusions,
        "wrong": wrong[:MAX_WRONG],
    }
    print(f"  seed {seed}: {captchas[0]} of {captchas[1]} captchas right, {closing[2]} training", flush=True)
    return result


def run_script(folder: str, script: str, *arguments: str, accepted: Sequence[int] = (0,)) -> tuple[str, int]:
    """Run one of the project's scripts in that folder: what it printed, and its peak memory in bytes.

    The memory is that of the process itself, without those that it starts to draw and load.

    Args:
        accepted: the exit statuses with which it has succeeded.
    Raises:
        CaptchaError: it ended with another one.
    """
    psutil = load_package("psutil")
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / script), *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        )
        sampler = MemorySampler(psutil.Process(process.pid))
        sampler.start()
        printed, _ = process.communicate()
        sampler.ended.set()
        sampler.join()
        if process.returncode not in accepted:
            errors.seek(0)
            raise CaptchaError(f"{script} must succeed to be measured, but said: {errors.read().strip()}")
    return printed, sampler.peak


class MemorySampler(threading.Thread):
    """Looks at the memory of a process again and again; the largest is `peak`, in bytes."""

    def __init__(self, process: Any) -> None:
        super().__init__(daemon=True)
        self.process, self.peak, self.ended = process, 0, threading.Event()

    def run(self) -> None:  # noqa: D102
        with contextlib.suppress(load_package("psutil").Error):  # it ends between two looks
            while not self.ended.wait(SAMPLING_SECONDS):
                self.peak = max(self.peak, self.process.memory_info().rss)


def last_match(pattern: str, text: str) -> tuple[str, ...]:
    """The groups of the last place in the text that the pattern matches."""
    return [match.groups() for match in re.finditer(pattern, text)][-1]


def parse_duration(text: str) -> int:
    """1:02:03 in seconds."""
    return functools.reduce(lambda total, part: 60 * total + int(part), text.split(":"), 0)


def compare_answers(lines: str, same: dict[str, str]) -> tuple[int, dict[str, int], list[list[str]]]:
    """What predict.py read in a test set, compared with the labels in the file names.

    Args:
        lines: path, text and confidence of each image.
        same: characters that count as another.
    Returns:
        captchas right when those count as one; how often one character was read as another ("1>7");
        file, text and confidence of each captcha read wrong.
    """
    right, confusions, wrong = 0, Counter[str](), []
    for line in lines.splitlines():
        path, text, confidence = line.split("\t")
        label = os.path.basename(path).split("_")[0]
        alike = [same.get(a, a) == same.get(b, b) for a, b in zip(label, text, strict=True)]
        right += all(alike)
        if text != label:
            wrong.append([os.path.basename(path), text, confidence])
            confusions.update(f"{a}>{b}" for a, b in zip(label, text, strict=True) if a != b)
    return right, dict(confusions.most_common()), wrong
