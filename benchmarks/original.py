"""The network and recipe that this project goes back to, as published, TensorFlow 1 style.

Source: "Captcha Generation and Recognition Using a Convolutional Neural Network" (Python
Programming Learning Circle, besthub.dev; files Generate_Captcha, cnn_model, driver), which
publishes 93% of digits after 100 epochs of 5,000 pictures. Every line here is ours; the sizes and
settings are the article's:

    [B, H, W, 1] in 0..1, three times (5x5 convolution of 32, 64, 64 channels, bias, ReLU, 2x2 max
    pool, dropout), 128 units with ReLU and dropout, L * K outputs; sigmoid cross-entropy averaged
    over all outputs; Adam at 1e-3, batches of 64, keep_prob 0.5; the answer is the largest of the K
    outputs of each place.

Our choice, where we know of none published: Glorot's uniform first weights and zero biases, which
are what tf.get_variable and the dense layers of TensorFlow 1 give. Truncated normals of deviation
0.1 with biases of 0.1, usual in tutorials of that time, were further behind after 100 steps (training
loss 0.42 against 0.35; one run each). The arithmetic (oneDNN,
bfloat16 where the CPU multiplies it) is that of our own training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.common import Data, Point, batches, classes, follow, score
from config import Config
from session import has_bfloat16, load_tensorflow, parts, session_config

CHANNELS = (32, 64, 64)
KERNEL = 5
UNITS = 128
ALPHA = 1e-3
BATCH_SIZE = 64
KEEP_PROB = 0.5


class Original(NamedTuple):
    """The tensors to feed and to run."""

    x: Any  # uint8 [B, H, W]
    y: Any  # float32 [B, L * K], one-hot
    keep_prob: Any  # float32 [], 1.0 unless fed
    train_op: Any
    loss: Any  # float32 []
    answers: Any  # int64 [B, L]


def build(config: Config) -> Original:
    """Add the network, its loss and its training step to the default graph."""
    import tensorflow.compat.v1 as tf

    length, symbols = config.char_num, len(config.alphabet)
    x = tf.placeholder(tf.uint8, [None, config.height, config.width])
    y = tf.placeholder(tf.float32, [None, length * symbols])
    keep_prob = tf.placeholder_with_default(1.0, [])

    h = tf.expand_dims(tf.cast(x, tf.float32) / 255, -1)  # [B, H, W, 1]
    for i, channels in enumerate(CHANNELS, 1):
        with tf.variable_scope(f"conv{i}"):
            kernel = tf.get_variable("kernel", [KERNEL, KERNEL, int(h.shape[-1]), channels])
            bias = tf.get_variable("bias", [channels], initializer=tf.zeros_initializer())
            h = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(h, kernel, strides=1, padding="SAME"), bias))
            h = tf.nn.dropout(tf.nn.max_pool2d(h, 2, 2, "SAME"), rate=1 - keep_prob)
    h = tf.reshape(h, [-1, int(h.shape[1] * h.shape[2] * h.shape[3])])  # [B, H/8 * W/8 * C]
    h = tf.nn.dropout(tf.nn.relu(linear(h, UNITS, "full")), rate=1 - keep_prob)  # [B, 128]
    logits = linear(h, length * symbols, "output")

    loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=logits))
    train_op = tf.train.AdamOptimizer(ALPHA).minimize(loss)
    answers = tf.argmax(tf.reshape(logits, [-1, length, symbols]), axis=2)
    return Original(x, y, keep_prob, train_op, loss, answers)


def linear(h: Any, units: int, scope: str) -> Any:
    """[B, C] to [B, units]."""
    import tensorflow.compat.v1 as tf

    with tf.variable_scope(scope):
        kernel = tf.get_variable("kernel", [int(h.shape[-1]), units])
        return tf.matmul(h, kernel) + tf.get_variable("bias", [units], initializer=tf.zeros_initializer())


def curve(train: Data, test: Data, config: Config, seed: int, at: Sequence[float]) -> Iterator[Point]:
    """Train on `train`; a Point on `test` each time the training clock passes the next of `at`.

    The graph is built before the clock starts. TensorFlow prunes and rewrites it in the first step,
    which is counted.
    """
    tf = load_tensorflow()
    truth = classes(test.labels, config)
    chosen = batches(len(train.images), BATCH_SIZE, seed)
    with tf.Graph().as_default() as graph:
        tf.set_random_seed(seed)
        model = build(config)
        initialize = tf.global_variables_initializer()

    with tf.Session(graph=graph, config=session_config(has_bfloat16())) as session:
        session.run(initialize)

        def step() -> None:
            batch = next(chosen)
            feed = {model.x: train.images[batch], model.y: train.labels[batch], model.keep_prob: KEEP_PROB}
            session.run(model.train_op, feed)

        def score_now() -> tuple[float, float]:
            read = [session.run(model.answers, {model.x: test.images[p]}) for p in parts(len(truth))]
            return score([answer for part in read for answer in part.tolist()], truth)

        yield from follow(step, score_now, at)
