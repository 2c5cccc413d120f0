import math
import shlex
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import TINY
from training_fakes import TRAINING, FakeCheckpoint, FakeSession, fake_trainer

from captcha_cnn import progress
from captcha_cnn.checkpoint import TrainState
from captcha_cnn.cli import next_command, shell_command
from captcha_cnn.metrics import Metrics
from config import Config


@pytest.fixture
def now(monkeypatch):
    """The time of day, in seconds, as a list of one that tests change."""
    now = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


class TimedSession(FakeSession):
    """A training step takes a second, and an evaluation a hundred."""

    def __init__(self, now):
        super().__init__()
        self.now = now

    def run(self, fetches, feed):
        self.now[0] += 1 if fetches == TRAINING else 100
        return super().run(fetches, feed)


# ---------------------------------------------------------------------- lines


def test_the_classic_line_to_the_letter():
    train, validation = Metrics(0.456, 0.125, 0, 16, 0.1), Metrics(0.4649, 0.1035, 1, 500, 0.1)
    classic = (
        "Step    20, train_acc:  12.50%, train_loss:  0.46, val_acc:  10.35%, val_loss:  0.46, improved:*"
    )
    assert progress.status_line(20, train, validation, True) == classic + ", val_captcha_acc:   0.20%"
    assert "improved: ," in progress.status_line(20, train, validation, False)


def test_the_test_report_to_the_letter():
    assert progress.test_report(Metrics(0.08, 0.9991, 9967, 10000, 0.99)) == (
        "Test accuracy:  99.91%, loss:  0.08\n"
        "Captcha accuracy:  99.67% (9967 of 10000, 95% interval 99.54 to 99.76)"
    )


def test_due_every_n_steps_from_step_0():
    assert [step for step in range(12) if progress.is_due(step, 5)] == [0, 5, 10]
    assert all(progress.is_due(step, 1) for step in range(3))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_durations_do_not_wrap(seconds, text):
    assert progress.duration(seconds) == text


def test_the_chance_level_is_named_with_what_to_try():
    at_chance = Metrics(1.60, 0.2, 0, 20, 0.0)
    assert progress.at_chance_level(at_chance, TINY)
    assert not progress.at_chance_level(Metrics(1.0, 0.5, 5, 20, 0.1), TINY)
    text = progress.chance_level_warning(at_chance, TINY)
    assert "at chance level (1.60; guessing gives 1.61)" in text
    assert "--alpha" in text


def test_the_chance_level_of_each_network():
    assert progress.chance_loss(TINY) == pytest.approx(math.log(5))
    assert progress.chance_loss(Config()) == pytest.approx(2.302585)
    assert progress.chance_loss(Config.classic()) == pytest.approx(0.325083)  # of ten sigmoids that say 0.1
    classic = replace(TINY, network="classic")
    assert progress.at_chance_level(Metrics(0.5, 0.2, 0, 20, 0.0), classic)
    assert not progress.at_chance_level(Metrics(0.4, 0.5, 5, 20, 0.1), classic)
    assert "(0.50; guessing gives 0.50)" in progress.chance_level_warning(
        Metrics(0.5, 0.2, 0, 20, 0.0), classic
    )


# ---------------------------------------------------------------------- commands


@pytest.mark.parametrize("folder", ["my run", "it's mine", 'a "b" $HOME', "x;y", "*"])
def test_suggested_commands_can_be_pasted_into_a_shell(folder):
    config = replace(
        TINY, checkpoint_folder=folder, test_folder=f"{folder}/t", tensorboard_folder=f"{folder}/b"
    )
    expected = ["python", "driver.py", "--checkpoint-folder", folder, "--resume"]
    assert shlex.split(next_command("driver.py", config, "--resume")) == expected
    assert shlex.split(shell_command("a", folder)) == ["a", folder]
    lines = progress.closing_lines(TrainState("", step=9, best_step=5), config).splitlines()
    commands = [shlex.split(line.split(":", 1)[1]) for line in lines[1:]]
    assert commands == [
        ["python", "predict.py", "--checkpoint-folder", folder, "captcha.png"],
        ["python", "predict.py", "--checkpoint-folder", folder, "--labelled", f"{folder}/t"],
        ["tensorboard", "--logdir", f"{folder}/b"],
    ]


def test_commands_name_no_folder_that_is_the_default():
    assert next_command("predict.py", TINY, "captcha.png") == "python predict.py captcha.png"


# ---------------------------------------------------------------------- time


def test_the_seconds_of_training_leave_validation_and_saving_out(now, monkeypatch):
    save = FakeCheckpoint.save

    def slow_save(self, *arguments):
        now[0] += 1000
        save(self, *arguments)

    monkeypatch.setattr(FakeCheckpoint, "save", slow_save)
    state = fake_trainer(TimedSession(now), Epoch=3, checkpoint_per_batch=2).state
    assert state.training_seconds == state.step == 6
    assert state.seconds > 3106  # three of the saves, at steps 0, 2 and 4; the last is not counted yet


def test_images_per_second_count_the_images_trained_on(now):
    trainer = fake_trainer(TimedSession(now), (50, 3), batch_size=32, Epoch=3, save_per_batch=1)
    speeds = [train.get("images_per_second") for _, train, _ in trainer.writer.points]
    # Batches of 32 and 18 images, a second each.
    assert speeds[0] is None
    assert speeds[1:] == pytest.approx([32, 25, 82 / 3, 25, 132 / 5, 25])
    assert all("images_per_second" not in validation for _, _, validation in trainer.writer.points)


def test_the_speed_that_the_progress_bar_shows_counts_the_images_trained_on(now):
    clock = progress.TrainingClock(500.0, 400.0)  # seconds of a run that is resumed do not count
    for images in (32, 18):
        now[0] += 2
        clock.count_step(images)
    line = "step 7, 12 images/s, 1:00 left unless it improves"  # 50 images in 4 s; 30 steps of 2 s
    assert clock.describe(7, 30, TINY) == line
    assert clock.as_scalars() == {"images_per_second": 12.5}
    with clock.training.paused():
        now[0] += 46
    assert clock.as_scalars() == {"images_per_second": 12.5}
    fixed = replace(TINY, images="mine", folds=5)
    assert clock.describe(7, 30, fixed) == "step 7, 1 images/s, 12:30 left", "with the validation"
    assert clock.total.seconds == 550
    assert clock.training.seconds == 404


def test_there_is_no_speed_before_the_first_step(now):
    clock = progress.TrainingClock(0.0, 0.0)
    now[0] += 1
    assert clock.as_scalars() == {}


def test_the_single_last_image_counts(now):
    trainer = fake_trainer(TimedSession(now), (15, 3), Epoch=2, save_per_batch=2)
    assert trainer.state.step == 4  # 7 and 8 images
    assert trainer.writer.points[-1][1]["images_per_second"] == 7.5
