"""Nothing is lost: a training that is interrupted or killed, or finds the disk full, goes on."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, assert_refused, flags
from forks import fork_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training_fakes import load_sets

import driver
from captcha_cnn.checkpoint import MAX_TO_KEEP, list_checkpoints, load_latest
from captcha_cnn.tf_runtime import GracefulStop, TrainingInterrupted
from config import CaptchaError, Config
from generate_captcha import ReadData

# Code for a fork to run before driver.py.
SHORT_START = "leave_graphs_unoptimised()\n"
PLATEAU = """
from captcha_cnn import plateau
plateau.DRAWN_IMAGES, plateau.DRAWN_STEPS = 60, 400  # a run on the plateau draws them in a moment
"""
KILL = """
import os, random, signal, threading, time
from captcha_cnn import checkpoint, tf_runtime

def kill_soon(longest):
    def kill():
        time.sleep(random.uniform(0, longest))
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=kill, daemon=True).start()

def kill_within(seed, steps):  # at a random moment of one of the next steps, or of saving
    random.seed(seed)
    left, save, check = random.randrange(1, steps), checkpoint.Checkpoint.save, tf_runtime.GracefulStop.check
    def check_and_count(self):
        nonlocal left
        left -= 1
        if left == 0:
            kill_soon(0.01)
        check(self)
    def save_or_die(self, *arguments):
        if random.random() < 0.1:
            kill_soon(0.005)
        save(self, *arguments)
    tf_runtime.GracefulStop.check, checkpoint.Checkpoint.save = check_and_count, save_or_die

kill_within({seed}, 45)
"""
FAIL = """
import os, sys

def fail(left, folder):  # of the calls that touch that folder, the one with that number finds the disk full
    calls = ("open", "os.mkdir", "os.rename", "os.remove", "os.listdir", "os.scandir")
    def hook(event, arguments):
        nonlocal left
        path = arguments[0] if event in calls else 0
        if isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(folder):
            left -= 1
            if left == 0:
                raise OSError(28, "No space left on device", str(path))
    sys.addaudithook(hook)

fail({call}, os.getcwd())
"""
LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"


def train(folder, *arguments, before="", **options):
    """Run driver.py in a folder, in a fork.

    Where many starts are compared with each other, `before` begins with SHORT_START.
    """
    return fork_server().run("driver.py", *arguments, cwd=folder, before=PLATEAU + before, **options)


@pytest.fixture
def own(drawn, tmp_path, monkeypatch):
    """A Config of a run in a temporary folder, on sets drawn elsewhere."""
    monkeypatch.chdir(tmp_path)
    return replace(drawn, checkpoint_per_batch=3, Epoch=3)


@pytest.fixture(scope="module")
def sets(drawn):
    return load_sets(drawn)


def contents(folder, tf):
    """All tensors of the newest checkpoint but its record, and the progress of that but the seconds."""
    reader = tf.train.load_checkpoint(list_checkpoints(folder)[0])
    tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    record = json.loads(tensors.pop("record"))
    progress = {k: v for k, v in record["progress"].items() if "seconds" not in k}
    return {name: value.tobytes() for name, value in tensors.items()}, progress


def result_lines(lines):
    """The lines that a run prints of its steps and of its result; a line printed twice counts once."""
    kept = [line for line in lines if re.match(r"Epoch|Step|Test acc|Captcha acc|No improvement", line)]
    return list(dict.fromkeys(kept))


# ---------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    ("network", "moment"),
    [("ctc", "between two steps"), ("ctc", "during validation"), ("classic", "between two steps")],
)
def test_a_run_interrupted_often_ends_as_one_never_interrupted(
    network, moment, own, sets, tf, capsys, monkeypatch
):
    config = replace(own, patience=45, network=network)
    uninterrupted, result = driver.run_model(config, *sets)
    expected = contents("checkpoints", tf)
    lines = result_lines(capsys.readouterr().out.splitlines())
    assert len(lines) > 12
    shutil.rmtree("checkpoints")
    shutil.rmtree("tensorboard")

    check, evaluate, left = GracefulStop.check, driver.evaluate, 0

    def count_down():
        nonlocal left
        left -= 1
        if left == 0:
            raise TrainingInterrupted(signal.SIGINT)

    if moment == "between two steps":
        monkeypatch.setattr(GracefulStop, "check", lambda self: (count_down(), check(self)))
    else:
        monkeypatch.setattr(driver, "evaluate", lambda *each: (evaluate(*each), count_down())[0])
    saved = None
    for left in (1, 2, 17, 12) if moment == "between two steps" else (1, 2, 4, 1):  # noqa: B007 - counted down
        with pytest.raises(TrainingInterrupted):
            driver.run_model(config, *sets, saved)
        saved = load_latest("checkpoints")
    assert 20 < saved.progress["step"] < uninterrupted.step or moment == "during validation"
    _, test = driver.run_model(config, *sets, saved)
    assert test == result
    assert contents("checkpoints", tf) == expected
    assert result_lines(capsys.readouterr().out.splitlines()) == lines
    assert len(list_checkpoints("checkpoints")) == MAX_TO_KEEP


def points(folder):
    """Of each curve: the points that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for part in ("train", "validation"):
        every = {"scalars": 0, "images": 0}  # not a sample of them
        accumulator = EventAccumulator(str(Path(folder, "tensorboard", part)), every)
        accumulator.Reload()
        for tag in set(accumulator.Tags()["scalars"]) - {"images_per_second"}:
            found[part, tag] = [(each.step, each.value) for each in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["images"]:
            found[part, tag] = [(each.step, each.encoded_image_string) for each in accumulator.Images(tag)]
    return found


def test_fifty_kills_change_nothing(tf, tmp_path):
    config = replace(TINY, width=21, height=17, char_num=1, Epoch=60, patience=10**6, checkpoint_per_batch=3)
    config = replace(config, print_per_batch=20, save_per_batch=20)
    folders = [tmp_path / name for name in ("uninterrupted", "killed")]
    for folder in folders:
        folder.mkdir()
    asked = flags(config)
    uninterrupted = train(folders[0], *asked, before=SHORT_START)
    assert (uninterrupted.returncode, uninterrupted.stderr) == (0, "")

    kills, lines, seed = 0, [], 0
    while kills < 50:
        seed += 1
        assert seed < 100, "the kills must come before the end"
        done = train(folders[1], *asked, "--resume", before=SHORT_START + KILL.format(seed=seed))
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
        lines += done.stdout.splitlines()
        if list_checkpoints(str(folders[1] / "checkpoints")):
            assert load_latest(str(folders[1] / "checkpoints")).progress["step"] >= 0
    assert load_latest(str(folders[1] / "checkpoints")).progress["step"] > 300
    done = train(folders[1], *asked, "--resume", before=SHORT_START)
    assert done.returncode == 0, done.stderr
    for folder in folders:
        assert len(list(Path(folder, "checkpoints").glob("state-*"))) == 2 * MAX_TO_KEEP
    assert contents(f"{folders[0]}/checkpoints", tf)[0] == contents(f"{folders[1]}/checkpoints", tf)[0]
    assert result_lines(lines + done.stdout.splitlines()) == result_lines(uninterrupted.stdout.splitlines())
    assert points(folders[0]) == points(folders[1])


def test_with_nothing_to_resume_a_run_begins_and_says_so(own, tmp_path):
    done = train(tmp_path, *flags(replace(own, Epoch=1)), "--resume")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "Nothing to resume in checkpoints: a new run begins"
    again = train(tmp_path, "--resume")  # finished: its settings and its result, and not a step more
    assert (again.returncode, again.stderr) == (0, "")
    assert result_lines(again.stdout.splitlines()) == result_lines(done.stdout.splitlines())[-2:]


def test_a_run_is_resumed_only_with_its_settings_and_images(own, sets, tmp_path):
    assert train(tmp_path, *flags(replace(own, Epoch=1))).returncode == 0
    refused = train(tmp_path, "--resume", "--alpha", "0.01")
    assert_refused(refused, 2, "alpha must be 0.003 to resume the run in checkpoints, not 0.01")
    other = sets[0]._replace(labels=np.roll(sets[0].labels, 1, axis=0))
    with pytest.raises(CaptchaError, match="must be those that the run in checkpoints began with"):
        driver.run_model(own, other, *sets[1:], load_latest("checkpoints"))


# ---------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("number", "status", "folder"),
    [(signal.SIGINT, 130, "checkpoints"), (signal.SIGTERM, 143, 'it\'s mine & my "run"')],
)
def test_a_signal_ends_training_with_everything_saved(number, status, folder, own, tmp_path):
    endless = replace(own, Epoch=10**6, patience=10**6, checkpoint_per_batch=10**6, checkpoint_folder=folder)

    def meanwhile(pid, out):
        while not out.exists() or "Step    20" not in out.read_text():
            time.sleep(0.1)
        os.kill(pid, number)

    done = train(tmp_path, *flags(endless), meanwhile=meanwhile)
    assert (done.returncode, done.stderr) == (status, "")
    text, command = done.stdout.splitlines()[-1].split(". Go on: ")
    assert text == "Stopped; everything is saved"
    named = [] if folder == Config.checkpoint_folder else ["--checkpoint-folder", folder]
    assert shlex.split(command) == ["python", "driver.py", *named, "--resume"]
    assert load_latest(folder).progress["step"] > 20


def test_a_real_loss_that_is_not_finite_leaves_the_best_weights(own, tmp_path):
    done = train(tmp_path, *flags(replace(own, alpha=1.0, Epoch=99, print_per_batch=1)))
    assert done.returncode == 0, done.stderr
    step, best_step = re.search(r"not finite at step (\d+): .* of step (\d+), are kept", done.stdout).groups()
    saved = load_latest("checkpoints")
    assert (saved.progress["step"], saved.progress["best_step"]) == (int(step), int(best_step))
    assert int(best_step) < int(step) < 99 * 22
    assert all(np.isfinite(each).all() for each in saved.weights.values())
    assert "Captcha accuracy:" in done.stdout


# ---------------------------------------------------------------------- full disks


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(own, tmp_path):
    for limit in (1000, 100_000, 800_000):  # bytes that a file may have: the curves', then the checkpoint's
        done = train(tmp_path, *flags(own), before=LIMIT.format(limit=limit))
        assert_refused(done, 1, "training could not go on (")
    assert train(tmp_path, *flags(own)).returncode == 0


def test_an_error_in_any_call_is_no_traceback_and_the_run_can_be_resumed(drawn, tmp_path):
    places = {f"{name}_folder": name for name in ("train", "validation", "test")}
    asked = flags(replace(drawn, **places, generate_num=(3, 2, 2), Epoch=1))
    failures = 0
    for call in range(1, 94, 9):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        done = train(tmp_path, *asked, before=SHORT_START + FAIL.format(call=call))
        if done.returncode:
            failures += 1
            assert done.returncode == 1
            assert "No space left on device" in done.stderr
            assert "Traceback" not in done.stderr
            again = train(tmp_path, *asked, "--resume", before=SHORT_START)
            assert (again.returncode, again.stderr) == (0, ""), call
            assert "Captcha accuracy" in again.stdout
    assert failures > 6


def mounted(folder, options):
    """Whether a file system of its own could be mounted there."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return shutil.which("mount") and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("full", ["checkpoints", "tensorboard", "train"])
def test_a_real_full_disk(full, own, tmp_path):
    asked = replace(own, Epoch=10**4, patience=10**6, checkpoint_folder="checkpoints")
    if full == "train":
        asked = replace(asked, **{f"{name}_folder": name for name in ("train", "validation", "test")})
    (tmp_path / full).mkdir()
    if not mounted(tmp_path / full, "size=4m" if full == "checkpoints" else "size=64k"):
        pytest.skip("this machine does not let us mount a file system")
    try:
        done = train(tmp_path, *flags(asked))
        assert_refused(done, 1, "No space left on device")
        if full == "train":
            images = [path for path in Path(full).glob("*.png") if not path.name.startswith(".")]
            assert images
            reader = ReadData(asked)
            assert all(reader.read_data(path)[0].shape == (23, 37) for path in images)
        elif full == "checkpoints":
            assert load_latest(full).progress["step"] > 0
    finally:
        subprocess.run(["umount", str(tmp_path / full)], check=True)


@pytest.mark.parametrize("folder", ["checkpoints", "tensorboard", "train"])
def test_a_folder_that_cannot_be_written_to(folder, own, tmp_path):
    places = {f"{name}_folder": name for name in ("train", "validation", "test")}
    (tmp_path / folder).mkdir()
    if not mounted(tmp_path / folder, "ro"):
        pytest.skip("this machine does not let us mount a file system")
    try:
        done = train(tmp_path, *flags(replace(own, **places if folder == "train" else {})))
        assert_refused(done, 1, "Read-only file system")
    finally:
        subprocess.run(["umount", str(tmp_path / folder)], check=True)


# ---------------------------------------------------------------------- any settings


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    size=st.tuples(st.integers(8, 90), st.integers(8, 40)),
    length=st.integers(1, 5),
    alphabet=st.sampled_from(["ab", "0123456789", "xyz\u00e4\u00f6", "\u6f22\u5b57", "a.b", "aab", "a"]),
    counts=st.tuples(*[st.integers(1, 12)] * 3),
    batch=st.integers(1, 20),
    alpha=st.sampled_from([1e-9, 0.003, 1.0]),
    share=st.sampled_from([0.01, 0.5, 0.99]),
    every=st.integers(1, 5),
    network=st.sampled_from(["ctc", "classic"]),
)
def test_any_settings_are_a_run_or_one_sentence(
    size, length, alphabet, counts, batch, alpha, share, every, network
):
    asked = ["--width", size[0], "--height", size[1], "--char-num", length, "--characters", alphabet]
    asked += ["--generate-num", *counts, "--batch-size", batch, "--alpha", alpha, "--epoch", 2]
    asked += ["--network", network]
    for name in ("keep-prob", "shift", "scale", "shear", "squeeze", "noise", "lines"):
        asked += [f"--{name}", share]
    for name in ("print", "save", "checkpoint"):
        asked += [f"--{name}-per-batch", every]
    with tempfile.TemporaryDirectory() as folder:
        done = train(folder, *asked)
        if done.returncode:
            assert_refused(done, 2, "must")
        else:
            assert done.stderr == ""
            assert "Captcha accuracy: " in done.stdout
