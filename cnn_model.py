"""The graph: three convolutions, CTC, and a decoder for exactly L symbols.

`CNN.build(config)` adds it to the current default graph and returns its tensors. The
model owns tensors and nothing else: no session, no saver, no writer, no clock. Two
networks share one set of weights: the training one (dropout, moments of the batch) and
the reading one (averaged weights, averaged moments), which all metrics come from.

The letters of shapes are those of config.py: B, H, W, C, T, K, L. A last map of
T columns is read from left to right; each column says one of the K symbols or CTC's
blank (class K).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow.compat.v1 as tf

from config import Config

CHANNELS = (16, 32, 64)  # of the three convolutions
KERNEL = 5
NEIGHBOURS = 3  # columns of the last map that each answer is read from
EPSILON = 1e-3  # of the batch normalisation
AVERAGE = 0.999  # decay of the averaged weights, once training is long enough for it
NEVER = -1e9  # log-probability of what cannot be; finite, so that differences stay numbers


@dataclass(frozen=True)
class CNN:
    """The tensors of one graph, and where to feed it.

    Fed: x, y and, to train, keep_prob. The metrics are of each picture or symbol, for the
    caller to average.
    """

    x: Any  # uint8 [B, H, W], pictures
    y: Any  # float32 [B, L * K], one-hot labels
    keep_prob: Any  # float32 [], 1.0 unless fed
    train_op: Any  # does one step
    training_loss: Any  # float32 [], what that step descends
    loss: Any  # float32 [B], nats per symbol: -log p(label) / L
    right: Any  # bool [B, L], symbols read right
    weights: dict[str, Any]  # what the reading network needs, by name: save and restore this

    @staticmethod
    def build(config: Config) -> CNN:
        """Add the graph for that Config to the default graph."""
        length, classes = config.char_num, len(config.alphabet)
        x = tf.placeholder(tf.uint8, [None, config.height, config.width], "x")
        y = tf.placeholder(tf.float32, [None, length * classes], "y")
        keep_prob = tf.placeholder_with_default(1.0, [], "keep_prob")
        step = tf.train.get_or_create_global_step()
        labels = tf.argmax(tf.reshape(y, [-1, length, classes]), axis=2, output_type=tf.int32)

        # What is averaged is about the last ninth of the steps done: there is no schedule to choose.
        done = tf.cast(step, tf.float32)
        decay = tf.minimum(AVERAGE, (1 + done) / (10 + done), "decay")
        average = tf.train.ExponentialMovingAverage(decay)

        tf.set_random_seed(config.seed)  # of the first weights
        training = Training(keep_prob, tf.stack([tf.constant(config.seed, tf.int64), step]), [])
        with tf.name_scope("training"):
            logits = network(x, config, training)
            training_loss = tf.reduce_mean(ctc_loss(logits, labels))
            trained = tf.trainable_variables()
            with tf.control_dependencies([decay]):  # before the step is counted, in every run
                descend = tf.train.AdamOptimizer(config.alpha).minimize(training_loss, global_step=step)
            moved = [tf.assign_sub(old, (1 - decay) * (old - new)) for old, new in training.moments]
            with tf.control_dependencies([descend, *moved]):
                train_op = average.apply(trained)

        def averaged(getter: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            variable = getter(*args, **kwargs)
            mean = average.average(variable)  # None for the moments, which are averages already
            return variable if mean is None else mean

        with tf.name_scope("reading"), tf.variable_scope("", reuse=True, custom_getter=averaged):
            logits, symbols, _ = read(x, config)
            loss = ctc_loss(logits, labels)

        weights = {v.op.name: average.average(v) for v in trained}
        weights |= {moving.op.name: moving for moving, _ in training.moments}
        right = tf.equal(symbols, labels)
        return CNN(x, y, keep_prob, train_op, training_loss, loss, right, weights)


# ---------------------------------------------------------------------- the network


@dataclass(frozen=True)
class Training:
    """What the network needs in training and not in reading."""

    keep_prob: Any
    seed: Any  # int64 [2]: all randomness of a step comes from (seed, step)
    moments: list[tuple[Any, Any]]  # receives (moving average, the batch's own) of each mean and variance


def network(x: Any, config: Config, training: Training | None = None) -> Any:
    """Scores of each column: uint8 [B, H, W] to float32 [T, B, K + 1]."""
    h = standardize(x)  # [B, H, W, 1]
    h = conv_layer(h, CHANNELS[0], "conv1", (2, 2), training, pool=True)  # [B, H/4, W/4, C]
    h = conv_layer(h, CHANNELS[1], "conv2", (2, 2), training)  # [B, H/8, W/8, C]
    h = conv_layer(h, CHANNELS[2], "conv3", (2, 1), training)  # [B, H/16, T, C]
    return columns(dropout(h, training), len(config.alphabet) + 1)


def read(x: Any, config: Config) -> tuple[Any, Any, Any]:
    """Read pictures: uint8 [B, H, W] to scores [T, B, K + 1], symbols int32 [B, L], confidence [B].

    The confidence is the probability of the symbols among all answers of L symbols.
    """
    logits = network(x, config)
    log_probs = tf.nn.log_softmax(logits)
    symbols = decode(log_probs, config.char_num)
    return logits, symbols, tf.exp(log_probability(log_probs, symbols))


def standardize(x: Any) -> Any:
    """Contrast of each picture brought to mean 0 and deviation 1: [B, H, W] to float32 [B, H, W, 1]."""
    x = tf.cast(x, tf.float32)
    mean, variance = tf.nn.moments(x, [1, 2], keepdims=True)
    return tf.expand_dims((x - mean) * tf.rsqrt(variance + 1.0), -1)  # + 1: an empty picture stays finite


def conv_layer(
    h: Any, channels: int, scope: str, stride: tuple[int, int], training: Training | None, pool: bool = False
) -> Any:
    """Convolution, 2x2 max pool where asked for, batch normalisation, ReLU.

    Pooling first leaves the later operations a quarter of the values. Batch normalisation: Ioffe
    and Szegedy 2015.
    """
    with tf.variable_scope(scope):
        shape = [KERNEL, KERNEL, int(h.shape[-1]), channels]
        kernel = tf.get_variable("kernel", shape, initializer=he_normal())
        h = tf.nn.conv2d(h, kernel, strides=stride, padding="SAME")
        if pool:
            h = tf.nn.max_pool2d(h, 2, 2, "SAME")
        return tf.nn.relu(batch_norm(h, training))


def dropout(h: Any, training: Training | None) -> Any:
    """Some of the values set to 0 in training, others in each step (Srivastava et al. 2014)."""
    if training is None:
        return h
    return tf.nn.experimental.stateless_dropout(h, 1 - training.keep_prob, training.seed)


def batch_norm(h: Any, training: Training | None) -> Any:
    """By the batch's own moments in training, by their moving averages in reading."""
    channels = [int(h.shape[-1])]
    gamma = tf.get_variable("gamma", channels, initializer=tf.ones_initializer())
    beta = tf.get_variable("beta", channels, initializer=tf.zeros_initializer())
    mean = tf.get_variable("mean", channels, initializer=tf.zeros_initializer(), trainable=False)
    variance = tf.get_variable("variance", channels, initializer=tf.ones_initializer(), trainable=False)
    if training is None:
        return tf.nn.fused_batch_norm(h, gamma, beta, mean, variance, epsilon=EPSILON, is_training=False)[0]
    h, batch_mean, batch_variance = tf.nn.fused_batch_norm(h, gamma, beta, epsilon=EPSILON)
    training.moments.extend([(mean, batch_mean), (variance, batch_variance)])
    return h


def he_normal() -> Any:
    """Weights whose layer keeps the variance of its input (He et al. 2015)."""
    return tf.variance_scaling_initializer(2.0)


def columns(h: Any, classes: int) -> Any:
    """One linear layer reads each column with its neighbours: [B, H/16, T, C] to [T, B, classes]."""
    with tf.variable_scope("columns"):
        _, rows, _, channels = h.shape
        kernel = tf.get_variable("kernel", [rows, NEIGHBOURS, channels, classes], initializer=he_normal())
        side = NEIGHBOURS // 2
        h = tf.nn.conv2d(h, kernel, strides=1, padding=[[0, 0], [0, 0], [side, side], [0, 0]])
        h = tf.transpose(tf.squeeze(h, 1), [1, 0, 2])  # columns first, as CTC reads them
        return h + tf.get_variable("bias", [classes], initializer=tf.zeros_initializer())


# ---------------------------------------------------------------------- loss and decoding


def ctc_loss(logits: Any, labels: Any) -> Any:
    """Connectionist temporal classification (Graves et al. 2006), in nats per symbol.

    A network that has learned nothing sits at ln K, about 2.30 for ten digits: the base rate.

    Args:
        logits: float32 [T, B, K + 1]. labels: int32 [B, L].
    Returns:
        float32 [B], -log p(label) / L.
    """
    columns, length = logits.shape[0], labels.shape[1]
    batch = tf.shape(labels, out_type=tf.int64)
    sparse = tf.SparseTensor(tf.where(tf.fill(batch, True)), tf.reshape(labels, [-1]), batch)
    lengths = tf.fill([tf.shape(labels)[0]], columns)
    return tf.nn.ctc_loss(sparse, logits, lengths) / float(length)


def best_of_others(scores: Any) -> Any:
    """For each place of the last axis, the largest score of all other places. [..., K] to [..., K].

    Of equal scores one is the winner, so that the gradient always names a single place.
    """
    values, places = tf.math.top_k(scores, 2)
    first, second = tf.split(values, 2, axis=-1)
    return tf.where_v2(tf.equal(places[..., :1], tf.range(scores.shape[-1])), second, first)


def sum_of_others(scores: Any) -> Any:
    """For each place of the last axis, the log of the probability of all other places."""
    largest = tf.reduce_max(scores, axis=-1, keepdims=True)
    others = 1 - tf.eye(int(scores.shape[-1]))  # summed, not subtracted from the total: nothing cancels
    return tf.maximum(tf.math.log(tf.tensordot(tf.exp(scores - largest), others, 1)) + largest, NEVER)


def log_add(a: Any, b: Any) -> Any:
    """log(exp(a) + exp(b))."""
    return tf.maximum(a, b) + tf.math.softplus(-tf.abs(a - b))


def lattice(log_probs: Any, length: int, either: Any, others: Any, allowed: Any = 0.0) -> Any:
    """The score of all ways through the columns that say exactly `length` symbols.

    A way gives each column a symbol or the blank; equal neighbours are one symbol, and blanks
    are dropped (Graves et al. 2006, section 3.1). A state is (n, k): n symbols said so far, the
    last column says k. It is reached from itself, or from the others: a symbol is one more
    said, the blank is not.

    Args:
        log_probs: float32 [T, B, K + 1].
        either, others: how alternatives combine: maximum and best_of_others for the best way,
            log_add and sum_of_others for the probability of all.
        allowed: float32 [B, L + 1, K + 1], added at every column: 0, or NEVER to forbid a state.
    Returns:
        float32 [B].
    """
    blank = int(log_probs.shape[2]) - 1
    is_blank = tf.equal(tf.range(blank + 1), blank)
    start = tf.pad(tf.zeros([1, 1]), [[0, length], [blank, 0]], constant_values=NEVER)  # (0, blank)
    states = tf.tile(start[None], [tf.shape(log_probs)[1], 1, 1])  # [B, L + 1, K + 1]
    for column in tf.unstack(tf.expand_dims(log_probs, 2)):  # [B, 1, K + 1]
        left = others(states)
        one_more = tf.pad(left[:, :-1], [[0, 0], [1, 0], [0, 0]], constant_values=NEVER)
        states = either(states, tf.where_v2(is_blank, left, one_more)) + (column + allowed)
    last = states[:, length]
    return either(last, others(last))[:, blank]


def decode(log_probs: Any, length: int) -> Any:
    """The symbols of the best way through the columns that says exactly `length` of them.

    The gradient of the best way's score by the scores of the columns is the way itself: 1 where
    it passes, 0 elsewhere.

    Args:
        log_probs: float32 [T, B, K + 1].
    Returns:
        int32 [B, L].
    """
    blank = int(log_probs.shape[2]) - 1
    way = tf.gradients(lattice(log_probs, length, tf.maximum, best_of_others), log_probs)[0]
    said = tf.argmax(way, axis=2, output_type=tf.int32)  # [T, B]
    before = tf.concat([tf.fill([1, tf.shape(said)[1]], blank), said[:-1]], axis=0)
    new = tf.cast(tf.not_equal(said, blank) & tf.not_equal(said, before), tf.int32)
    place = tf.one_hot(tf.cumsum(new) - 1, length, dtype=tf.int32) * new[..., None]  # [T, B, L]
    return tf.reduce_sum(said[..., None] * place, axis=0)


def log_probability(log_probs: Any, symbols: Any) -> Any:
    """log of the answer's probability among all answers of its length.

    Args:
        log_probs: float32 [T, B, K + 1]. symbols: int32 [B, L].
    Returns:
        float32 [B], at most 0.
    """
    length, blank = int(symbols.shape[1]), int(log_probs.shape[2]) - 1
    answer = tf.one_hot(symbols, blank + 1) + tf.one_hot(blank, blank + 1)  # [B, L, K + 1]: it and the blank
    forbidden = NEVER * tf.pad(1 - answer, [[0, 0], [1, 0], [0, 0]])
    allowed = tf.concat([forbidden, tf.zeros_like(forbidden)], axis=0)  # the answer, then all of its length
    twice = tf.concat([log_probs, log_probs], axis=1)
    answer, all_answers = tf.split(lattice(twice, length, log_add, sum_of_others, allowed), 2)
    return tf.minimum(answer - all_answers, 0.0)
