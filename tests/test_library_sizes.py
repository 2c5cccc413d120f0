"""Sets with the captcha library's own font sizes."""

import re
from dataclasses import replace

import numpy as np
from conftest import PROJECT, TINY
from PIL import Image

import driver
from benchmarks import __main__ as benchmarks
from benchmarks import library_sizes, runs
from captcha_cnn import drawing
from captcha_cnn.cli import parse
from generate_captcha import ReadData

SETS = replace(TINY, width=97, height=71, generate_num=(3, 2, 1))


def test_images_have_the_sizes_that_the_library_has_by_itself(tmp_path):
    library_sizes.draw_sets(str(tmp_path), SETS)
    for name, place, count in SETS.sets:
        paths = sorted((tmp_path / place).iterdir(), key=lambda path: path.stem.split("_")[1])
        assert len(paths) == count
        for number, path in enumerate(paths):
            label, stream = drawing.random_label(SETS, name, number)
            expected = drawing._generate(drawing.PixelCaptcha(SETS.width, SETS.height), label, stream)
            assert path.name == f"{label}_{number:06d}.png"
            with Image.open(path) as image:
                assert np.array_equal(np.asarray(image), expected)
            assert not np.array_equal(drawing.draw_pixels(SETS, name, number)[1], expected)


def test_training_images_alone_have_frequent_characters(tmp_path):
    config = replace(SETS, generate_num=(60, 60, 1))
    library_sizes.draw_sets(str(tmp_path), config, frequent="e")
    stems = ["".join(image.stem for image in (tmp_path / place).iterdir()) for _, place, _ in config.sets]
    assert stems[0].count("e") > 1.4 * stems[1].count("e") > 0
    assert benchmarks.DRAW_170.keywords == {"frequent": "0O"}


def test_the_driver_takes_them_as_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    library_sizes.draw_sets("", SETS)
    _, sets, _, _ = driver.load_sets(SETS, ())
    assert [data.size for data in sets] == [3, 2, 1]
    assert "drawn" not in capsys.readouterr().out
    assert ReadData(SETS).load_set("test").size == 1


def test_the_row_draws_before_the_run_with_the_settings_of_the_run(monkeypatch, tmp_path):
    drawn, started = [], []
    monkeypatch.setattr(benchmarks, "DRAW_170", lambda folder, config: drawn.append((folder, config)))

    def run_script(folder, script, *arguments):
        assert [place for place, _ in drawn] == [folder]
        started.append((script, arguments))
        if script == "driver.py":
            return (
                "Test accuracy: 99.00%, loss:  0.01\nCaptcha accuracy:  50.00% (1 of 2, 95% interval\n"
                "9 steps in 0:02, 0:01 of it training; the best weights, of step 7, are in checkpoints\n"
            ), 10**9
        return "test/0A1B_000000.png\t0A1B\t0.9\ntest/ZZZZ_000001.png\tZZZ2\t0.8\n", 0

    monkeypatch.setattr(runs, "run_script", run_script)
    options = benchmarks.make_parser().parse_args(["170x80", "--seeds", "1"])
    values = benchmarks.BENCHMARKS["170x80"].measure(options)
    (script, arguments), _ = started
    assert script == "driver.py"
    config = parse(arguments, "driver.py")
    assert drawn[0][1] == config
    assert (config.width, config.height, len(config.alphabet)) == (170, 80, 36)
    assert config.generate_num == (200000, 500, 10000)
    assert not config.augmented
    assert config.keep_prob == 1.0
    assert values["runs"][0]["captchas right"] == 1


def test_the_command_of_the_row_is_printed_with_what_draws():
    what = benchmarks.BENCHMARKS["170x80"].what
    flags = re.search("`python driver.py (.*)`, on 200,000 images drawn by `benchmarks.library_sizes`", what)[
        1
    ]
    assert parse(flags.split(), "driver.py").width == 170
    assert (PROJECT / "benchmarks" / "library_sizes.py").exists()
