"""Stand-ins for session, checkpoint and TensorBoard, with which the training loop runs without TensorFlow."""

import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from conftest import TINY

import driver
from captcha_cnn.checkpoint import TrainState
from captcha_cnn.dataset import Dataset
from captcha_cnn.tf_runtime import GracefulStop, TrainingInterrupted
from generate_captcha import ReadData

MODEL = SimpleNamespace(
    x="x",
    y="y",
    keep_prob="keep_prob",
    loss="loss",
    likelihood="likelihood",
    predictions=SimpleNamespace(chars="chars"),
    labels="labels",
    train_op="train_op",
    training_loss="training_loss",
)
EVALUATION = ["loss", "likelihood", "chars", "labels"]
TRAINING = ["train_op", "training_loss"]


def load_sets(config):
    """The three sets of a Config."""
    reader = ReadData(config)
    return [Dataset(*reader.load_data(folder)[:2]) for _, folder, _ in config.sets]


def numbered_images(count):
    """Images of one grey each, which is the image's number, and label vectors that hold the number."""
    images = np.tile(np.arange(count, dtype=np.uint8)[:, None, None], (1, 23, 37))
    return Dataset(images, np.arange(count, dtype=np.float32)[:, None])


def interrupter(monkeypatch):
    """A function that says at which of the coming steps a training is interrupted; 0 for never."""
    check, left = GracefulStop.check, 0

    def count_down(self):
        nonlocal left
        left -= 1
        if left == 0:
            raise TrainingInterrupted(signal.SIGINT)
        check(self)

    def interrupt_after(steps):
        nonlocal left
        left = steps

    monkeypatch.setattr(GracefulStop, "check", count_down)
    return interrupt_after


class FakeSession:
    """A session with given losses, and a given number of captchas read right, at each step."""

    def __init__(self, training=lambda step: 1.0, validation=lambda step: 1.0, right=lambda step: 0):
        self.training, self.validation, self.right, self.step = training, validation, right, 0
        self.kept = []  # what dropout keeps, at each step

    def run(self, fetches, feed):
        if fetches == TRAINING:
            self.step += 1
            self.kept.append(feed["keep_prob"])
            return None, self.training(self.step - 1)
        assert fetches == EVALUATION
        assert feed["keep_prob"] == 1.0
        count = len(feed["x"])
        wrong = np.arange(count)[:, None] >= [self.right(self.step)] * 3
        loss = np.full(count, self.validation(self.step))
        return loss, np.exp(-3 * loss), wrong * 1, wrong * 0


class FakeCheckpoint:
    """Notes the steps at which the best weights were kept, and at which the run was saved."""

    def __init__(self, session):
        self.session, self.kept, self.saved = session, [], []

    def keep_best(self, session):
        self.kept.append(session.step)

    def save(self, session, progress):
        assert progress["step"] == session.step
        self.saved.append(session.step)


class FakeWriter:
    """Keeps the points of the curves: (step, training, validation)."""

    def __init__(self):
        self.points = []

    def add_metrics(self, step, batch, validation, others):
        self.points.append((step, batch.as_scalars() | others, validation.as_scalars()))

    def add_images(self, step, images):
        assert set(images) == {"confusion_matrix", "worst_predictions"}


def fake_trainer(session, sets=(14, 3), **settings):
    """A Trainer with that session after its training loop, on so many training and validation images."""
    config = replace(TINY, **settings)
    trainer = driver.Trainer(config, TrainState("hash of these images"), GracefulStop())
    trainer.model, trainer.session, trainer.start = MODEL, session, {}
    trainer.checkpoint, trainer.writer = FakeCheckpoint(session), FakeWriter()
    label = np.tile(np.eye(5)[0], 3)
    train, validation = (numbered_images(n)._replace(labels=np.tile(label, (n, 1))) for n in sets)
    trainer.train(train, validation)
    return trainer
