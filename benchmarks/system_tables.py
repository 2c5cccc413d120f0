"""What the row "systems" says, as text: one table for each kind of initial weights, and what is beside it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.common import mean_std, table
from benchmarks.other_systems import RUNS, STARTS, run_text
from benchmarks.systems import SYSTEMS, System

TIMED_COUNT = 200  # labelled images of the runs whose seconds are shown
START_NAMES = {"auto": "the initial weights that come with the program", "none": "`--start-from none`"}

Result = Mapping[str, Any]


def section(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the template of docs/results.md shows of the row."""
    results = with_labels_alone(results_of(values))
    development, held_out = (
        [result for result in results if SYSTEMS[result["system"]].held_out == held] for held in (False, True)
    )
    starts = [start for start in STARTS if any(result["start"] == start for result in results)]
    counts = [f"{count:,}" for count in sorted({result["labelled"] for result in results})]
    jobs = max((result["jobs"] for result in results), default=1)
    return {
        "test_images": f"{values['test images']:,}",
        "counts": " or ".join(", ".join(counts).rsplit(", ", 1)),
        "seeds": len({result["seed"] for result in results}),
        "descriptions": [describe(name) for name in SYSTEMS],
        "ignoring_case": [f"`{name}`" for name in SYSTEMS if SYSTEMS[name].folds_case],
        "tables": {START_NAMES[start]: accuracy_table(of_start(development, start)) for start in starts},
        "held_out": {START_NAMES[start]: accuracy_table(of_start(held_out, start)) for start in starts},
        "plateau": plateau_table(results, starts),
        "seconds": seconds_table(results),
        "timed_count": TIMED_COUNT,
        "jobs": jobs if jobs > 1 else 0,
        "failed": [f"{run_text(run)}: {run['failed']}" for run in values[RUNS] if "failed" in run],
    }


def results_of(values: Mapping[str, Any]) -> list[Result]:
    """All runs; one that failed has read nothing."""
    missing = {"captchas right": 0, "test images": values["test images"], "unlabelled": 0}
    return [missing | run for run in values[RUNS]]


def with_labels_alone(results: Iterable[Result]) -> list[Result]:
    """The runs with labelled images and no others; label_tables.py has the rest."""
    return [result for result in results if result["labelled"] and not result["unlabelled"]]


def in_short(values: Mapping[str, Any]) -> str:
    """The mean of all systems with TIMED_COUNT labelled images and default settings."""
    of_default = of_start(with_labels_alone(results_of(values)), STARTS[0])
    results = [each for each in of_default if each["labelled"] == TIMED_COUNT]
    counts = Counter(each["system"] for each in results)
    runs = "one run each" if max(counts.values()) == 1 else f"up to {max(counts.values())} runs each"
    mean = mean_of_systems(results, len(counts))
    return f"{mean}% (mean of {len(counts)} systems, {runs})"


def of_start(results: Iterable[Result], start: str) -> list[Result]:
    """The results of runs with those initial weights."""
    return [result for result in results if result["start"] == start]


def describe(name: str) -> str:
    """A system in a line: version, what its images look like, lengths and characters of its labels."""
    system = SYSTEMS[name]
    shortest, longest = system.lengths
    length = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
    package, separator = system.packages[0], "==" if system.kind == "python" else "@"
    version = package.rpartition(separator)[2]
    note = "; **held out**" if system.held_out else ""
    return (
        f"`{name}` {version}: {system.description}; {length} of the {alphabet_size(system)} characters "
        f"`{system.alphabet}`{note}"
    )


def alphabet_size(system: System) -> int:
    """Characters that can be told apart: small letters are as their capitals where the case is ignored."""
    return len(set(system.alphabet.lower() if system.folds_case else system.alphabet))


def grid(
    results: Sequence[Result], row: str, column: str, cell: Callable[[list[Result]], str]
) -> tuple[list[Any], dict[Any, list[str]]]:
    """Columns, and for each row the cells: what `cell` says of the results there, empty where there is none.

    Args:
        row: the entry of a result that says in which row it belongs.
        column: the same for the column.
    """
    columns = sorted({result[column] for result in results})
    rows: dict[Any, list[str]] = {}
    for name in dict.fromkeys(result[row] for result in results):
        of_row = [result for result in results if result[row] == name]
        cells = ([each for each in of_row if each[column] == value] for value in columns)
        rows[name] = [cell(found) if found else "" for found in cells]
    return columns, rows


def accuracy_table(results: Sequence[Result]) -> str:
    """Captchas read right in per cent: systems as rows, labelled images as columns, and the mean."""
    if not results:
        return ""
    runs = len({result["seed"] for result in results})

    def accuracy(found: list[Result]) -> str:
        note = f" ({len(found)} of {runs} runs)" if len(found) < runs else ""
        return mean_std(percentages(found), 1) + note

    counts, rows = grid(results, "system", "labelled", accuracy)
    rows = {f"`{name}`": rows[name] for name in SYSTEMS if name in rows}
    if len(rows) > 1:
        of_counts = ([each for each in results if each["labelled"] == count] for count in counts)
        rows[f"mean of the {len(rows)}"] = [mean_of_systems(each, len(rows)) for each in of_counts]
    header = ["system", *(f"{count:,} labelled" for count in counts)]
    return table(header, ([name, *cells] for name, cells in rows.items()))


def percentages(results: Iterable[Result]) -> list[float]:
    """Captchas read right by each run, in per cent."""
    return [100 * result["captchas right"] / result["test images"] for result in results]


def mean_of_systems(results: Iterable[Result], systems: int) -> str:
    """The mean over the systems, each of which counts the same however many runs it has."""
    of_system: dict[str, list[Result]] = {}
    for result in results:
        of_system.setdefault(result["system"], []).append(result)
    mean = statistics.mean(statistics.mean(percentages(each)) for each in of_system.values())
    note = f" ({len(of_system)} of {systems} systems)" if len(of_system) < systems else ""
    return f"{mean:.1f}{note}"


def plateau_table(results: Sequence[Result], starts: Iterable[str]) -> str:
    """How many runs ended on the plateau, by initial weights and labelled images."""

    def on_plateau(found: Iterable[Result]) -> str:
        ended = [result.get("ended on the plateau", False) for result in found]
        return f"{sum(ended)} of {len(ended)}"

    counts, rows = grid(results, "start", "labelled", on_plateau)
    header = ["initial weights", *(f"{count:,} labelled" for count in counts), "all"]
    return table(
        header, ([START_NAMES[start], *rows[start], on_plateau(of_start(results, start))] for start in starts)
    )


def seconds_table(results: Iterable[Result]) -> str:
    """Seconds from the command to the finished model with TIMED_COUNT labelled images."""
    timed = [each for each in results if each["labelled"] == TIMED_COUNT and "total seconds" in each]
    if not timed:
        return ""

    def seconds(found: Iterable[Result]) -> str:
        return mean_std([result["total seconds"] for result in found], 0)

    found, rows = grid(timed, "system", "start", seconds)
    rows = {f"`{name}`": rows[name] for name in SYSTEMS if name in rows}
    means = [statistics.mean(each["total seconds"] for each in of_start(timed, start)) for start in found]
    rows["mean"] = [f"{mean:.0f}" for mean in means]
    return table(["system", *(START_NAMES[start] for start in found)], ([n, *c] for n, c in rows.items()))


def summary_lines(values: Mapping[str, Any]) -> list[str]:
    """The tables, for the terminal."""
    found = section(values)
    tables = [*found["tables"].items(), *found["held_out"].items()]
    lines = [f"{title}\n{text}" for title, text in tables if text]
    return [*lines, found["plateau"], found["seconds"]]
