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
from conftest import PROJECT, assert_refused, flags, script
from PIL import Image
from training_fakes import EVALUATION, MODEL, FakeSession, fake_trainer, load_sets, numbered_images

import driver
from captcha_cnn import batches, checkpoint, summaries, tf_runtime
from captcha_cnn.checkpoint import load_latest
from captcha_cnn.metrics import EvalResult, Metrics
from captcha_cnn.validation import MANY_IMAGES
from config import CLASSIC, CaptchaError, Config
from generate_captcha import ReadData
from predict import Predictor


@pytest.fixture(scope="module")
def sets(drawn):
    return load_sets(drawn)


# ---------------------------------------------------------------------- evaluation


def test_feed_data_feeds_x_y_and_keep_prob():
    model = SimpleNamespace(x="x", y="y", keep_prob="keep_prob")
    assert driver.feed_data(model, 1, 2) == {"x": 1, "y": 2, "keep_prob": 1.0}
    assert driver.feed_data(model, 1, 2, 0.5) == {"x": 1, "y": 2, "keep_prob": 0.5}


def test_evaluate_counts_every_image_the_same(monkeypatch):
    correct = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]], bool)

    class Session:
        """Image i, whose grey is i, has loss i."""

        def run(self, fetches, feed):
            assert fetches == EVALUATION
            assert feed["keep_prob"] == 1.0
            assert len(feed["x"]) <= 3
            i = feed["x"][:, 0, 0]
            loss = i.astype(np.float32)
            return loss, np.exp(-3 * loss), correct[i] * 3, np.full([len(i), 3], 3)

    monkeypatch.setattr(tf_runtime, "BATCH_SIZE", 3)
    result = driver.evaluate(Session(), MODEL, numbered_images(7))
    assert np.array_equal(result.chars, correct * 3)
    metrics = Metrics.from_result(result)
    assert metrics[:4] == (3.0, 16 / 21, 4, 7)
    assert metrics.captcha_accuracy == 4 / 7
    assert metrics.likelihood == pytest.approx(np.exp(-3 * np.arange(7)).mean())


def test_better_is_what_makes_the_labels_clearly_more_probable():
    best = Metrics(0.5, 0.9, 80, 100, 0.7)
    assert best._replace(loss=0.6, accuracy=0.8, correct=79, likelihood=0.72).improves_on(best)
    assert not best.improves_on(best)
    assert not best._replace(loss=0.4, accuracy=1.0, correct=100, likelihood=0.719).improves_on(best)
    assert not best._replace(loss=math.nan, likelihood=math.nan).improves_on(best)
    assert not best._replace(loss=math.nan, likelihood=math.nan).improves_on(None)
    assert best._replace(likelihood=0.0).improves_on(None), "the first result, however bad"
    hardly = best._replace(likelihood=1e-9)  # long labels stay improbable for long
    assert best._replace(likelihood=1.2e-9).improves_on(hardly)
    assert not best._replace(likelihood=1.0).improves_on(best._replace(likelihood=1.0))


# ---------------------------------------------------------------------- the loop, with a fake session


def test_training_stops_after_patience_stagnant_steps(capsys):
    session = FakeSession(validation=lambda step: 2.0 ** -min(step, 10))
    trainer = fake_trainer(session, Epoch=99, patience=15, print_per_batch=5, checkpoint_per_batch=7)
    state = trainer.state
    assert (state.step, state.best_step, state.trained) == (25, 10, True)
    assert trainer.checkpoint.kept == [0, 5, 10]
    assert trainer.checkpoint.saved == [0, 7, 14, 21, 25]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Epoch : 1"
    assert lines[-1] == "No improvement for over 15 steps, auto-stopping...."
    steps = [line for line in lines if line.startswith("Step")]
    assert [line[5:10].strip() for line in steps] == ["0", "5", "10", "15", "20", "25"]
    assert ["improved:*" in line for line in steps] == [True] * 3 + [False] * 3


def test_augmented_copies_choose_the_best_weights_and_are_not_printed(capsys):
    class Session(FakeSession):
        def run(self, fetches, feed):
            result = super().run(fetches, feed)
            if len(feed.get("x", ())) == 6:  # three validation images and their copies
                result[0][:3] = 0.25  # the images themselves are read alike at each step
                result[1][:3] = 0.9
            return result

    session = Session(validation=lambda step: 2.0 ** -min(step, 10))
    trainer = fake_trainer(session, Epoch=99, patience=15, print_per_batch=5)
    assert (trainer.state.step, trainer.state.best_step, trainer.checkpoint.kept) == (25, 10, [0, 5, 10])
    assert set(re.findall(r"val_loss: +([\d.]+)", capsys.readouterr().out)) == {"0.25"}


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"generate_num": (MANY_IMAGES, 9, 9)}, [0, 5, 15, 25, 30]),  # odds grow by 1.15 at each validation
        ({"generate_num": (MANY_IMAGES - 1, 9, 9)}, [0, 5, 10, 15, 20, 25, 30]),
        ({"start_from": "none", "images": "mine"}, [0, 5, 10, 15, 20, 25, 30]),
    ],
)
def test_many_drawn_captchas_must_become_better_by_more_but_the_best_weights_are_kept(settings, kept, capsys):
    def loss(step):
        odds = 1.15 ** (step / 5) * (1 if step else 0.1)
        return -math.log(odds / (1 + odds)) / 3

    trainer = fake_trainer(FakeSession(validation=loss), Epoch=15, print_per_batch=5, **settings)
    assert (trainer.state.step, trainer.state.best_step, trainer.checkpoint.kept) == (30, 30, kept)
    said = "The last weights read the validation images a little better, and are kept"
    assert capsys.readouterr().out.count(said) == (25 in kept and 20 not in kept)


def test_slowly_rising_odds_of_drawn_captchas_do_not_put_off_early_stopping(capsys):
    def loss(step):
        return 1 / (step + 1) if step <= 10 else 1 / 11 - step / 10000

    trainer = fake_trainer(FakeSession(validation=loss), Epoch=99, patience=15, print_per_batch=5)
    assert (trainer.state.step, trainer.checkpoint.kept) == (25, [0, 5, 10, 25])
    assert trainer.state.best_step == 25
    assert "No improvement for over 15 steps, auto-stopping...." in capsys.readouterr().out


def test_training_stops_after_the_last_epoch_and_validates_the_last_weights(capsys):
    trainer = fake_trainer(FakeSession(validation=lambda step: -step), Epoch=3, print_per_batch=4)
    assert (trainer.state.step, trainer.state.best_step) == (6, 6)  # 14 images, 7 a step
    assert (trainer.checkpoint.kept, trainer.checkpoint.saved) == ([0, 4, 6], [0, 6])
    assert [step for step, _, _ in trainer.writer.points] == [0, 6]
    out = capsys.readouterr().out
    assert re.findall(r"Epoch : \d", out) == ["Epoch : 1", "Epoch : 3"]  # at step 0 and 4
    assert "auto-stopping" not in out


def test_lines_and_points_have_their_own_rhythm(capsys):
    trainer = fake_trainer(FakeSession(), Epoch=6, print_per_batch=5, save_per_batch=3)
    assert [step for step, _, _ in trainer.writer.points] == [0, 3, 6, 9, 12]
    assert re.findall(r"^Step +(\d+)", capsys.readouterr().out, re.M) == ["0", "5", "10", "12"]


def test_dropout_grows_with_the_epochs_of_drawn_captchas():
    session = FakeSession()
    fake_trainer(session, sets=(6, 3), batch_size=6, Epoch=102, keep_prob=0.6)
    assert session.kept == pytest.approx([1 - 0.004 * epoch for epoch in range(100)] + [0.6, 0.6])


def test_dropout_stays_the_same_on_other_images():
    for others in ({"images": "own"}, {"fresh": True}, {"network": "classic"}):
        config = Config(keep_prob=0.6, **others)
        assert [batches.keep_prob(config, epoch) for epoch in (0, 50, 100, 400)] == [0.6] * 4
    assert [batches.keep_prob(Config(keep_prob=1.0), epoch) for epoch in (0, 50, 400)] == [1.0] * 3


def test_a_loss_that_is_not_finite_stops_with_the_best_weights_kept(capsys):
    session = FakeSession(training=lambda step: math.nan if step == 7 else 1.0)
    trainer = fake_trainer(session, Epoch=99)
    assert (trainer.state.step, trainer.state.best_step) == (8, 0)
    assert (trainer.checkpoint.kept, trainer.checkpoint.saved) == ([0], [0, 8])
    assert "The training loss is not finite at step 8: training stops" in capsys.readouterr().out


# ---------------------------------------------------------------------- the loop, with TensorFlow


def lines_and_weights(config, sets, capsys):
    """What a training prints, and the weights it ends with."""
    driver.run_model(config, *sets)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Step")]
    return lines, load_latest(config.checkpoint_folder).weights


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
    # These three would change the loss.
    monkeypatch.setattr("captcha_cnn.calibration.fit_temperature", lambda *_: None)
    monkeypatch.setattr(tf_runtime, "bfloat16_support", lambda: False)
    monkeypatch.setattr("cnn_model.fold_bn_to_float16", lambda weights: weights)
    # The third validation is made to look best, so that later weights are worse.
    count = len(sets[1].images)

    def validations():
        return [result for data, result in seen if len(data.images) == 2 * count]

    monkeypatch.setattr(Metrics, "improves_on", lambda *_: len(validations()) == 3)
    state, result = driver.run_model(replace(tiny, alpha=0.01), sets[0], sets[1], sets[1])
    test = Metrics.from_result(seen[-1][1])
    metrics = [Metrics.from_result(EvalResult(*(each[:count] for each in v))) for v in validations()]
    assert state.best_step == 10
    assert result == test == pytest.approx(metrics[2], rel=1e-5)  # in batches of other sizes
    assert test != metrics[-1]


def test_weights_that_were_never_any_good_are_no_result(tiny, sets, monkeypatch):
    evaluate = driver.evaluate

    def not_a_number(session, model, data):
        result = evaluate(session, model, data)
        return result._replace(loss=result.loss * np.nan, likelihood=result.likelihood * np.nan)

    monkeypatch.setattr(driver, "evaluate", not_a_number)
    with pytest.raises(CaptchaError, match="no weights are worth keeping"):
        driver.run_model(replace(tiny, Epoch=1), *sets)
    assert not load_latest("checkpoints").progress["trained"]


def test_after_training_images_are_read_in_float32(tiny, sets, monkeypatch):
    monkeypatch.setattr(tf_runtime, "bfloat16_support", lambda: True)
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
    calls = []
    what, name = {
        "checkpoint": (checkpoint.Checkpoint, "save"),
        "curves": (summaries.SummaryWriter, "add_scalars"),
    }[when]
    original = getattr(what, name)

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


# ---------------------------------------------------------------------- the commands


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
        tags = {"accuracy/captchas", "accuracy/characters", "loss"}
        speed = {"learning_rate", "images_per_second"} if part == "train" else set()
        assert set(accumulator.Tags()["scalars"]) == tags | speed
        points = {
            tag: {e.step: e.value for e in accumulator.Scalars(tag)} for tag in accumulator.Tags()["scalars"]
        }
        assert list(points["loss"]) == [*range(0, 344, 40), 344]
        for step in points["loss"]:
            assert f"{points['loss'][step]:.2f}" == printed[step][f"{short}_loss"]
            assert f"{points['accuracy/characters'][step]:.2%}" == printed[step][f"{short}_acc"].strip()
            if part == "validation":
                assert f"{points['accuracy/captchas'][step]:.2%}" == printed[step]["val_captcha_acc"].strip()
    assert events(trained.folder, "train").Tags()["graph"]
    rates = [each.value for each in events(trained.folder, "train").Scalars("learning_rate")]
    assert rates == pytest.approx([trained.config.alpha] * 10)


def test_tensorboard_has_images_of_confusions_and_of_the_worst_predictions(trained):
    accumulator = events(trained.folder, "validation")
    assert set(accumulator.Tags()["images"]) == {"confusion_matrix", "worst_predictions"}
    for tag in ("confusion_matrix", "worst_predictions"):
        steps = [each.step for each in accumulator.Images(tag)]
        assert steps == [
            step for step in range(0, 344, 40) if step % trained.config.checkpoint_per_batch == 0
        ]
        for each in accumulator.Images(tag):
            image = Image.open(io.BytesIO(each.encoded_image_string))
            assert image.size == (each.width, each.height)
            assert len(image.getcolors(1000)) > 5


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
    assert load_latest("checkpoints").config == trained.config
    images, labels, count = ReadData(trained.config).load_data("test")
    predictions = Predictor("checkpoints").read_arrays(images)
    vec2label = ReadData(trained.config).vec2label
    correct = sum(p.text == vec2label(v) for p, v in zip(predictions, labels, strict=True))
    assert f"({correct} of {count}, " in trained.out
    assert all(0 <= p.confidence <= 1 for p in predictions)


def test_predict_reads_images_and_folders_with_no_flag_for_settings(trained, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    first = min((trained.folder / "test").glob("*.png"))
    done = script("predict.py", first, tmp_path / "bad.png", "validation", cwd=trained.folder, fork=False)
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path}/bad.png: not an image: no PNG, JPEG, BMP, GIF or WEBP\n"
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert lines[0][0] == str(first)
    assert [line[0] for line in lines[1:]] == sorted(line[0] for line in lines[1:])
    assert len(lines) == 41
    assert all(
        re.fullmatch("[abcde]{3}", text) and 0 <= float(confidence) <= 1 for _, text, confidence in lines
    )


def test_predict_with_a_broken_model_is_one_sentence(trained, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for path in (trained.folder / "checkpoints").iterdir():
        if path.is_file():
            data = path.read_bytes()
            (folder / path.name).write_bytes(data[: len(data) // 2] if path.name.endswith("index") else data)
    done = script("predict.py", "x.png", cwd=tmp_path)
    assert_refused(
        done, 1, "must hold a trained model, but all its checkpoints are damaged: checkpoints/state-344 is"
    )


def test_a_second_run_keeps_the_model_of_the_first_and_clears_its_curves(trained, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(trained.folder, folder)
    files = {p.name for p in (folder / "checkpoints").iterdir() if p.is_file()} - {
        "lock",
        "checkpoint",
    }
    before = {p for p in (folder / "tensorboard").rglob("*") if p.is_file()}
    done = script("driver.py", *flags(replace(trained.config, Epoch=1, seed=5)), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "The earlier run is kept in checkpoints/previous" in done.stdout
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
        "import time, os\n"
        "from captcha_cnn.files import folder_lock\n"
        f"with folder_lock({str(folder)!r}, ''): print(os.getpid(), flush=True); time.sleep(99)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    process = holder.stdout.readline().strip()
    settings = replace(drawn, **{flag[2:].replace("-", "_"): str(folder)})
    done = script("driver.py", *flags(settings), cwd=tmp_path)
    words = f"shared must be used by one process at a time, but process {process} trains there"
    assert_refused(done, 1, words, f"name another folder with {flag}")
    holder.kill()
    holder.wait()
    assert script("driver.py", *flags(replace(settings, Epoch=1)), cwd=tmp_path).returncode == 0


def test_a_closed_pipe_is_no_traceback(trained):
    command = f"'{sys.executable}' '{PROJECT / 'driver.py'}' --help | head -n 1"
    done = subprocess.run(command, shell=True, cwd=trained.folder, capture_output=True, text=True)
    assert done.stderr == ""


def test_the_trainer_stops_on_a_folder_of_bad_images(tmp_path):
    for name in ("train", "validation", "test"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"000{i}.png").write_bytes(b"no image")
    done = script("driver.py", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("not an image") == 3
    assert "must hold at most a tenth of bad files, but 3 of 3 are" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sorted(os.listdir(tmp_path / "train")) == ["0000.png", "0001.png", "0002.png"]


def test_sizes_that_do_not_fit_the_drawn_sets_are_named(trained):
    done = script("driver.py", *flags(replace(trained.config, width=38)), cwd=trained.folder)
    assert_refused(done, 1, "width 37 (asked for: 38)")


def test_defaults_differ_from_the_classic_ones_only_where_the_docs_say_why():
    page = (PROJECT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    for name, value in CLASSIC.items():
        if name != "network" and getattr(Config, name) != value:
            ours, published = f"{getattr(Config, name):,g}", f"{value:g}" if value else "none"
            row = rf"^\| .*`{name}`.* \| .*{ours}.* \| {published} \| "
            assert re.search(row, page, re.M), f"{name} differs without a reason"
