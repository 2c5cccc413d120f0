"""What was measured, as lines, as the README's tables and as pictures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import SYMBOLS_36, reached
from config import CaptchaError, Config

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- measured: python -m benchmarks -->", "<!-- end -->"
COUNTS = (50, 100, 250, 500, 1000, 2000, 5000, 10000, 100000)


def spread(values: list[float], digits: int = 2) -> str:
    """Mean and standard deviation; the value alone where there is one."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def lines(name: str, row: dict[str, Any]) -> list[str]:
    """A measured row in words."""
    values = row["values"]
    if "runs" in values:
        return [" | ".join(cells(row))]
    if name == "curves":
        return [
            f"{each}: {100 * points[-1][2]:.2f}% of digits, {100 * points[-1][3]:.2f}% of captchas after "
            f"{points[-1][0]:.0f} s; 93% of digits after {first(points, 2, 0.93)}, "
            f"99% of captchas after {first(points, 3, 0.99)}"
            for each, points in values.items()
        ]
    return [f"{each}: {in_words(found)}" for each, found in values.items()]


def in_words(value: Any) -> str:
    """A measured value as text, the values of several runs with mean and deviation."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {in_words(each)}" for name, each in value.items())
    if isinstance(value, list):
        known = [each for each in value if each is not None]
        missed = f" ({len(value) - len(known)} of {len(value)} runs never)" if len(known) < len(value) else ""
        return (spread(known, 1) if known else "none") + missed
    return f"{value:,}"


def first(points: list[list[float]], column: int, share: float) -> str:
    """Seconds of training at the first point of a curve that reached a share."""
    seconds = reached(points, column, share)
    return "no time here" if seconds is None else f"{seconds:.1f} s"


def cells(row: dict[str, Any]) -> list[str]:
    """A row of trained models: command, runs, captchas, digits, steps, seconds of training and of all, GB,
    arithmetic."""
    runs = row["values"]["runs"]
    right, alike = (
        f"{spread([100 * run[count] / run['tested'] for run in runs])}%"
        for count in ("right", "right with O as 0")
    )
    return [
        f"{row['what']}",
        f"{len(runs)}",
        right if alike == right else f"{right}; {alike} with O and 0 as one",
        f"{spread([100 * run['symbols'] for run in runs])}%",
        f"{spread([run['steps'] for run in runs], 0)}",
        f"{spread([run['training seconds'] for run in runs], 0)} s",
        f"{spread([run['first line to last, seconds'] for run in runs], 0)} s",
        f"{max(run['memory, GB'] for run in runs):.2f} GB",
        row["machine"]["arithmetic"],
    ]


def tables(record: dict[str, Any]) -> str:
    """Markdown of all that was measured, each row with its machine."""
    trained = [name for name in record if "runs" in record[name]["values"]]
    trained.sort(key=lambda name: record[name]["values"]["train"])
    parts = [
        "| command, and `--seed N` | runs | captchas right | symbols right | steps | training | in all | "
        "memory | arithmetic |",
        "|---|---|---|---|---|---|---|---|---|",
        *("| " + " | ".join(cells(record[name])) + " |" for name in trained),
    ]
    for name in record:
        if name not in trained:
            parts += ["", f"**{record[name]['what'].capitalize()}** (`python -m benchmarks {name}`)", ""]
            parts += [f"- {line}" for line in lines(name, record[name])]
    machines = {
        "{processor}, {cores} cores, {arithmetic}; Python {python}".format(**row["machine"])
        + "".join(f", {package} {number}" for package, number in row["machine"]["versions"].items())
        for row in record.values()
    }
    parts += ["", f"Measured on: {'. '.join(sorted(machines))}."]
    return "\n".join(parts)


def write(record: dict[str, Any]) -> None:
    """Put the tables into the README and draw the pictures in docs/.

    Raises:
        CaptchaError: the README has no place for them, or matplotlib is not installed.
    """
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise CaptchaError(f"README.md must hold the lines {BEGIN} and {END}, to write between them")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    draw(record)
    readme.write_text(f"{before}{BEGIN}\n{tables(record)}\n{END}{after}", encoding="utf-8")


def draw(record: dict[str, Any]) -> None:
    """The pictures: accuracy over time, captchas against pictures, confusions, captchas still wrong."""
    try:
        import matplotlib
    except ImportError:
        from benchmarks.common import missing

        raise missing("matplotlib", "requirements.txt") from None
    matplotlib.use("Agg")
    docs = ROOT / "docs"
    if "curves" in record:
        over_time(record["curves"]["values"], docs / "over-time.png")
    if sum(str(count) in record for count in COUNTS) > 1:
        how_many(record, docs / "how-many.png")
    if "10000" in record:
        confusions(record["10000"]["values"]["runs"], docs / "confusions.png")
        still_wrong(record["10000"]["values"]["runs"][:1], docs / "still-wrong.png")
    if "100000" in record:
        still_wrong(record["100000"]["values"]["runs"], docs / "still-wrong-100000.png")
    if "36" in record:
        first_run = record["36"]["values"]["runs"][0]
        twenty = first_run | {"wrong": first_run["wrong"][:20]}
        still_wrong([twenty], docs / "still-wrong-36.png", SYMBOLS_36)


def over_time(values: dict[str, Any], path: Path) -> None:
    """Share of captchas wrong against seconds of training, both on log scales."""
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharex=True)
    for name, points in values.items():
        seconds = [point[0] for point in points]
        left.plot(seconds, [100 * point[2] for point in points], label=name)
        right.plot(seconds, [100 * point[3] for point in points], label=name)
    for axes, title in ((left, "digits read right, %"), (right, "captchas read right, %")):
        axes.set(xscale="log", xlabel="seconds of training", title=title, ylim=(0, 101))
        axes.grid(alpha=0.3)
    left.axhline(93, color="grey", linewidth=0.8, linestyle="--")
    right.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def how_many(record: dict[str, Any], path: Path) -> None:
    """Captchas read right against pictures trained on."""
    from matplotlib import pyplot as plt

    counts = [count for count in COUNTS if str(count) in record]
    shares = [
        [100 * run["right"] / run["tested"] for run in record[str(count)]["values"]["runs"]]
        for count in counts
    ]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(counts, [100 - statistics.mean(each) for each in shares], marker="o")
    for count, each in zip(counts, shares, strict=True):
        axes.annotate(
            f"{statistics.mean(each):.2f}%",
            (count, 100 - statistics.mean(each)),
            (3, 6),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(xscale="log", yscale="log", xlabel="pictures trained on", ylabel="captchas read wrong, %")
    axes.set_title("How many pictures do I need? (captchas read right)")
    axes.margins(x=0.12, y=0.1)  # room for the figures
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def confusions(runs: list[dict[str, Any]], path: Path) -> None:
    """How often one digit was read for another, all runs together."""
    from matplotlib import pyplot as plt

    symbols = sorted({symbol for run in runs for pair in run["confusions"] for symbol in pair.split(">")})
    table = [
        [sum(run["confusions"].get(f"{truth}>{read}", 0) for run in runs) for read in symbols]
        for truth in symbols
    ]
    figure, axes = plt.subplots(figsize=(5, 4.6), layout="constrained")
    axes.imshow(table, cmap="Blues")
    for row, counts in enumerate(table):
        for column, count in enumerate(counts):
            if count:
                axes.text(column, row, count, ha="center", va="center", fontsize=8)
    axes.set(xlabel="read as", ylabel="digit", xticks=range(len(symbols)), yticks=range(len(symbols)))
    axes.set(xticklabels=symbols, yticklabels=symbols)
    total = sum(run["tested"] for run in runs)
    axes.set_title(f"Digits read wrong in {total:,} captchas", fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def still_wrong(
    runs: list[dict[str, Any]], path: Path, characters: Iterable[Any] = Config.characters
) -> None:
    """The captchas that runs read wrong: what they say, what was read, how sure."""
    from matplotlib import pyplot as plt

    from generate_captcha import draw

    wrong = [(run["seed"], *each) for run in runs for each in run["wrong"]]
    columns = 5
    rows = max(1, -(-len(wrong) // columns))
    figure, grid = plt.subplots(rows, columns, figsize=(10, 1.15 * rows), layout="constrained", squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (seed, name, text, confidence) in zip(grid.flat, wrong, strict=False):
        truth, number = name.split(".")[0].split("_")
        label, picture = draw(Config(seed=seed, characters=characters), "test", int(number))
        if label != truth:
            raise CaptchaError(f"the captcha {name} must be drawn as it was measured, but shows {label}")
        axes.imshow(picture)
        axes.set_title(f"{truth}, read {text} ({100 * float(confidence):.0f}%)", fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
