"""Layers that act differently in training and in inference: batch normalisation and dropout."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow.compat.v1 as tf

from captcha_cnn.numpy_network import BN_EPSILON


class Training(NamedTuple):
    """What the network needs in training and not in inference."""

    keep_prob: Any
    seed: Any  # int64 [2]: all random numbers of a step come from (seed, step)
    statistics: list[tuple[Any, Any]]  # receives (moving average, of the batch) of each mean and variance


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
        return tf.nn.fused_batch_norm(h, gamma, beta, mean, variance, epsilon=BN_EPSILON, is_training=False)[
            0
        ]
    h, batch_mean, batch_variance = tf.nn.fused_batch_norm(h, kept * gamma, kept * beta, epsilon=BN_EPSILON)
    training.statistics.extend([(mean, batch_mean), (variance, batch_variance)])
    return h


def dropout(h: Any, training: Training | None, layer: int) -> Any:
    """Some values set to 0 in training, others in each step and layer (Srivastava et al. 2014)."""
    if training is None:
        return h
    seed = tf.random.experimental.stateless_fold_in(training.seed, layer)
    return tf.nn.experimental.stateless_dropout(h, 1 - training.keep_prob, seed)
