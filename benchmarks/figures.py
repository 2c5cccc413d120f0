"""The figures of docs/results.md, drawn from the record."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import colour
from benchmarks.common import CHARACTERS_36, load_package
from captcha_cnn import VERSION
from captcha_cnn.drawing import draw_captcha
from captcha_cnn.summaries import draw_confusion_matrix
from config import CaptchaError, Config

COUNTS = (50, 100, 250, 500, 1000, 2000, 5000, 10000, 100000)  # training images of the rows of digits
FEW = 20  # captchas shown where a run has many mistakes


def draw_figures(record: dict[str, Any], docs: Path) -> None:
    """Draw every figure for which the record has the rows."""
    load_matplotlib()
    if "curves" in record:
        over_time(record["curves"], docs / "over-time.png")
    if sum(str(count) in record for count in COUNTS) > 1:
        how_many(record, docs / "how-many.png")
    if "colour" in record:
        colour.examples(docs / "colour.png")
    if "10000" in record:
        confusions(record["10000"]["values"]["runs"], docs / "confusions.png")
        still_wrong(record["10000"]["values"]["runs"][:1], docs / "still-wrong.png")
    if "100000" in record:
        still_wrong(record["100000"]["values"]["runs"], docs / "still-wrong-100000.png")
    if "36" in record:
        first_run = record["36"]["values"]["runs"][0]
        few = first_run | {"wrong": first_run["wrong"][:FEW]}
        still_wrong([few], docs / "still-wrong-36.png", CHARACTERS_36)


def load_matplotlib() -> None:
    """Import matplotlib, so that it draws into files.

    Raises:
        CaptchaError: it is not installed.
    """
    load_package("matplotlib").use("Agg")


def over_time(row: dict[str, Any], path: Path) -> None:
    """Characters and captchas right against seconds of training."""
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharex=True)
    for name, points in row["values"].items():
        seconds = [point[0] for point in points]
        left.plot(seconds, [100 * point[2] for point in points], label=name)
        right.plot(seconds, [100 * point[3] for point in points], label=name)
    for axes, title in ((left, "characters right, %"), (right, "captchas right, %")):
        axes.set(xscale="log", xlabel="seconds of training", title=title, ylim=(0, 101))
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_formatter("{x:g}")
    left.axhline(93, color="grey", linewidth=0.8, linestyle="--")
    right.legend(frameon=False)
    if row["version"] != VERSION:
        figure.suptitle(f"version {row['version']}", fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def how_many(record: dict[str, Any], path: Path) -> None:
    """Captchas wrong against training images; filled points are of the present version."""
    from matplotlib import pyplot as plt

    counts = [count for count in COUNTS if str(count) in record]
    right = [mean_captchas_right(record[str(count)]) for count in counts]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(counts, [100 - share for share in right], color="C0")
    for version in sorted({record[str(count)]["version"] for count in counts}):
        places = [i for i, count in enumerate(counts) if record[str(count)]["version"] == version]
        axes.plot(
            [counts[i] for i in places],
            [100 - right[i] for i in places],
            "o",
            color="C0",
            markerfacecolor="C0" if version == VERSION else "white",
            label=f"version {version}",
        )
    for count, share in zip(counts, right, strict=True):
        axes.annotate(f"{share:.2f}%", (count, 100 - share), (3, 6), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="training images", ylabel="captchas wrong, %")
    axes.set_title("How many images do I need? (captchas right)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.12, y=0.1)  # room for the numbers
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def mean_captchas_right(row: dict[str, Any]) -> float:
    """Mean over the runs, in per cent."""
    runs = row["values"]["runs"]
    return float(statistics.mean(100 * run["captchas right"] / run["test images"] for run in runs))


def confusions(runs: list[dict[str, Any]], path: Path) -> None:
    """How often one character was read as another, all runs together."""
    counts = Counter[tuple[str, str]]()
    for run in runs:
        counts.update({(pair[0], pair[-1]): count for pair, count in run["confusions"].items()})
    matrix = draw_confusion_matrix(counts)
    matrix.resize((2 * matrix.width, 2 * matrix.height), Image.Resampling.LANCZOS).save(path)


def still_wrong(
    runs: list[dict[str, Any]], path: Path, characters: Iterable[Any] = Config.characters
) -> None:
    """The captchas that runs read wrong: label, what was read, confidence.

    Raises:
        CaptchaError: a captcha of another label is drawn than was measured.
    """
    from matplotlib import pyplot as plt

    wrong = [(run["seed"], *each) for run in runs for each in run["wrong"]]
    columns = 5
    rows = max(1, -(-len(wrong) // columns))
    figure, grid = plt.subplots(rows, columns, figsize=(10, 1.15 * rows), layout="constrained", squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (seed, name, text, confidence) in zip(grid.flat, wrong, strict=False):
        label, number = name.split(".")[0].split("_")
        drawn, image = draw_captcha(Config(seed=seed, characters=characters), "test", int(number))
        if drawn != label:
            raise CaptchaError(f"the captcha {name} must be drawn as it was measured, but shows {drawn}")
        axes.imshow(image)
        axes.set_title(f"{label} read as {text} ({100 * float(confidence):.0f}%)", fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
