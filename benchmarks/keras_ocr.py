"""The captcha reader of Keras' own examples: two convolutions, two bidirectional LSTMs, CTC.

Source: "OCR model for reading Captchas" (A_K_Nain, keras.io/examples/vision/captcha_ocr, 2020,
for Keras 3 since 2024). Every line here is ours; the network and recipe are the example's:

    [B, W, H, 1] in 0..1, time along the width; twice (3x3 convolution of 32, 64 channels, He's
    normal initial weights, ReLU, 2x2 max pool); each of the W/4 time steps to 64 units with ReLU,
    dropout 0.2; bidirectional LSTMs of 128 and 64 units with dropout 0.25 on their input; softmax
    over K + 2 classes; CTC; Adam at 1e-3, batches of 16; greedy decoding.

The example's StringLookup has an entry for unknown characters, hence K + 2: class 0 is the unknown,
1 to K the alphabet, K + 1 CTC's blank. Where we differ: the images keep their size, where the example
resizes its own to 200x50; and they are shuffled anew for each epoch, where the example shuffles once:
in its favour, if anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.common import Point, endless_batches, label_classes, score, timed_curve
from captcha_cnn.dataset import Dataset
from captcha_cnn.tf_runtime import batch_slices, load_tensorflow
from config import Config

CHANNELS = (32, 64)
UNITS = 64  # of the dense layer
LSTM_UNITS = (128, 64)
LEARNING_RATE = 1e-3
BATCH_SIZE = 16


def build(config: Config) -> Any:
    """The compiled keras.Model: float32 [B, W, H, 1] to probabilities [B, W/4, K + 2]."""
    import keras
    from keras import layers

    x = h = keras.Input((config.width, config.height, 1))
    for channels in CHANNELS:
        h = layers.Conv2D(channels, 3, padding="same", activation="relu", kernel_initializer="he_normal")(h)
        h = layers.MaxPooling2D()(h)
    h = layers.Reshape((h.shape[1], h.shape[2] * h.shape[3]))(h)  # [B, W/4, H/4 * C]
    h = layers.Dropout(0.2)(layers.Dense(UNITS, activation="relu")(h))
    for units in LSTM_UNITS:
        h = layers.Bidirectional(layers.LSTM(units, return_sequences=True, dropout=0.25))(h)
    model = keras.Model(x, layers.Dense(len(config.alphabet) + 2, activation="softmax")(h))
    model.compile(keras.optimizers.Adam(LEARNING_RATE), loss=ctc_loss)
    return model


def ctc_loss(labels: Any, probabilities: Any) -> Any:
    """As the example has it: int [B, L] in 1..K and float32 [B, T, K + 2] to float32 [B]."""
    import keras
    import tensorflow.compat.v1 as tf

    labels = tf.cast(labels, tf.int32)
    logits = tf.math.log(tf.transpose(probabilities, [1, 0, 2]) + keras.config.epsilon())
    time_steps, images = tf.shape(logits)[0], tf.shape(logits)[1]
    return tf.nn.ctc_loss(tf.sparse.from_dense(labels), logits, tf.fill([images], time_steps))


def prepare(images: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W] to float32 [B, W, H, 1] in 0..1."""
    x: np.ndarray = images.transpose(0, 2, 1)[..., None].astype(np.float32) / 255
    return x


def greedy(probabilities: np.ndarray) -> list[list[int]]:
    """The most probable class of each time step, repetitions and blanks dropped; [B, T, K + 2] to B answers.

    An answer has the classes of its characters, -1 for the unknown.
    """
    blank = probabilities.shape[2] - 1
    best = probabilities.argmax(axis=2)  # [B, T]
    new = np.diff(best, axis=1, prepend=blank) != 0
    return [(row[starts & (row != blank)] - 1).tolist() for row, starts in zip(best, new, strict=True)]


def curve(train: Dataset, test: Dataset, config: Config, at: Sequence[float]) -> Iterator[Point]:
    """Train on `train`; a Point on `test` each time the training clock passes the next of `at`.

    Keras traces its training step in the first step, and again for an epoch's last batch where that
    is smaller: both are counted. The layers are made before the clock starts.
    """
    load_tensorflow()  # Keras would import it with all that it prints
    import keras

    keras.utils.set_random_seed(config.seed)
    model = build(config)
    truth = label_classes(test.labels[:], config)
    unchanged: dict[str, Any] = dict.fromkeys(("shift", "scale", "shear", "squeeze", "noise"), 0.0)
    batches = endless_batches(train, replace(config, batch_size=BATCH_SIZE, **unchanged))

    def step() -> None:
        _, x, y = next(batches)
        model.train_on_batch(prepare(x), label_classes(y, config) + 1)

    def score_now() -> tuple[float, float]:
        parts = [model.predict_on_batch(prepare(test.images[part])) for part in batch_slices(len(truth))]
        return score([answer for part in parts for answer in greedy(np.asarray(part))], truth)

    with contextlib.closing(batches):
        yield from timed_curve(step, score_now, at)
