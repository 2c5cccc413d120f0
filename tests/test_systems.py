"""The captcha generators of others: their table, their environments, what draws with them."""

import json
import random
import re
import secrets
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PROJECT
from PIL import Image

from benchmarks import __main__ as benchmarks_command
from benchmarks import other_systems, publish, runs, system_tables, systems
from benchmarks.other_systems import RUNS, Run, run_of
from benchmarks.systems import PILLOW, READY, SYSTEMS, environment_folder, make_images
from benchmarks.systems import draw as draw_py
from captcha_cnn import VERSION
from config import CaptchaError

DRAW_JS = PROJECT / "benchmarks" / "systems" / "draw.js"
HELD_OUT = {name for name, system in SYSTEMS.items() if system.held_out}

# ---------------------------------------------------------------------- the table


def test_there_are_at_least_eight_systems_and_two_of_them_are_held_out():
    assert len(SYSTEMS) >= 8
    assert len(HELD_OUT) == 2


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_each_system_is_described_completely(system):
    assert system.kind in ("python", "npm")
    pinned = r"[\w.-]+==[\d.]+" if system.kind == "python" else r"(@[\w-]+/)?[\w.-]+@[\d.]+"
    assert all(re.fullmatch(pinned, package) for package in system.packages)
    assert len(set(system.alphabet)) == len(system.alphabet) >= 10
    assert 1 <= system.lengths[0] <= system.lengths[1]
    assert system.description
    assert "\n" not in system.description


def test_draw_py_draws_the_systems_of_pypi_and_draw_js_those_of_npm():
    table = DRAW_JS.read_text(encoding="utf-8").partition("const GENERATORS = {")[2].partition("}")[0]
    in_js = re.findall(r'^  "?([\w.-]+)', table, re.MULTILINE)
    assert list(draw_py.GENERATORS) == [name for name, each in SYSTEMS.items() if each.kind == "python"]
    assert in_js == [name for name, each in SYSTEMS.items() if each.kind == "npm"]


def test_a_held_out_system_shares_no_package_with_another():
    count = Counter(package for system in SYSTEMS.values() for package in system.packages)
    of_held_out = {package for name in HELD_OUT for package in SYSTEMS[name].packages} - {PILLOW}
    assert of_held_out
    assert all(count[package] == 1 for package in of_held_out)


def test_no_system_uses_the_library_that_generate_captcha_draws_with():
    names = {package.partition("==")[0] for system in SYSTEMS.values() for package in system.packages}
    assert "captcha" not in names


# ---------------------------------------------------------------------- environments


class FakeRun:
    """Takes the place of subprocess.run: records the commands, and makes the folder of an environment."""

    def __init__(self, *failing):
        self.commands, self.environments, self.failing = [], [], failing

    def __call__(self, command, env, **_):
        self.commands.append(command)
        self.environments.append(env)
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)
        if "--prefix" in command:
            Path(command[command.index("--prefix") + 1]).mkdir(parents=True)
        if any(word in command for word in self.failing):
            return SimpleNamespace(returncode=1, stdout="line 1\nERROR: no such \x1b package\nlast line\n")
        return SimpleNamespace(returncode=0, stdout="")


@pytest.fixture
def fake_run(tmp_path, monkeypatch):
    """Commands are recorded only, and the cache is a temporary folder."""
    fake = FakeRun()
    monkeypatch.setattr(subprocess, "run", fake)
    monkeypatch.setattr(shutil, "which", lambda name: f"/programs/{name}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake


def test_a_system_of_pypi_gets_a_virtual_environment_once(fake_run, tmp_path):
    make_images("claptcha", tmp_path / "a", 7, 3)
    folder = environment_folder("claptcha")
    python = str(systems.python_in(folder))
    venv, pip, drawing = fake_run.commands
    assert tmp_path / "cache" in folder.parents
    assert venv == [sys.executable, "-m", "venv", str(folder)]
    assert pip[0] == python
    assert pip[2:5] == ["-m", "pip", "install"]
    assert pip[-len(SYSTEMS["claptcha"].packages) :] == list(SYSTEMS["claptcha"].packages)
    assert drawing == [python, "-I", draw_py.__file__, "claptcha", str(tmp_path / "a"), "7", "3"]
    make_images("claptcha", tmp_path / "b", 7, 4)
    assert fake_run.commands[3:] == [[*drawing[:4], str(tmp_path / "b"), "7", "4"]]


def test_a_system_of_npm_gets_a_folder_of_packages_once(fake_run, tmp_path):
    make_images("svg-captcha", tmp_path / "a", 7, 3)
    install, drawing = fake_run.commands
    folder = environment_folder("svg-captcha")
    assert install[:2] == ["/programs/npm", "install"]
    assert "--ignore-scripts" in install
    assert install[-4:] == ["--prefix", str(folder), *SYSTEMS["svg-captcha"].packages]
    assert drawing == ["/programs/node", str(DRAW_JS), "svg-captcha", str(tmp_path / "a"), "7", "3"]
    assert fake_run.environments[-1]["NODE_PATH"] == str(folder / "node_modules")
    make_images("svg-captcha", tmp_path / "b", 7, 3)
    assert len(fake_run.commands) == 3


def test_other_packages_make_another_environment(fake_run, monkeypatch):
    before = environment_folder("claptcha")
    changed = SYSTEMS["claptcha"]._replace(packages=("claptcha==0.3.2",))
    monkeypatch.setitem(SYSTEMS, "claptcha", changed)
    assert environment_folder("claptcha") != before


@pytest.mark.parametrize(("system", "word"), [("claptcha", "pip"), ("svg-captcha", "--prefix")])
def test_an_environment_that_failed_is_made_anew(fake_run, tmp_path, system, word):
    fake_run.failing = (word,)
    message = f"^the packages of {system} could not be installed: ERROR: no such .x1b package$"
    with pytest.raises(CaptchaError, match=message):
        make_images(system, tmp_path / "a", 7, 3)
    assert environment_folder(system).exists()
    assert not (environment_folder(system) / READY).exists()
    fake_run.failing = ()
    make_images(system, tmp_path / "a", 7, 3)
    assert (environment_folder(system) / READY).exists()


def test_a_generator_that_fails_is_reported(fake_run, tmp_path):
    fake_run.failing = (str(DRAW_JS),)
    with pytest.raises(CaptchaError, match=r"^captchas of captchapng could not be drawn: ERROR: no such"):
        make_images("captchapng", tmp_path / "a", 7, 3)


def test_a_missing_npm_is_reported_in_one_sentence(fake_run, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(
        CaptchaError, match=r"^npm must be installed .* captchapng, but is not: get Node\.js$"
    ):
        make_images("captchapng", tmp_path / "a", 7, 3)


def test_a_folder_that_holds_something_is_left_alone(fake_run, tmp_path):
    (tmp_path / "mine.png").touch()
    with pytest.raises(CaptchaError, match="must be empty"):
        make_images("claptcha", tmp_path, 7, 3)
    assert not fake_run.commands


# ---------------------------------------------------------------------- drawing


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class FakeSpecCaptcha:
    """In place of easy_captcha.SpecCaptcha: 3 letters, and a JPEG that holds a random number."""

    def out(self, file):
        file.write(b"\xff\xd8" + str(random.random()).encode())

    def text(self):
        return "".join("aA"[secrets.randbelow(2)] for _ in range(3))


def test_draw_py_draws_the_same_for_the_same_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, "randbelow", secrets.randbelow)  # put back after the test
    monkeypatch.setattr(secrets, "choice", secrets.choice)
    monkeypatch.setitem(sys.modules, "easy_captcha", SimpleNamespace(SpecCaptcha=FakeSpecCaptcha))
    drawn = []
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        (tmp_path / name).mkdir()
        draw_py.main("easy-captcha-python", str(tmp_path / name), "30", seed)
        drawn.append(contents(tmp_path / name))
    assert drawn[0] == drawn[1] != drawn[2]
    assert [name[3:] for name in sorted(drawn[0], key=lambda name: name[3:])] == [
        f"_{i:06}.jpg" for i in range(1, 31)
    ]
    assert len({name.lower() for name in drawn[0]}) == 30, "names differ where case does not count"


FAKE_TREK_CAPTCHA = """
const { randomBytes } = require("crypto");
module.exports = () => new Promise((resolve) => randomBytes(3, (error, bytes) =>
  resolve({ token: bytes.toString("hex"), buffer: Buffer.from("GIF89a" + Math.random()) })));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_draw_js_draws_the_same_for_the_same_seed(tmp_path):
    package = tmp_path / "node_modules" / "trek-captcha"
    package.mkdir(parents=True)
    (package / "index.js").write_text(FAKE_TREK_CAPTCHA)
    drawn = []
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        (tmp_path / name).mkdir()
        command = [shutil.which("node"), str(DRAW_JS), "trek-captcha", str(tmp_path / name), "30", seed]
        subprocess.run(command, env={"NODE_PATH": str(tmp_path / "node_modules")}, check=True, timeout=60)
        drawn.append(contents(tmp_path / name))
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0].values())) == 30
    assert sorted(name[6:] for name in drawn[0]) == [f"_{i:06}.gif" for i in range(1, 31)]


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_draw_js_fails_where_a_generator_is_missing(tmp_path):
    command = [shutil.which("node"), str(DRAW_JS), "captchapng", str(tmp_path), "1", "0"]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "Cannot find module 'captchapng'" in done.stderr


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_generator_draws_what_its_row_says(name, tmp_path):
    system = SYSTEMS[name]
    if not (environment_folder(name) / READY).exists():
        pytest.skip(f"{name} is not installed: make_images({name!r}, ...) does that, with a network")
    for folder in ("a", "b"):
        make_images(name, tmp_path / folder, 20, 3)
    drawn = contents(tmp_path / "a")
    assert contents(tmp_path / "b") == drawn, "another result for the same seed"
    labels = [file.partition("_")[0] for file in drawn]
    assert len(labels) == 20
    assert all(system.lengths[0] <= len(label) <= system.lengths[1] for label in labels)
    assert set("".join(labels)) <= set(system.alphabet), json.dumps(labels)


# ---------------------------------------------------------------------- the row "systems"

PRINTED = """Images for train :180, for validation : 20, for test : 4
Test accuracy:  75.00%, loss:  0.90
Captcha accuracy: 50.00% (2 of 4, 95% interval 9.45 to 90.55)
"""
CROSS_VALIDATION = "Cross-validation accuracy:  74.00% (37 of 50, 95% interval 60.45 to 84.13)\n"
REPORT = "Captcha accuracy: ...\n\nExpected calibration error: 3.21%\n    images   mean confidence   right\n"
TRAINING = {"steps": 70, "best step": 60, "training seconds": 7.5, "ended on the plateau": False}
SMALL_RUNS = ["systems", "--systems", "captchapng", "trek-captcha", "--counts", "3", "7"]


def fake_images(system, folder, count, seed):
    """In place of make_images: the fourth test image is identical to a training image."""
    folder.mkdir(parents=True)
    for i in range(1, count + 1):
        content = "100 1" if (seed, i) == (other_systems.TEST_SEED, 4) else f"{seed} {i}"
        (folder / f"{9 - i % 9}A_{i:06}.png").write_text(content)


@pytest.fixture
def fake_driver(tmp_path, monkeypatch):
    """The commands that were run in place of driver.py, with the names of the labelled images of each.

    `reports` has the commands of predict.py; `unlabelled` and `tests` the other images of each run, by name.
    """
    pytest.importorskip("psutil")
    fake = SimpleNamespace(commands=[], failing="", reports=[], unlabelled=[], tests=[], report=REPORT)

    def run_script(folder, *command, **options):
        if command[-1] == fake.failing:
            raise CaptchaError("driver.py must succeed to be measured, but said: no")
        if command[0] == "predict.py":
            fake.reports.append((folder, command, options))
            return fake.report, 1e8
        images, others, tests = (
            contents(each) if each.exists() else {}
            for each in (Path(folder, name) for name in ("images", "unlabelled", "test"))
        )
        fake.commands.append((command, sorted(images)))
        fake.unlabelled.append(others)
        fake.tests.append(tests)
        return PRINTED, 2e8

    monkeypatch.setattr(other_systems, "run_script", run_script)
    monkeypatch.setattr(other_systems, "in_subprocess", lambda function, folder: TRAINING)
    monkeypatch.setattr(other_systems, "make_images", fake_images)
    monkeypatch.setattr(other_systems, "TRAINING_IMAGES", 12)
    monkeypatch.setattr(other_systems, "TEST_IMAGES", 5)
    monkeypatch.setattr(other_systems, "SPARE_IMAGES", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake


def options(*flags):
    return benchmarks_command.make_parser().parse_args([*SMALL_RUNS, *flags])


def test_a_run_has_its_key_and_what_driver_and_checkpoint_say(fake_driver):
    (values,) = other_systems.measure(
        options("--systems", "captchapng", "--counts", "3", "--starts", "none"), [8], {}
    )
    (run,) = values[RUNS]
    assert values["test images"] == 5
    assert run.pop("total seconds") >= 0
    assert run.pop("day")
    assert run == {
        "system": "captchapng",
        "labelled": 3,
        "seed": 8,
        "start": "none",
        "unlabelled": 0,
        "version": VERSION,
        "jobs": 1,
        "peak memory, GB": 0.2,
        "captchas right": 2,
        "test images left out": 1,
        "character accuracy": 0.6,  # of all 5 test images
        "calibration error": 0.0321,
        **TRAINING,
    }
    ((command, labelled),) = fake_driver.commands
    ((_, report, accepted),) = fake_driver.reports
    assert report == ("predict.py", "--labelled", "test")
    assert accepted == {"accepted": (0, 1)}, "1: it could not read all images"
    assert command[:3] == ("driver.py", "--images", "images")
    assert command[3:] == ("--test-folder", "test", "--seed", "8", "--start-from", "none")
    assert len(labelled) == 3


def all_values(*arguments):
    """What measure() yields before it says what went wrong, and that."""
    found = []
    try:
        for values in other_systems.measure(*arguments):
            found.append(values)
    except CaptchaError as error:
        return found, str(error)
    return found, ""


def test_runs_begin_with_the_first_seed_and_end_with_the_held_out_systems(fake_driver):
    planned = other_systems.planned_runs(options("--systems", "trek-captcha", "wheezy.captcha"), [4, 5])
    assert [tuple(run) for run in planned[:5]] == [
        ("wheezy.captcha", 3, 4, "auto", 0),
        ("trek-captcha", 3, 4, "auto", 0),
        ("wheezy.captcha", 7, 4, "auto", 0),
        ("trek-captcha", 7, 4, "auto", 0),
        ("wheezy.captcha", 3, 4, "none", 0),
    ]
    assert len(planned) == len(set(planned)) == 16


def test_all_runs_are_planned_where_no_flag_says_which():
    everything = other_systems.planned_runs(benchmarks_command.make_parser().parse_args([]), range(3))
    assert len(everything) == len(SYSTEMS) * 7 * 3 * 2


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupted_row_goes_on_where_it_stopped(fake_driver, jobs):
    asked = set(other_systems.planned_runs(options(), [8]))
    interrupted = other_systems.measure(options("--jobs", jobs), [8], {})
    values = [next(interrupted) for _ in range(3)][-1]
    interrupted.close()
    known = {run_of(result) for result in values[RUNS]}
    assert len(known) == 3
    fake_driver.commands.clear()
    *_, values = other_systems.measure(options(), [8], values)
    assert len(fake_driver.commands) == len(asked) - 3
    assert [run_of(result) for result in values[RUNS]] == sorted(asked)
    assert list(other_systems.measure(options(), [8], values)) == []
    assert len(list(other_systems.measure(options("--again"), [8], values))) == len(asked)


def test_runs_of_another_version_are_repeated(fake_driver):
    *_, values = other_systems.measure(options(), [8], {})
    values[RUNS][0]["version"] = "1"
    fake_driver.commands.clear()
    *_, values = other_systems.measure(options(), [8], values)
    assert len(fake_driver.commands) == 1
    assert {run["version"] for run in values[RUNS]} == {VERSION}


def test_runs_with_other_initial_weights_are_repeated(fake_driver, monkeypatch):
    *_, values = other_systems.measure(options(), [8], {})
    assert {(run["start"], run.get("weights")) for run in values[RUNS]} == {
        ("auto", other_systems.weights_digest()),
        ("none", None),
    }
    fake_driver.commands.clear()
    monkeypatch.setattr(other_systems, "weights_digest", lambda: "new")
    *_, values = other_systems.measure(options(), [8], values)
    assert len(fake_driver.commands) == 4, "with --start-from none, nothing has changed"
    assert {run["weights"] for run in values[RUNS] if run["start"] == "auto"} == {"new"}


def test_a_run_that_fails_is_kept_reported_and_tried_again(fake_driver):
    fake_driver.failing = "none"
    found, problem = all_values(options(), [8], {})
    assert "captchapng, 3 labelled, seed 8, --start-from none: driver.py must succeed" in problem
    failed = [run for run in found[-1][RUNS] if "failed" in run]
    assert [run["start"] for run in failed] == ["none"] * 4
    fake_driver.failing = ""
    *_, values = other_systems.measure(options(), [8], found[-1])
    assert len(values[RUNS]) == 8
    assert not any("failed" in run for run in values[RUNS])


def test_a_system_that_cannot_be_drawn_is_left_out(fake_driver, monkeypatch):
    def draw(system, *arguments):
        if system == "captchapng":
            raise CaptchaError("npm must be installed")
        fake_images(system, *arguments)

    monkeypatch.setattr(other_systems, "make_images", draw)
    found, problem = all_values(options(), [8], {})
    assert problem == "npm must be installed"
    assert {run["system"] for run in found[-1][RUNS]} == {"trek-captcha"}


def test_the_labelled_images_depend_on_the_seed_and_few_are_among_many(fake_driver):
    for _ in other_systems.measure(options("--systems", "captchapng", "--starts", "auto"), [8, 9], {}):
        pass
    few, many, few_of_another, _ = (set(labelled) for _, labelled in fake_driver.commands)
    assert (len(few), len(many)) == (3, 7)
    assert few < many
    assert few != few_of_another


def test_images_are_drawn_once_and_no_test_image_is_a_training_image(fake_driver, monkeypatch):
    folder = other_systems.drawn_images("captchapng")
    monkeypatch.setattr(other_systems, "make_images", None)
    assert other_systems.drawn_images("captchapng") == folder
    train, test = ({path.read_text() for path in (folder / name).iterdir()} for name in ("train", "test"))
    assert len(train) == 12
    assert test == {"101 1", "101 2", "101 3", "101 5", "101 6"}


def test_too_few_other_test_images_are_an_error(fake_driver, monkeypatch):
    monkeypatch.setattr(other_systems, "SPARE_IMAGES", 0)
    with pytest.raises(CaptchaError, match="5 test images must differ from the others, but 4 do"):
        other_systems.drawn_images("captchapng")
    assert not list(environment_folder("captchapng").parent.rglob("*.png"))


def test_the_case_is_ignored_where_both_cases_are_one_captcha():
    commands = {name: other_systems.command(Run(name, 3, 8, "auto")) for name in SYSTEMS}
    assert [name for name in SYSTEMS if "--ignore-case" in commands[name]] == ["easy-captcha-python"]
    assert not any("--start-from" in command for command in commands.values())


def test_unlabelled_images_are_training_images_without_their_labels(fake_driver):
    asked = options("--systems", "captchapng", "--unlabelled", "5", "--starts", "auto")
    *_, values = other_systems.measure(asked, [8], {})
    assert [(run["labelled"], run["unlabelled"]) for run in values[RUNS]] == [(3, 5), (7, 5)]
    (first, labelled), (second, _) = fake_driver.commands
    assert first[:5] == second[:5] == ("driver.py", "--images", "images", "--unlabelled", "unlabelled")
    few, many = fake_driver.unlabelled
    assert few == many, "another number of labels, but other unlabelled images"
    assert sorted(few) == [f"image-{i}.png" for i in range(5)]
    train = contents(other_systems.drawn_images("captchapng") / "train")
    assert set(few.values()) <= set(train.values()) - {train[name] for name in labelled}


def test_test_images_that_no_labelled_image_prepares_for_are_left_out(fake_driver):
    asked = options("--counts", "0", "3", "11", "--unlabelled", "1", "--starts", "auto")
    for _ in other_systems.measure(asked, [8], {}):
        pass
    test = contents(other_systems.drawn_images("captchapng") / "test")
    for (_, labelled), tests in zip(fake_driver.commands, fake_driver.tests, strict=True):
        known = {name[0] for name in labelled}
        assert tests == {name: test[name] for name in test if name[0] in known or not known}
    numbers = [len(tests) for tests in fake_driver.tests]
    assert min(numbers) < max(numbers) == len(test) == 5


@pytest.mark.parametrize(
    ("system", "label", "found"),
    [
        ("claptcha", "ABCD", True),
        ("claptcha", "ABCDE", True),  # between the lengths that are known
        ("claptcha", "abcd", False),
        ("claptcha", "ABC", False),
        ("claptcha", "ABCX", False),
        ("easy-captcha-python", "abcd", True),  # the case does not count
    ],
)
def test_a_label_can_be_read_where_its_characters_and_its_length_are_known(system, label, found):
    assert other_systems.can_be_read(label, system, iter(["ABCD", "ABCDEF"])) == found


def test_runs_that_cannot_be_are_not_planned():
    flags = ["--systems", "captchapng", "--counts", "0", "600", "700", "--unlabelled", "0", "2000"]
    planned = other_systems.planned_runs(options(*flags), [4, 5])
    assert Run("captchapng", 600, 4, "none", 2000) in planned
    assert Run("captchapng", 700, 4, "auto", 2000) not in planned, "there are 2,600 images"
    no_label = [run for run in planned if not run.labelled]
    assert no_label == [
        Run("captchapng", 0, 4, "auto", 0),  # the general weights alone: no seed matters
        Run("captchapng", 0, 4, "auto", 2000),
        Run("captchapng", 0, 5, "auto", 2000),
    ]


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("claptcha", ["--characters", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "--char-num", "4-6"]),
        ("easy-captcha-python", ["--char-num", "5", "--ignore-case"]),
    ],
)
def test_without_labels_the_alphabet_and_the_lengths_are_given(name, flags):
    found = other_systems.command(Run(name, 0, 8, "auto", 7))
    assert found[:2] == ["--unlabelled", "unlabelled"]
    assert "--images" not in found
    assert found[-len(flags) :] == flags


def test_without_any_image_the_general_weights_read_the_test_images(fake_driver, monkeypatch):
    monkeypatch.setattr(other_systems, "in_subprocess", lambda function, *arguments: function(*arguments))
    predictor = FakePredictor()
    monkeypatch.setattr(other_systems, "Predictor", predictor)
    (values,) = other_systems.measure(options("--systems", "captchapng", "--counts", "0"), [8, 9], {})
    (run,) = values[RUNS]
    assert predictor.given == (None, "0123456789", "4")
    assert run["captchas right"] == 4
    assert run["calibration error"] == 0.1  # 4 of 5 right, with a confidence of 0.9
    assert fake_driver.commands == []


class FakePredictor:
    """In place of predict.Predictor: reads the labels in the names, but the last in small letters."""

    def __call__(self, *given):
        self.given = given
        return self

    def read(self, paths):
        texts = [path.name.partition("_")[0] for path in paths]
        return [SimpleNamespace(text=text, confidence=0.9) for text in [*texts[:-1], texts[-1].lower()]]


def test_the_case_counts_where_the_system_does_not_ignore_it(tmp_path, monkeypatch):
    monkeypatch.setattr(other_systems, "Predictor", FakePredictor())
    paths = [tmp_path / f"AB_{i}.png" for i in range(3)]
    found = {
        name: other_systems.read_untrained(name, paths).correct for name in ("claptcha", "wheezy.captcha")
    }
    assert found == {"claptcha": 2, "wheezy.captcha": 3}


@pytest.mark.parametrize(("right", "inside"), [(605, True), (604, False), (841, True), (842, False)])
def test_the_reported_accuracy_is_compared_with_that_on_the_test_images(right, inside, monkeypatch):
    printed = f"{CROSS_VALIDATION}{PRINTED}Captcha accuracy: x ({right} of 1000, 95% interval 1.00 to 2.00)\n"
    found = other_systems.read_output(printed)
    assert (found["reported right"], found["reported images"]) == (37, 50)
    assert found["inside interval"] == inside
    assert "reported right" not in other_systems.read_output(PRINTED)


def test_a_run_without_a_calibration_error_is_kept(fake_driver):
    fake_driver.report = ""
    *_, values = other_systems.measure(options("--systems", "captchapng", "--starts", "none"), [8], {})
    assert [run["captchas right"] for run in values[RUNS]] == [2, 2]
    assert not any("calibration error" in run for run in values[RUNS])


def test_the_calibration_error_is_what_predict_prints_even_where_it_leaves_images_out(tmp_path):
    pytest.importorskip("psutil")
    for i in range(10):
        label = "12A4" if i == 3 else f"{1234 + i}"  # one that a model of digits cannot read
        Image.new("L", (160, 60), 20 * i).save(tmp_path / f"{label}_{i}.png")
    asked = ["predict.py", "--labelled", str(tmp_path), "--characters", "0123456789", "--char-num", "4"]
    printed, _ = runs.run_script(str(tmp_path), *asked, accepted=(0, 1))
    assert 0 <= other_systems.read_calibration(printed)["calibration error"] <= 1
    with pytest.raises(CaptchaError, match=r"predict\.py must succeed"):
        runs.run_script(str(tmp_path), *asked)


def test_recorded_runs_without_unlabelled_images_count_as_such(fake_driver):
    *_, values = other_systems.measure(options(), [8], {})
    for run in values[RUNS]:
        del run["unlabelled"]
    assert list(other_systems.measure(options(), [8], values)) == []


def test_the_progress_of_a_run_is_read_from_its_checkpoint(trained):
    found = other_systems.read_training(str(trained.folder / "checkpoints"))
    assert found["steps"] >= found["best step"] > 0
    assert found["training seconds"] > 0
    assert found["loss of guessing"] == 1.6094  # ln 5
    assert found["validation loss"] > 0
    assert found["ended on the plateau"] == (found["validation loss"] > 0.9 * found["loss of guessing"])


def test_the_command_records_each_run_as_it_comes(fake_driver, tmp_path, monkeypatch, capsys):
    record = tmp_path / "record.json"
    monkeypatch.setattr(benchmarks_command, "RECORD", record)
    kept, train_and_read = [], other_systems.train_and_read

    def note(*arguments):
        kept.append(len(json.loads(record.read_text())["systems"]["values"][RUNS]) if record.exists() else 0)
        return train_and_read(*arguments)

    monkeypatch.setattr(other_systems, "train_and_read", note)
    fake_driver.failing = "none"
    assert benchmarks_command.main([*SMALL_RUNS, "--seeds", "1", "--starts", "none", "auto"]) == 1
    assert "--start-from none: driver.py must" in capsys.readouterr().err
    fake_driver.failing = ""
    assert benchmarks_command.main([*SMALL_RUNS, "--seeds", "1"]) == 0
    assert len(kept) == 12
    assert max(kept) == 8
    row = json.loads(record.read_text())["systems"]
    assert row["version"] == VERSION
    assert [run["seed"] for run in row["values"][RUNS]] == [publish.FIRST_SEED] * 8
    assert "| `captchapng` | 40.0 | 40.0 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags", [["--counts", "-1"], ["--unlabelled", "3000"], ["--systems", "mine"], ["--starts", "mine"]]
)
def test_wrong_flags_of_the_row_are_one_sentence(flags, fake_driver, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks_command, "RECORD", tmp_path / "record.json")
    with pytest.raises(SystemExit, match="2"):
        benchmarks_command.main(["systems", *flags])
    assert len(capsys.readouterr().err.splitlines()) == 1


# ---------------------------------------------------------------------- what is published of it


def a_result(system, labelled, right, seed=0, **values):
    result = {"system": system, "labelled": labelled, "seed": seed, "start": "auto", "jobs": 1}
    result |= {"captchas right": right, "total seconds": 80.2 + seed, "ended on the plateau": False}
    return result | values


RESULTS = [
    a_result("wheezy.captcha", 200, 900),
    a_result("wheezy.captcha", 200, 920, seed=1),
    a_result("captchapng", 200, 1000),
    a_result("captchapng", 1000, 1000),
    a_result("captchapng", 200, 20, start="none", **{"ended on the plateau": True, "total seconds": 101.0}),
    a_result("trek-captcha", 200, 500),
    {"system": "captchapng", "labelled": 200, "seed": 1, "start": "none", "jobs": 2, "failed": "no memory"},
]


@pytest.fixture
def section():
    return system_tables.section({"test images": 1000, RUNS: RESULTS})


def test_each_start_has_a_table_of_systems_and_counts_with_their_mean(section):
    auto, none = section["tables"].values()
    assert auto.splitlines() == [
        "| system | 200 labelled | 1,000 labelled |",
        "| --- | --- | --- |",
        "| `wheezy.captcha` | 91.0 ± 1.4 |  |",
        "| `captchapng` | 100.0 (1 of 2 runs) | 100.0 (1 of 2 runs) |",
        "| mean of the 2 | 95.5 | 100.0 (1 of 2 systems) |",
    ]
    assert none.splitlines()[2:] == ["| `captchapng` | 1.0 ± 1.4 |"], "a failed run counts as 0"


def test_held_out_systems_have_a_table_of_their_own(section):
    auto, none = section["held_out"].values()
    assert auto.splitlines()[2:] == ["| `trek-captcha` | 50.0 |"]
    assert none == ""


def test_runs_on_the_plateau_and_seconds_are_published(section):
    assert section["plateau"].splitlines()[2:] == [
        "| the initial weights that come with the program | 0 of 4 | 0 of 1 | 0 of 5 |",
        "| `--start-from none` | 1 of 2 |  | 1 of 2 |",
    ]
    assert section["seconds"].splitlines()[2:] == [
        "| `wheezy.captcha` | 81 ± 1 |  |",
        "| `trek-captcha` | 80 |  |",
        "| `captchapng` | 80 | 101 |",
        "| mean | 80 | 101 |",
    ]
    assert section["failed"] == ["captchapng, 200 labelled, seed 1, --start-from none: no memory"]
    assert section["jobs"] == 2


def test_each_system_is_a_line_with_version_lengths_and_alphabet():
    line = system_tables.describe("wheezy.captcha")
    assert line.startswith("`wheezy.captcha` 3.2.2: 200x75 JPEG;")
    assert line.endswith("; 4 of the 32 characters `ABCDEFGHJKLMNPQRSTUVWXYZ23456789`")
    assert "; 4 to 6 of the 26 characters" in system_tables.describe("claptcha")
    assert system_tables.describe("trek-captcha").startswith("`trek-captcha` 0.4.0: 200x70 GIF")
    assert system_tables.describe("trek-captcha").endswith("; **held out**")
    assert "5 of the 31 characters" in system_tables.describe("easy-captcha-python")


def test_the_page_shows_the_row_where_the_record_has_it():
    machine = {
        "processor": "X",
        "cores": 2,
        "arithmetic": "float32",
        "python": "3",
        "versions": {},
        "day": "D",
    }
    values = {"test images": 1000, RUNS: RESULTS}
    row = {"what": "x", "version": "1", "machine": machine, "values": values}
    page = publish.results_page({"systems": row})
    assert "## Other captcha systems\n\nRow `systems` (version 1, D)" in page
    assert "(but `--ignore-case` for\n`easy-captcha-python`, whose server" in page
    assert "with the initial weights that come with the program:\n\n| system | 200 labelled" in page
    assert "no choice was made on their images" in page
    assert "FOLDER has\n200 or 1,000 labelled images" in page
    assert "- captchapng, 200 labelled, seed 1, --start-from none: no memory" in page
    assert "up to 2 runs shared the machine" in page
    assert all(system_tables.describe(name) in page for name in SYSTEMS)
    assert "\n\n\n" not in page.partition("## Other captcha systems")[2].partition("\n## ")[0]
    assert "captcha systems" not in publish.results_page({})
