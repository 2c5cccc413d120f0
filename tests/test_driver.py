import contextlib
import io
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PROJECT, TINY, assert_refused, flags, script
from PIL import Image

import curves
import driver
import session
from config import CaptchaError, Config, ConfigError
from driver import Answered, Data, Metrics, Progress
from generate_captcha import ReadData
from predict import Predictor
from session import Stop, load

# ---------------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def sets(drawn):
    reader = ReadData(drawn)
    return [Data(*reader.load_data(folder)[:2]) for _, folder, _ in drawn.sets]


def numbered(count):
    """Pictures of which each has one grey of its own, and label vectors to match."""
    images = np.tile(np.arange(count, dtype=np.uint8)[:, None, None], (1, 23, 37))
    return Data(images, np.arange(count, dtype=np.float32)[:, None])


def test_an_epoch_has_every_picture_once_with_its_label():
    batches = list(driver.next_batch(numbered(17), TINY, 0))  # a clutter of one grey leaves that grey
    assert [len(x) for x, _ in batches] == [7, 7, 3]
    order = np.concatenate([y[:, 0] for _, y in batches])
    assert sorted(order) == list(range(17))
    assert np.array_equal(np.concatenate([x[:, 11, 18] for x, _ in batches]), order)


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(config, epoch):
        return np.concatenate([y[:, 0] for _, y in driver.next_batch(numbered(50), config, epoch)]).tolist()

    assert order(TINY, 0) == order(TINY, 0)
    assert (
        len({tuple(order(config, epoch)) for config in (TINY, replace(TINY, seed=9)) for epoch in (0, 1)})
        == 4
    )
    assert order(TINY, 0) != sorted(order(TINY, 0))


def test_batches_made_ahead_are_the_same_in_the_same_order():
    assert list(driver.ahead(iter(range(7)))) == list(range(7))


def test_an_error_in_making_a_batch_is_raised():
    def batches():
        yield 1
        raise ValueError("no second batch")

    with pytest.raises(ValueError, match="no second batch"):
        list(driver.ahead(batches()))


def test_feed_data_feeds_x_y_and_keep_prob():
    model = SimpleNamespace(x="x", y="y", keep_prob="keep_prob")
    assert driver.feed_data(model, 1, 2) == {"x": 1, "y": 2, "keep_prob": 1.0}
    assert driver.feed_data(model, 1, 2, 0.5) == {"x": 1, "y": 2, "keep_prob": 0.5}


class Reads:
    """A session that reads as told: picture i (its grey) has loss i, and right[i] are its right symbols."""

    def __init__(self, right):
        self.right = np.array(right, bool)

    def run(self, fetches, feed):
        assert fetches == ["loss", "symbols", "right"]
        assert feed["keep_prob"] == 1.0
        which = feed["x"][:, 0, 0]
        return which.astype(np.float32), self.right[which] * 3, self.right[which]


FAKE = SimpleNamespace(
    x="x",
    y="y",
    keep_prob="keep_prob",
    loss="loss",
    answers=SimpleNamespace(symbols="symbols"),
    right="right",
)


def test_evaluate_counts_every_picture_the_same(monkeypatch):
    monkeypatch.setattr(session, "READ_AT_ONCE", 3)
    right = [[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
    metrics = Metrics.of(driver.evaluate(Reads(right), FAKE, numbered(7)))
    assert metrics[:4] == (3.0, 16 / 21, 4, 7)
    assert metrics.captcha_accuracy == 4 / 7
    assert metrics.likelihood == pytest.approx(np.exp(-3 * np.arange(7)).mean())


# ---------------------------------------------------------------------- what people see


def test_the_classic_line_to_the_letter():
    train, validation = Metrics(0.456, 0.125, 0, 16, 0.1), Metrics(0.4649, 0.1035, 1, 500, 0.1)
    classic = (
        "Step    20, train_acc:  12.50%, train_loss:  0.46, val_acc:  10.35%, val_loss:  0.46, improved:*"
    )
    assert driver.status_line(20, train, validation, True) == classic + ", val_captcha_acc:   0.20%"
    assert "improved: ," in driver.status_line(20, train, validation, False)


def test_the_test_report_to_the_letter():
    assert driver.test_report(Metrics(0.08, 0.9991, 9967, 10000, 0.99)) == (
        "Test accuracy:  99.91%, loss:  0.08\n"
        "Captcha accuracy:  99.67% (9967 of 10000, 95% interval 99.54 to 99.76)"
    )


def test_due_every_n_steps_from_step_0():
    assert [step for step in range(12) if driver.due(step, 5)] == [0, 5, 10]
    assert all(driver.due(step, 1) for step in range(3))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_durations_do_not_wrap(seconds, text):
    assert driver.duration(seconds) == text


def test_a_copy_of_each_validation_picture_is_changed_and_always_the_same():
    random = np.random.default_rng(0)
    data = Data(random.integers(0, 255, (300, 23, 37), np.uint8), random.random((300, 15), np.float32))
    both = driver.with_copies(data, TINY)
    assert np.array_equal(both.images[:300], data.images)
    assert np.array_equal(both.labels, np.concatenate([data.labels, data.labels]))
    assert both.images.shape == (600, 23, 37)
    assert (both.images[300:] != data.images).any(axis=(1, 2)).all()
    assert np.array_equal(driver.with_copies(data, TINY).images, both.images)
    assert not np.array_equal(driver.with_copies(data, replace(TINY, seed=1)).images, both.images)


def test_better_is_what_makes_the_labels_clearly_likelier():
    best = Metrics(0.5, 0.9, 80, 100, 0.7)
    assert best._replace(loss=0.6, accuracy=0.8, right=79, likelihood=0.72).improves_on(best)
    assert not best.improves_on(best)
    assert not best._replace(loss=0.4, accuracy=1.0, right=100, likelihood=0.719).improves_on(best)
    assert not best._replace(loss=math.nan, likelihood=math.nan).improves_on(best)
    assert not best._replace(loss=math.nan, likelihood=math.nan).improves_on(None)
    assert best._replace(likelihood=0.0).improves_on(None), "the first result, however bad"
    hardly = best._replace(likelihood=1e-9)  # long labels are unlikely for long
    assert best._replace(likelihood=1.2e-9).improves_on(hardly)
    assert not best._replace(likelihood=1.0).improves_on(best._replace(likelihood=1.0))


def test_the_base_rate_is_named_with_what_to_try():
    stuck = Metrics(1.60, 0.2, 0, 20, 0.0)
    assert driver.at_base_rate(stuck, TINY)
    assert not driver.at_base_rate(Metrics(1.0, 0.5, 5, 20, 0.1), TINY)
    text = driver.base_rate_warning(stuck, TINY)
    assert "(1.60; guessing gives ln 5 = 1.61)" in text
    assert "--alpha" in text


# ---------------------------------------------------------------------- the loop, with a session that is told


class Told:
    """A session that is told the losses and how many captchas are right at each step."""

    def __init__(self, training=lambda step: 1.0, validation=lambda step: 1.0, right=lambda step: 0):
        self.training, self.validation, self.right, self.step = training, validation, right, 0

    def run(self, fetches, feed):
        if fetches == ["train_op", "training_loss"]:
            self.step += 1
            return None, self.training(self.step - 1)
        count = len(feed["x"])
        right = np.arange(count)[:, None] < [self.right(self.step)] * 3
        return np.full(count, self.validation(self.step)), right * 0, right


class Saves:
    """A checkpoint that notes the steps at which the best weights were kept, and the whole run saved."""

    def __init__(self):
        self.kept, self.saved = [], []

    def keep_best(self, session):
        self.kept.append(session.step)

    def save(self, session, progress):
        assert progress["step"] == session.step
        self.saved.append(session.step)


class Points(list):
    def write(self, step, train, validation):
        self.append((step, train, validation))

    def show(self, step, pictures):
        assert set(pictures) == {"confusions", "read_worst"}


LOOP = SimpleNamespace(**vars(FAKE), train_op="train_op", training_loss="training_loss")


def fit(session, **settings):
    config = replace(TINY, **settings)
    saves, points, progress = Saves(), Points(), Progress("of these")
    sets = (numbered(count)._replace(labels=np.tile(np.eye(5)[0], (count, 3))) for count in (14, 3))
    driver.fit(config, session, LOOP, saves, points, *sets, progress, Stop())
    return progress, saves, [step for step, _, _ in points]


def test_the_seconds_of_training_leave_measuring_and_saving_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow(Told):
        def run(self, fetches, feed):
            now[0] += 1 if fetches == ["train_op", "training_loss"] else 100
            return super().run(fetches, feed)

    progress, _, _ = fit(Slow(), Epoch=3)
    assert progress.training_seconds == progress.step == 6
    assert progress.seconds > 106


def test_training_stops_after_patience_stagnant_steps(capsys):
    session = Told(validation=lambda step: 2.0 ** -min(step, 10))
    progress, saves, _ = fit(session, Epoch=99, patience=15, print_per_batch=5, checkpoint_per_batch=7)
    assert (progress.step, progress.best_step, progress.trained) == (25, 10, True)
    assert saves.kept == [0, 5, 10]
    assert saves.saved == [0, 7, 14, 21, 25]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Epoch : 1"
    assert lines[-1] == "No improvement for over 15 steps, auto-stopping...."
    assert [line[5:10].strip() for line in lines if line.startswith("Step")] == [
        "0",
        "5",
        "10",
        "15",
        "20",
        "25",
    ]
    assert ["improved:*" in line for line in lines if line.startswith("Step")] == [True] * 3 + [False] * 3


def test_changed_copies_choose_the_best_weights_and_are_not_printed(capsys):
    class Copies(Told):
        def run(self, fetches, feed):
            found = super().run(fetches, feed)
            if len(feed.get("x", ())) == 6:  # three validation pictures and their copies
                found[0][:3] = 0.25  # those are read alike at each step
            return found

    told = Copies(validation=lambda step: 2.0 ** -min(step, 10))
    progress, saves, _ = fit(told, Epoch=99, patience=15, print_per_batch=5)
    assert (progress.step, progress.best_step, saves.kept) == (25, 10, [0, 5, 10])
    assert set(re.findall(r"val_loss: +([\d.]+)", capsys.readouterr().out)) == {"0.25"}


def test_training_stops_after_the_last_epoch_and_judges_the_last_weights(capsys):
    progress, saves, points = fit(Told(validation=lambda step: -step), Epoch=3, print_per_batch=4)
    assert (progress.step, progress.best_step) == (6, 6)  # 14 pictures, 7 a step
    assert (saves.kept, saves.saved) == ([0, 4, 6], [0, 6])
    assert points == [0, 6]
    out = capsys.readouterr().out
    assert re.findall(r"Epoch : \d", out) == ["Epoch : 1", "Epoch : 3"]  # at step 0 and 4
    assert "auto-stopping" not in out


def test_lines_and_points_have_their_own_rhythm(capsys):
    _, _, points = fit(Told(), Epoch=6, print_per_batch=5, save_per_batch=3)
    assert points == [0, 3, 6, 9, 12]
    assert re.findall(r"^Step +(\d+)", capsys.readouterr().out, re.M) == ["0", "5", "10", "12"]


def test_a_loss_that_is_not_finite_stops_with_the_best_weights_kept(capsys):
    session = Told(training=lambda step: math.nan if step == 7 else 1.0)
    progress, saves, _ = fit(session, Epoch=99)
    assert (progress.step, progress.best_step, saves.kept, saves.saved) == (8, 0, [0], [0, 8])
    assert "The training loss is not finite at step 8: training stops" in capsys.readouterr().out


def test_weights_that_were_never_any_good_are_no_result():
    with pytest.raises(CaptchaError, match="no weights are worth keeping"):
        fit(Told(training=lambda step: math.nan, validation=lambda step: math.nan))


def test_the_plateau_is_spoken_of_once_and_only_while_it_lasts(capsys, monkeypatch):
    monkeypatch.setattr(driver, "PLATEAU_STEPS", 10)
    fit(Told(validation=lambda step: 1.61), Epoch=20)
    out = capsys.readouterr().out
    assert out.count("still sits at its base rate") == 1
    assert out.index("Step    10") < out.index("still sits") < out.index("Step    15")
    fit(Told(validation=lambda step: 1.61 if step < 10 else 0.5), Epoch=20)
    assert "still sits" not in capsys.readouterr().out


# ---------------------------------------------------------------------- curves, checkpoints, TensorFlow


def test_clearing_takes_event_files_of_this_program_and_nothing_else(tmp_path):
    ours = [tmp_path / part / "events.out.tfevents.1.host.captcha" for part in ("train", "validation")]
    canaries = [
        tmp_path / "events.out.tfevents.1.host.captcha",
        tmp_path / "train" / "events.out.tfevents.1.host",
        tmp_path / "train" / "notes.captcha",
        tmp_path / "other" / "events.out.tfevents.1.host.captcha",
        tmp_path / "train" / "deep" / "events.out.tfevents.1.host.captcha",
    ]
    for path in ours + canaries:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    curves.clear_events(str(tmp_path))
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in canaries)
    curves.clear_events(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    "folder", ["/", ".", "..", os.path.expanduser("~"), str(PROJECT), str(PROJECT.parent)]
)
def test_folders_that_nothing_may_be_cleared_from_are_refused(folder, tmp_path):
    done = script("driver.py", "--tensorboard-folder", folder, cwd=tmp_path)
    assert_refused(
        done, 2, f"must be a folder for curves alone, since earlier ones are cleared from it, but {folder}"
    )
    assert not os.listdir(tmp_path), "something was done before it was refused"


@pytest.mark.parametrize("link", ["curves", "curves/train"])
def test_links_are_not_cleared(link, tmp_path):
    target = tmp_path / "target" / "train"
    target.mkdir(parents=True)
    events = target / "events.out.tfevents.1.host.captcha"
    events.write_text("x")
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(target.parent if link == "curves" else target)
    with pytest.raises(ConfigError, match=r"must be a folder for curves alone, .* is a link"):
        curves.clear_events(str(tmp_path / "curves"))
    assert events.exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx2 fma", False), ("avx512f avx512_bf16", True), ("amx_bf16", True), ("avx_bf16x", False)],
)
def test_bfloat16_where_the_cpu_has_it(flags, expected, tmp_path, tf):
    from session import has_bfloat16, session_config

    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags} sse\n")
    assert has_bfloat16(str(tmp_path / "cpuinfo")) is expected
    assert not has_bfloat16(str(tmp_path / "missing"))
    rewriting = session_config(expected).graph_options.rewrite_options
    assert rewriting.auto_mixed_precision_onednn_bfloat16 == (1 if expected else 0)  # 1: ON


def test_a_folder_without_a_model_is_named(tmp_path, tf):
    with pytest.raises(CaptchaError, match="must hold a trained model, but holds none: train one with"):
        load(str(tmp_path))


def lines_and_weights(config, sets, capsys):
    """What a training prints, and the weights it ends with."""
    driver.run_model(config, *sets)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Step")]
    return lines, load(config.checkpoint_folder).weights


def test_one_seed_gives_one_result_to_the_bit(tiny, sets, capsys):
    first, first_weights = lines_and_weights(tiny, sets, capsys)
    again, again_weights = lines_and_weights(tiny, sets, capsys)
    other, _ = lines_and_weights(replace(tiny, seed=1), sets, capsys)
    assert first == again
    assert first != other
    assert first_weights.keys() == again_weights.keys()
    assert all(np.array_equal(first_weights[name], again_weights[name]) for name in first_weights)


def test_the_test_set_is_read_with_the_best_weights_and_not_the_last(tiny, sets, tf, monkeypatch):
    seen = []
    evaluate = driver.evaluate
    monkeypatch.setattr(
        driver, "evaluate", lambda s, m, d: seen.append((d, evaluate(s, m, d))) or seen[-1][1]
    )
    monkeypatch.setattr(driver, "calibrate", lambda *_: None)  # would change the loss, as would these two
    monkeypatch.setattr(driver, "has_bfloat16", lambda: False)
    monkeypatch.setattr("cnn_model.deployed", lambda weights: weights)
    # The third judgement of validation is made to look best, so that later weights are worse.
    held_out = len(sets[1].images)

    def judged():
        return [answered for data, answered in seen if len(data.images) == 2 * held_out]

    monkeypatch.setattr(Metrics, "improves_on", lambda *_: len(judged()) == 3)
    progress, result = driver.run_model(replace(tiny, alpha=0.01), sets[0], sets[1], sets[1])
    test = Metrics.of(seen[-1][1])
    validations = [Metrics.of(Answered(*(each[:held_out] for each in a))) for a in judged()]
    assert progress.best_step == 10
    assert result == test == pytest.approx(validations[2], rel=1e-5)  # in batches of other sizes
    assert test != validations[-1]


def test_what_reads_after_training_is_float32(tiny, sets, monkeypatch):
    monkeypatch.setattr(driver, "has_bfloat16", lambda: True)
    _, result = driver.run_model(tiny, *sets)
    labels = sets[2].labels.reshape(-1, 3, 5).argmax(axis=2)
    texts = ["".join("abcde"[k] for k in each) for each in labels]
    assert result.loss == pytest.approx(Predictor("checkpoints").loss(sets[2].images, texts), rel=1e-5)


GRAPH_ERROR = (
    "Graph execution error:\n\nDetected at node 'n'\nNode: 'n'\nbest-2: No space left on device\n\tmore"
)


@pytest.mark.parametrize("message", [GRAPH_ERROR, "best-2: No space left on device\nmore"])
@pytest.mark.parametrize("when", ["checkpoint", "curves"])
def test_a_full_disk_is_one_sentence_and_the_best_weights_stay(message, when, tiny, sets, tf, monkeypatch):
    what, name = (driver.Checkpoint, "save") if when == "checkpoint" else (driver.Curves, "write")
    original, calls = getattr(what, name), []

    def full(*arguments):
        calls.append(1)
        if len(calls) > 1:
            raise tf.errors.ResourceExhaustedError(None, None, message)
        original(*arguments)

    monkeypatch.setattr(what, name, full)
    sentence = (
        r"^training could not go on \(best-2: No space left on device\): what was saved before is kept in"
    )
    with pytest.raises(CaptchaError, match=sentence):
        driver.run_model(tiny, *sets)
    tf.train.load_checkpoint(tf.train.latest_checkpoint("checkpoints")).get_tensor("conv1_2x2/kernel")


# ---------------------------------------------------------------------- the real thing


PERCENT = r" +\d+\.\d\d%"
STEP = re.compile(
    rf"Step +(?P<step>\d+), train_acc:(?P<train_acc>{PERCENT}), train_loss: +(?P<train_loss>\d+\.\d\d), "
    rf"val_acc:(?P<val_acc>{PERCENT}), val_loss: +(?P<val_loss>\d+\.\d\d), improved:[* ], "
    rf"val_captcha_acc:(?P<val_captcha_acc>{PERCENT})"
)


def test_end_to_end_prints_the_classic_lines(trained):
    assert (
        trained.generated
        == "train: 600 captchas drawn\nvalidation: 40 captchas drawn\ntest: 50 captchas drawn\n"
    )
    lines = trained.out.splitlines()
    assert "Images for train :600, for validation : 40, for test : 50" in lines
    assert any(line.startswith("Arithmetic: ") for line in lines)
    assert [line for line in lines if line.startswith("Epoch")] == [f"Epoch : {n}" for n in (1, 2, 3, 4)]
    steps = [STEP.fullmatch(line) for line in lines if line.startswith("Step")]
    assert all(steps)
    assert [int(match["step"]) for match in steps] == [*range(0, 344, 20), 344]
    assert float(steps[-1]["val_loss"]) < 0.9 * math.log(5) < float(steps[0]["val_loss"]), (
        "nothing was learned"
    )
    assert any(re.fullmatch(rf"Test accuracy:{PERCENT}, loss: +\d\.\d\d", line) for line in lines)
    report = rf"Captcha accuracy:{PERCENT} \((\d+) of 50, 95% interval \d+\.\d\d to \d+\.\d\d\)"
    assert any(re.fullmatch(report, line) for line in lines)
    assert "Read a captcha:   python predict.py captcha.png" in lines
    assert lines[-1] == "Watch the curves: tensorboard --logdir tensorboard"


def events(folder, part):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard" / part))
    accumulator.Reload()
    return accumulator


def test_the_curves_are_the_printed_numbers_under_one_tag_for_both_sets(trained):
    printed = {int(m["step"]): m for m in STEP.finditer(trained.out)}
    for part, short in (("train", "train"), ("validation", "val")):
        accumulator = events(trained.folder, part)
        tags = {"accuracy/captchas", "accuracy/digits", "loss"}
        pace = {"learning_rate", "pictures_per_second"} if part == "train" else set()
        assert set(accumulator.Tags()["scalars"]) == tags | pace
        points = {
            tag: {e.step: e.value for e in accumulator.Scalars(tag)} for tag in accumulator.Tags()["scalars"]
        }
        assert list(points["loss"]) == [*range(0, 344, 40), 344]
        for step in points["loss"]:
            assert f"{points['loss'][step]:.2f}" == printed[step][f"{short}_loss"]
            assert f"{points['accuracy/digits'][step]:.2%}" == printed[step][f"{short}_acc"].strip()
            if part == "validation":
                assert f"{points['accuracy/captchas'][step]:.2%}" == printed[step]["val_captcha_acc"].strip()
    assert events(trained.folder, "train").Tags()["graph"]
    rates = [each.value for each in events(trained.folder, "train").Scalars("learning_rate")]
    assert rates == pytest.approx([trained.config.alpha] * 10)


def test_tensorboard_has_pictures_of_what_is_confused_and_read_worst(trained):
    accumulator = events(trained.folder, "validation")
    assert set(accumulator.Tags()["images"]) == {"confusions", "read_worst"}
    for tag in ("confusions", "read_worst"):
        steps = [each.step for each in accumulator.Images(tag)]
        assert steps == [
            step for step in range(0, 344, 40) if step % trained.config.checkpoint_per_batch == 0
        ]
        for each in accumulator.Images(tag):
            picture = Image.open(io.BytesIO(each.encoded_image_string))
            assert picture.size == (each.width, each.height)
            assert len(picture.getcolors(1000)) > 5


def test_a_real_tensorboard_serves_both_curves(trained):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "tensorboard", "--port", str(port)]
    command += ["--host", "127.0.0.1"]
    server = subprocess.Popen(
        command, cwd=trained.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?tag=accuracy%2Fcaptchas&run="
        for run in ("train", "validation"):
            deadline, body = time.monotonic() + 120, b""
            while body.count(b"[") < 11 and time.monotonic() < deadline:
                with (
                    contextlib.suppress(OSError),
                    urllib.request.urlopen(address + run, timeout=10) as answer,
                ):
                    body = answer.read()
                time.sleep(0.2)
            assert body.count(b"[") == 11, body  # ten points in a list
    finally:
        server.terminate()
        server.wait()


def test_the_checkpoint_brings_its_settings_and_reads_alike(trained, tf, monkeypatch):
    monkeypatch.chdir(trained.folder)
    assert load("checkpoints").config == trained.config
    images, labels, count = ReadData(trained.config).load_data("test")
    readings = Predictor("checkpoints").read_images(images)
    vec2label = ReadData(trained.config).vec2label
    right = sum(r.text == vec2label(v) for r, v in zip(readings, labels, strict=True))
    assert f"({right} of {count}, " in trained.out
    assert all(0 <= r.confidence <= 1 for r in readings)


def test_predict_reads_pictures_and_folders_with_no_flag_for_settings(trained, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    first = min((trained.folder / "test").glob("*.png"))
    done = script("predict.py", first, tmp_path / "bad.png", "validation", cwd=trained.folder)
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path}/bad.png: not a picture: no PNG, JPEG, BMP, GIF or WEBP\n"
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert lines[0][0] == str(first)
    assert [line[0] for line in lines[1:]] == sorted(line[0] for line in lines[1:])
    assert len(lines) == 41
    assert all(
        re.fullmatch("[abcde]{3}", text) and 0 <= float(confidence) <= 1 for _, text, confidence in lines
    )


def test_predict_without_a_model_or_with_a_broken_one_is_one_sentence(trained, tmp_path):
    assert_refused(
        script("predict.py", "x.png", cwd=tmp_path), 1, "must hold a trained model, but holds none"
    )
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for path in (trained.folder / "checkpoints").iterdir():
        if path.is_file():
            data = path.read_bytes()
            (folder / path.name).write_bytes(data[: len(data) // 2] if path.name.endswith("index") else data)
    done = script("predict.py", "x.png", cwd=tmp_path)
    assert_refused(
        done, 1, "must hold a trained model, but all that it holds is damaged: checkpoints/state-344 is"
    )


def test_a_second_run_keeps_the_first_ones_model_and_clears_its_curves(trained, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(trained.folder, folder)
    files = {p.name for p in (folder / "checkpoints").iterdir() if p.is_file()} - {
        "lock",
        "checkpoint",
    }
    before = {p for p in (folder / "tensorboard").rglob("*") if p.is_file()}
    done = script("driver.py", *flags(replace(trained.config, Epoch=1, seed=5)), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "The run before is kept in checkpoints/previous" in done.stdout
    assert "train: used as it is, drawn with seed 0 (asked for: 5)" in done.stdout
    assert {p.name for p in (folder / "checkpoints" / "previous").iterdir()} == files
    after = {p for p in (folder / "tensorboard").rglob("*") if p.is_file()}
    assert len({path.name for path in after} - {"lock"}) == 2
    assert {path.name for path in before & after} == {"lock"}


def test_nothing_is_written_through_a_link(tiny, sets, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "tensorboard").symlink_to("target")
    with pytest.raises(CaptchaError, match="is a link"):
        driver.run_model(tiny, *sets)
    assert not os.listdir(tmp_path / "target")


@pytest.mark.parametrize("flag", ["--checkpoint-folder", "--tensorboard-folder"])
def test_a_second_run_in_the_same_folder_is_refused(flag, drawn, tmp_path):
    folder = tmp_path / "shared"
    code = (
        "import session, time, os\n"
        f"with session.alone({str(folder)!r}, ''): print(os.getpid(), flush=True); time.sleep(99)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    process = holder.stdout.readline().strip()
    settings = replace(drawn, **{flag[2:].replace("-", "_"): str(folder)})
    done = script("driver.py", *flags(settings), cwd=tmp_path)
    words = f"shared must be for one run at a time, but process {process} trains there"
    assert_refused(done, 1, words, f"name another folder with {flag}")
    holder.kill()
    holder.wait()
    assert script("driver.py", *flags(replace(settings, Epoch=1)), cwd=tmp_path).returncode == 0


def test_a_reader_that_goes_away_is_no_traceback(trained):
    command = f"'{sys.executable}' '{PROJECT / 'driver.py'}' --help | head -n 1"
    done = subprocess.run(command, shell=True, cwd=trained.folder, capture_output=True, text=True)
    assert done.stderr == ""


def test_the_trainer_stops_on_a_folder_of_bad_pictures(tmp_path):
    for name in ("train", "validation", "test"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"000{i}.png").write_bytes(b"no picture")
    done = script("driver.py", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("not a picture") == 3
    assert "must hold at most a tenth of bad files, but 3 of 3 are" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sorted(os.listdir(tmp_path / "train")) == ["0000.png", "0001.png", "0002.png"]


def test_sizes_that_do_not_fit_the_drawn_sets_are_named(trained):
    done = script("driver.py", *flags(replace(trained.config, width=38)), cwd=trained.folder)
    assert_refused(done, 1, "width 37 (asked for: 38)")


def test_defaults_differ_from_the_classic_ones_only_where_measured():
    classic = {"alpha": 1e-3, "Epoch": 100, "batch_size": 64, "keep_prob": 0.5}
    source = (PROJECT / "config.py").read_text()
    for name, value in classic.items():
        if getattr(Config, name) != value:
            assert re.search(rf"# {name}: classic {value:g}\b", source), f"{name} differs without a reason"
