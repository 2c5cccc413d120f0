"""The row "general": what readers that come trained read in the captchas of other systems."""

import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from benchmarks import __main__ as benchmarks_command
from benchmarks import general, other_systems
from benchmarks.general import OURS, READINGS
from benchmarks.systems import SYSTEMS
from config import CaptchaError

CHARSET = ["", "口", "A", "B", "a", "7"]


def certain(*classes):
    """Probabilities [T, 1, K] in which those classes are the best; 口 is better still at the last place."""
    rows = [[[0.9 if k == best else 0.01 * k for k in range(len(CHARSET))]] for best in classes]
    rows[-1][0][1] = 0.95
    return rows


def test_the_best_path_is_of_the_allowed_characters_alone():
    path = certain(2, 2, 0, 2, 3)
    assert general.best_path(path, CHARSET, set(CHARSET)) == "AA口"
    assert general.best_path(path, CHARSET, {"A", "B"}) == "AAB"
    assert general.best_path([[row[0] for row in path]], CHARSET, {"A", "B"}) == "AAB", "[1, T, K]"


def test_ddddocr_answers_by_each_of_its_settings(monkeypatch):
    asked = []

    def classification(png, probability):
        asked.append((png, probability))
        return {"text": "A口a7", "probabilities": certain(2, 4, 3), "charset": CHARSET}

    def make(show_ad, beta):
        asked.append(beta)
        return SimpleNamespace(classification=classification)

    monkeypatch.setitem(sys.modules, "ddddocr", SimpleNamespace(DdddOcr=make))
    read = general.OTHERS["ddddocr beta"](SYSTEMS["claptcha"])  # capital letters
    assert read(b"png") == {"as answered": "A口a7", "set_ranges": "Aa", "probabilities": "AaB"}
    assert asked == [True, (b"png", True)]


@pytest.fixture
def test_folder(tmp_path):
    """Three captchas, transparent, of the labels AB, CD and E0."""
    for i, label in enumerate(["AB", "CD", "E0"], 1):
        Image.new("RGBA", (4 + i, 3)).save(tmp_path / f"{label}_{i:06}.png")
    return tmp_path


@pytest.fixture
def echo(monkeypatch, test_folder):
    """A reader with mistakes in case and look-alikes alone; the PNG files that it got."""
    answers, got = iter(["ab", "CD", "EO"]), []

    def read(png):
        got.append(png)
        answer = next(answers)
        return {"as answered": answer, "other": answer.upper()}

    monkeypatch.setitem(general.OTHERS, "echo", lambda system: read)
    return got


@pytest.mark.parametrize(
    ("system", "raw", "helped"),
    [("captcha-canvas", 1, 3), ("wheezy.captcha", 2, 2)],  # the second has no 0, and ignores the case
)
def test_each_setting_counts_with_and_without_help(system, raw, helped, echo, test_folder):
    found = general.read_test_images(system, "echo", test_folder)
    assert found["settings"]["as answered"] == raw
    assert found["settings"]["as answered, helped"] == helped
    assert found["captchas right"] == max(found["settings"].values()) == helped
    assert all(png[25] == 2 for png in echo), (
        "a PNG's colour type: RGB, for what is transparent is made white"
    )


def test_this_program_is_told_alphabet_and_lengths(monkeypatch, test_folder):
    asked = []

    def read_untrained(system, paths):
        asked.append((system, [path.name for path in paths]))
        return SimpleNamespace(correct=2)

    monkeypatch.setattr(general, "read_untrained", read_untrained)
    monkeypatch.setattr(general, "IMAGES", 2)
    found = general.read_test_images("claptcha", OURS, test_folder)
    assert asked == [("claptcha", ["AB_000001.png", "CD_000002.png"])]
    assert (found["settings"], found["captchas right"]) == ({"alphabet and lengths": 2}, 2)


@pytest.fixture
def fake_readings(monkeypatch, tmp_path):
    """In place of reading: whisperer is missing, the others read 3; the pairs that were asked for."""
    asked = []

    def in_subprocess(function, system, reader, folder):
        assert function is general.read_test_images
        assert folder == tmp_path / system / "test"
        asked.append((system, reader))
        if reader == "captcha-whisperer":
            raise CaptchaError("captcha-whisperer must be installed")
        return {"system": system, "reader": reader, "version": general.VERSION, "captchas right": 3}

    monkeypatch.setattr(general, "in_subprocess", in_subprocess)
    monkeypatch.setattr(other_systems, "drawn_images", lambda system: tmp_path / system)
    return asked


def measured(earlier, *flags):
    """The values after each reading, and what went wrong."""
    options = benchmarks_command.make_parser().parse_args(["--systems", "claptcha", "trek-captcha", *flags])
    found = []
    try:
        for values in general.measure(options, earlier):
            found.append(values)
    except CaptchaError as error:
        return found, str(error)
    return found, ""


def test_a_missing_reader_is_said_once_and_the_others_read(fake_readings):
    values, problem = measured({})
    assert problem == "captcha-whisperer must be installed"
    assert [len(each[READINGS]) for each in values] == [1, 2, 3, 4, 5, 6]
    assert {each["reader"] for each in values[-1][READINGS]} == {"ddddocr", "ddddocr beta", OURS}
    assert values[-1]["test images"] == general.IMAGES


def test_our_weights_are_read_with_again_once_they_change(fake_readings, monkeypatch):
    (*_, values), _ = measured({})
    fake_readings.clear()
    monkeypatch.setattr(general, "has_current_weights", lambda result: result["weights"] == "new")
    measured(values)
    assert {reader for _, reader in fake_readings} == {OURS, "captcha-whisperer"}, "the last is missing"


def test_what_the_record_has_is_not_read_again_in_the_same_version(fake_readings):
    (*_, values), _ = measured({})
    values[READINGS][0]["version"] = "1"
    fake_readings.clear()
    measured(values)
    assert fake_readings == [
        ("claptcha", "ddddocr"),
        ("claptcha", "captcha-whisperer"),
        ("trek-captcha", "captcha-whisperer"),
    ]
    assert len(measured(values, "--again")[0]) == 6
