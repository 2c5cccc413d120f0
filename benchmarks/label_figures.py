"""The pictures of few labels: captchas read against labels typed, and a captcha of each system."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.figures import load_matplotlib
from benchmarks.label_tables import default_runs, of_system
from benchmarks.other_systems import image_folder, in_order
from benchmarks.system_tables import Result, percentages
from benchmarks.systems import SYSTEMS
from captcha_cnn.files import atomic_write
from captcha_cnn.images import decode_image, to_rgb

LINES = {0: ("without other images", "C0"), 2000: ("with 2,000 unlabelled images", "C1")}
COLUMNS = 4  # of panels
SAMPLE_SIZE = (160, 60)  # pixels at most


def draw_figures(values: Mapping[str, Any], docs: Path) -> None:
    """Draw docs/labels.png, and docs/systems/NAME.png of the systems whose captchas are on this machine."""
    if any(result["labelled"] for result in default_runs(values)):
        labels_figure(values, docs / "labels.png")
    for name in SYSTEMS:
        if image_folder(name).exists():
            draw_sample(image_folder(name), docs / "systems" / f"{name}.png")


def draw_sample(drawn: Path, path: Path) -> None:
    """The first training image of a system's folder of images, no larger than SAMPLE_SIZE."""
    image = Image.fromarray(decode_image(in_order(drawn / "train")[0], convert=to_rgb))
    image.thumbnail(SAMPLE_SIZE, Image.Resampling.LANCZOS)
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)


def curve(results: Sequence[Result], unlabelled: int) -> list[tuple[int, float]]:
    """(labelled images, mean of captchas right in per cent) where it was measured, fewest labels first."""
    runs = [each for each in results if each["unlabelled"] == unlabelled]
    counts = sorted({each["labelled"] for each in runs})
    return [
        (count, statistics.mean(percentages(each for each in runs if each["labelled"] == count)))
        for count in counts
    ]


def labels_figure(values: Mapping[str, Any], path: Path) -> None:
    """Captchas right against labelled images, a panel for each system; without labels, a dashed line."""
    load_matplotlib()
    from matplotlib import pyplot as plt

    results = default_runs(values)
    names = [name for name in SYSTEMS if of_system(results, name)]
    rows = math.ceil((len(names) + 1) / COLUMNS)  # the last panel is the legend's
    size = (2.6 * COLUMNS, 2.1 * rows + 0.3)
    figure, grid = plt.subplots(
        rows, COLUMNS, figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for axes, name in zip(grid.flat, names, strict=False):
        draw_panel(axes, of_system(results, name))
        axes.set_title(name + (" (held out)" if SYSTEMS[name].held_out else ""), fontsize=9)
    for axes in grid.flat[len(names) :]:
        axes.axis("off")
    add_legend(grid.flat[-1])
    figure.supxlabel("labels typed", fontsize=10)
    figure.supylabel("captchas read right, %", fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_panel(axes: Any, results: Sequence[Result]) -> None:
    """The lines of one system."""
    for unlabelled, (_, colour) in LINES.items():
        points = curve(results, unlabelled)
        without = [right for count, right in points if not count]
        typed = [point for point in points if point[0]]
        for right in without:
            axes.axhline(right, color=colour, linewidth=0.8, linestyle="--")
        axes.plot(*zip(*typed, strict=True) if typed else ([], []), "o-", color=colour, markersize=3)
    axes.set(xscale="log", xlim=(20, 2500), ylim=(-2, 102), xticks=[25, 50, 100, 200, 500, 1000, 2000])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda count, _: "" if count in (50, 500, 1000) else f"{count:,.0f}")
    axes.tick_params(labelsize=8, labelbottom=True)
    axes.grid(alpha=0.3)


def add_legend(axes: Any) -> None:
    """What the lines are, in a panel of its own."""
    for name, colour in LINES.values():
        axes.plot([], [], "o-", color=colour, markersize=3, label=name)
        axes.plot([], [], "--", color=colour, linewidth=0.8, label=f"no label, {name}")
    axes.legend(frameon=False, fontsize=7, loc="center")
