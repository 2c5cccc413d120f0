"""One command for every measured result.

    python -m benchmarks                    measure every row, one run after the other
    python -m benchmarks 1000 readers       these rows alone
    python -m benchmarks --seeds 1 1000     with fewer runs
    python -m benchmarks --jobs 2 1000      with two runs at the same time
    python -m benchmarks systems            captchas of other systems: the runs that the record lacks
    python -m benchmarks --publish          write the record into docs/ and README.md

Each row is kept in benchmarks/record.json with the version, the machine and the day of its measurement.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import colour, general, library_sizes, measure, other_systems, publish, runs, serving
from benchmarks.common import CHARACTERS_36
from captcha_cnn import VERSION
from captcha_cnn.cli import WITH_FRESH, OneLineErrorParser, flag_of, run_main
from captcha_cnn.files import write_json
from captcha_cnn.parallel import available_cores
from captcha_cnn.tf_runtime import bfloat16_support
from config import CaptchaError

RECORD = Path(__file__).with_name("record.json")
LONG = ("--epoch", "8", "--patience", "25000")  # about ten minutes with bfloat16
LETTERS = ("--patience", "25000", "--characters", CHARACTERS_36)
ALIKE = "0O"  # drawn more often for training
ONCE = ("--fresh", "--epoch", "1", "--frequent", ALIKE, *LETTERS)
ONCE_COUNT = 640000  # new images, in 20,000 steps: about 20 minutes without bfloat16
UNCHANGED = [f"{flag_of(name)}={value:g}" for name, value in WITH_FRESH.items()]
LARGER = ("--epoch", "3", *LETTERS, "--width", "170", "--height", "80", *UNCHANGED)
COUNT_170 = 200000
DRAW_170 = functools.partial(library_sizes.draw_sets, frequent=ALIKE)
SEEDS = 5  # runs of each training, where --seeds does not say
PACKAGES = ("tensorflow", "numpy", "captcha", "pillow", "torch", "ddddocr", "captcha-whisperer")


class Benchmark(NamedTuple):
    """What is measured under one name."""

    what: str
    measure: Callable[..., Any]  # (options) -> values
    in_parts: bool = False  # (options, values of the record) -> the values so far, again and again


def seeds(options: argparse.Namespace, default: int = SEEDS) -> range:
    """One for each run."""
    return range(publish.FIRST_SEED, publish.FIRST_SEED + (options.seeds or default))


def accuracy_benchmark(count: int, *flags: str) -> Benchmark:
    """Training on `count` images by the real command, once for each seed."""
    what = f"`{' '.join(['python driver.py --generate-num', str(count), *runs.OTHER_IMAGES, *flags])}`"
    return Benchmark(what, lambda options: runs.accuracy(count, seeds(options), flags, options.jobs))


BENCHMARKS = {
    **{str(count): accuracy_benchmark(count) for count in (50, 100, 250, 500, 1000, 2000, 5000, 10000)},
    "100000": accuracy_benchmark(100000, *LONG),
    "36": accuracy_benchmark(ONCE_COUNT, *ONCE),
    "170x80": Benchmark(
        f"`python driver.py {' '.join(LARGER)}`, on {COUNT_170:,} images drawn by "
        "`benchmarks.library_sizes`, of whose characters one in five is drawn from 0 and O alone",
        lambda options: runs.accuracy(COUNT_170, seeds(options), LARGER, options.jobs, DRAW_170),
    ),
    "time-to-accuracy": Benchmark(
        "training time to an accuracy", lambda options: measure.time_to_accuracy(seeds(options))
    ),
    "curves": Benchmark("other designs, same images", lambda options: measure.curves(options.seconds)),
    "readers": Benchmark("pretrained readers", lambda options: measure.readers()),
    "steps": Benchmark("time of a training step", lambda options: measure.steps()),
    "drawing": Benchmark("drawing and loading captchas", lambda options: measure.drawing()),
    "reading": Benchmark("reading captchas", lambda options: measure.reading()),
    "exported": Benchmark("files that export.py writes", lambda options: measure.exported()),
    "serving": Benchmark("`python serve.py`, beside its load generator", lambda options: serving.measure()),
    "colour": Benchmark(
        "captchas that luminance cannot read, `python driver.py --images FOLDER`, with `--colour` or without",
        lambda options, earlier: colour.measure(),
        in_parts=True,
    ),
    "systems": Benchmark(
        "captchas of other systems, `python driver.py --images FOLDER`",
        lambda options, earlier: other_systems.measure(options, seeds(options, other_systems.SEEDS), earlier),
        in_parts=True,
    ),
    "general": Benchmark(
        "captchas of other systems, read by readers that come trained", general.measure, in_parts=True
    ),
}


def machine() -> dict[str, Any]:
    """What the results depend on: processor, cores, arithmetic, versions, day."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": available_cores(),
        "arithmetic": "bfloat16" if bfloat16_support() else "float32",
        "python": platform.python_version(),
        "versions": versions,
        "day": date.today().isoformat(),
    }


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineErrorParser("Measure the results in docs/results.md.")
    parser.prog = "python -m benchmarks"
    names = ", ".join(BENCHMARKS)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {names} (default: all)")
    parser.add_argument(
        "--seeds", type=int, help=f"runs of each training (default: {SEEDS}; systems: {other_systems.SEEDS})"
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time (default: 1)")
    parser.add_argument(
        "--seconds", type=float, default=1200, help="of training for each other design (default: 1200)"
    )
    parser.add_argument("--publish", action="store_true", help="write the record into docs/ and README.md")
    other_systems.add_flags(parser)
    return parser


def measure_row(name: str, options: argparse.Namespace, record: dict[str, Any]) -> int:
    """Measure one row, keep it in the record, and print it; 1 where it cannot be measured."""
    benchmark, earlier = BENCHMARKS[name], record.get(name, {})
    print(f"{name}: {benchmark.what}", flush=True)
    begin = time.monotonic()
    try:
        if benchmark.in_parts:
            for values in benchmark.measure(options, earlier.get("values", {})):
                minutes = earlier.get("minutes", 0) if earlier.get("version") == VERSION else 0
                keep_row(name, values, minutes + (time.monotonic() - begin) / 60, record)
        else:
            values = benchmark.measure(options)
            keep_row(name, values, (time.monotonic() - begin) / 60, record)
    except CaptchaError as error:  # the other rows can do without
        print(f"{name} left out: {error}", file=sys.stderr, flush=True)
        return 1
    if name in record:
        print("\n".join(publish.summary_lines(name, record[name])), flush=True)
    return 0


def keep_row(name: str, values: dict[str, Any], minutes: float, record: dict[str, Any]) -> None:
    """Write a measured row into the record."""
    row = {"what": BENCHMARKS[name].what, "version": VERSION, "machine": machine(), "values": values}
    record[name] = row | {"minutes": round(minutes, 1)}
    write_json(RECORD, record)


def main(arguments: Sequence[str]) -> int:
    """Measure the rows asked for, keep them, and print them."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    for name in options.rows:
        if name not in BENCHMARKS:
            parser.error(f"a row must be one of {', '.join(BENCHMARKS)}, not {name!r}")
    if (options.seeds is not None and options.seeds < 1) or options.jobs < 1 or not options.seconds > 0:
        parser.error("seeds, jobs and seconds must be more than 0")
    if not all(0 <= n <= other_systems.TRAINING_IMAGES for n in (*options.counts, *options.unlabelled)):
        parser.error(f"counts and unlabelled must be from 0 to {other_systems.TRAINING_IMAGES}")
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    names = options.rows or ([] if options.publish else BENCHMARKS)
    status = max([measure_row(name, options, record) for name in names], default=0)
    if options.publish:
        publish.publish(record)
    return status


if __name__ == "__main__":
    run_main(main)
