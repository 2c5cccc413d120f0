"""The published network and recipe: `driver.py --classic`."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY, script
from training_fakes import load_sets

import driver
import predict
from captcha_cnn import plateau, progress
from captcha_cnn.checkpoint import TrainState, load_latest
from captcha_cnn.metrics import Metrics
from captcha_cnn.progress import chance_loss
from config import CLASSIC, ConfigError

SIZES = ["--width", 37, "--height", 23, "--char-num", 3, "--characters", "abcde"]
SHORT = ["--epoch", 3, "--batch-size", 7, "--print-per-batch", 4, "--save-per-batch", 4]


@pytest.fixture(scope="module")
def classic(drawn):
    """The classic Config on tiny images, without dropout."""
    return replace(drawn, **CLASSIC | {"batch_size": 7, "Epoch": 2, "keep_prob": 1.0})


@pytest.fixture(scope="module")
def sets(drawn):
    return load_sets(drawn)


@pytest.fixture(scope="module")
def built(classic, tf):
    """The graph of the classic network with dropout, and a session with initial weights."""
    from cnn_model import CNN

    with tf.Graph().as_default(), tf.Session() as session:
        model = CNN.build(classic)
        session.run(tf.global_variables_initializer())
        yield model, session


# ---------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder in which `driver.py --classic` ran, and its output."""
    folder = tmp_path_factory.mktemp("classic")
    done = script("driver.py", "--classic", *SIZES, *SHORT, "--generate-num", 40, 12, 15, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout


def test_the_classic_lines(run):
    lines = run[1].splitlines()
    assert "Images for train :40, for validation : 12, for test : 15" in lines
    assert [line for line in lines if line.startswith("Epoch")] == [f"Epoch : {n}" for n in (1, 2, 3)]
    step = (
        r"Step +(\d+), train_acc: +[\d.]+%, train_loss: +\d+\.\d\d, val_acc: +[\d.]+%, val_loss: +\d+\.\d\d, "
        r"improved:[* ], val_captcha_acc: +[\d.]+%"
    )
    steps = [re.fullmatch(step, line) for line in lines if line.startswith("Step")]
    assert all(steps)
    assert [int(match[1]) for match in steps] == [0, 4, 8, 12, 16, 18]  # six batches in an epoch
    assert any(re.fullmatch(r"Test accuracy: +[\d.]+%, loss: +\d\.\d\d", line) for line in lines)
    assert "Read a captcha:   python predict.py captcha.png" in lines


def test_the_checkpoint_holds_the_classic_settings(run, tf):
    config = load_latest(str(run[0] / "checkpoints")).config
    assert {name: getattr(config, name) for name in CLASSIC} == CLASSIC | {"Epoch": 3, "batch_size": 7}
    assert not config.augmented


def test_a_finished_run_is_resumed_without_another_step(run, tf, monkeypatch, capsys):
    monkeypatch.chdir(run[0])
    assert driver.main([str(each) for each in ("--resume", "--classic", *SIZES, *SHORT)]) == 0
    again = capsys.readouterr().out
    assert "Step" not in again
    results = [re.findall("^(?:Test|Captcha) accuracy:.*", text, re.M) for text in (run[1], again)]
    assert results[0] == results[1]
    assert len(results[0]) == 2
    with pytest.raises(
        ConfigError, match="network must be 'classic' to resume the run in checkpoints, not 'ctc'"
    ):
        driver.main(["--resume", "--network", "ctc"])


def test_predict_reads_with_it_and_is_right_as_often_as_the_test_says(run, tf, monkeypatch, capsys):
    monkeypatch.chdir(run[0])
    assert predict.main(["test", "--json"]) == 0
    predictions = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(predictions) == 15
    for each in predictions:
        assert re.fullmatch("[abcde]{3}", each["text"])
        assert each["confidence"] == pytest.approx(math.prod(each["char_probs"]), abs=1e-5)
        assert 0 < each["runner_up"]["confidence"] <= each["confidence"] <= 1
    correct = sum(each["path"].removeprefix("test/").startswith(each["text"]) for each in predictions)
    assert f"({correct} of 15, " in run[1]


# ---------------------------------------------------------------------- the network


def test_the_loss_of_a_network_that_learned_nothing_is_at_chance_level(classic, sets, built):
    model, session = built
    logits = np.full((20, 3, 5), -math.log(4), np.float32)  # sigmoids of 1 / 5
    loss = session.run(model.loss, {model.logits: logits, model.y: sets[1].labels})
    assert loss == pytest.approx(np.full(20, progress.chance_loss(classic)), rel=1e-6)
    assert progress.at_chance_level(Metrics(float(loss.mean()), 0.2, 0, 20, 0.0), classic)


def test_dropout_is_of_training_alone(sets, built):
    model, session = built
    x, y = sets[0].images[:7], sets[0].labels[:7]

    def values(tensor, keep_prob):
        return np.array(session.run(tensor, driver.feed_data(model, x, y, keep_prob)))

    for tensor in (model.loss, model.logits, model.predictions.confidence):
        assert np.array_equal(values(tensor, 0.5), values(tensor, 1.0))
    assert values(model.training_loss, 0.5) != values(model.training_loss, 1.0)
    assert values(model.training_loss, 1.0) == pytest.approx(values(model.loss, 1.0).mean(), rel=1e-5)


def test_it_learns(classic, sets, tmp_path, tf, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = sets[0]._replace(images=sets[0].images[:60], labels=sets[0].labels[:60])
    config = replace(classic, batch_size=20, Epoch=60, print_per_batch=60, save_per_batch=1000)
    state, _ = driver.run_model(config, small, sets[1], small)
    losses = [float(each) for each in re.findall(r"train_loss: +([\d.]+)", capsys.readouterr().out)]
    assert state.step == 180
    assert len(losses) == 4
    assert losses[-1] < 0.5 * progress.chance_loss(config) < progress.chance_loss(config) < losses[0]


def test_patience_does_not_count_at_chance_level():
    config = replace(TINY, network="classic", patience=5)
    best = Metrics(chance_loss(config), 0.2, 0, 20, 0.01)
    state = TrainState("", step=10, last_eval_step=10, best_step=0, best=best)
    assert not plateau.should_stop(state, config)
    assert plateau.should_stop(state, replace(config, network="ctc"))
    state.best = best._replace(loss=0.5 * best.loss)
    assert plateau.should_stop(state, config)
