"""One command for every figure in the README.

    python -m benchmarks                  measure every row, one after the other
    python -m benchmarks 1000 readers     these rows alone
    python -m benchmarks --seeds 1 1000   with fewer runs
    python -m benchmarks --publish        write what was measured into README.md and docs/

Each row is kept in benchmarks/record.json with the machine, the versions and the day it was measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import measure, publish
from benchmarks.common import SYMBOLS_36
from config import CaptchaError, Parser, run
from generate_captcha import available_cores, write_json

RECORD = Path(__file__).with_name("record.json")
FIRST_SEED = 100  # smaller ones drew the pictures that the choices were made on
LONG = ("--epoch", "8", "--patience", "25000")  # about ten minutes
PACKAGES = ("tensorflow", "numpy", "captcha", "pillow", "torch", "ddddocr", "captcha-whisperer")


class Row(NamedTuple):
    """What is measured under one name."""

    what: str
    measure: Callable[[argparse.Namespace], dict[str, Any]]


def seeds(options: argparse.Namespace) -> range:
    """One for each run."""
    return range(FIRST_SEED, FIRST_SEED + options.seeds)


def driver_row(count: int, *flags: str) -> Row:
    """Training on `count` pictures by the real command, once for each seed."""
    what = f"`{' '.join(['python driver.py --generate-num', str(count), '500 10000', *flags])}`"
    return Row(what, lambda options: measure.accuracy(count, seeds(options), flags))


ROWS = {
    **{str(count): driver_row(count) for count in (50, 100, 250, 500, 1000, 2000, 5000, 10000)},
    "100000": driver_row(100000, *LONG),
    "36": driver_row(100000, *LONG, "--characters", SYMBOLS_36),
    "pace": Row("time to an accuracy", lambda options: measure.pace(seeds(options))),
    "curves": Row("the same pictures, other designs", lambda options: measure.curves(options.seconds)),
    "readers": Row("readers that come trained", lambda options: measure.readers()),
    "steps": Row("training steps a second", lambda options: measure.steps()),
    "drawing": Row("captchas drawn, written and loaded", lambda options: measure.drawing()),
    "reading": Row("captchas read a second", lambda options: measure.reading()),
    "exported": Row("what export.py writes", lambda options: measure.exported()),
}


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, arithmetic, versions, day."""
    from session import has_bfloat16

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
        "arithmetic": "bfloat16" if has_bfloat16() else "float32",
        "python": platform.python_version(),
        "versions": versions,
        "day": date.today().isoformat(),
    }


def main(arguments: Sequence[str]) -> int:
    """Measure the rows asked for, keep them, and print them."""
    parser = Parser("Measure the figures of the README.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each training (default: 5)")
    parser.add_argument(
        "--seconds", type=float, default=1200, help="of training for each design compared (default: 1200)"
    )
    parser.add_argument("--publish", action="store_true", help="write the record into README.md and docs/")
    options = parser.parse_args(arguments)
    for name in options.rows:
        if name not in ROWS:
            parser.error(f"a row must be one of {', '.join(ROWS)}, not {name!r}")
    if options.seeds < 1 or not options.seconds > 0:
        parser.error("seeds and seconds must be more than 0")
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    status = 0
    for name in options.rows or ([] if options.publish else ROWS):
        begun = time.monotonic()
        print(f"{name}: {ROWS[name].what}", flush=True)
        try:
            values = ROWS[name].measure(options)
        except CaptchaError as error:  # the other rows can do without
            print(f"{name} left out: {error}", file=sys.stderr, flush=True)
            status = 1
            continue
        record[name] = {"what": ROWS[name].what, "machine": machine(), "values": values}
        record[name]["minutes"] = round((time.monotonic() - begun) / 60, 1)
        write_json(RECORD, record)
        print("\n".join(publish.lines(name, record[name])), flush=True)
    if options.publish:
        publish.write(record)
    return status


if __name__ == "__main__":
    run(main)
