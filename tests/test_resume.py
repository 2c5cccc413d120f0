"""Nothing is lost: stopped, killed, damaged, full."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PROJECT, assert_refused, flags, heed_ctrl_c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import driver
import session
from config import CaptchaError, ConfigError
from driver import Data
from generate_captcha import ReadData
from session import Stop, Stopped, load, read_save, saves

# Imports TensorFlow once; for each line on its input, trains in a fork and prints its number and status.
SERVER = """
import json, os, random, signal, sys, threading, time
sys.path.insert(0, sys.argv[1])
from session import load_tensorflow
load_tensorflow()
import config, cnn_model, driver, session

def end(longest):
    def soon():
        time.sleep(random.uniform(0, longest))
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=soon, daemon=True).start()

def kill_at(seed, steps):  # a random moment of one of the next steps, or of a save
    random.seed(seed)
    left, save, check = random.randrange(1, steps), session.Checkpoint.save, session.Stop.check
    def checked(self):
        nonlocal left
        left -= 1
        if left == 0:
            end(0.01)
        check(self)
    def saved(self, *arguments):
        if random.random() < 0.1:
            end(0.005)
        save(self, *arguments)
    session.Stop.check, session.Checkpoint.save = checked, saved

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

print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.chdir(order["folder"])
        for number, name in ((1, "out"), (2, "errors")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["driver.py"]
        if "kill" in order:
            kill_at(*order["kill"])
        if "fail" in order:
            fail(order["fail"], order["folder"])
        if "limit" in order:
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
        config.run(lambda _: driver.main(order["flags"]))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def trainer():
    """A function that trains in a folder as `python driver.py` does; its status and what it said."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(PROJECT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    assert server.stdout.readline() == "ready\n"

    def train(folder, *arguments, meanwhile=lambda pid: None, **order):
        order |= {"folder": str(folder), "flags": list(map(str, arguments))}
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        meanwhile(int(server.stdout.readline()))
        status = int(server.stdout.readline())
        out, errors = (Path(folder, name).read_text() for name in ("out", "errors"))
        return SimpleNamespace(returncode=status, stdout=out, stderr=errors)

    yield train
    server.stdin.close()
    server.wait()


@pytest.fixture
def own(drawn, tmp_path, monkeypatch):
    """A Config of a run in a temporary folder, on sets drawn elsewhere."""
    monkeypatch.chdir(tmp_path)
    return replace(drawn, checkpoint_per_batch=3, Epoch=3)


@pytest.fixture(scope="module")
def sets(drawn):
    reader = ReadData(drawn)
    return [Data(*reader.load_data(folder)[:2]) for _, folder, _ in drawn.sets]


def everything(folder, tf):
    """All tensors of the newest checkpoint but the seconds in its record, and the step it is of."""
    reader = tf.train.load_checkpoint(saves(folder)[0])
    tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    record = json.loads(tensors.pop("record"))
    progress = {k: v for k, v in record["progress"].items() if "seconds" not in k}
    return {name: value.tobytes() for name, value in tensors.items()}, progress


def told(lines):
    """The lines that a run prints of its steps and of its result; a line printed twice counts once."""
    kept = [line for line in lines if re.match(r"Epoch|Step|Test acc|Captcha acc|No improvement", line)]
    return list(dict.fromkeys(kept))


# ---------------------------------------------------------------------- resuming


@pytest.mark.parametrize("moment", ["between two steps", "while validating"])
def test_a_run_stopped_often_ends_as_one_never_stopped(moment, own, sets, tf, capsys, monkeypatch):
    config = replace(own, patience=45)
    whole, result = driver.run_model(config, *sets)
    weights, progress = everything("checkpoints", tf)
    lines = told(capsys.readouterr().out.splitlines())
    assert len(lines) > 12
    shutil.rmtree("checkpoints")
    shutil.rmtree("tensorboard")

    check, evaluate, left = Stop.check, driver.evaluate, 0

    def count_down():
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped(signal.SIGINT)

    if moment == "between two steps":
        monkeypatch.setattr(Stop, "check", lambda self: (count_down(), check(self)))
    else:
        monkeypatch.setattr(driver, "evaluate", lambda *each: (evaluate(*each), count_down())[0])
    saved = None
    for left in (1, 2, 17, 12) if moment == "between two steps" else (1, 2, 4, 1):  # noqa: B007 - counted down
        with pytest.raises(Stopped):
            driver.run_model(config, *sets, saved)
        saved = load("checkpoints")
    assert 20 < saved.progress["step"] < whole.step or moment == "while validating"
    _, test = driver.run_model(config, *sets, saved)
    assert test == result
    assert everything("checkpoints", tf) == (weights, progress)
    assert told(capsys.readouterr().out.splitlines()) == lines
    assert len(saves("checkpoints")) == session.KEPT


def points(folder):
    """Of each curve: the points that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for part in ("train", "validation"):
        every = {"scalars": 0, "images": 0}  # not a sample of them
        accumulator = EventAccumulator(str(Path(folder, "tensorboard", part)), every)
        accumulator.Reload()
        for tag in set(accumulator.Tags()["scalars"]) - {"pictures_per_second"}:
            found[part, tag] = [(each.step, each.value) for each in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["images"]:
            found[part, tag] = [(each.step, each.encoded_image_string) for each in accumulator.Images(tag)]
    return found


def test_fifty_kills_change_nothing(trainer, own, tf, tmp_path):
    config = replace(own, Epoch=60, patience=10**6, print_per_batch=20, save_per_batch=20)
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    asked = flags(config)
    whole = trainer(folders[0], *asked)
    assert (whole.returncode, whole.stderr) == (0, "")

    kills, lines, seed = 0, [], 0
    while kills < 50:
        seed += 1
        assert seed < 100, "the kills must come before the end"
        done = trainer(folders[1], *asked, "--resume", kill=(seed, 45))
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
        lines += done.stdout.splitlines()
        if saves(str(folders[1] / "checkpoints")):
            assert load(str(folders[1] / "checkpoints")).progress["step"] >= 0
    assert load(str(folders[1] / "checkpoints")).progress["step"] > 300
    done = trainer(folders[1], *asked, "--resume")
    assert done.returncode == 0, done.stderr
    for folder in folders:
        assert len(list(Path(folder, "checkpoints").glob("state-*"))) == 2 * session.KEPT
    assert everything(f"{folders[0]}/checkpoints", tf)[0] == everything(f"{folders[1]}/checkpoints", tf)[0]
    assert told(lines + done.stdout.splitlines()) == told(whole.stdout.splitlines())
    assert points(folders[0]) == points(folders[1])


def test_with_nothing_to_resume_a_run_begins_and_says_so(trainer, own, tmp_path):
    done = trainer(tmp_path, *flags(replace(own, Epoch=1)), "--resume")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "Nothing to resume in checkpoints: a new run begins"
    again = trainer(tmp_path, "--resume")  # finished: its settings and its result, and not a step more
    assert (again.returncode, again.stderr) == (0, "")
    assert told(again.stdout.splitlines()) == told(done.stdout.splitlines())[-2:]


def test_a_run_is_resumed_only_with_its_settings_and_pictures(trainer, own, sets, tmp_path):
    assert trainer(tmp_path, *flags(replace(own, Epoch=1))).returncode == 0
    refused = trainer(tmp_path, "--resume", "--alpha", "0.01")
    assert_refused(refused, 2, "alpha must be 0.003 to resume the run in checkpoints, not 0.01")
    other = sets[0]._replace(labels=np.roll(sets[0].labels, 1, axis=0))
    with pytest.raises(CaptchaError, match="must be those that the run in checkpoints began with"):
        driver.run_model(own, other, *sets[1:], load("checkpoints"))


@pytest.mark.parametrize("values", [{}, {"best": [1, 2]}, {"best": None, "pictures": "", "other": 1}])
def test_a_run_of_another_version_is_named(values):
    with pytest.raises(
        CaptchaError, match="must be of this version of the program to be resumed, but is of another"
    ):
        driver.Progress.of(values)


def test_a_run_of_another_network_is_named_though_its_weights_have_the_same_shapes(
    own, sets, tf, monkeypatch
):
    import cnn_model

    own = replace(own, Epoch=1)
    driver.run_model(own, *sets)
    monkeypatch.setattr(cnn_model, "STRIDES", ((2, 2), (2, 2), (4, 2)))
    saved = load("checkpoints")
    with pytest.raises(CaptchaError, match=r"of another \(best/conv2_2x2/beta\): resume it with that"):
        driver.run_model(own, *sets, saved)
    with (
        tf.Graph().as_default(),
        pytest.raises(CaptchaError, match=r"this version .* has no conv2_2x2/kernel"),
    ):
        cnn_model.frozen(own, saved.weights)


def test_a_run_of_another_optimiser_is_named(own, sets, tf, monkeypatch):
    import cnn_model

    def adam(loss, trained, alpha, step):
        return tf.train.AdamOptimizer(alpha).minimize(loss, step, trained)

    own = replace(own, Epoch=1)
    with monkeypatch.context() as patched:
        patched.setattr(cnn_model, "descend", adam)
        driver.run_model(own, *sets)
    with pytest.raises(CaptchaError, match=r"of another \(conv1_2x2/kernel/Adam\): resume it with that"):
        driver.run_model(own, *sets, load("checkpoints"))


def test_an_unfinished_run_is_never_destroyed(own, sets, tf, capsys, monkeypatch):
    check, left = Stop.check, 0

    def stop(self):
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped(signal.SIGINT)
        check(self)

    monkeypatch.setattr(Stop, "check", stop)
    places = []
    for left in (8, 5, 0, 0, 7):  # noqa: B007 - stop() counts it down; 0: to the end
        with contextlib.suppress(Stopped):
            driver.run_model(replace(own, Epoch=1), *sets)
        places += re.findall("The run before is kept in (.*)", capsys.readouterr().out)
    assert places == [f"checkpoints/previous{each}" for each in ("", "-2", "-3", "-3")]
    steps = [load(place).progress["step"] for place in places[:3]]
    assert steps == [5, 3, 22]
    with pytest.raises(ConfigError, match="char_num must be 3"):
        driver.settings_to_go_on_with(own, replace(own, char_num=2), ["char_num"])


# ---------------------------------------------------------------------- signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_training_with_all_saved(number, status, trainer, own, tmp_path):
    config = replace(own, Epoch=10**6, patience=10**6, checkpoint_per_batch=10**6)

    def meanwhile(pid):
        while "Step    20" not in (tmp_path / "out").read_text():
            pass
        os.kill(pid, number)

    (tmp_path / "out").touch()
    done = trainer(tmp_path, *flags(config), meanwhile=meanwhile)
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.splitlines()[-1] == "Stopped; all is saved. Go on: python driver.py --resume"
    assert load("checkpoints").progress["step"] > 20


@pytest.fixture
def ctrl_c():
    """SIGINT as Python has it by default, however the tests were started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_that_is_ignored_stays_ignored(ctrl_c):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        stop.check()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            stop.check()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_the_first_signal_waits_for_the_step_and_the_second_does_not(ctrl_c, monkeypatch):
    ended = []
    monkeypatch.setattr(os, "kill", lambda *each: ended.append(each))
    with Stop() as stop:
        stop.check()
        signal.raise_signal(signal.SIGTERM)
        assert not ended
        with pytest.raises(Stopped) as stopped:
            stop.check()
        assert stopped.value.status == 143
        with pytest.raises(Stopped), stop.at_once():
            pytest.fail("a signal that has come ends what takes long before it begins")
        signal.raise_signal(signal.SIGINT)
        assert ended == [(os.getpid(), signal.SIGINT)]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with Stop() as stop, pytest.raises(Stopped), stop.at_once():
        signal.raise_signal(signal.SIGINT)  # what takes long is ended


# ---------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def three_saves(drawn, sets, tmp_path_factory):
    """A folder with three checkpoints."""
    folder = tmp_path_factory.mktemp("saves")
    places = {name: str(folder / name) for name in ("checkpoint_folder", "tensorboard_folder")}
    driver.run_model(replace(drawn, Epoch=1, checkpoint_per_batch=10, **places), *sets)
    assert [Path(path).name for path in saves(places["checkpoint_folder"])] == [
        "state-22",
        "state-20",
        "state-10",
    ]
    return Path(places["checkpoint_folder"])


def damages(name, content):
    """A file cut off at many lengths, and with some bits of many bytes flipped."""
    chosen = random.Random(name)
    for length in [0, 1, *chosen.sample(range(len(content)), 40), len(content) - 1]:
        yield content[:length]
    for place in chosen.sample(range(len(content)), 150):
        changed = bytearray(content)
        changed[place] ^= chosen.randrange(1, 256)
        yield bytes(changed)


def test_damage_is_noticed_named_and_passed_over(three_saves, tmp_path, capfd, tf):
    good = {path: read_save(path) for path in saves(str(three_saves))}
    newest, before, _ = good
    parts = sorted(three_saves.glob("state-22.*"))
    assert len(parts) == 2
    noticed = 0
    for part in parts:
        content = part.read_bytes()
        for changed in damages(part.name, content):
            part.write_bytes(changed)
            found = load(str(three_saves))
            told = capfd.readouterr().err
            assert found.path in (newest, before)
            noticed += found.path == before
            assert (f"{newest} is damaged (" in told) == (found.path == before)
            assert found.progress == good[found.path].progress
            assert found.config == good[found.path].config
            for name, value in good[found.path].weights.items():
                assert np.array_equal(found.weights[name], value)
        part.unlink()
        assert load(str(three_saves)).path == before
        assert f"{newest} is damaged (" in capfd.readouterr().err
        part.write_bytes(content)
    assert load(str(three_saves)).path == newest
    assert noticed > 370, "of 386; what is not read, such as the padding of the index, may change"


def test_a_real_loss_that_is_not_finite_leaves_the_best_weights(trainer, own, tmp_path):
    done = trainer(tmp_path, *flags(replace(own, alpha=1.0, Epoch=99, print_per_batch=1)))
    assert done.returncode == 0, done.stderr
    step, best_step = re.search(r"not finite at step (\d+): .* of step (\d+), are kept", done.stdout).groups()
    saved = load("checkpoints")
    assert (saved.progress["step"], saved.progress["best_step"]) == (int(step), int(best_step))
    assert int(best_step) < int(step) < 99 * 22
    assert all(np.isfinite(each).all() for each in saved.weights.values())
    assert "Captcha accuracy:" in done.stdout


def test_where_all_are_damaged_one_sentence_says_so(three_saves, tmp_path, tf):
    for path in three_saves.glob("state-*"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:100])
    with pytest.raises(CaptchaError, match=r"but all that it holds is damaged: .*state-22 is damaged"):
        load(str(tmp_path))


def test_only_files_of_checkpoints_are_moved_or_removed(three_saves, tmp_path, tf):
    ours = sorted(path.name for path in three_saves.glob("state-*"))
    for name in ours:
        shutil.copy(three_saves / name, tmp_path)
        shutil.copy(three_saves / name, tmp_path / name.replace("state-", "state-1"))
    canaries = [
        "state-22",
        "state-22.txt",
        "state-x.index",
        "best.index",
        "checkpoint.txt",
        "my-state-22.index",
    ]
    for name in canaries:
        (tmp_path / name).touch()
    (tmp_path / "state-3.index.tempstate9").touch()
    session.tidy(str(tmp_path))
    left = {name.replace("state-", "state-1") for name in ours}
    assert {path.name for path in tmp_path.iterdir()} == left | set(canaries)
    assert session.keep_earlier(str(tmp_path)) == str(tmp_path / "previous")
    assert {path.name for path in tmp_path.iterdir()} == {"previous", *canaries}
    assert {path.name for path in (tmp_path / "previous").iterdir()} == left


# ---------------------------------------------------------------------- full disks


def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stays(trainer, own, tmp_path):
    for limit in (1000, 100_000, 800_000):  # bytes that a file may have: the curves', then the checkpoint's
        done = trainer(tmp_path, *flags(own), limit=limit)
        assert_refused(done, 1, "training could not go on (")
    assert trainer(tmp_path, *flags(own)).returncode == 0


def test_an_error_in_any_call_is_no_traceback_and_the_next_run_goes_on(trainer, drawn, tmp_path):
    places = {f"{name}_folder": name for name in ("train", "validation", "test")}
    asked = flags(replace(drawn, **places, generate_num=(3, 2, 2), Epoch=1))
    failures = 0
    for call in range(1, 80, 7):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        done = trainer(tmp_path, *asked, fail=call)
        if done.returncode:
            failures += 1
            assert done.returncode == 1
            assert "No space left on device" in done.stderr
            assert "Traceback" not in done.stderr
            again = trainer(tmp_path, *asked, "--resume")
            assert (again.returncode, again.stderr) == (0, ""), call
            assert "Captcha accuracy" in again.stdout
    assert failures > 6


def mounted(folder, options):
    """Whether a file system of its own could be mounted there."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return shutil.which("mount") and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("full", ["checkpoints", "tensorboard", "train"])
def test_a_real_full_disk(full, trainer, own, tmp_path):
    asked = replace(own, Epoch=10**4, patience=10**6, checkpoint_folder="checkpoints")
    if full == "train":
        asked = replace(asked, **{f"{name}_folder": name for name in ("train", "validation", "test")})
    (tmp_path / full).mkdir()
    if not mounted(tmp_path / full, "size=4m" if full == "checkpoints" else "size=64k"):
        pytest.skip("this machine does not let us mount a file system")
    try:
        done = trainer(tmp_path, *flags(asked))
        assert_refused(done, 1, "No space left on device")
        if full == "train":
            pictures = [path for path in Path(full).glob("*.png") if not path.name.startswith(".")]
            assert pictures
            reader = ReadData(asked)
            assert all(reader.read_picture(str(path)).shape == (23, 37) for path in pictures)
        elif full == "checkpoints":
            assert load(full).progress["step"] > 0
    finally:
        subprocess.run(["umount", str(tmp_path / full)], check=True)


@pytest.mark.parametrize("folder", ["checkpoints", "tensorboard", "train"])
def test_a_folder_that_cannot_be_written_to(folder, trainer, own, tmp_path):
    places = {f"{name}_folder": name for name in ("train", "validation", "test")}
    (tmp_path / folder).mkdir()
    if not mounted(tmp_path / folder, "ro"):
        pytest.skip("this machine does not let us mount a file system")
    try:
        done = trainer(tmp_path, *flags(replace(own, **places if folder == "train" else {})))
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
)
def test_any_settings_are_a_run_or_one_sentence(
    trainer, size, length, alphabet, counts, batch, alpha, share, every
):
    asked = ["--width", size[0], "--height", size[1], "--char-num", length, "--characters", alphabet]
    asked += ["--generate-num", *counts, "--batch-size", batch, "--alpha", alpha, "--epoch", 2]
    for name in ("keep-prob", "shift", "scale", "shear", "overlap", "clutter"):
        asked += [f"--{name}", share]
    for name in ("print", "save", "checkpoint"):
        asked += [f"--{name}-per-batch", every]
    with tempfile.TemporaryDirectory() as folder:
        done = trainer(folder, *asked)
        if done.returncode:
            assert_refused(done, 2, "must")
        else:
            assert done.stderr == ""
            assert "Captcha accuracy: " in done.stdout
