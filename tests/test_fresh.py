"""Captchas drawn while training: the same for any number of processes, for resuming, and after a kill."""

import itertools
import os
import signal
import string
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT, TINY, flags
from forks import default_sigint
from training_fakes import (
    MODEL,
    TRAINING,
    FakeCheckpoint,
    FakeSession,
    FakeWriter,
    interrupter,
    numbered_images,
)

import driver
from captcha_cnn import batches, fresh, parallel
from captcha_cnn.checkpoint import TrainState, load_latest, settings_to_resume
from captcha_cnn.cli import parse
from captcha_cnn.dataset import dataset_hash, no_images
from captcha_cnn.drawing import draw_captcha
from captcha_cnn.fresh import FreshCaptchas, StepTimes, waiting_line
from captcha_cnn.images import image_for
from captcha_cnn.tf_runtime import GracefulStop, TrainingInterrupted
from config import CaptchaError, Config, ConfigError
from generate_captcha import ReadData

FRESH = replace(TINY, fresh=True, generate_num=(15, 4, 5), Epoch=3)  # an epoch is batches of 7 and 8


def batches_from(step, config, cores, monkeypatch, count=100):
    """(epoch, x, y) of the steps from that one on, drawn by so many processes."""
    monkeypatch.setattr(fresh, "available_cores", lambda: cores)
    train = FreshCaptchas(config)
    with fresh.processes(train, step):
        return list(itertools.islice(batches.batches_from(step, train, config, driver.next_batch), count))


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for (epoch, x, y), (expected_epoch, expected_x, expected_y) in zip(found, expected, strict=True):
        assert epoch == expected_epoch
        assert np.array_equal(x, expected_x)
        assert np.array_equal(y, expected_y)


def test_the_same_batches_for_any_number_of_processes_and_from_any_step_on(monkeypatch):
    expected = batches_from(0, FRESH, 1, monkeypatch)
    assert [(epoch, len(x), len(y)) for epoch, x, y in expected] == [
        (e, n, n) for e in range(3) for n in (7, 8)
    ]
    assert_equal(batches_from(0, FRESH, 3, monkeypatch), expected)
    assert_equal(batches_from(3, FRESH, 2, monkeypatch), expected[3:])


def test_a_batch_is_drawn_captchas_augmented_as_those_of_files_are():
    config = replace(FRESH, **dict.fromkeys(("shift", "scale", "shear", "squeeze", "noise"), 0.0))
    x, y, seconds = fresh.draw_batch(config, 3)
    captchas = [draw_captcha(config, "fresh/3", number) for number in range(8)]
    images = np.stack([image_for(image, config) for _, image in captchas])
    assert (x.dtype, y.dtype) == (np.uint8, np.float32)
    assert np.array_equal(x, images)
    assert [ReadData(config).vec2label(each) for each in y] == [label for label, _ in captchas]
    assert seconds > 0
    random = batches.random_stream(FRESH.seed, batches.AUGMENTATION, 1, 1)
    assert np.array_equal(fresh.draw_batch(FRESH, 3)[0], driver.augment(images, FRESH, random, 1))


@pytest.mark.parametrize("other", [{"seed": 1}, {}])
def test_no_captcha_is_drawn_twice(other):
    config = replace(FRESH, **dict.fromkeys(("shift", "scale", "shear", "squeeze", "noise"), 0.0))
    drawn = [fresh.draw_batch(replace(config, **other), step)[0] for step in range(6)]
    if other:
        drawn += [fresh.draw_batch(config, step)[0] for step in range(6)]
    images = [image.tobytes() for x in drawn for image in x]
    assert len(set(images)) == len(images) == 45 * (1 + len(other))


# ---------------------------------------------------------------------- interruptions


def fake_trainer(state, session):
    trainer = driver.Trainer(FRESH, state, GracefulStop())
    trainer.model, trainer.session, trainer.start = MODEL, session, {}
    trainer.checkpoint, trainer.writer = FakeCheckpoint(session), FakeWriter()
    return trainer


def validation_images():
    return numbered_images(3)._replace(labels=np.tile(np.eye(5)[0], (3, 3)))


class PoolWithoutProcesses:
    """Draws three batches; then a process is killed."""

    def __init__(self, meanwhile):
        self.left, self.meanwhile = 3, meanwhile

    def submit(self, work, config, step):
        coming = Future()
        self.left -= 1
        if self.left >= 0:
            coming.set_result(work(config, step))
        else:
            coming.set_exception(BrokenProcessPool())
        return coming

    def shutdown(self, cancel_futures):
        self.meanwhile()


@pytest.mark.parametrize("signalled", [False, True])
def test_where_a_process_is_killed_the_run_is_saved_and_a_signal_is_the_reason_where_one_came(
    signalled, monkeypatch
):
    session, stop = FakeSession(), GracefulStop()
    trainer = fake_trainer(TrainState("hash"), session)
    trainer.stop = stop
    ended = []

    def end():  # systemd and others send SIGTERM to all processes
        ended.append("ended")
        if signalled:
            stop._on_signal(signal.SIGTERM, None)

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", lambda *_: PoolWithoutProcesses(end))
    expected = {} if signalled else {"match": "Drawing needs its processes, but one was killed"}
    with pytest.raises(TrainingInterrupted if signalled else CaptchaError, **expected) as raised:
        trainer.train(FreshCaptchas(FRESH), validation_images())
    assert trainer.checkpoint.saved[-1] == trainer.state.step == session.step > 0
    assert ended == ["ended"], "the other processes were not ended"
    assert raised.value.status == (143 if signalled else 1)


def test_a_run_interrupted_often_trains_on_the_batches_of_one_never_interrupted(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen, session = [], FakeSession()
    run = session.run

    def note_batches(fetches, feed):
        if fetches == TRAINING:
            seen.append((feed["x"].tobytes(), feed["y"].tobytes()))
        return run(fetches, feed)

    monkeypatch.setattr(session, "run", note_batches)
    monkeypatch.setattr(fresh, "process_pool", lambda *_: ThreadPoolExecutor(1))
    interrupt_after = interrupter(monkeypatch)
    validation = validation_images()
    state = TrainState("hash")
    for steps in (1, 3, 2):
        interrupt_after(steps)
        with pytest.raises(TrainingInterrupted):
            fake_trainer(state, session).train(FreshCaptchas(FRESH), validation)
    fake_trainer(state, session).train(FreshCaptchas(FRESH), validation)
    expected = [fresh.draw_batch(FRESH, step)[:2] for step in range(6)]
    assert seen == [(x.tobytes(), y.tobytes()) for x, y in expected]


def start(folder, *arguments):
    """A training on fresh captchas that has passed its first steps, in a process group of its own."""
    config = replace(FRESH, Epoch=10**6, patience=10**6, print_per_batch=1)
    command = [sys.executable, str(PROJECT / "driver.py"), *flags(config), *arguments]
    process = subprocess.Popen(
        command,
        cwd=folder,
        start_new_session=True,
        preexec_fn=default_sigint,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    steps = (line for line in process.stdout if line.startswith("Step"))
    if len(list(itertools.islice(steps, 3))) < 3:
        raise AssertionError(process.stderr.read())
    return process


def drawing_processes(process):
    """The numbers of the processes that draw for it."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    names = {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in children}
    return [child for child, name in names.items() if "spawn_main" in name]


def assert_nothing_is_left(process):
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a process that draws is left")


def test_real_processes_are_killed_and_interrupted_and_the_run_goes_on(tmp_path, tf):
    process = start(tmp_path)
    assert not (tmp_path / "train").exists(), "the training set is neither drawn nor needed"
    draws, *_ = drawing_processes(process)
    of_training, of_drawing = (os.getpriority(os.PRIO_PROCESS, each) for each in (process.pid, draws))
    assert of_drawing == min(19, of_training + fresh.LOWER_PRIORITY), "drawing takes cores from training"
    os.kill(draws, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    sentence = (
        "driver.py: Drawing needs its processes, but one was killed, perhaps for lack of memory: close other "
        "programs and go on from here with python driver.py --resume"
    )
    assert (process.returncode, errors.strip()) == (1, sentence)
    assert_nothing_is_left(process)
    killed_at = load_latest(str(tmp_path / "checkpoints")).progress["step"]
    assert killed_at >= 2

    process = start(tmp_path, "--resume")
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches all of them
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert out.splitlines()[-1] == "Stopped; everything is saved. Go on: python driver.py --resume"
    assert_nothing_is_left(process)
    assert load_latest(str(tmp_path / "checkpoints")).progress["step"] > killed_at


# ---------------------------------------------------------------------- whether training waits


def times(waiting, training=0.02, training_cores=0.03, drawing_cores=0.05):
    return [StepTimes(waiting, training, training_cores, drawing_cores)] * 9


def test_waiting_is_said_with_the_cores_that_would_do():
    found = waiting_line(times(0.02), 2)
    assert found == (
        "Training waits for captchas to be drawn, 50% of its time: about 4 cores would do, here are 2"
    )
    assert "about 3 cores" in waiting_line(times(0.02, drawing_cores=0.0), 2), "more than there are"
    pauses = [StepTimes(0.02, 9.0, 9.0, 0.05)] * 4  # steps with validation
    assert waiting_line(times(0.02) + pauses, 2) == found


def test_nothing_is_said_where_training_hardly_waits():
    assert waiting_line(times(0.001), 2) == ""
    assert "10%" in waiting_line(times(0.0023), 2)


class SlowDrawing:
    """Batches that take `seconds` of a clock that only they and training move."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds = 0.0, seconds
        monkeypatch.setattr(fresh.time, "monotonic", lambda: self.now)

    def __iter__(self):
        for step in range(3 * fresh.WATCHED_STEPS):
            self.now += self.seconds
            yield step

    def train(self, train):
        """Go through the batches as training does."""
        for _ in fresh.watch(iter(self), train):
            self.now += 0.02


@pytest.mark.parametrize(("seconds", "lines"), [(0.02, 1), (0.0, 0)])
def test_the_line_is_printed_once_where_drawing_is_slow_and_not_otherwise(
    seconds, lines, monkeypatch, capsys
):
    SlowDrawing(monkeypatch, seconds).train(FreshCaptchas(FRESH))
    assert capsys.readouterr().out.count("Training waits for captchas to be drawn") == lines


def test_sets_on_disk_are_not_watched(monkeypatch, capsys):
    SlowDrawing(monkeypatch, 0.5).train(no_images(TINY))
    assert capsys.readouterr().out == ""


def test_frequent_characters_have_a_fifth_of_the_places_of_training_captchas_and_of_no_others():
    config = replace(FRESH, characters=string.ascii_uppercase, generate_num=(300, 4, 5), batch_size=300)
    often = replace(config, frequent="BX")
    evenly, more, again = (fresh.draw_batch(each, 0)[1] for each in (config, often, often))
    shares = [y.reshape(-1, 26)[:, [1, 23]].mean(axis=0) for y in (evenly, more)]  # of 900 characters
    assert shares[0] == pytest.approx([1 / 26] * 2, abs=0.03)
    assert shares[1] == pytest.approx([0.1 + 0.8 / 26] * 2, abs=0.04)
    assert np.array_equal(more, again)
    for name in ("validation", "test"):
        assert draw_captcha(often, name, 3)[0] == draw_captcha(config, name, 3)[0]


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--images", "own"], "fresh must be left out, since --images FOLDER is split into the three sets"),
        (["--unlabelled", "own"], "fresh must be left out, since nothing is drawn"),
        (
            ["--train-folder", "t"],
            "train_folder must be left out, since --fresh draws the training images anew",
        ),
        (["--labels", "own.csv"], "labels must be left out, since --images FOLDER is missing"),
        (["--folds", "5"], "folds must be left out, since --images FOLDER is missing"),
        (["--frequent", "17a"], "frequent must be characters of the alphabet, not 'a'"),
        (["--no-fresh", "--frequent", "17"], "frequent must be left out, since --fresh is missing"),
    ],
)
def test_settings_that_do_nothing_beside_it_are_refused(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    with pytest.raises(ConfigError, match=sentence):
        driver.main(["--fresh", *arguments])


def test_new_images_have_neither_augmentation_nor_dropout_unless_a_flag_says_so():
    with_flag = parse(["--fresh"], "")
    off = dict.fromkeys(("shift", "scale", "shear", "squeeze", "noise"), 0.0)
    assert with_flag == Config(fresh=True, keep_prob=1.0, **off)
    assert not with_flag.augmented
    given = parse(["--fresh", "--scale", "0.1", "--keep-prob", "0.8"], "")
    assert given == replace(with_flag, scale=0.1, keep_prob=0.8)
    for arguments in ([], ["--no-fresh"]):
        assert parse(arguments, "") == Config()


def test_own_images_neither_validate_nor_test_fresh_captchas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("validation").mkdir()
    Path("validation", "abc.png").write_bytes(b"own")
    with pytest.raises(CaptchaError, match="validation must be empty to draw captchas into"):
        driver.load_sets(FRESH, [])


def test_a_run_is_not_resumed_with_other_images():
    with pytest.raises(ConfigError, match="fresh must be True to resume"):
        settings_to_resume(FRESH, replace(FRESH, fresh=False), ["fresh"])


def test_the_training_set_is_neither_drawn_nor_needed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, sets, _, _ = driver.load_sets(FRESH, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test", "validation"]
    assert [each.size for each in sets] == [15, 4, 5]
    assert len(sets[0].images) == 0
    assert dataset_hash(*sets[:2]) != dataset_hash(sets[0], sets[2])


def test_fresh_captchas_have_colours_where_they_are_read():
    config = replace(FRESH, colour=True)
    x, _, _ = fresh.draw_batch(config, 0)
    assert x.shape == (7, 23, 37, 3)
    assert (x != x[..., :1]).any()
