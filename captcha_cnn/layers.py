"""The layers of the networks: some act differently in training and in inference."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow.compat.v1 as tf

from captcha_cnn.distributed import ALONE, Workers
from captcha_cnn.numpy_network import BN_EPSILON
from config import Config

HE_NORMAL = tf.variance_scaling_initializer(2.0)  # keeps the variance of a layer's input (He et al. 2015)
HEAD_WIDTH = 3  # columns of the last feature map that each time step is read from
DENSE_LAYER = 4  # its number, behind the three convolutions: it has dropout of its own


class Training(NamedTuple):
    """What the network needs in training and not in inference."""

    keep_prob: Any
    seed: Any  # int64 [2]: all random numbers of a step come from (seed, step)
    statistics: list[tuple[Any, Any]]  # receives (moving average, of the batch) of each mean and variance
    workers: Workers = ALONE  # whose shares are one batch


def standardize(x: Any) -> Any:
    """Each colour with mean 0, the image with standard deviation 1: to float32 [B, H, W, 1 or 3]."""
    x = tf.cast(x, tf.float32)
    mean, variance = tf.nn.moments(x, [1, 2], keepdims=True)
    if x.shape.rank == 4:  # one standard deviation for the three colours: their ratios are the hue
        variance = tf.reduce_mean(variance, -1, keepdims=True)
    x = (x - mean) * tf.rsqrt(variance + 1.0)  # + 1: an empty image stays finite
    return x if x.shape.rank == 4 else tf.expand_dims(x, -1)


def batch_norm(h: Any, training: Training | None, kept: Any = 1.0) -> Any:
    """Normalised by the batch's own statistics in training, by their moving averages in inference.

    Args:
        kept: float32 [C], a factor of each channel of the result in training.
    """
    channels = [int(h.shape[-1])]
    gamma = tf.get_variable("gamma", channels, initializer=tf.ones_initializer())
    beta = tf.get_variable("beta", channels, initializer=tf.zeros_initializer())
    mean = tf.get_variable("mean", channels, initializer=tf.zeros_initializer(), trainable=False)
    variance = tf.get_variable("variance", channels, initializer=tf.ones_initializer(), trainable=False)
    if training is None:
        moving = {"mean": mean, "variance": variance, "is_training": False}
        return tf.nn.fused_batch_norm(h, gamma, beta, epsilon=BN_EPSILON, **moving)[0]
    h, batch_mean, batch_variance = training.workers.batch_norm(h, kept * gamma, kept * beta)
    training.statistics.extend([(mean, batch_mean), (variance, batch_variance)])
    return h


def dropout(h: Any, training: Training | None, layer: int) -> Any:
    """Some values set to 0 in training, others in each step and layer (Srivastava et al. 2014)."""
    if training is None:
        return h
    seed = tf.random.experimental.stateless_fold_in(training.seed, layer)
    return tf.nn.experimental.stateless_dropout(h, 1 - training.keep_prob, seed)


def ctc_head(h: Any, config: Config, training: Training | None = None) -> Any:
    """Logits of each column, from it and its neighbours: [B, H/16, T, C] to [T, B, K + 1].

    A dense layer between, where the Config has one, sees a character as a whole: a convolution sees
    29 x 45 pixels of it, and without that layer the logits are only sums of what these found.
    """
    width = HEAD_WIDTH
    if config.dense:
        with tf.variable_scope("dense"):
            h = tf.nn.relu(batch_norm(merge_rows(h, width, config.dense), training))  # [B, 1, T, D]
            h, width = dropout(h, training, DENSE_LAYER), 1
    with tf.variable_scope("ctc_head"):
        classes = len(config.alphabet) + 1
        h = tf.transpose(tf.squeeze(merge_rows(h, width, classes), 1), [1, 0, 2])  # CTC: time steps first
        return h + tf.get_variable("bias", [classes], initializer=tf.zeros_initializer())


def merge_rows(h: Any, width: int, outputs: int) -> Any:
    """All rows of so many columns to `outputs` values: [B, rows, T, C] to [B, 1, T, outputs]."""
    _, rows, _, channels = h.shape
    kernel = tf.get_variable("kernel", [rows, width, channels, outputs], initializer=HE_NORMAL)
    side = width // 2
    h = tf.pad(h, [[0, 0], [0, 0], [side, side], [0, 0]])  # conv2d's own padding has slow gradients
    return tf.nn.conv2d(h, kernel, strides=1, padding="VALID")
