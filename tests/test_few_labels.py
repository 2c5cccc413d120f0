"""What is published of few labels, unlabelled images and no labels: tables and pictures."""

import json
import re

import pytest
from conftest import PROJECT
from PIL import Image

from benchmarks import label_figures, label_tables, publish, system_tables
from benchmarks.__main__ import RECORD
from benchmarks.general import OURS, READINGS
from benchmarks.other_systems import RUNS, weights_digest
from benchmarks.systems import SYSTEMS
from config import CaptchaError

OWN_CAPTCHAS = PROJECT / "docs" / "own-captchas.md"


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text(encoding="utf-8"))


def a_result(system, labelled, unlabelled, right, seed=0, **values):
    result = {"system": system, "labelled": labelled, "unlabelled": unlabelled, "seed": seed, "start": "auto"}
    result |= {"jobs": 1, "captchas right": right, "total seconds": 100.0, "weights": weights_digest()}
    return result | values


def reporting(right, images, inside):
    return {"reported right": right, "reported images": images, "inside interval": inside}


OLD = a_result("wheezy.captcha", 200, 0, 950)
del OLD["unlabelled"]  # as the record has runs from before there were any
RESULTS = [
    OLD,
    a_result("wheezy.captcha", 0, 0, 700, **{"calibration error": 0.05, "total seconds": 10.0}),
    a_result("wheezy.captcha", 50, 0, 800, **reporting(41, 50, True), **{"calibration error": 0.02}),
    a_result("wheezy.captcha", 50, 0, 820, seed=1, **reporting(50, 50, False), **{"calibration error": 0.04}),
    a_result("wheezy.captcha", 50, 2000, 900, **{"total seconds": 1234.0}),
    a_result("trek-captcha", 50, 0, 500, **reporting(25, 50, True)),
    a_result("trek-captcha", 1000, 0, 900),
    a_result("wheezy.captcha", 50, 0, 1, start="none"),
    {
        "system": "wheezy.captcha",
        "labelled": 25,
        "unlabelled": 500,
        "seed": 0,
        "start": "auto",
        "jobs": 1,
        "weights": weights_digest(),
        "failed": "no memory",
    },
]
VALUES = {"test images": 1000, RUNS: RESULTS}
READ = {
    "test images": 500,
    READINGS: [
        {"system": "wheezy.captcha", "reader": OURS, "captchas right": 450},
        {"system": "wheezy.captcha", "reader": "ddddocr", "captchas right": 400},
        {"system": "trek-captcha", "reader": "ddddocr", "captchas right": 100},
    ],
}

# ---------------------------------------------------------------------- tables


def test_captchas_right_are_shown_by_labelled_and_unlabelled_images():
    assert label_tables.section(VALUES)["accuracy"].splitlines() == [
        "| system | no label | 25 + 500 | 50 | 50 + 2,000 | 200 |",
        "| --- | --- | --- | --- | --- | --- |",
        "| `wheezy.captcha` | 70.0 | 0.0 | 81.0 ± 1.4 | 90.0 | 95.0 |",
        "| `trek-captcha` * |  |  | 50.0 |  |  |",
        "| mean | 70.0 (1 of 2 systems) | 0.0 (1 of 2 systems) | 65.5 | 90.0 (1 of 2 systems) | "
        "95.0 (1 of 2 systems) |",
    ]


def test_what_the_program_says_of_itself_is_compared():
    assert label_tables.section(VALUES)["reported"].splitlines()[2:] == [
        "| no label | 1 | 70.0% |  |  | 5.0% | 10 |",
        "| 25 + 500 | 1 | 0.0% |  |  |  |  |",
        "| 50 | 3 | 65.5% | 77.3% | 2 of 3 (67%) | 3.0% | 100 |",
        "| 50 + 2,000 | 1 | 90.0% |  |  |  | 1,234 |",
        "| 200 | 1 | 95.0% |  |  |  | 100 |",
    ]


def test_runs_with_earlier_initial_weights_are_said():
    assert label_tables.section(VALUES)["earlier"] == ""
    expected = label_tables.expected_table(VALUES)
    old = [run | {"weights": "old"} if run["labelled"] == 50 else run for run in RESULTS]
    values = {"test images": 1000, RUNS: old}
    sentence = "With earlier initial weights, which read less: 50: 3 runs; 50 + 2,000: 1 run."
    assert label_tables.section(values)["earlier"] == sentence
    assert label_tables.expected_table(values) == f"{expected}\n\n{sentence}"


def test_one_number_of_images_is_no_table_of_few_labels():
    assert label_tables.section({"test images": 1000, RUNS: RESULTS[:1]}) == {}


def test_the_tables_of_labelled_images_leave_out_runs_with_others_and_without_labels():
    section = system_tables.section(VALUES)
    table = next(iter(section["tables"].values()))
    assert table.splitlines()[0] == "| system | 50 labelled | 200 labelled |"
    assert "| `wheezy.captcha` | 81.0 ± 1.4 | 95.0 (1 of 2 runs) |" in table
    assert section["counts"] == "50, 200 or 1,000"
    assert section["failed"] == [
        "wheezy.captcha, 25 labelled + 500 unlabelled, seed 0, --start-from auto: no memory"
    ]
    values = {"test images": 1000, RUNS: [OLD, a_result("wheezy.captcha", 200, 2000, 1000)]}
    assert system_tables.in_short(values) == "95.0% (mean of 1 systems, one run each)"


def test_a_record_of_the_general_weights_alone_has_no_empty_tables():
    section = system_tables.section({"test images": 1000, RUNS: RESULTS[1:2]})
    assert section["tables"] == section["held_out"] == {}


def test_trained_readers_have_a_table_with_the_mean_of_what_all_have_read():
    assert label_tables.general_table(READ).splitlines() == [
        "| system | ddddocr | this program |",
        "| --- | --- | --- |",
        "| `wheezy.captcha` | 80.0 | 90.0 |",
        "| `trek-captcha` * | 20.0 |  |",
        "| mean of 1 | 80.0 | 90.0 |",
    ]


def test_what_to_expect_has_an_image_and_the_kind_of_each_system():
    first, second, mean = label_tables.expected_table(VALUES).splitlines()[2:]
    assert first.startswith(
        "| ![Captcha of wheezy.captcha](systems/wheezy.captcha.png) | `wheezy.captcha`: 200x75 "
    )
    assert first.endswith("; 4 of 32 characters | 70.0 | 81.0 | 90.0 | 95.0 |  |")
    assert "| `trek-captcha` *: 200x70 GIF" in second
    assert second.endswith(" |  | 50.0 |  |  | 90.0 |")
    assert mean.startswith("|  | mean | 70.0 (1 of 2 systems) | 65.5 | 90.0 (1 of 2 systems) |")


# ---------------------------------------------------------------------- pages


def machine_row(values):
    machine = {"processor": "X", "cores": 2, "arithmetic": "a", "python": "3", "versions": {}, "day": "D"}
    return {"what": "x", "version": "1", "machine": machine, "values": values}


def test_the_results_show_few_labels_and_trained_readers_where_the_record_has_them():
    page = publish.results_page({"systems": machine_row(VALUES), "general": machine_row(READ)})
    assert label_tables.section(VALUES)["accuracy"] in page
    assert label_tables.section(VALUES)["reported"] in page
    assert "Row `general` (version 1, D): the first 500 test images" in page
    assert label_tables.general_table(READ) in page
    for title in ("## Few labels, or none\n", "## Readers that come trained\n"):
        assert title in page
        assert title not in publish.results_page({})
        assert "\n\n\n" not in page.partition(title)[2].partition("\n## ")[0]
    assert publish.summary_lines("general", {"values": READ}) == [label_tables.general_table(READ)]
    assert label_tables.section(VALUES)["reported"] in publish.summary_lines("systems", {"values": VALUES})


def test_the_docs_say_what_to_expect_as_the_record_has_it(record):
    text = OWN_CAPTCHAS.read_text(encoding="utf-8")
    assert publish.with_expected_table(text, record) == text
    section = text.partition("## What to expect\n")[2].partition("\n## ")[0]
    shown = re.findall(r"\]\(((?:systems/)?[\w.-]+\.png)\)", section)
    assert shown == ["labels.png", *(f"systems/{name}.png" for name in SYSTEMS)]
    assert all((OWN_CAPTCHAS.parent / name).exists() for name in shown)
    with pytest.raises(CaptchaError, match=r"docs/own-captchas\.md must hold the lines"):
        publish.with_expected_table("", record)


def test_the_samples_are_small():
    for name in SYSTEMS:
        path = OWN_CAPTCHAS.parent / "systems" / f"{name}.png"
        assert path.stat().st_size < 20_000
        with Image.open(path) as image:
            assert image.width <= 160
            assert image.height <= 60


def test_publishing_writes_what_to_expect(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    monkeypatch.setattr(publish.figures, "draw_figures", lambda record, docs: None)
    monkeypatch.setattr(publish.diagram, "draw_network", lambda path, config: None)
    monkeypatch.setattr(publish.label_figures, "draw_figures", lambda *arguments: drawn.append(arguments))
    (tmp_path / "docs").mkdir()
    own = tmp_path / "docs" / "own-captchas.md"
    for path in (tmp_path / "README.md", own):
        path.write_text(f"before\n{publish.BEGIN}\nold\n{publish.END}\nafter\n", encoding="utf-8")
    publish.publish({"systems": machine_row(VALUES)})
    assert own.read_text(encoding="utf-8") == (
        f"before\n{publish.BEGIN}\n{label_tables.expected_table(VALUES)}\n{publish.END}\nafter\n"
    )
    assert drawn == [(VALUES, tmp_path / "docs")]


# ---------------------------------------------------------------------- pictures


def test_a_curve_has_points_where_it_was_measured():
    results = label_tables.of_system(label_tables.default_runs(VALUES), "wheezy.captcha")
    assert label_figures.curve(results, 0) == [(0, 70.0), (50, 81.0), (200, 95.0)]
    assert label_figures.curve(results, 2000) == [(50, 90.0)]


def test_each_system_has_a_panel_with_its_lines(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot", reason="pip install -r benchmarks/requirements.txt")
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)
    label_figures.labels_figure(VALUES, tmp_path / "x.png")
    panels = [axes for axes in kept[0].axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["wheezy.captcha", "trek-captcha (held out)"]
    no_label, without, others = panels[0].lines
    assert no_label.get_ydata()[0] == 70.0
    assert list(zip(*without.get_data(), strict=True)) == [(50, 81.0), (200, 95.0)]
    assert list(zip(*others.get_data(), strict=True)) == [(50, 90.0)]
    assert panels[0].get_xscale() == "log"
    assert (tmp_path / "x.png").exists()


def test_samples_are_drawn_of_the_systems_that_are_there(tmp_path, monkeypatch):
    folders = {name: tmp_path / "images" / name for name in SYSTEMS}
    train = folders["claptcha"] / "train"
    train.mkdir(parents=True)
    Image.new("RGB", (640, 360), "red").save(train / "ZZ_000001.png")
    Image.new("RGB", (640, 360), "blue").save(train / "AA_000002.png")
    monkeypatch.setattr(label_figures, "image_folder", folders.get)
    label_figures.draw_figures({"test images": 1000, RUNS: []}, tmp_path)
    (path,) = (tmp_path / "systems").iterdir()
    assert path.name == "claptcha.png"
    with Image.open(path) as image:
        assert image.size == (107, 60)
        assert image.getpixel((5, 5)) == (255, 0, 0)
    assert not (tmp_path / "labels.png").exists(), "no run, no curve"
