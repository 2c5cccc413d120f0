"""A run on the plateau is helped with drawn captchas, and not stopped before."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY
from training_fakes import FakeSession, fake_trainer, numbered_images

from captcha_cnn import plateau
from captcha_cnn.checkpoint import TrainState
from captcha_cnn.metrics import Metrics
from driver import next_batch
from generate_captcha import ReadData

CHANCE = 1.61  # nats per character: TINY has five characters


@pytest.fixture
def short(monkeypatch):
    """The plateau is noticed after 10 steps, and helped for 6."""
    monkeypatch.setattr(plateau, "PLATEAU_STEPS", 10)
    monkeypatch.setattr(plateau, "DRAWN_STEPS", 6)
    monkeypatch.setattr(plateau, "DRAWN_IMAGES", 9)


def state(step, loss, drawn_from=-1):
    """The state of a run whose best validation loss is that."""
    best = Metrics(loss, 0.2, 0, 10, 0.01)
    return TrainState("hash", step=step, last_eval_step=step, best=best, drawn_from=drawn_from)


@pytest.mark.parametrize(
    ("step", "loss", "drawn_from", "network", "needed"),
    [
        (500, CHANCE, -1, "ctc", True),
        (499, CHANCE, -1, "ctc", False),
        (500, 0.5 * CHANCE, -1, "ctc", False),  # it reads some already
        (2600, CHANCE, 500, "ctc", False),  # once is enough
        (500, CHANCE, -1, "classic", False),
    ],
)
def test_help_comes_after_500_steps_on_the_plateau_and_once(step, loss, drawn_from, network, needed):
    config = replace(TINY, network=network)
    assert plateau.needs_help(state(step, loss, drawn_from), config) == needed


def test_a_run_without_any_usable_validation_result_is_helped_too():
    assert plateau.needs_help(replace(state(500, CHANCE), best=None), TINY)


def test_help_waits_for_a_validation():
    assert not plateau.needs_help(replace(state(503, CHANCE), last_eval_step=500), TINY)


@pytest.mark.parametrize(
    ("step", "loss", "drawn_from", "counts"),
    [
        (9000, 0.5 * CHANCE, -1, True),
        (9000, CHANCE, -1, False),  # it will be helped
        (500 + 2000 + 19, CHANCE, 500, False),  # the help has not had its time yet
        (500 + 2000 + 20, CHANCE, 500, True),
        (500 + 1000, 0.5 * CHANCE, 500, True),
    ],
)
def test_patience_does_not_count_on_the_plateau(step, loss, drawn_from, counts):
    config = replace(TINY, patience=20)
    assert plateau.patience_counts(state(step, loss, drawn_from), config) == counts


@pytest.mark.parametrize(
    ("step", "best_step", "drawn_from", "left"),
    [
        (200, 150, -1, 650),  # early stopping comes first
        (500, 490, -1, 500),  # the last epoch comes first
        (600, 590, 500, 690),
        (2900, 2890, 500, 100),  # 900 steps were done on own images
        (5000, 10, -1, 0),
    ],
)
def test_the_steps_left_end_with_early_stopping_or_the_last_epoch(step, best_step, drawn_from, left):
    config, total = replace(TINY, patience=700), 1000
    found = replace(state(step, CHANCE, drawn_from), best_step=best_step)
    assert plateau.steps_left(found, config, total) == left


def test_the_loop_helps_and_then_stops_with_a_warning(short, capsys):
    trainer = fake_trainer(FakeSession(validation=lambda step: CHANCE), Epoch=100, patience=5)
    out = capsys.readouterr().out
    assert trainer.state.drawn_from == 10
    assert out.count(plateau.HELP_LINE) == 1
    assert out.index("Step    10") < out.index(plateau.HELP_LINE) < out.index("Step    15")
    assert out.count("still at chance level") == 1, "once, and only after the help"
    assert out.index(plateau.HELP_LINE) < out.index("still at chance level")
    assert out.index("auto-stopping") > out.index("Step    25"), (
        "6 steps of help and 5 of patience: the next validation"
    )


def test_the_loop_says_nothing_of_a_plateau_where_the_network_learns(short, capsys):
    trainer = fake_trainer(FakeSession(validation=lambda step: CHANCE if step < 10 else 0.5), Epoch=20)
    assert trainer.state.drawn_from == -1
    out = capsys.readouterr().out
    assert plateau.HELP_LINE not in out
    assert "still at chance level" not in out


def steps(run_state, train):
    """The images of the coming steps, as bytes."""
    config = replace(TINY, Epoch=5, batch_size=4)
    coming = plateau.scheduled_batches(run_state, train, config, next_batch)
    return [x.tobytes() for _, x, _ in coming]


def test_drawn_captchas_come_for_so_many_steps_and_then_the_own_images_go_on_where_they_would_be(short):
    train = numbered_images(9)
    undisturbed = steps(TrainState("hash"), train)
    helped = steps(TrainState("hash", step=4, drawn_from=4), train)
    assert helped[6:] == undisturbed[4:]
    assert not set(helped[:6]) & set(undisturbed)


def test_a_resumed_run_gets_the_same_drawn_captchas(short):
    train = numbered_images(9)
    whole = steps(TrainState("hash", step=4, drawn_from=4), train)
    assert steps(TrainState("hash", step=7, drawn_from=4), train) == whole[3:]


@pytest.mark.parametrize("alphabet", ["abcde", "中文字母表", "a中b文c"])
def test_drawn_captchas_have_the_alphabet_and_lengths_of_the_images(alphabet, short):
    config = replace(TINY, characters=alphabet, char_num="1-2")
    reader = ReadData(config)
    drawn = plateau.draw_for(config)
    assert drawn.images.shape == (9, TINY.height, TINY.width)
    labels = [reader.vec2label(vector) for vector in drawn.labels]
    assert {len(label) for label in labels} == {1, 2}
    assert set("".join(labels)) <= set(alphabet)
    assert len(set("".join(labels))) > 1
    assert np.ptp(drawn.images) > 50


def test_more_characters_than_fonts_have_are_left_out_of_the_drawn_captchas(short):
    alphabet = "".join(chr(0x4E00 + i) for i in range(100))
    config = replace(TINY, characters=alphabet)
    drawn = plateau.draw_for(config)
    assert len(drawn.images) == 9


def test_the_help_takes_no_epochs_from_the_own_images(short):
    train = numbered_images(9)
    total = len(steps(TrainState("hash"), train))
    assert len(steps(TrainState("hash", step=4, drawn_from=4), train)) == 6 + total - 4
    assert len(steps(TrainState("hash", step=13, drawn_from=4), train)) == total - 7
