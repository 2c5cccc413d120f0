"""The graph: three convolutions and CTC. The classic network is in captcha_cnn/classic_network.py.

`CNN.build(config)` adds it to the default graph and returns its tensors. The model owns tensors and
nothing else: no session, saver, writer or clock. Two copies of the network share one set of weights:
one for training (dropout, batch statistics) and one for inference (averaged weights, moving
statistics), which all metrics come from.

The letters of shapes are those of config.py: B, H, W, C, T, K, L.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from captcha_cnn import classic_network as classic
from captcha_cnn import ctc
from captcha_cnn.ctc import Predictions
from captcha_cnn.distributed import ALONE, Workers
from captcha_cnn.float16 import as_exact_float16, fold_bn_to_float16
from captcha_cnn.head import Head
from captcha_cnn.layers import HE_NORMAL, Training, batch_norm, ctc_head, dropout, standardize
from captcha_cnn.muon import minimize
from config import CaptchaError, Config

CHANNELS = (1, 2, 4)  # of the three convolutions, as multiples of Config.channels
STRIDES = ((2, 2), (4, 2), (2, 2))  # of the same: rows and columns
KERNEL_SIZE = 5
EMA_DECAY = 0.999  # of the averaged weights, once training is long enough for it


@dataclass(frozen=True)
class CNN:
    """The tensors of one graph, and where to feed it.

    Fed are x, y and, in training, keep_prob. The metrics are of each image or character, for the
    caller to average.
    """

    x: Any  # uint8 [B, H, W] or [B, H, W, 3], images
    y: Any  # float32 [B, L * K], one-hot labels
    keep_prob: Any  # float32 [], 1.0 unless fed
    train_op: Any  # does one step
    training_loss: Any  # float32 [], what that step minimises
    loss: Any  # float32 [B], of the inference network
    likelihood: Any  # float32 [B], probability of the label
    predictions: Predictions
    labels: Any  # int32 [B, L], classes of the labels, as predictions.chars has them
    logits: Any  # before the temperature; may be fed in place of x
    label_prob: Any  # float32 [B], probability of the label among all texts of the lengths allowed
    weights: dict[str, Any]  # variables of the inference network, by name
    inference_weights: dict[str, Any]  # what is kept of them, as fold_bn_to_float16() makes it

    @staticmethod
    def build(config: Config, workers: Workers = ALONE) -> CNN:
        """Add the graph for that Config to the default graph; `workers` train together."""
        x = tf.placeholder(tf.uint8, [None, *config.image_shape], "x")
        y = tf.placeholder(tf.float32, [None, config.max_length * len(config.alphabet)], "y")
        keep_prob = tf.placeholder_with_default(1.0, [], "keep_prob")
        labels, head = ctc.label_classes(y, config), HEADS[config.network]

        tf.set_random_seed(config.seed)  # of the initial weights
        tf.get_variable("inverse_temperature", [], initializer=tf.ones_initializer(), trainable=False)
        with tf.name_scope("training"):
            train_op, training_loss, average, statistics = add_training(x, labels, keep_prob, config, workers)

        def averaged(getter: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            variable = getter(*args, **kwargs)
            mean = average.average(variable)  # None for the statistics, which are averages already
            return variable if mean is None else mean

        with tf.name_scope("inference"), tf.variable_scope("", reuse=True, custom_getter=averaged):
            logits, calibrated_logits, predictions = infer(x, config)
            inverse_temperature = tf.get_variable("inverse_temperature", [], trainable=False)
        weights = {v.op.name: average.average(v) for v in tf.trainable_variables()}
        weights |= {v.op.name: v for v in [*statistics, inverse_temperature]}
        loss = head.loss(calibrated_logits, labels, config.min_length)
        label_prob = head.label_prob(calibrated_logits, labels, config.min_length)
        chars = ctc.count_chars(labels, config.min_length)
        likelihood = tf.exp(-chars * loss) if head.loss_is_log_prob else label_prob
        metrics = (loss, likelihood, predictions, labels, logits, label_prob)
        return CNN(x, y, keep_prob, train_op, training_loss, *metrics, weights, fold_bn_to_float16(weights))


# ---------------------------------------------------------------------- training and inference


def add_training(x: Any, labels: Any, keep_prob: Any, config: Config, workers: Workers) -> tuple[Any, ...]:
    """Add the training network: its step, its loss, the average of its weights, its moving statistics."""
    step = tf.train.get_or_create_global_step()
    training = Training(keep_prob, tf.stack([tf.constant(config.seed, tf.int64), step]), [], workers)
    head = HEADS[config.network]
    loss = tf.reduce_mean(head.loss(head.network(x, config, training), labels, config.min_length))
    variables = tf.trainable_variables()
    # About the last ninth of the steps done is averaged: no schedule has to be chosen in advance.
    done = tf.cast(step, tf.float32)
    decay = tf.minimum(head.ema_decay, (1 + done) / (10 + done), "decay")
    average = tf.train.ExponentialMovingAverage(decay)
    kernels = [v for v in variables if head.muon and v.shape.rank == 4 and "ctc_head" not in v.op.name]
    with tf.control_dependencies([decay]):  # before the step is counted, in every run
        loss, *gradients = workers.means([loss, *tf.gradients(loss, variables)])  # of the whole batch
        updated = minimize(gradients, variables, kernels, config.alpha, step)
    moved = [tf.assign_sub(old, (1 - decay) * (old - new)) for old, new in training.statistics]
    with tf.control_dependencies([updated, *moved]):
        train_op = average.apply(variables)
    return train_op, loss, average, [moving for moving, _ in training.statistics]


def infer(x: Any, config: Config) -> tuple[Any, Any, Predictions]:
    """Read images: uint8 [B, H, W] to logits, calibrated logits and predictions.

    The calibrated logits are the logits divided by one temperature, which is fitted at the end of
    training so that the confidences are honest (Guo et al. 2017).
    """
    head = HEADS[config.network]
    logits = head.network(x, config, None)
    calibrated_logits = logits * tf.get_variable("inverse_temperature", [], trainable=False)
    return logits, calibrated_logits, head.decode(calibrated_logits, config.max_length, config.min_length)


def build_inference_graph(
    config: Config, weights: dict[str, np.ndarray]
) -> tuple[Any, Any, Any, Predictions, Any]:
    """Add the inference network to the default graph, its weights constants.

    TensorFlow brings constants into the processor's order once, not with every call. Large kernels
    are constants of float16, where that holds them exactly.

    Returns:
        images, uint8 [B, H, W]; labels, int32 [B, L]; their loss, float32 [B]; predictions; their logits.
    Raises:
        CaptchaError: a weight is missing.
    """

    def constant(getter: Any, name: str, **others: Any) -> Any:
        if name not in weights:
            raise CaptchaError(
                f"the model must be of this version of the program, but has no {name}: read with the version "
                "that trained it, or train anew"
            )
        half = as_exact_float16(weights[name])
        return tf.constant(weights[name]) if half is None else tf.cast(tf.constant(half), tf.float32)

    with tf.variable_scope("", custom_getter=constant):
        x = tf.placeholder(tf.uint8, [None, *config.image_shape], "pictures")
        labels = tf.placeholder(tf.int32, [None, config.max_length])
        _, calibrated_logits, predictions = infer(x, config)
        loss = HEADS[config.network].loss(calibrated_logits, labels, config.min_length)
        return x, labels, loss, predictions, calibrated_logits


# ---------------------------------------------------------------------- our network


def ctc_network(x: Any, config: Config, training: Training | None = None) -> Any:
    """Logits of each time step: uint8 [B, H, W] to float32 [T, B, K + 1]."""
    h = standardize(x)  # [B, H, W, 1 or 3]
    for layer, (times, stride) in enumerate(zip(CHANNELS, STRIDES, strict=True), 1):
        # [B, H/2, W/2, C], [B, H/8, W/4, C], ...
        h = conv_layer(h, times * config.channels, stride, layer, training)
    return ctc_head(h, config, training)  # ... [B, H/16, T, C]


def conv_layer(h: Any, channels: int, stride: tuple[int, int], layer: int, training: Training | None) -> Any:
    """Convolution, batch normalisation (Ioffe and Szegedy 2015), ReLU, dropout.

    The stride of the convolution makes the feature map smaller: max pooling keeps the largest value and
    forgets where it was, which blurs the small gaps that tell 5 from 6.
    """
    down, across = stride
    with tf.variable_scope(f"conv{layer}_{down}x{across}"):  # other strides: other names of weights
        shape = [KERNEL_SIZE, KERNEL_SIZE, int(h.shape[-1]), channels]
        kernel = tf.get_variable("kernel", shape, initializer=HE_NORMAL)
        h = tf.nn.conv2d(h, kernel, strides=stride, padding="SAME")
        if layer == len(CHANNELS):
            return dropout(tf.nn.relu(batch_norm(h, training)), training, layer)
        # The larger feature maps lose whole channels, the same for all images of a step. ReLU passes
        # such factors on, so they cost no time; dropping single values would take a fifth of a step.
        return tf.nn.relu(batch_norm(h, training, dropout(tf.ones([channels]), training, layer)))


HEADS = {
    "ctc": Head(
        ctc_network,
        ctc.ctc_loss,
        lambda logits, *lengths: ctc.decode(tf.nn.log_softmax(logits), *lengths),
        lambda logits, *labels: ctc.label_prob(tf.nn.log_softmax(logits), *labels),
        loss_is_log_prob=True,
        muon=True,
        ema_decay=EMA_DECAY,
    ),
    "classic": classic.HEAD,
}
