"""The published network that this project goes back to: three convolutions, 128 units, sigmoids.

Sources: "Captcha Generation and Recognition Using a Convolutional Neural Network" (besthub.dev) and
its code, cnn_model.py of AwesomeTang/Captcha_CNN on GitHub (2019). Every line here is ours; sizes and
order of the layers are those of the source. Two differences: there, the dropout after the
convolutions stayed on in evaluation; here no dropout does. And the initial weights are Glorot's, with
which the benchmark saw it learn; that code has normal ones (truncated, standard deviation 0.1, biases
of 0.1), which were tried for 1,020 steps only, all of them at chance level.

The letters of shapes are those of config.py: B, H, W, C, K, L.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from captcha_cnn.ctc import IMPOSSIBLE, Predictions, choose
from captcha_cnn.head import Head
from captcha_cnn.layers import Training, dropout
from config import Config

CHANNELS = (32, 64, 64)  # of the three convolutions
KERNEL_SIZE = 5
UNITS = 128  # of the fully connected layer


def network(x: Any, config: Config, training: Training | None) -> Any:
    """Logits of each place and character: uint8 [B, H, W] or [B, H, W, 3] to float32 [B, L, K]."""
    h = divide_by_255(tf.cast(x, tf.float32))
    h = h if config.colour else tf.expand_dims(h, -1)  # [B, H, W, 1 or 3]
    for layer, channels in enumerate(CHANNELS, 1):
        with tf.variable_scope(f"conv{layer}"):
            kernel, bias = weights([KERNEL_SIZE, KERNEL_SIZE, int(h.shape[-1]), channels])
            h = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(h, kernel, strides=1, padding="SAME"), bias))
            h = dropout(tf.nn.max_pool2d(h, 2, 2, "SAME"), training, layer)
    h = tf.reshape(h, [-1, int(np.prod(h.shape[1:]))])  # [B, H/8 * W/8 * C]
    with tf.variable_scope("full"):
        kernel, bias = weights([int(h.shape[-1]), UNITS])
        h = dropout(tf.nn.relu(tf.matmul(h, kernel) + bias), training, len(CHANNELS) + 1)  # [B, 128]
    with tf.variable_scope("output"):
        kernel, bias = weights([UNITS, config.max_length * len(config.alphabet)])
        h = tf.reshape(tf.matmul(h, kernel) + bias, [-1, config.max_length, len(config.alphabet)])
        # Changes no logit, but keeps the writer of LiteRT files from multiplying the temperature into the
        # kernel, which would then be rounded to float16 once more.
        return tf.maximum(h, IMPOSSIBLE)


def divide_by_255(x: Any) -> Any:
    """x / 255 for whole numbers up to 255, with constants that float16 holds exactly.

    LiteRT files store their constants in float16, which would round 1 / 255. But 257 * 65537 is
    (2**32 - 1) / 255. The result differs from x / 255 in the last bit at most.
    """
    return (x + x * 2**-16) * (257 / 2**16)


def weights(shape: list[int]) -> tuple[Any, Any]:
    """A kernel of that shape and a bias for its outputs, with initial weights of Glorot and Bengio (2010)."""
    kernel = tf.get_variable("kernel", shape, initializer=tf.glorot_uniform_initializer())
    return kernel, tf.get_variable("bias", shape[-1:], initializer=tf.zeros_initializer())


def sigmoid_loss(logits: Any, labels: Any) -> Any:
    """Mean cross-entropy of the L * K sigmoids: float32 [B, L, K] and int32 [B, L] to float32 [B].

    A network that has learned nothing has that of the frequency 1 / K: 0.325 for ten digits.
    """
    one_hot = tf.one_hot(labels, logits.shape[2])
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=one_hot, logits=logits), axis=[1, 2])


def decode(logits: Any, length: int) -> Predictions:
    """Each place by itself, from logits, float32 [B, L, K].

    Of K independent sigmoids, given that exactly one of them is 1, the softmax is the probability
    of which one it is.
    """

    def log_prob(texts: Any) -> Any:
        return text_log_prob(tf.concat([logits, logits], axis=0), texts)

    return choose(logits, log_prob)


def label_prob(logits: Any, labels: Any) -> Any:
    """The probability of labels, int32 [B, L], from logits, float32 [B, L, K]: float32 [B]."""
    return tf.exp(text_log_prob(logits, labels))


def text_log_prob(logits: Any, texts: Any) -> Any:
    """The log probability of texts, int32 [B, L], from logits, float32 [B, L, K]: float32 [B]."""
    return tf.reduce_sum(tf.gather(tf.nn.log_softmax(logits), texts, batch_dims=2), axis=1)


HEAD = Head(
    network,
    lambda logits, labels, _: sigmoid_loss(logits, labels),
    lambda logits, length, _: decode(logits, length),
    lambda logits, labels, _: label_prob(logits, labels),
    loss_is_log_prob=False,
    muon=False,
    ema_decay=0.0,
)
