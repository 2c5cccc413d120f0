"""The command that measures the results: what it runs, keeps, prints and publishes."""

import itertools
import json
import os
import re
import string
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PROJECT, TINY

from benchmarks import __main__ as command
from benchmarks import diagram, figures, measure, other_systems, ours, publish, runs
from benchmarks.__main__ import BENCHMARKS, RECORD, Benchmark, main
from captcha_cnn import VERSION
from captcha_cnn.dataset import Dataset
from captcha_cnn.drawing import draw_captcha
from captcha_cnn.summaries import CELL
from config import CaptchaError, Config

README = (PROJECT / "README.md").read_text(encoding="utf-8")
RESULTS = PROJECT / "docs" / "results.md"
SMALL = ["--width", "37", "--height", "23", "--char-num", "3", "--characters", "abcde"]
SMALL += ["--batch-size", "7", "--epoch", "4"]


@pytest.fixture(scope="module")
def record():
    return json.loads(RECORD.read_text(encoding="utf-8"))


def a_run(seed, right, confusions=()):
    return {
        "seed": seed,
        "test images": 1000,
        "captchas right": right,
        "captchas right with O as 0": right,
        "character accuracy": 0.9991,
        "steps": 3000 + seed,
        "training seconds": 60,
        "total seconds": 80.4,
        "peak memory, GB": 0.81 + seed / 100,
        "confusions": dict(confusions),
        "wrong": [],
    }


MACHINE = {
    "processor": "X",
    "cores": 2,
    "arithmetic": "float32",
    "python": "3.11",
    "versions": {"numpy": "2.4"},
    "day": "2030-01-02",
}


def a_row(*runs, count=7, jobs=1, version="1"):
    values = {"training images": count, "jobs": jobs, "runs": list(runs)}
    return {"what": "`a command`", "version": version, "machine": MACHINE, "values": values}


def a_small_row(values, what="a row"):
    return {"what": what, "version": "1", "machine": MACHINE, "values": values}


# ---------------------------------------------------------------------- numbers as text


def test_mean_and_deviation_of_the_runs():
    assert publish.mean_std([99.0, 99.5, 99.1]) == "99.20 ± 0.26"
    assert publish.mean_std([99.0]) == "99.00"


def test_a_row_has_captchas_characters_times_memory_runs_version_and_day():
    cells = publish.accuracy_cells(a_row(a_run(0, 990), a_run(1, 994)))
    assert cells == [
        "7",
        "99.20 ± 0.28%",
        "99.91 ± 0.00%",
        "3000 ± 1",
        "60 ± 0 s",
        "80 ± 0 s",
        "0.82 GB",  # the maximum over the runs
        "2",
        "version 1, 2030-01-02",
    ]
    assert publish.summary_lines("x", a_row(a_run(0, 990)))[0].startswith("`a command` | 7 | 99.00%")


def test_a_row_says_how_many_runs_went_on_at_the_same_time():
    assert publish.run_count(a_row(a_run(0, 990), a_run(1, 990), a_run(2, 990), jobs=2)) == "3, two at a time"
    page = publish.results_page({"7": a_row(a_run(0, 990), a_run(1, 990), jobs=2)})
    assert 'Where it says "two at a time"' in page
    assert "beside other work on the machine" in page
    assert "at a time" not in publish.results_page({"7": a_row(a_run(0, 990))}).split("## Accuracy")[1]


def test_captchas_are_counted_with_o_and_0_as_one_where_that_differs():
    alike = "captchas right with O as 0"
    row = a_row(a_run(0, 990) | {alike: 998}, a_run(1, 994) | {alike: 996})
    assert publish.accuracy_cells(row)[1] == "99.20 ± 0.28%; 99.70 ± 0.14% with O and 0 as one"


def test_the_page_has_all_rows_their_versions_and_the_machine():
    record = {
        "1000": a_row(a_run(0, 990), count=1000, version=VERSION),
        "100": a_row(a_run(0, 880), count=100),
        "time-to-accuracy": a_small_row({"7 images": {"to 93%": [1.0, 2.0, None], "x": [None]}}),
        "reading": a_small_row({"ms": 1.5, "each": {"a": 1200}}),
    }
    text = publish.results_page(record)
    assert text.index("88.00%") < text.index("99.00%")
    assert re.search(rf"^\| `1000` .* version {re.escape(VERSION)}, 2030-01-02 \|$", text, re.M)
    assert re.search(r"^\| `100` .* version 1, 2030-01-02 \|$", text, re.M)
    assert "|  | to 93% | x |\n| --- | --- | --- |" in text
    assert "| 7 images | 1.5 ± 0.7 (1 of 3 runs never) | none (1 of 1 runs never) |" in text
    assert "Row `time-to-accuracy` (version 1, 2030-01-02), 3 runs." in text
    assert "- ms: 1.5\n- each: a 1,200" in text
    assert "- X, 2 cores, float32; Python 3.11, numpy 2.4. Rows: `1000`, `100`, `time-to-" in text
    assert "**Rows of an earlier version** (1;" in text
    assert "Rows of an earlier version" not in publish.results_page({"1000": record["1000"]})


def test_the_first_time_at_which_a_share_was_reached():
    points = [[1.0, 5, 0.5, 0.1], [2.0, 9, 0.94, 0.8], [3.0, 12, 0.95, 0.81]]
    assert publish.first_time(points, 2, 0.93) == "2.0 s"
    assert publish.first_time(points, 3, 0.99) == "not reached"


# ---------------------------------------------------------------------- measuring


def test_answers_are_compared_with_the_names_of_the_files():
    lines = "test/1O0_000001.png\t100\t0.9\ntest/123_000002.png\t123\t0.99\ntest/777_000003.png\t177\t0.5\n"
    right, confusions, wrong = runs.compare_answers(lines, {"O": "0"})
    assert right == 2
    assert confusions == {"O>0": 1, "7>1": 1}
    assert wrong == [["1O0_000001.png", "100", "0.9"], ["777_000003.png", "177", "0.5"]]


def test_a_row_is_the_real_command(monkeypatch):
    pytest.importorskip("psutil")
    monkeypatch.setattr(runs, "OTHER_IMAGES", ("6", "20"))
    (run,) = runs.accuracy(14, [3], SMALL)["runs"]
    assert (run["seed"], run["test images"], run["steps"]) == (3, 20, 8)
    assert run["captchas right"] + len(run["wrong"]) == 20
    assert 0 <= run["character accuracy"] <= 1
    assert 0.1 < run["peak memory, GB"] < 4
    assert run["training seconds"] <= run["total seconds"] + 1


def test_jobs_are_runs_at_the_same_time(monkeypatch):
    together = threading.Barrier(2, timeout=60)  # each run waits for another one

    def train_and_read(count, seed, flags, draw):
        together.wait()
        return {"seed": seed}

    monkeypatch.setattr(runs, "train_and_read", train_and_read)
    assert runs.accuracy(7, range(4), (), 2) == {
        "training images": 7,
        "jobs": 2,
        "runs": [{"seed": 0}, {"seed": 1}, {"seed": 2}, {"seed": 3}],
    }


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cannot keep a process on some cores")
def test_runs_at_the_same_time_have_cores_of_their_own(monkeypatch):
    together, used, cores = threading.Barrier(2, timeout=60), [], os.sched_getaffinity(0)

    def train_and_read(count, seed, flags, draw):
        together.wait()
        command = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
        used.append({int(core) for core in subprocess.check_output(command).split()})
        return {}

    monkeypatch.setattr(runs, "train_and_read", train_and_read)
    monkeypatch.setattr(runs, "split_cores", lambda jobs: [{min(cores)}, {max(cores)}])
    runs.accuracy(7, range(2), (), 2)
    assert sorted(used, key=sorted) == [{min(cores)}, {max(cores)}]
    assert os.sched_getaffinity(0) == cores  # of our own thread


@pytest.mark.parametrize(
    ("cores", "jobs", "shares"),
    [
        ({0, 2, 3, 7}, 2, [{0, 3}, {2, 7}]),
        ({4, 5, 6}, 2, [{4, 6}, {5}]),
        ({4, 5}, 1, [{4, 5}]),
        ({4, 5}, 3, [set()] * 3),
    ],
)
def test_cores_are_split_among_runs_where_each_gets_one(cores, jobs, shares, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores, raising=False)
    assert runs.split_cores(jobs) == shares


def test_without_jobs_runs_go_one_after_the_other(monkeypatch):
    running, largest = [], []

    def train_and_read(count, seed, flags, draw):
        running.append(seed)
        largest.append(len(running))
        threading.Event().wait(0.01)
        running.remove(seed)
        return {}

    monkeypatch.setattr(runs, "train_and_read", train_and_read)
    assert runs.accuracy(7, range(4))["jobs"] == 1
    assert largest == [1] * 4


def test_the_peak_memory_is_the_largest_that_was_seen(monkeypatch):
    psutil = pytest.importorskip("psutil")
    monkeypatch.setattr(runs, "SAMPLING_SECONDS", 0)
    sizes = [3, 8, 5]

    def memory_info():
        if not sizes:
            raise psutil.NoSuchProcess(1)  # the process has ended
        return SimpleNamespace(rss=sizes.pop(0))

    sampler = runs.MemorySampler(SimpleNamespace(memory_info=memory_info))
    sampler.run()
    assert (sampler.peak, sizes) == (8, [])


def test_the_memory_is_sampled_until_the_process_has_ended(monkeypatch):
    pytest.importorskip("psutil")
    sampler = runs.MemorySampler(SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=1)))
    sampler.ended.set()
    sampler.start()
    sampler.join(60)
    assert not sampler.is_alive()


def test_a_missing_psutil_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(CaptchaError, match=r"psutil must be installed .* benchmarks/requirements\.txt"):
        runs.run_script(str(tmp_path), "driver.py")


def test_a_command_that_fails_is_one_sentence(tmp_path):
    pytest.importorskip("psutil")
    with pytest.raises(CaptchaError, match=r"driver.py must succeed .* alpha must be a number"):
        runs.run_script(str(tmp_path), "driver.py", "--alpha", "-1")


def test_the_times_of_a_curve():
    times = measure.curve_times(60)
    assert times[-1] == 60
    assert times == sorted(times)
    assert 0.4 < times[0] < 0.6
    assert max(b / a for a, b in itertools.pairwise(times)) < 1.16


def test_the_time_to_an_accuracy_is_of_each_count_of_images(monkeypatch):
    points = {
        10000: [[1.5, 9, 0.94, 0.5], [45.0, 99, 0.9996, 0.9987]],
        5000: [[2.0, 8, 0.9, 0.5], [45.2, 80, 0.99, 0.98]],
    }
    made = []

    def make_dataset(config, name, count):
        made.append((config.seed, name, count))
        return Dataset(np.zeros(count), np.zeros(count))

    monkeypatch.setattr(measure, "make_dataset", make_dataset)
    monkeypatch.setattr(measure, "in_subprocess", lambda function, name, train, *_: points[len(train.labels)])
    found = measure.time_to_accuracy([3, 4])
    assert list(found) == ["10,000 images", "5,000 images"]
    assert list(found["10,000 images"].values()) == [[1.5] * 2, [45.0] * 2, [99] * 2, [99] * 2, [13] * 2]
    assert list(found["5,000 images"].values()) == [[45.2] * 2, [None] * 2, [None] * 2, [80] * 2, [200] * 2]
    assert made == [(seed, name, 10000) for seed in (3, 4) for name in ("train", "test")]


def test_seconds_from_what_is_printed():
    assert [runs.parse_duration(text) for text in ("0:07", "2:03", "1:00:01")] == [7, 123, 3601]


def test_sets_in_memory_are_the_drawn_ones():
    data = measure.make_dataset(TINY, "test", 5)
    assert (data.images.shape, data.images.dtype, data.labels.shape) == ((5, 23, 37), np.uint8, (5, 15))
    assert (data.labels.sum(axis=1) == 3).all()


def test_our_own_curve_and_steps(tf):
    labels = np.eye(5, dtype=np.float32)[np.zeros((9, 3), int)].reshape(9, 15)
    sets = Dataset(np.zeros((9, 23, 37), np.uint8), labels)
    (point,) = ours.curve(sets, sets, TINY, [1e-3])
    assert point.step == 1
    assert point.character_accuracy in (0.0, 1 / 3, 2 / 3, 1.0)
    assert len(ours.step_seconds(sets, TINY, 4)) == 4


def test_operations_of_a_training_step(tf):
    # 2 for multiply and add; conv1 has no gradient with respect to the images, all others have both
    convolutions = 2 * 2 * 80 * 30 * 25 * 16 + 3 * 2 * 25 * (40 * 8 * 16 * 32 + 20 * 4 * 32 * 64)
    head = 3 * 2 * 20 * (4 * 3 * 64) * 11
    assert measure.count_operations(Config()) == convolutions + head


# ---------------------------------------------------------------------- the command


def test_an_unknown_row_is_one_sentence(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["nosuch"])
    assert "a row must be one of 50, 100" in capsys.readouterr().err
    for flag in ("--seeds", "--jobs"):
        with pytest.raises(SystemExit, match="2"):
            main([flag, "0"])


def test_a_row_that_cannot_be_measured_is_left_out_and_the_others_are_kept(tmp_path, monkeypatch, capsys):
    def fails(options):
        raise CaptchaError("ddddocr must be installed")

    monkeypatch.setattr(command, "RECORD", tmp_path / "record.json")
    monkeypatch.setitem(BENCHMARKS, "readers", Benchmark("readers", fails))
    monkeypatch.setitem(BENCHMARKS, "reading", Benchmark("reading", lambda options: {"ms": options.seeds}))
    assert main(["--seeds", "2", "readers", "reading"]) == 1
    assert "readers left out: ddddocr must be installed" in capsys.readouterr().err
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert list(record) == ["reading"]
    assert record["reading"]["values"] == {"ms": 2}
    assert record["reading"]["version"] == VERSION
    assert record["reading"]["machine"]["cores"] >= 1


def test_seeds_jobs_and_flags_reach_the_runs(monkeypatch):
    asked = []
    monkeypatch.setattr(runs, "accuracy", lambda *arguments: asked.append(arguments))
    options = command.make_parser().parse_args(["--seeds", "3", "--jobs", "2", "100000"])
    BENCHMARKS["100000"].measure(options)
    assert asked == [(100000, range(100, 103), ("--epoch", "8", "--patience", "25000"), 2)]


def test_help_names_every_row():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(re.search(rf"\b{name}\b", done.stdout) for name in BENCHMARKS)
    assert done.stdout.startswith("usage: python -m benchmarks")


# ---------------------------------------------------------------------- what is published


def test_the_results_say_what_the_record_says(record):
    assert RESULTS.read_text(encoding="utf-8") == publish.results_page(record)


def test_the_readme_says_what_the_record_says(record):
    assert publish.with_readme_table(README, record) == README
    rows = publish.readme_table(record).splitlines()[2:]
    assert 1 <= len(rows) <= 8
    assert len(rows) == len(publish.readme_rows(record))


def test_every_row_of_the_record_is_known_and_names_its_version(record):
    assert set(record) <= set(BENCHMARKS)
    assert {row["version"] for row in record.values()} <= {"1", VERSION}


def test_the_readme_table_names_other_versions_alone():
    of_systems = [
        {"system": name, "labelled": labelled, "start": start, "captchas right": right}
        for name, labelled, start, right in [
            ("one", 200, "auto", 50),
            ("one", 200, "auto", 30),
            ("two", 200, "auto", 25),
            ("two", 200, "none", 0),
            ("two", 1000, "auto", 50),
        ]
    ]
    record = {
        "100": a_row(a_run(0, 880), count=100),
        "1000": a_row(a_run(0, 990), count=1000, version=VERSION),
        "systems": a_small_row({"test images": 50, other_systems.RUNS: of_systems}),
    }
    text = f"before\n{publish.BEGIN}\nold\n{publish.END}\nafter"
    assert publish.with_readme_table(text, record) == (
        f"before\n{publish.BEGIN}\n"
        "| what | result | row of `python -m benchmarks` |\n| --- | --- | --- |\n"
        "| captchas right, trained on 100 images | 88.00% | `100` (version 1) |\n"
        "| captchas right, trained on 1,000 images | 99.00% | `1000` |\n"
        "| captchas of other systems right, 200 labelled images of each | "
        "65.0% (mean of 2 systems, up to 2 runs each) | `systems` (version 1) |\n"
        f"{publish.END}\nafter"
    )
    for broken in ("", publish.BEGIN, f"{publish.END} {publish.BEGIN}"):
        with pytest.raises(CaptchaError, match="must hold the lines"):
            publish.with_readme_table(broken, record)


def test_the_results_explain_what_the_record_says(record):
    text = " ".join(RESULTS.read_text(encoding="utf-8").split())
    seconds, steps, characters, captchas = record["curves"]["values"]["the original"][-1]
    assert f"| the original | {seconds:,.0f} s | {steps:,} | {characters:.2%} | {captchas:.2%} |" in text
    rows = record["36"]["values"]["runs"]
    wrong = sum(run["test images"] - run["captchas right"] for run in rows)
    only_o = wrong - sum(run["test images"] - run["captchas right with O as 0"] for run in rows)
    assert f"{only_o:,} of the {wrong:,} captchas read wrong have only O and 0 confused" in text
    first = record["10000"]["values"]["runs"][0]
    assert f"{first['test images'] - first['captchas right']} of {first['test images']:,} (version" in text


def test_every_figure_of_the_results_exists_and_every_figure_drawn_is_shown(record):
    shown = set(re.findall(r"\]\(([\w-]+\.png)\)", RESULTS.read_text(encoding="utf-8")))
    assert shown == {
        "colour.png",
        "confusions.png",
        "how-many.png",
        "over-time.png",
        "still-wrong-100000.png",
        "still-wrong-36.png",
        "still-wrong.png",
    }
    assert all((RESULTS.parent / name).exists() for name in shown)


def test_every_figure_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="pip install -r benchmarks/requirements.txt")
    run = a_run(0, 998, {"1>7": 2, "5>6": 1})
    run["wrong"] = [[f"{draw_captcha(Config(), 'test', 4)[0]}_000004.png", "0000", "0.51"]]
    curve = [[1.0, 5, 0.5, 0.1], [2.0, 9, 0.94, 0.8]]
    rows = {name: a_row(run) for name in ("1000", "10000", "100000")}
    letters = Config(characters=string.digits + string.ascii_uppercase)
    lettered = run | {"wrong": [[f"{draw_captcha(letters, 'test', 4)[0]}_000004.png", "OOOO", "0.51"]]}
    others = {"curves": a_small_row({"ours": curve}), "36": a_row(lettered), "colour": a_small_row({})}
    figures.draw_figures(rows | others, tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        "colour.png",
        "confusions.png",
        "how-many.png",
        "over-time.png",
        "still-wrong-100000.png",
        "still-wrong-36.png",
        "still-wrong.png",
    ]
    run["wrong"] = [["0000_000004.png", "0001", "0.5"]]
    with pytest.raises(CaptchaError, match="must be drawn as it was measured"):
        figures.still_wrong([run], tmp_path / "x.png")


def test_the_confusions_are_drawn_by_the_one_renderer(tmp_path, monkeypatch):
    drawn, draw = [], figures.draw_confusion_matrix
    monkeypatch.setattr(figures, "draw_confusion_matrix", lambda counts: drawn.append(counts) or draw(counts))
    pairs = [{"1>7": 2, "5>6": 1}, {"1>7": 3}]
    figures.confusions([a_run(i, 998, each) for i, each in enumerate(pairs)], tmp_path / "x.png")
    assert drawn == [{("1", "7"): 5, ("5", "6"): 1}]
    from PIL import Image

    with Image.open(tmp_path / "x.png") as image:
        assert image.height == 2 * (5 + 1) * CELL  # four characters, their names, the title; twice as large


def test_the_layers_are_those_of_the_network(tf):
    assert diagram.read_layers(Config()) == [
        ("conv1_2x2", (5, 5), (2, 2), (30, 80, 16), 25 * 16 + 2 * 16),
        ("conv2_4x2", (5, 5), (4, 2), (8, 40, 32), 25 * 16 * 32 + 2 * 32),
        ("conv3_2x2", (5, 5), (2, 2), (4, 20, 64), 25 * 32 * 64 + 2 * 64),
        ("ctc_head", (4, 3), (1, 1), (1, 20, 11), 4 * 3 * 64 * 11 + 11),
    ]


def test_the_diagram_has_the_sizes_of_the_graph(tf):
    text = (PROJECT / "docs" / "network.svg").read_text(encoding="utf-8")
    shown = re.findall(r"<text[^>]*>([^<]+)</text>", text)
    layers, times = diagram.read_layers(Config()), "\N{MULTIPLICATION SIGN}"
    assert [line for line in shown if re.fullmatch(rf"[\d {times}]+", line)] == [
        f"60 {times} 160",
        *(f" {times} ".join(map(str, layer.output)) for layer in layers[:-1]),
        f"{layers[-1].output[1]} {times} {layers[-1].output[2]}",
        draw_captcha(Config(), "test", 0)[0],
    ]
    counts = [int(count.replace(",", "")) for count in re.findall(r"([\d,]+) parameters", "\n".join(shown))]
    assert counts == [*(layer.parameters for layer in layers), sum(layer.parameters for layer in layers)]
    convolutions = re.findall(rf"convolution (\d) {times} (\d), stride (\d) down and (\d) across", text)
    assert [tuple(map(int, each)) for each in convolutions] == [
        (*layer.kernel, *layer.stride) for layer in layers[:-1]
    ]
    assert "it sees {1} columns of {0} rows".format(*layers[-1].kernel) in text


def test_publishing_writes_everything(tmp_path, monkeypatch, tf):
    pytest.importorskip("matplotlib", reason="pip install -r benchmarks/requirements.txt")
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"{publish.BEGIN}\n{publish.END}\n", encoding="utf-8")
    record = {"100": a_row(a_run(0, 880), count=100)}
    publish.publish(record)
    assert sorted(os.listdir(tmp_path / "docs")) == ["network.png", "network.svg", "results.md"]
    assert "88.00%" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "docs" / "results.md").read_text(encoding="utf-8") == publish.results_page(record)
    first = (tmp_path / "docs" / "network.svg").read_bytes()
    publish.publish(record)
    assert (tmp_path / "docs" / "network.svg").read_bytes() == first
