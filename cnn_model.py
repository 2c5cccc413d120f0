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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf

from config import CaptchaError, Config

CHANNELS = (16, 32, 64)  # of the three convolutions
STRIDES = ((2, 2), (4, 2), (2, 2))  # of the same: rows and columns
KERNEL = 5
NEIGHBOURS = 3  # columns of the last map that each answer is read from
EPSILON = 1e-3  # of the batch normalisation
AVERAGE = 0.999  # decay of the averaged weights, once training is long enough for it
LARGEST = 1e32  # weight in the lattice: sums of a million such are still float32
SMALLEST = 1e-64  # share of it that is still told from 0
HALVED = 1000  # values of a kernel from which on it is deployed in float16
MOMENTUM = 0.95  # of the convolutions' gradients, from one step to the next
PACE = 0.4  # by how much of alpha the values of a convolution change in a step (root mean square)


class Answers(NamedTuple):
    """What pictures say. Every probability is one among all texts of L symbols."""

    symbols: Any  # int32 [B, L], the likeliest of each place
    confidence: Any  # float32 [B], probability of these together
    each: Any  # float32 [B, L], probability of each
    runner_up: Any  # int32 [B, L], the same with one exchanged, where the next is nearest
    runner_up_confidence: Any  # float32 [B]


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
    answers: Answers
    right: Any  # bool [B, L], symbols read right
    scores: Any  # float32 [T, B, K + 1], before the temperature; may be fed in place of x
    likelihood: Any  # float32 [B], probability of the label among all texts of L symbols
    new_temperature: Any  # float32 [], to feed for ...
    set_temperature: Any  # ... this operation
    weights: dict[str, Any]  # variables of the reading network, by name
    deployed: dict[str, Any]  # what to keep of them, as deployed() makes it

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
        temperature = tf.get_variable("temperature", [], initializer=tf.ones_initializer(), trainable=False)
        training = Training(keep_prob, tf.stack([tf.constant(config.seed, tf.int64), step]), [])
        with tf.name_scope("training"):
            logits = network(x, config, training)
            training_loss = tf.reduce_mean(ctc_loss(logits, labels))
            trained = tf.trainable_variables()
            with tf.control_dependencies([decay]):  # before the step is counted, in every run
                descended = descend(training_loss, trained, config.alpha, step)
            moved = [tf.assign_sub(old, (1 - decay) * (old - new)) for old, new in training.moments]
            with tf.control_dependencies([descended, *moved]):
                train_op = average.apply(trained)

        def averaged(getter: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            variable = getter(*args, **kwargs)
            mean = average.average(variable)  # None for the moments, which are averages already
            return variable if mean is None else mean

        with tf.name_scope("reading"), tf.variable_scope("", reuse=True, custom_getter=averaged):
            scores, logits, answers = read(x, config)
            loss = ctc_loss(logits, labels)
            likelihood = label_probability(tf.nn.softmax(logits), labels)

        weights = {v.op.name: average.average(v) for v in trained}
        weights |= {moving.op.name: moving for moving, _ in training.moments}
        weights["temperature"] = temperature
        new_temperature = tf.placeholder(tf.float32, [], "new_temperature")
        return CNN(
            x,
            y,
            keep_prob,
            train_op,
            training_loss,
            loss,
            answers,
            right=tf.equal(answers.symbols, labels),
            scores=scores,
            likelihood=likelihood,
            new_temperature=new_temperature,
            set_temperature=tf.assign(temperature, new_temperature),
            weights=weights,
            deployed=deployed(weights),
        )


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
    h = conv_layer(h, CHANNELS[0], STRIDES[0], "conv1", training)  # [B, H/2, W/2, C]
    h = conv_layer(h, CHANNELS[1], STRIDES[1], "conv2", training)  # [B, H/8, W/4, C]
    h = conv_layer(h, CHANNELS[2], STRIDES[2], "conv3", training)  # [B, H/16, T, C]
    return columns(dropout(h, training), len(config.alphabet) + 1)


def read(x: Any, config: Config) -> tuple[Any, Any, Answers]:
    """Read pictures: uint8 [B, H, W] to scores and logits, float32 [T, B, K + 1], and what they say.

    The logits are the scores divided by one temperature, which is found at the end of training so
    that the confidences are honest (Guo et al. 2017).
    """
    scores = network(x, config)
    ones = tf.ones_initializer()
    logits = scores / tf.get_variable("temperature", [], initializer=ones, trainable=False)
    return scores, logits, decode(tf.nn.softmax(logits), config.char_num)


def frozen(config: Config, weights: dict[str, np.ndarray]) -> tuple[Any, Any, Answers]:
    """Add the reading network to the default graph, its weights constants: pictures, logits, what they say.

    TensorFlow folds the batch normalisation into the kernels and brings them into the processor's
    order once, not with every call. Large kernels are constants of float16, where that has them.

    Raises:
        CaptchaError: a weight is missing.
    """

    def constant(getter: Any, name: str, **others: Any) -> Any:
        if name not in weights:
            raise CaptchaError(
                f"the model must be of this version of the program, but has no {name}: read with the version "
                "that trained it, or train anew"
            )
        half = exact_half(weights[name])
        return tf.constant(weights[name]) if half is None else tf.cast(tf.constant(half), tf.float32)

    with tf.variable_scope("", custom_getter=constant):
        x = tf.placeholder(tf.uint8, [None, config.height, config.width], "pictures")
        _, logits, answers = read(x, config)
        return x, logits, answers


def spelled(answers: Answers, config: Config, strings: bool) -> Answers:
    """Answers whose symbols and runner_up are texts, string [B], or code points, int32 [B, L]."""
    alphabet = tf.constant([symbol if strings else ord(symbol) for symbol in config.alphabet])
    texts = [tf.gather(alphabet, each) for each in (answers.symbols, answers.runner_up)]
    if strings:
        texts = [tf.strings.reduce_join(each, axis=1) for each in texts]
    return answers._replace(symbols=texts[0], runner_up=texts[1])


def deployed(weights: dict[str, Any]) -> dict[str, Any]:
    """Weights that read alike, as exported files hold them: large kernels are such as float16 has.

    The batch normalisation that follows such a kernel is brought into it before, as all converters do.
    Kept like this, the weights that are tested are those that are deployed, bit for bit.

    Args:
        weights: float32 tensors by name; the same names are returned.
    """
    kept = dict(weights)
    for name, kernel in weights.items():
        if kernel.shape.num_elements() < HALVED:
            continue
        of = {each: f"{name.removesuffix('kernel')}{each}" for each in ("gamma", "beta", "mean", "variance")}
        if of["gamma"] in weights:
            gamma, beta, mean, variance = (weights[each] for each in of.values())
            scale = gamma * tf.rsqrt(variance + EPSILON)
            kernel = kernel * scale
            kept[of["gamma"]], kept[of["beta"]] = tf.ones_like(gamma), beta - mean * scale
            kept[of["mean"]], kept[of["variance"]] = tf.zeros_like(mean), tf.ones_like(variance) - EPSILON
        kept[name] = tf.cast(tf.cast(kernel, tf.float16), tf.float32)
    return kept


def exact_half(values: np.ndarray) -> np.ndarray | None:
    """A large constant, float32, in float16; None where it is small, or float16 has not just these values."""
    if values.size < HALVED:
        return None
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half, values) else None


def standardize(x: Any) -> Any:
    """Contrast of each picture brought to mean 0 and deviation 1: [B, H, W] to float32 [B, H, W, 1]."""
    x = tf.cast(x, tf.float32)
    mean, variance = tf.nn.moments(x, [1, 2], keepdims=True)
    return tf.expand_dims((x - mean) * tf.rsqrt(variance + 1.0), -1)  # + 1: an empty picture stays finite


def conv_layer(h: Any, channels: int, stride: tuple[int, int], scope: str, training: Training | None) -> Any:
    """Convolution, batch normalisation (Ioffe and Szegedy 2015), ReLU.

    What makes the map smaller is the convolution's stride: a pool, which keeps the largest value and
    forgets where it was, blurs the small gaps that tell 5 from 6.
    """
    down, across = stride
    with tf.variable_scope(f"{scope}_{down}x{across}"):  # weights trained with other strides have other names
        shape = [KERNEL, KERNEL, int(h.shape[-1]), channels]
        kernel = tf.get_variable("kernel", shape, initializer=he_normal())
        h = tf.nn.conv2d(h, kernel, strides=stride, padding="SAME")
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
        h = tf.pad(h, [[0, 0], [0, 0], [side, side], [0, 0]])  # conv2d's own has slow gradients: not oneDNN's
        h = tf.nn.conv2d(h, kernel, strides=1, padding="VALID")
        h = tf.transpose(tf.squeeze(h, 1), [1, 0, 2])  # columns first, as CTC reads them
        return h + tf.get_variable("bias", [classes], initializer=tf.zeros_initializer())


# ---------------------------------------------------------------------- the optimiser


def descend(loss: Any, trained: Sequence[Any], alpha: float, step: Any) -> Any:
    """One step: the convolutions' kernels by Muon (Jordan et al. 2024), what else there is by Adam.

    A kernel is a matrix, from what a channel looks at to the channels. Its gradient is ruled by the
    few directions that matter most so far; Muon goes equally far in all, so that what few pictures
    show is learned as fast as what all show. How far is Liu et al.'s rule (2025): about as far as Adam.

    Args:
        loss: float32 []. trained: the variables. alpha: the learning rate. step: is counted up.
    """
    gradients = list(zip(tf.gradients(loss, trained), trained, strict=True))
    kernels = [(g, v) for g, v in gradients if v.op.name.startswith("conv") and v.shape.rank == 4]
    others = [(g, v) for g, v in gradients if v.op.name not in {each.op.name for _, each in kernels}]
    done = [tf.train.AdamOptimizer(alpha).apply_gradients(others, step)]
    for gradient, kernel in kernels:
        name, zeros = f"{kernel.op.name}/momentum", tf.zeros_initializer()
        momentum = tf.get_variable(name, kernel.shape, initializer=zeros, trainable=False)
        moving = tf.assign(momentum, MOMENTUM * momentum + gradient)
        ahead = tf.reshape(gradient + MOMENTUM * moving, [-1, kernel.shape[-1]])  # Nesterov's
        far = PACE * alpha * math.sqrt(int(ahead.shape[0]))
        done.append(tf.assign_sub(kernel, far * tf.reshape(orthogonal(ahead), kernel.shape)))
    return tf.group(*done)


def orthogonal(matrix: Any) -> Any:
    """About the nearest matrix with orthonormal columns: float32 [M, N], N at most M, to the same.

    Singular values become 0.7 to 1.2, not 1: five steps of an iteration of Newton and Schulz's kind,
    with the coefficients of Jordan et al. (2024). It takes matrix products only; a singular value
    decomposition would take longer than all else in a step.
    """
    x = matrix / (tf.norm(matrix) + 1e-12)  # where the gradient is 0, so is the result
    for _ in range(5):
        gram = tf.matmul(x, x, transpose_a=True)  # [N, N]
        x = 3.4445 * x + tf.matmul(x, -4.7750 * gram + 2.0315 * tf.matmul(gram, gram))
    return x


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


def decode(probabilities: Any, length: int) -> Answers:
    """The likeliest symbol of each of exactly `length` places, and how sure the answer is.

    The usual decoding of CTC may say a symbol too many or too few, though the length is known.
    Ways are weighed from the left and from the right (the forward and backward variables of Graves
    et al. 2006, section 4.1, here over all answers of that length); where they meet, they give the
    probability of each symbol at each place.

    Args:
        probabilities: float32 [T, B, K + 1], of each column. What is less than the L-th root of
            SMALLEST (1e-16 for four symbols) counts as that, so that no product leaves float32.
    """
    blank = int(probabilities.shape[2]) - 1
    weights = state_weights(probabilities, length)
    states, scales = lattice(tf.concat([weights, tf.reverse(weights, [0])], axis=1))
    (left, right), (left_scale, right_scale) = tf.split(states, 2, axis=1), tf.split(scales, 2, axis=1)

    # Symbol n is said at the column where the ways from the left, with n - 1 said, turn to it; from
    # there on, the ways from the right say L - n + 1.
    before = tf.concat([tf.zeros_like(left[:1]) + nothing_said(length, blank), left[:-1]], axis=0)
    # With both in two dimensions: of four by two, TensorFlow 2.21 writes past the end (its issue 117700).
    turn = tf.constant(1 - np.eye(blank + 1)[:, :-1], tf.float32)  # [from k, to k]
    turning = tf.matmul(tf.reshape(before[:, :, :-1], [-1, blank + 1]), turn)
    turning = tf.reshape(turning, [-1, tf.shape(weights)[1], length, blank])
    from_there = tf.reverse(tf.reverse(right, [0]), [2])[:, :, :-1, :-1]
    scale = tf.pad(left_scale[:-1], [[1, 0], [0, 0]]) + tf.reverse(right_scale, [0])
    meeting = tf.math.log(turning) + tf.math.log(from_there) + scale[:, :, None, None]  # [T, B, L, K]
    shares, ranked = tf.math.top_k(tf.nn.softmax(tf.reduce_logsumexp(meeting, axis=0)), 2)  # [B, L, 2]

    symbols, others = ranked[:, :, 0], ranked[:, :, 1]
    exchanged = tf.one_hot(tf.argmax(shares[:, :, 1] / shares[:, :, 0], axis=1), length, True, False)
    runner_up = tf.where(exchanged, others, symbols)
    every = total(left, left_scale)
    texts = tf.concat([symbols, runner_up], axis=0)
    weights, every = tf.concat([weights] * 2, axis=1), tf.concat([every] * 2, axis=0)
    confidence, next_best = tf.split(probability(texts, weights, every), 2)
    return Answers(symbols, confidence, shares[:, :, 0], runner_up, next_best)


def label_probability(probabilities: Any, labels: Any) -> Any:
    """The probability of labels, int32 [B, L], among all texts of L symbols: float32 [B].

    Args:
        probabilities: float32 [T, B, K + 1], of each column.
    """
    weights = state_weights(probabilities, int(labels.shape[1]))
    return probability(labels, weights, total(*lattice(weights)))


def probability(symbols: Any, weights: Any, every: Any) -> Any:
    """The share of the ways that say symbols, int32 [B, L], in those of `every`, log [B]: float32 [B]."""
    blank = int(weights.shape[3]) - 1
    said = tf.pad(tf.one_hot(symbols, blank + 1), [[0, 0], [1, 0], [0, 0]])
    said += tf.one_hot(blank, blank + 1)  # a state's blank and its own symbol
    these = total(*lattice(weights * said))
    return tf.exp(tf.minimum(these - every, 0.0))


def state_weights(probabilities: Any, length: int) -> Any:
    """What the lattice weighs each state with at each column: float32 [T, B, L + 1, K + 1]."""
    weights = tf.maximum(probabilities, SMALLEST ** (1 / length))
    return tf.tile(weights[:, :, None], [1, 1, length + 1, 1])


def lattice(weights: Any) -> tuple[Any, Any]:
    """The weight of all ways through the columns, by where they stand after each.

    A way gives each column a symbol or the blank; equal neighbours are one symbol, and blanks
    are dropped. A state is (n, k): n symbols said so far, the last column says k. It is reached
    from itself, or from the others: a symbol is one more said, the blank is not.

    Args:
        weights: float32 [T, B, L + 1, K + 1], of each state at each column; a way weighs their product.
    Returns:
        float32 [T, B, L + 1, K + 1], scaled so that each column's largest is LARGEST;
        float32 [T, B], the log of what it was divided by.
    """
    _, _, counts, classes = weights.shape
    others, to_blank = 1 - np.eye(classes), np.eye(classes)[-1]
    stay, say = np.eye(classes) + others * to_blank, others * (1 - to_blank)  # [from k, to k]
    moves = tf.constant(np.concatenate([stay, say]), tf.float32)
    states = tf.zeros_like(weights[0]) + nothing_said(counts - 1, classes - 1)
    all_states, scales = [], []
    for column in tf.unstack(weights):  # with few operations: their number is what takes time
        one_less_said = tf.pad(states, [[0, 0], [1, 0], [0, 0]])[:, :-1]
        both = tf.reshape(tf.concat([states, one_less_said], axis=2), [-1, 2 * classes])
        states = tf.reshape(tf.matmul(both, moves), [-1, counts, classes]) * column
        scale = tf.reduce_max(states, axis=[1, 2], keepdims=True) / LARGEST
        states /= scale
        all_states.append(states)
        scales.append(scale)
    return tf.stack(all_states), tf.cumsum(tf.math.log(tf.squeeze(tf.stack(scales), [2, 3])))


def nothing_said(length: int, blank: int) -> Any:
    """Where every way begins: the weight LARGEST at state (0, blank); float32 [L + 1, K + 1]."""
    return tf.constant(LARGEST * np.eye(length + 1, 1) * np.eye(blank + 1)[blank], tf.float32)


def total(states: Any, scales: Any) -> Any:
    """Log of the weight of all ways that say L symbols, float32 [B], from what lattice() returns."""
    return tf.math.log(tf.reduce_sum(states[-1, :, -1], axis=1)) + scales[-1]
