"""The command that measures the README's figures: what it runs, keeps, prints and draws."""

import itertools
import json
import os
import re
import string
import subprocess
import sys

import numpy as np
import pytest
from conftest import PROJECT, TINY

from benchmarks import __main__ as figures
from benchmarks import measure, publish
from benchmarks import ours as own
from benchmarks.__main__ import RECORD, ROWS, Row, main
from config import CaptchaError, Config
from driver import Data

README = (PROJECT / "README.md").read_text(encoding="utf-8")
SMALL = ["--width", "37", "--height", "23", "--char-num", "3", "--characters", "abcde"]
SMALL += ["--batch-size", "7", "--epoch", "4"]


def a_run(seed, right, confusions=()):
    return {
        "seed": seed,
        "tested": 1000,
        "right": right,
        "right with O as 0": right,
        "symbols": 0.9991,
        "steps": 3000 + seed,
        "training seconds": 60,
        "first line to last, seconds": 80.4,
        "memory, GB": 0.81,
        "confusions": dict(confusions),
        "wrong": [],
    }


MACHINE = {
    "processor": "X",
    "cores": 2,
    "arithmetic": "float32",
    "python": "3.11",
    "versions": {"numpy": "2.4"},
}


def a_row(*runs):
    return {"what": "`a command`", "machine": MACHINE, "values": {"train": 7, "runs": list(runs)}}


def test_mean_and_deviation_of_the_runs():
    assert publish.spread([99.0, 99.5, 99.1]) == "99.20 ± 0.26"
    assert publish.spread([99.0]) == "99.00"


def test_a_row_names_command_runs_captchas_and_symbols():
    cells = publish.cells(a_row(a_run(0, 990), a_run(1, 994)))
    assert cells == [
        "`a command`",
        "2",
        "99.20 ± 0.28%",
        "99.91 ± 0.00%",
        "3000 ± 1",
        "60 ± 0 s",
        "80 ± 0 s",
        "0.81 GB",
        "float32",
    ]


def test_captchas_are_counted_with_o_and_0_as_one_where_that_differs():
    runs = a_run(0, 990) | {"right with O as 0": 998}, a_run(1, 994) | {"right with O as 0": 996}
    assert publish.cells(a_row(*runs))[2] == "99.20 ± 0.28%; 99.70 ± 0.14% with O and 0 as one"


def test_tables_hold_all_rows_and_the_machine():
    record = {
        "1000": a_row(a_run(0, 990)) | {"values": {"train": 1000, "runs": [a_run(0, 990)]}},
        "100": a_row(a_run(0, 880)) | {"values": {"train": 100, "runs": [a_run(0, 880)]}},
        "pace": {"what": "time", "machine": MACHINE, "values": {"to 93%": [1.0, 2.0, None], "x": [None]}},
        "reading": {"what": "reading", "machine": MACHINE, "values": {"ms": 1.5, "each": {"a": 1200}}},
    }
    text = publish.tables(record)
    assert text.index("88.00%") < text.index("99.00%")
    assert "- to 93%: 1.5 ± 0.7 (1 of 3 runs never)\n- x: none (1 of 1 runs never)" in text
    assert "- ms: 1.5\n- each: a 1,200" in text
    assert text.endswith("Measured on: X, 2 cores, float32; Python 3.11, numpy 2.4.")


def test_the_first_time_at_which_a_share_was_reached():
    points = [[1.0, 5, 0.5, 0.1], [2.0, 9, 0.94, 0.8], [3.0, 12, 0.95, 0.81]]
    assert publish.first(points, 2, 0.93) == "2.0 s"
    assert publish.first(points, 3, 0.99) == "no time here"


def test_answers_are_compared_with_the_names_of_the_files():
    lines = "test/1O0_000001.png\t100\t0.9\ntest/123_000002.png\t123\t0.99\ntest/777_000003.png\t177\t0.5\n"
    right, confusions, wrong = measure.read_answers(lines, {"O": "0"})
    assert right == 2
    assert confusions == {"O>0": 1, "7>1": 1}
    assert wrong == [["1O0_000001.png", "100", "0.9"], ["777_000003.png", "177", "0.5"]]


def test_a_row_is_the_real_command(monkeypatch):
    monkeypatch.setattr(measure, "OTHERS", ("6", "20"))
    (run,) = measure.accuracy(14, [3], SMALL)["runs"]
    assert (run["seed"], run["tested"], run["steps"]) == (3, 20, 8)
    assert run["right"] + len(run["wrong"]) == 20
    assert 0 <= run["symbols"] <= 1
    assert 0.1 < run["memory, GB"] < 4
    assert run["training seconds"] <= run["first line to last, seconds"] + 1


def test_a_command_that_fails_is_one_sentence(tmp_path):
    with pytest.raises(CaptchaError, match=r"driver.py must succeed .* alpha must be a number"):
        measure.command(str(tmp_path), "driver.py", "--alpha", "-1")


def test_the_moments_of_a_curve():
    moments = measure.moments(60)
    assert moments[-1] == 60
    assert moments == sorted(moments)
    assert 0.4 < moments[0] < 0.6
    assert max(b / a for a, b in itertools.pairwise(moments)) < 1.16


def test_the_pace_is_of_each_count_of_pictures(monkeypatch):
    points = {
        10000: [[1.5, 9, 0.94, 0.5], [45.0, 99, 0.9996, 0.9987]],
        5000: [[2.0, 8, 0.9, 0.5], [45.2, 80, 0.99, 0.98]],
    }
    monkeypatch.setattr(measure, "drawn", lambda config, name, count: Data(np.zeros(count), np.zeros(count)))
    monkeypatch.setattr(measure, "apart", lambda function, name, train, *others: points[len(train.labels)])
    found = measure.pace([3, 4])
    assert list(found) == ["10,000 pictures", "5,000 pictures"]
    assert list(found["10,000 pictures"].values()) == [[1.5, 1.5], [45.0, 45.0], [13, 13]]
    assert list(found["5,000 pictures"].values()) == [[45.2, 45.2], [None, None], [200, 200]]


def test_seconds_from_what_is_printed():
    assert [measure.in_seconds(text) for text in ("0:07", "2:03", "1:00:01")] == [7, 123, 3601]


def test_sets_in_memory_are_the_drawn_ones():
    data = measure.drawn(TINY, "test", 5)
    assert (data.images.shape, data.images.dtype, data.labels.shape) == ((5, 23, 37), np.uint8, (5, 15))
    assert (data.labels.sum(axis=1) == 3).all()


def test_our_own_curve_and_steps(tf):
    sets = Data(
        np.zeros((9, 23, 37), np.uint8), np.eye(5, dtype=np.float32)[np.zeros((9, 3), int)].reshape(9, 15)
    )
    (point,) = own.curve(sets, sets, TINY, 0, [1e-3])
    assert point.step == 1
    assert point.symbols in (0.0, 1 / 3, 2 / 3, 1.0)
    assert len(own.step_seconds(sets, TINY, 4)) == 4


def test_operations_of_a_training_step():
    # 2 for multiply and add; conv1 has no gradient by the pictures, all others have both
    convolutions = 2 * 2 * 80 * 30 * 25 * 16 + 3 * 2 * 25 * (40 * 8 * 16 * 32 + 20 * 4 * 32 * 64)
    columns = 3 * 2 * 20 * (4 * 3 * 64) * 11
    assert measure._operations(Config()) == convolutions + columns


def test_an_unknown_row_is_one_sentence(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["nosuch"])
    assert "a row must be one of 50, 100" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--seeds", "0"])


def test_a_row_that_cannot_be_measured_is_left_out_and_the_others_are_kept(tmp_path, monkeypatch, capsys):
    def fails(options):
        raise CaptchaError("ddddocr must be installed")

    monkeypatch.setattr(figures, "RECORD", tmp_path / "record.json")
    monkeypatch.setitem(ROWS, "readers", Row("readers", fails))
    monkeypatch.setitem(ROWS, "reading", Row("reading", lambda options: {"ms": options.seeds}))
    assert main(["--seeds", "2", "readers", "reading"]) == 1
    assert "readers left out: ddddocr must be installed" in capsys.readouterr().err
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert list(record) == ["reading"]
    assert record["reading"]["values"] == {"ms": 2}
    assert record["reading"]["machine"]["cores"] >= 1


def test_help_names_every_row():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(re.search(rf"\b{name}\b", done.stdout) for name in ROWS)


def test_the_readme_says_what_the_record_says():
    measured = README.split(publish.BEGIN)[1].split(publish.END)[0]
    assert measured.strip() == publish.tables(json.loads(RECORD.read_text(encoding="utf-8")))


def test_the_readme_explains_what_the_record_says():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    explained = " ".join(README.split(publish.END)[1].split())
    _, steps, symbols, _ = record["curves"]["values"]["the original"][-1]
    assert f"({steps:,} steps of 64), the original's network reads {symbols:.1%} of digits" in explained
    runs = record["36"]["values"]["runs"]
    wrong = sum(run["tested"] - run["right"] for run in runs)
    only_o = wrong - sum(run["tested"] - run["right with O as 0"] for run in runs)
    assert f"({only_o:,} of {wrong:,}) have only O and 0 mistaken" in explained


def test_every_picture_is_drawn(tmp_path, monkeypatch):
    pytest.importorskip(
        "matplotlib", reason="matplotlib is not installed: pip install -r benchmarks/requirements.txt"
    )
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    run = a_run(0, 998, {"1>7": 2, "5>6": 1})
    from generate_captcha import draw

    run["wrong"] = [[f"{draw(Config(), 'test', 4)[0]}_000004.png", "0000", "0.51"]]
    curve = [[1.0, 5, 0.5, 0.1], [2.0, 9, 0.94, 0.8]]
    rows = {name: a_row(run) for name in ("1000", "10000", "100000")}
    letters = Config(characters=string.digits + string.ascii_uppercase)
    lettered = run | {"wrong": [[f"{draw(letters, 'test', 4)[0]}_000004.png", "OOOO", "0.51"]]}
    publish.draw(rows | {"curves": {"values": {"ours": curve}}, "36": a_row(lettered)})
    assert sorted(os.listdir(tmp_path / "docs")) == [
        "confusions.png",
        "how-many.png",
        "over-time.png",
        "still-wrong-100000.png",
        "still-wrong-36.png",
        "still-wrong.png",
    ]
    run["wrong"] = [["0000_000004.png", "0001", "0.5"]]
    with pytest.raises(CaptchaError, match="must be drawn as it was measured"):
        publish.still_wrong([run], tmp_path / "x.png")
