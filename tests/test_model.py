import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY

from config import Config

# T columns, K symbols, L said: small enough to list every way through the columns.
LATTICES = [(5, 3, 3), (4, 2, 2), (3, 2, 2), (6, 3, 1), (5, 2, 3)]


def random_shares(columns, symbols, pictures=6):
    """Probabilities, float32 [T, B, K + 1], some columns sure and some not."""
    random = np.random.default_rng(columns * 10 + symbols)
    shares = random.dirichlet(np.full(symbols + 1, 0.5), size=(columns, pictures)) + 1e-6
    return (shares / shares.sum(-1, keepdims=True)).astype(np.float32)


def every_answer(shares, length):
    """For one picture, [T, K + 1]: {answer: probability of all ways that say it}."""
    columns, classes = shares.shape
    totals = {}
    for way in itertools.product(range(classes), repeat=columns):
        answer = tuple(k for k, _ in itertools.groupby(way) if k != classes - 1)
        if len(answer) == length:
            weight = shares[np.arange(columns), way].prod(dtype=np.float64)
            totals[answer] = totals.get(answer, 0) + weight
    return totals


def run(tf, build, value, dtype="float32"):
    with tf.Graph().as_default(), tf.Session() as session:
        placeholder = tf.placeholder(dtype, [value.shape[0], None, *value.shape[2:]])
        return session.run(build(placeholder), {placeholder: value})


@pytest.mark.parametrize(("columns", "symbols", "length"), LATTICES)
def test_decoding_and_confidence_are_those_of_listing_every_way(columns, symbols, length, tf):
    from cnn_model import decode

    shares = random_shares(columns, symbols)
    found = run(tf, lambda each: decode(each, length), shares)
    assert found.symbols.shape == (6, length)
    for picture, (answer, confidence, each, other, other_confidence) in enumerate(zip(*found, strict=True)):
        totals = every_answer(shares[:, picture], length)
        places = np.zeros([length, symbols])
        for said, weight in totals.items():
            places[np.arange(length), said] += weight
        assert answer.tolist() == places.argmax(axis=1).tolist()
        every = sum(totals.values())
        assert confidence == pytest.approx(totals[tuple(answer)] / every, rel=1e-4)
        assert each == pytest.approx(places.max(axis=1) / every, rel=1e-4)
        ranked = np.sort(places, axis=1)
        (place,) = np.flatnonzero(answer != other)
        assert place == (ranked[:, -2] / ranked[:, -1]).argmax()
        assert places[place, other[place]] == ranked[place, -2]
        assert other_confidence == pytest.approx(totals.get(tuple(other), 0) / every, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(("columns", "symbols", "length"), LATTICES)
def test_the_probability_of_a_label_is_that_of_listing_every_way(columns, symbols, length, tf):
    from cnn_model import label_probability

    shares = random_shares(columns, symbols)
    every = sorted(every_answer(shares[:, 0], length))
    labels = np.array([every[i % len(every)] for i in range(6)], np.int32)
    found = run(tf, lambda each: label_probability(each, tf.constant(labels)), shares)
    for picture, share in enumerate(found):
        totals = every_answer(shares[:, picture], length)
        assert share == pytest.approx(totals[tuple(labels[picture])] / sum(totals.values()), rel=1e-4)


@pytest.mark.parametrize(("columns", "symbols", "length"), LATTICES)
def test_the_loss_is_that_of_listing_every_way(columns, symbols, length, tf):
    from cnn_model import ctc_loss

    shares = random_shares(columns, symbols)
    every = sorted(every_answer(shares[:, 0], length))
    labels = np.array([every[i % len(every)] for i in range(6)], np.int32)
    losses = run(tf, lambda scores: ctc_loss(scores, tf.constant(labels)), np.log(shares))
    for picture, loss in enumerate(losses):
        totals = every_answer(shares[:, picture], length)
        assert loss == pytest.approx(-np.log(totals[tuple(labels[picture])]) / length, rel=1e-4)


def test_columns_that_say_too_little_or_too_much_still_give_an_answer(tf):
    from cnn_model import decode

    def sure(classes):  # of the 20 columns, each of its class and of no other
        return np.eye(11, dtype=np.float32)[list(classes)]

    shares = [np.full((20, 11), 1 / 11, np.float32), sure([10] * 20), sure([7] * 20), sure(range(10))]
    shares = np.stack([np.resize(each, (20, 11)) for each in shares], axis=1)
    answers, confidences, *_ = run(tf, lambda each: decode(each, 4), shares)
    assert ((answers >= 0) & (answers < 10)).all()
    assert ((confidences >= 0) & (confidences < 0.1)).all()


def test_symbols_of_which_one_can_hardly_be_seen_are_told_apart(tf):
    from cnn_model import decode

    shares = np.tile(np.eye(4, dtype=np.float32)[3], (9, 1, 1))  # blanks
    for column, symbol in ((1, 2), (3, 2), (7, 0)):
        shares[column, 0] = np.eye(4)[symbol]
    shares[5, 0] = 1e-12, 3e-12, 0, 1
    (answer,), (confidence,), *_ = run(tf, lambda each: decode(each, 4), shares)
    assert answer.tolist() == [2, 2, 1, 0]
    assert confidence == pytest.approx(0.75, rel=1e-3)


def test_decoding_stays_in_float32_where_convolutions_do_not(tf):
    from cnn_model import decode
    from session import session_config

    shares = random_shares(9, 4)
    found = []
    for bfloat16 in (False, True):
        with tf.Graph().as_default(), tf.Session(config=session_config(bfloat16)) as session:
            placeholder = tf.placeholder(tf.float32, [9, None, 5])
            product = tf.matmul(placeholder[0], placeholder[0], transpose_b=True)
            answers = decode(placeholder, 3)
            found.append(session.run([*answers, product], {placeholder: shares}))
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)


def test_no_matrix_product_broadcasts(tf):
    """Of four dimensions by two, TensorFlow 2.21 writes past the end where oneDNN does it (issue 117700)."""
    from cnn_model import CNN

    with tf.Graph().as_default() as graph:
        CNN.build(TINY)
        types = [op.type for op in graph.get_operations()]
    assert "MatMul" in types
    assert not [each for each in types if each.startswith("BatchMatMul")]


# ---------------------------------------------------------------------- the optimiser


@pytest.mark.parametrize("shape", [(25, 16), (13, 5), (7, 7)])
def test_orthogonal_keeps_the_directions_and_makes_them_equally_long(shape, tf):
    from cnn_model import orthogonal

    random = np.random.default_rng(0)
    left, _, right = np.linalg.svd(random.normal(size=shape), full_matrices=False)
    lengths = np.geomspace(20, 1, shape[1])
    found = run(tf, orthogonal, ((left * lengths) @ right).astype(np.float32))
    turned_back = left.T @ found @ right.T
    assert np.diag(turned_back) == pytest.approx(1, abs=0.35)
    assert turned_back - np.diag(np.diag(turned_back)) == pytest.approx(0, abs=1e-4)


def test_orthogonal_of_nothing_is_nothing(tf):
    from cnn_model import orthogonal

    assert not run(tf, orthogonal, np.zeros((9, 4), np.float32)).any()


def test_kernels_of_convolutions_go_as_far_as_alpha_says_and_all_else_by_adam(tf):
    from cnn_model import MOMENTUM, PACE, descend, orthogonal

    with tf.Graph().as_default(), tf.Session() as session:
        ones = tf.ones_initializer()
        names = {"conv1_2x2/kernel": [3, 5, 2, 4], "conv1_2x2/gamma": [4], "columns/kernel": [1, 3, 4, 6]}
        variables = [tf.get_variable(name, shape, initializer=ones) for name, shape in names.items()]
        slopes = [tf.placeholder(tf.float32, shape) for shape in names.values()]
        loss = tf.add_n([tf.reduce_sum(v * slope) for v, slope in zip(variables, slopes, strict=True)])
        step = tf.train.get_or_create_global_step()
        train_op = descend(loss, variables, 0.01, step)
        session.run(tf.global_variables_initializer())
        random = np.random.default_rng(0)
        fed, places = [], [session.run(variables)]
        for _ in range(2):
            fed.append([random.normal(size=shape) for shape in names.values()])
            session.run(train_op, dict(zip(slopes, fed[-1], strict=True)))
            places.append(session.run(variables))
        kernel_slopes = [each[0].reshape(30, 4) for each in fed]
        momentum, found = np.zeros((30, 4)), []
        for slope in kernel_slopes:
            momentum = MOMENTUM * momentum + slope
            wanted = orthogonal(tf.constant(slope + MOMENTUM * momentum, tf.float32))
            found.append(session.run(wanted).reshape(3, 5, 2, 4) * PACE * 0.01 * np.sqrt(30))
        assert session.run(step) == 2
    for before, after, far in zip(places, places[1:], found, strict=False):
        assert before[0] - after[0] == pytest.approx(far, abs=1e-6)
        assert np.sqrt(np.mean((before[0] - after[0]) ** 2)) == pytest.approx(PACE * 0.01, rel=0.3)
    for n in (1, 2):  # Adam's first step is alpha against the slope, whatever that is
        assert places[0][n] - places[1][n] == pytest.approx(0.01 * np.sign(fed[0][n]), rel=1e-3)


# ---------------------------------------------------------------------- the graph


def parameters(config):
    """Kernels and batch normalisations of the three convolutions; kernel and bias of the columns."""
    convolutions = 25 * (1 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64)
    classes = len(config.alphabet) + 1
    return convolutions + config.rows * 3 * 64 * classes + classes


@pytest.mark.parametrize(("config", "count"), [(Config(), 73083), (TINY, 66934)])
def test_number_of_parameters(config, count, tf):
    from cnn_model import CNN

    with tf.Graph().as_default():
        CNN.build(config)
        assert (
            sum(np.prod(v.shape.as_list()) for v in tf.trainable_variables()) == count == parameters(config)
        )


@pytest.mark.parametrize(("width", "height"), [(33, 8), (37, 23), (40, 24), (41, 25), (160, 60)])
def test_the_last_map_has_the_columns_that_config_says(width, height, tf):
    from cnn_model import network

    config = replace(TINY, width=width, height=height)
    with tf.Graph().as_default():
        scores = network(tf.placeholder(tf.uint8, [None, height, width]), config)
        assert scores.shape.as_list() == [config.columns, None, 6]
        kernel = tf.get_default_graph().get_tensor_by_name("columns/kernel/Read/ReadVariableOp:0")
        assert kernel.shape[0] == config.rows


def sample(count, config=TINY):
    """Pictures and labels of as many drawn captchas."""
    from generate_captcha import ReadData, draw, grey

    drawn = [draw(config, "train", i) for i in range(count)]
    images = np.stack([grey(picture) for _, picture in drawn])
    return images, np.stack([ReadData(config).label2vec(label) for label, _ in drawn])


@pytest.fixture
def started(tf):
    """A model of the tiny size and a session in which its variables have their first values."""
    from cnn_model import CNN

    with tf.Graph().as_default():
        model = CNN.build(TINY)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            yield model, session


def test_it_overfits_eight_pictures(started):
    model, session = started
    images, labels = sample(8)
    for _ in range(150):
        session.run(model.train_op, {model.x: images, model.y: labels})
    losses, right = session.run([model.loss, model.right], {model.x: images, model.y: labels})
    assert right.all()
    assert losses.max() < 0.1


def test_fed_are_pictures_one_hot_labels_and_keep_prob(started):
    model, _ = started
    assert (model.x.shape.as_list(), model.x.dtype) == ([None, 23, 37], "uint8")
    assert (model.y.shape.as_list(), model.y.dtype) == ([None, 15], "float32")
    assert model.keep_prob.shape.as_list() == []


def test_dropout_acts_in_training_and_never_in_reading(started):
    model, session = started
    images, labels = sample(5)

    def losses(keep_prob):
        feed = {model.x: images, model.y: labels, model.keep_prob: keep_prob}
        return session.run([model.training_loss, model.loss], feed)

    (training_1, reading_1), (training_2, reading_2) = losses(1.0), losses(0.3)
    assert training_1 != training_2
    assert np.array_equal(reading_1, reading_2)
    assert losses(0.3)[0] == training_2, "masks must depend on the step alone"
    session.run(model.train_op, {model.x: images, model.y: labels, model.keep_prob: 1.0})


def test_reading_uses_averages_of_weights_and_moments(started, tf):
    model, session = started
    images, labels = sample(7)
    raw = {v.op.name: v for v in tf.trainable_variables()}
    averages = session.run(raw)
    for step in range(4):
        session.run(model.train_op, {model.x: images, model.y: labels})
        decay = min(0.999, (1 + step) / (10 + step))
        now = session.run(raw)
        averages = {name: decay * averages[name] + (1 - decay) * now[name] for name in raw}
    saved = session.run(model.weights)
    layers = ("conv1_2x2", "conv2_4x2", "conv3_2x2")
    moments = {f"{layer}/{m}" for layer in layers for m in ("mean", "variance")}
    assert set(saved) == set(raw) | moments | {"temperature"}
    for name, average in averages.items():
        np.testing.assert_allclose(saved[name], average, rtol=1e-3, atol=1e-5)
    assert np.abs(saved["conv1_2x2/mean"]).max() > 0
    loss = session.run(model.loss, {model.x: images, model.y: labels})
    session.run([v.assign(tf.zeros_like(v)) for v in tf.trainable_variables()])
    assert np.array_equal(session.run(model.loss, {model.x: images, model.y: labels}), loss)


def test_deployed_weights_read_alike_and_float16_has_the_large_ones(started):
    from cnn_model import EPSILON, exact_half

    model, session = started
    images, labels = sample(7)
    for _ in range(30):
        session.run(model.train_op, {model.x: images, model.y: labels})
    assert exact_half(session.run(model.weights["conv2_4x2/kernel"])) is None
    before, deployed = session.run([model.scores, model.deployed], {model.x: images})
    for name, value in deployed.items():
        model.weights[name].load(value, session)
    after = session.run(model.scores, {model.x: images})
    np.testing.assert_allclose(after, before, atol=0.01 * np.abs(before).max())
    assert not np.array_equal(after, before)
    kernels = ["columns/kernel", "conv2_4x2/kernel", "conv3_2x2/kernel"]
    assert [name for name in sorted(deployed) if exact_half(deployed[name]) is not None] == kernels
    for scope in ("conv2_4x2", "conv3_2x2"):  # multiplied with these once more, the kernels are the same
        of = {name: deployed[f"{scope}/{name}"] for name in ("gamma", "mean", "variance")}
        assert (of["gamma"] / np.sqrt(of["variance"] + np.float32(EPSILON)) == 1).all()
        assert (of["mean"] == 0).all()


def test_the_decay_of_a_step_is_taken_before_the_step_is_counted(started, tf):
    counted = next(
        op
        for op in tf.get_default_graph().get_operations()
        if op.type == "AssignAddVariableOp" and op.inputs[0].op.name == "global_step"
    )
    before, left = set(), [counted]
    while left:
        op = left.pop()
        new = {*op.control_inputs, *(each.op for each in op.inputs)} - before
        before |= new
        left += new
    assert "decay" in {op.name for op in before}


def test_an_empty_picture_stays_finite(tf):
    from cnn_model import standardize

    assert np.array_equal(
        run(tf, standardize, np.full((2, 23, 37), 200, np.uint8), "uint8"), np.zeros((2, 23, 37, 1))
    )


def test_first_weights_depend_on_the_seed_alone(tf):
    from cnn_model import CNN

    def weights(seed):
        with tf.Graph().as_default(), tf.Session() as session:
            model = CNN.build(replace(TINY, seed=seed))
            session.run(tf.global_variables_initializer())
            return session.run(model.weights["conv2_4x2/kernel"])

    assert np.array_equal(weights(1), weights(1))
    assert not np.array_equal(weights(1), weights(2))
