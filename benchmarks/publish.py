"""What was measured, as text: docs/results.md, and the tables in README.md and docs/own-captchas.md.

All of it is made from the record. A row of another version of the program says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import diagram, figures, label_figures, label_tables, system_tables
from benchmarks.common import load_package, mean_std, table, time_to_threshold
from captcha_cnn import VERSION
from captcha_cnn.files import atomic_write
from config import CaptchaError, Config

ROOT = Path(__file__).parent.parent
TEMPLATE = Path(__file__).with_name("results_template.md")
BEGIN, END = "<!-- results: python -m benchmarks --publish -->", "<!-- end -->"
OWN_TABLES = ("systems", "general")  # rows with tables that are not value_table()
FIRST_SEED = 100  # smaller ones drew the images that the choices were made on
NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}
ACCURACY_HEADER = (
    "row",
    "training images",
    "captchas right",
    "characters right",
    "steps",
    "training time",
    "total time",
    "peak memory",
    "runs",
    "measured",
)


def publish(record: dict[str, Any]) -> None:
    """Write docs/results.md, its figures, the network's diagram and the tables in other pages.

    Raises:
        CaptchaError: a page has no place for its table, or a package is not installed.
    """
    docs, readme, own = ROOT / "docs", ROOT / "README.md", ROOT / "docs" / "own-captchas.md"
    pages = {readme: with_readme_table(readme.read_text(encoding="utf-8"), record)}
    if "systems" in record:
        pages[own] = with_expected_table(own.read_text(encoding="utf-8"), record)
        label_figures.draw_figures(record["systems"]["values"], docs)
    figures.draw_figures(record, docs)
    for form in ("svg", "png"):
        diagram.draw_network(docs / f"network.{form}", Config())
    pages[docs / "results.md"] = results_page(record)
    for path, content in pages.items():
        with atomic_write(path) as temporary:
            temporary.write_text(content, encoding="utf-8")


# ---------------------------------------------------------------------- numbers as text


def in_words(value: Any) -> str:
    """A measured value as text; those of several runs with mean and standard deviation."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {in_words(each)}" for name, each in value.items())
    if isinstance(value, list):
        known = [each for each in value if each is not None]
        missed = f" ({len(value) - len(known)} of {len(value)} runs never)" if len(known) < len(value) else ""
        return (mean_std(known, 1) if known else "none") + missed
    return f"{value:,}"


def first_time(points: list[list[float]], column: int, threshold: float) -> str:
    """Seconds of training at the first point of a curve with at least that value."""
    seconds = time_to_threshold(points, column, threshold)
    return "not reached" if seconds is None else f"{seconds:.1f} s"


def captchas_right(row: dict[str, Any], key: str = "captchas right") -> str:
    """Per cent of the test images, over the runs."""
    return f"{mean_std([100 * run[key] / run['test images'] for run in row['values']['runs']])}%"


def captchas_right_in_full(row: dict[str, Any]) -> str:
    """The same, and how many are right where O and 0 count as one character, if that differs."""
    right, alike = captchas_right(row), captchas_right(row, "captchas right with O as 0")
    return right if alike == right else f"{right}; {alike} with O and 0 as one"


def run_count(row: dict[str, Any]) -> str:
    """How many runs, and how many of them at the same time."""
    runs, jobs = len(row["values"]["runs"]), row["values"]["jobs"]
    return f"{runs}, {NUMBER_WORDS.get(jobs, jobs)} at a time" if jobs > 1 else f"{runs}"


def measured(row: dict[str, Any]) -> str:
    """The version and the day."""
    return f"version {row['version']}, {row['machine']['day']}"


def accuracy_cells(row: dict[str, Any]) -> list[str]:
    """A row of trained models, without its name, as ACCURACY_HEADER has it."""
    values, runs = row["values"], row["values"]["runs"]
    return [
        f"{values['training images']:,}",
        captchas_right_in_full(row),
        f"{mean_std([100 * run['character accuracy'] for run in runs])}%",
        mean_std([run["steps"] for run in runs], 0),
        f"{mean_std([run['training seconds'] for run in runs], 0)} s",
        f"{mean_std([run['total seconds'] for run in runs], 0)} s",
        f"{max(run['peak memory, GB'] for run in runs):.2f} GB",
        run_count(row),
        measured(row),
    ]


def curve_cells(name: str, points: list[list[float]]) -> list[str]:
    """What the curve of a design ends with, and when it reached two accuracies."""
    seconds, steps, characters, captchas = points[-1]
    return [
        name,
        f"{seconds:,.0f} s",
        f"{steps:,}",
        f"{characters:.2%}",
        f"{captchas:.2%}",
        first_time(points, 2, 0.93),
        first_time(points, 3, 0.99),
    ]


def summary_lines(name: str, row: dict[str, Any]) -> list[str]:
    """A measured row, for the terminal."""
    values = row["values"]
    if "runs" in values:
        return [" | ".join([row["what"], *accuracy_cells(row)])]
    if name == "systems":
        return [*system_tables.summary_lines(values), *filter(None, label_tables.section(values).values())]
    if name == "general":
        return [label_tables.general_table(values)]
    if name == "curves":
        return [" | ".join(curve_cells(each, points)) for each, points in values.items()]
    return [f"{each}: {in_words(found)}" for each, found in values.items()]


# ---------------------------------------------------------------------- tables


def value_table(values: dict[str, Any]) -> str:
    """Measured values: a line for each, or a table where each is a group of the same values."""
    groups = list(values.values())
    if not all(isinstance(each, dict) for each in groups):
        return "\n".join(f"- {name}: {in_words(value)}" for name, value in values.items())
    header = list(dict.fromkeys(name for group in groups for name in group))
    rows = [
        [name, *(in_words(group[each]) if each in group else "" for each in header)]
        for name, group in values.items()
    ]
    return table(["", *header], rows)


def accuracy_rows(record: dict[str, Any]) -> list[str]:
    """The names of the rows of trained models, fewest training images first."""
    names = [name for name in record if "runs" in record[name]["values"]]
    return sorted(names, key=lambda name: record[name]["values"]["training images"])


def accuracy_table(record: dict[str, Any]) -> str:
    """All rows of trained models."""
    rows = [[f"`{name}`", *accuracy_cells(record[name])] for name in accuracy_rows(record)]
    return table(ACCURACY_HEADER, rows) if rows else ""


def curves_table(curves: dict[str, list[list[float]]]) -> str:
    """What the figure of the curves shows."""
    header = ["design", "trained for", "steps", "characters right", "captchas right"]
    header += ["93% of characters after", "99% of captchas after"]
    return table(header, (curve_cells(name, points) for name, points in curves.items()))


def wrong_counts(row: dict[str, Any]) -> dict[str, str]:
    """How many captchas were read wrong, by the first run and by all; how many only as O and 0 look alike."""
    runs = row["values"]["runs"]
    wrong = [run["test images"] - run["captchas right"] for run in runs]
    counts = {
        "first": wrong[0],
        "first_of": runs[0]["test images"],
        "all": sum(wrong),
        "all_of": sum(run["test images"] for run in runs),
        "only_o": sum(run["captchas right with O as 0"] - run["captchas right"] for run in runs),
        "runs": len(runs),
    }
    return {name: f"{count:,}" for name, count in counts.items()} | {"measured": measured(row)}


def machines_text(record: dict[str, Any]) -> str:
    """Each machine with its package versions, and the rows that were measured there."""
    rows: dict[str, list[str]] = {}
    for name, row in record.items():
        machine = row["machine"]
        packages = "".join(f", {package} {number}" for package, number in machine["versions"].items())
        text = "{processor}, {cores} cores, {arithmetic}; Python {python}".format(**machine) + packages
        rows.setdefault(text, []).append(f"`{name}`")
    return "\n".join(f"- {text}. Rows: {', '.join(names)}." for text, names in rows.items())


def results_page(record: dict[str, Any]) -> str:
    """docs/results.md: the sentences are in the template, every number comes from the record."""
    jinja2 = load_package("jinja2")
    trained, systems = accuracy_rows(record), record.get("systems")
    jobs = max((record[name]["values"]["jobs"] for name in trained), default=1)
    counts = [str(count) for count in figures.COUNTS if str(count) in record]
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), **options)
    page: str = template.render(
        version=VERSION,
        earlier=sorted({row["version"] for row in record.values()} - {VERSION}),
        hollow=any(record[count]["version"] != VERSION for count in counts),
        first_seed=FIRST_SEED,
        test_images=f"{record[trained[0]]['values']['runs'][0]['test images']:,}" if trained else "",
        accuracy=accuracy_table(record),
        jobs=NUMBER_WORDS.get(jobs, jobs) if jobs > 1 else "",
        commands="\n".join(f"- row `{name}`: {record[name]['what']}" for name in trained),
        counts=[f"`{count}`" for count in counts],
        wrong={f"of_{name}": wrong_counts(record[name]) for name in trained},
        shown_wrong=figures.FEW,
        tables={
            name: own_table(name, row) for name, row in record.items() if name not in (*trained, *OWN_TABLES)
        },
        systems=systems and system_tables.section(systems["values"]) | {"measured": measured(systems)},
        few=systems and label_tables.section(systems["values"]),
        general=general_section(record),
        machines=machines_text(record),
        notes={name: row["note"] for name, row in record.items() if "note" in row},
    )
    return page


def general_section(record: dict[str, Any]) -> dict[str, str]:
    """What the template shows of the row "general"."""
    if "general" not in record:
        return {}
    row = record["general"]
    table_text = label_tables.general_table(row["values"])
    return {"measured": measured(row), "table": table_text, "images": f"{row['values']['test images']:,}"}


def own_table(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """The table of a row that has one for itself, when it was measured, and how many runs it has."""
    values = row["values"]
    lists = [value for group in values.values() if isinstance(group, dict) for value in group.values()]
    runs = max((len(value) for value in lists if isinstance(value, list)), default=1)
    text = curves_table(values) if name == "curves" else value_table(values)
    return {"measured": measured(row), "table": text, "runs": runs}


# ---------------------------------------------------------------------- README.md


def readme_rows(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What a newcomer wants to know: (what, result, row), at most eight."""
    found: list[tuple[str, str, str]] = []
    for name in ("100", "1000", "10000", "100000"):
        if name in record:
            count = record[name]["values"]["training images"]
            found.append((f"captchas right, trained on {count:,} images", captchas_right(record[name]), name))
    if "36" in record:
        count = record["36"]["values"]["training images"]
        what = f"captchas right, 36 characters, {count:,} images, each used once"
        found.append((what, captchas_right_in_full(record["36"]), "36"))
    if "time-to-accuracy" in record:
        seconds = record["time-to-accuracy"]["values"]["10,000 images"]["seconds to 99% of captchas"]
        found.append(
            ("training time until 99% of captchas are right", f"{in_words(seconds)} s", "time-to-accuracy")
        )
    if "systems" in record:
        what = f"captchas of other systems right, {system_tables.TIMED_COUNT} labelled images of each"
        found.append((what, system_tables.in_short(record["systems"]["values"]), "systems"))
    if "exported" in record:
        values = record["exported"]["values"]
        result = f"{values['litert']['milliseconds for one']} ms with LiteRT, "
        result += f"{values['onnx']['milliseconds for one']} ms with ONNX"
        found.append(("reading one image, on one core", result, "exported"))
    return found


def readme_table(record: dict[str, Any]) -> str:
    """The table of README.md, with a line on what it was measured on."""
    rows = []
    for what, result, name in readme_rows(record):
        version = record[name]["version"]
        rows.append([what, result, f"`{name}`" + (f" (version {version})" if version != VERSION else "")])
    return table(["what", "result", "row of `python -m benchmarks`"], rows)


def with_readme_table(text: str, record: dict[str, Any]) -> str:
    """README.md with the table between its two marks.

    Raises:
        CaptchaError: a mark is missing.
    """
    return between_marks(text, "README.md", readme_table(record))


def with_expected_table(text: str, record: dict[str, Any]) -> str:
    """docs/own-captchas.md with the table of what to expect between its two marks.

    Raises:
        CaptchaError: a mark is missing.
    """
    return between_marks(
        text, "docs/own-captchas.md", label_tables.expected_table(record["systems"]["values"])
    )


def between_marks(text: str, name: str, content: str) -> str:
    """The text of that page with other content between its marks.

    Raises:
        CaptchaError: a mark is missing.
    """
    if BEGIN not in text or END not in text.split(BEGIN, 1)[1]:
        raise CaptchaError(f"{name} must hold the lines {BEGIN} and {END}, to write between them")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n{content}\n{END}{after}"
