"""The row "colour": what its captchas show, what is run, and what the documentation says of the result."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT

from benchmarks import colour
from benchmarks.__main__ import RECORD
from captcha_cnn.images import contrast_grayscale, to_grayscale


def test_captchas_are_the_same_for_the_same_number_and_others_for_another_set():
    (label, image), (again, same), (_, other) = (
        colour.draw_number(colour.RED, name, 3) for name in ("images", "images", "test")
    )
    assert (label, image.tobytes()) == (again, same.tobytes())
    assert image.tobytes() != other.tobytes()


def test_only_the_red_characters_are_the_label(monkeypatch):
    drawn = []
    monkeypatch.setattr(colour, "draw_text", lambda text, colours, *_: drawn.append((text, colours)))
    for seed in range(50):
        label, _ = colour.draw_red(random.Random(seed))
        text, colours = drawn.pop()
        assert len(text) in (6, 7)
        assert label == "".join(c for c, (r, g, b) in zip(text, colours, strict=True) if r > max(g, b))
        assert len(label) == 4
        assert all(60 < np.dot(each, colour.LUMINANCE) < 120 for each in colours), "as bright as each other"


@pytest.mark.parametrize("luminance", [30, 128, 220])
@pytest.mark.parametrize("hue", [0.0, 0.21, 0.5, 0.8])
def test_a_colour_has_the_luminance_asked_for(hue, luminance):
    assert np.dot(colour.colour_of(hue, luminance), colour.LUMINANCE) == pytest.approx(luminance, abs=1)


def test_text_of_one_luminance_is_lost_in_it_and_stays_in_the_gray_of_the_program(monkeypatch):
    monkeypatch.setattr(colour, "NOISE", 0.0)
    for seed in range(20):
        _, image = colour.draw_hue(random.Random(seed))
        assert np.ptp(to_grayscale(image).astype(int)) <= 6
        assert np.ptp(contrast_grayscale(np.asarray(image)).astype(int)) > 60


def test_the_row_is_the_real_command_on_such_images(monkeypatch):
    monkeypatch.setattr(colour, "LABELLED_IMAGES", 3)
    monkeypatch.setattr(colour, "TEST_IMAGES", 2)
    calls = []

    def run_script(folder, *arguments):
        files = {name: sorted(Path(folder, name).iterdir()) for name in ("images", "test")}
        assert {name: len(paths) for name, paths in files.items()} == {"images": 3, "test": 2}
        with colour.Image.open(files["images"][0]) as image:
            calls.append((image.mode, " ".join(arguments)))
        return "Test accuracy: 75.00%, loss\nCaptcha accuracy: 50.00% (1 of 2, 95%", 0

    monkeypatch.setattr(colour, "run_script", run_script)
    *_, values = colour.measure()
    command = "driver.py --images images --test-folder test --seed 100"
    assert calls == [("RGB", command), ("RGB", f"{command} --colour"), ("RGB", command), ("L", command)]
    assert list(values) == list(colour.RUNS)
    assert {(each["captchas right"], each["test images"]) for each in values.values()} == {(1, 2)}


def test_the_documentation_says_what_the_record_says():
    row = json.loads(RECORD.read_text(encoding="utf-8"))["colour"]
    page = (PROJECT / "docs" / "own-captchas.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| (.*?) \| (\d+) \|$", page, re.M)
    assert shown == [(name, str(values["captchas right"])) for name, values in row["values"].items()]
    for values in row["values"].values():
        assert (values["labelled images"], values["test images"]) == (300, 1000)
    assert f"{row['machine']['cores']} cores" in page
