"""What the rows "systems" and "general" say about few labels, unlabelled images and no labels, as text."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.common import mean_std, table
from benchmarks.general import READERS, READINGS
from benchmarks.other_systems import STARTS, has_current_weights
from benchmarks.system_tables import (
    Result,
    alphabet_size,
    grid,
    mean_of_systems,
    of_start,
    percentages,
    results_of,
)
from benchmarks.systems import SYSTEMS

FEW = 500  # labelled images at most, in these tables
EXPECTED = ((0, 0), (50, 0), (50, 2000), (200, 0), (1000, 0))  # columns of "What to expect": see amounts()


def amounts(result: Result) -> tuple[int, int]:
    """(labelled images, unlabelled images) of a run."""
    return result["labelled"], result["unlabelled"]


def in_words(images: tuple[int, int]) -> str:
    """Labelled and unlabelled images, for the head of a column."""
    labelled, unlabelled = images
    with_others = f" + {unlabelled:,}" if unlabelled else ""
    return f"{labelled:,}{with_others}" if labelled else f"no label{with_others}"


def default_runs(values: Mapping[str, Any]) -> list[Result]:
    """The runs with default settings, each with its `images`, as amounts() says."""
    found = of_start(results_of(values), STARTS[0])
    return [{**result, "images": amounts(result)} for result in found]


# ---------------------------------------------------------------------- few labels


def section(values: Mapping[str, Any]) -> dict[str, str]:
    """The tables of few labels in docs/results.md; none where only one number of images was measured."""
    results = [each for each in default_runs(values) if each["labelled"] <= FEW]
    if len({each["images"] for each in results}) < 2:
        return {}
    tables = {"accuracy": accuracy_table(results), "reported": reported_table(results)}
    return tables | {"earlier": earlier_weights(results)}


def accuracy_table(results: Sequence[Result]) -> str:
    """Captchas right in per cent: systems as rows, images as columns, and the mean."""
    images, rows = grid(results, "system", "images", lambda found: mean_std(percentages(found), 1))
    rows = {marked(name): rows[name] for name in SYSTEMS if name in rows}
    of_images = ([each for each in results if each["images"] == column] for column in images)
    rows["mean"] = [mean_of_systems(each, len(rows)) for each in of_images]
    return table(["system", *map(in_words, images)], ([name, *cells] for name, cells in rows.items()))


def earlier_weights(results: Iterable[Result]) -> str:
    """A sentence that says which runs had other initial weights than those of today; empty where none had."""
    others = Counter(each["images"] for each in results if not has_current_weights(each))
    if not others:
        return ""
    counts = (f"{in_words(images)}: {n} run{'' if n == 1 else 's'}" for images, n in sorted(others.items()))
    return f"With earlier initial weights, which read less: {'; '.join(counts)}."


def marked(name: str) -> str:
    """The name of a system, with a star where it is held out."""
    return f"`{name}`" + (" *" if SYSTEMS[name].held_out else "")


def reported_table(results: Sequence[Result]) -> str:
    """For each number of images: whether what the program said of itself was true, and how long it took."""
    header = [
        "labelled + unlabelled",
        "runs",
        "captchas right",
        "accuracy reported",
        "of that, inside the interval",
    ]
    header += ["calibration error", "seconds"]
    rows = []
    for images in sorted({each["images"] for each in results}):
        found = [each for each in results if each["images"] == images]
        systems = len({each["system"] for each in found})
        rows.append(
            [
                in_words(images),
                f"{len(found)}",
                f"{mean_of_systems(found, systems)}%",
                mean_of(found, reported, "{:.1f}%"),
                share_inside(found),
                mean_of(found, lambda run: run.get("calibration error"), "{:.1%}"),
                mean_of(found, lambda run: run.get("total seconds"), "{:,.0f}"),
            ]
        )
    return table(header, rows)


def reported(run: Result) -> float | None:
    """The accuracy that the program reported by itself, in per cent."""
    return 100 * run["reported right"] / run["reported images"] if "reported images" in run else None


def share_inside(results: Iterable[Result]) -> str:
    """In how many of the runs that reported an accuracy its interval holds that on the test images."""
    inside = [each["inside interval"] for each in results if "inside interval" in each]
    return f"{sum(inside)} of {len(inside)} ({sum(inside) / len(inside):.0%})" if inside else ""


def mean_of(results: Iterable[Result], value: Callable[[Result], float | None], form: str) -> str:
    """The mean of a value over the runs that have it; empty where none has."""
    known = [each for each in map(value, results) if each is not None]
    return form.format(statistics.mean(known)) if known else ""


# ---------------------------------------------------------------------- readers that come trained


def general_table(values: Mapping[str, Any]) -> str:
    """Captchas right in per cent: systems as rows, readers that come trained as columns, and the mean."""
    shares = {
        (each["system"], each["reader"]): 100 * each["captchas right"] / values["test images"]
        for each in values[READINGS]
    }
    systems = [name for name in SYSTEMS if any(system == name for system, _ in shares)]
    readers = [name for name in READERS if any(reader == name for _, reader in shares)]

    def cell(system: str, reader: str) -> str:
        return f"{shares[system, reader]:.1f}" if (system, reader) in shares else ""

    rows = [[marked(system), *(cell(system, reader) for reader in readers)] for system in systems]
    complete = [system for system in systems if all((system, reader) in shares for reader in readers)]
    if complete:
        means = (statistics.mean(shares[system, reader] for system in complete) for reader in readers)
        rows.append([f"mean of {len(complete)}", *(f"{mean:.1f}" for mean in means)])
    return table(["system", *readers], rows)


# ---------------------------------------------------------------------- what to expect


def expected_table(values: Mapping[str, Any]) -> str:
    """For docs/own-captchas.md: an image of each system, and captchas right in per cent."""
    results = [each for each in default_runs(values) if each["images"] in EXPECTED]

    def cells(of_row: Sequence[Result]) -> list[str]:
        found = [[each for each in of_row if each["images"] == images] for images in EXPECTED]
        systems = len({each["system"] for each in of_row})
        return [mean_of_systems(each, systems) if each else "" for each in found]

    rows = [
        [f"![Captcha of {name}](systems/{name}.png)", kind(name), *cells(of_system(results, name))]
        for name in SYSTEMS
        if of_system(results, name)
    ]
    rows.append(["", "mean", *cells(results)])
    shown = table(["captcha", "kind", *map(in_words, EXPECTED)], rows)
    return "\n\n".join(filter(None, [shown, earlier_weights(results)]))


def of_system(results: Iterable[Result], name: str) -> list[Result]:
    """The runs of one system."""
    return [each for each in results if each["system"] == name]


def kind(name: str) -> str:
    """What its captchas are like."""
    system = SYSTEMS[name]
    lengths = system.char_num.replace("-", " to ")
    return f"{marked(name)}: {system.description}; {lengths} of {alphabet_size(system)} characters"
