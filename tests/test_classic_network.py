"""The published network: its layers, its loss, and reading with it."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY
from graph_helpers import drawn_batch, new_model, run

from config import Config

CLASSIC = replace(TINY, **{name: getattr(Config.classic(), name) for name in ("alpha", "network")})


def softmax(logits):
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def test_its_layers_have_the_published_sizes(tf):
    from cnn_model import CNN

    with tf.Graph().as_default():
        CNN.build(Config.classic())
        shapes = {v.op.name: v.shape.as_list() for v in tf.trainable_variables()}
    kernels = {name: shape for name, shape in shapes.items() if name.endswith("kernel")}
    assert kernels == {
        "conv1/kernel": [5, 5, 1, 32],
        "conv2/kernel": [5, 5, 32, 64],
        "conv3/kernel": [5, 5, 64, 64],
        "full/kernel": [8 * 20 * 64, 128],  # 60 x 160 pixels after three poolings
        "output/kernel": [128, 4 * 10],
    }
    assert sum(map(np.prod, shapes.values())) == 1470568
    for name, shape in kernels.items():
        assert shapes[name.replace("kernel", "bias")] == shape[-1:]


def test_initial_weights_are_glorots(tf):
    with new_model(tf, CLASSIC) as (model, session):
        weights = session.run(model.weights)
    for name, value in weights.items():
        if name.endswith("bias"):
            assert (value == 0).all()
        elif name.endswith("kernel"):
            inputs, outputs = np.prod(value.shape[:-1]), np.prod(value.shape[:-2]) * value.shape[-1]
            limit = np.sqrt(6 / (inputs + outputs))  # uniform between its negative and itself
            assert 0.95 * limit < np.abs(value).max() <= limit
            assert value.std() == pytest.approx(limit / np.sqrt(3), rel=0.1)


def test_the_loss_is_the_mean_cross_entropy_of_the_sigmoids(tf):
    with new_model(tf, CLASSIC) as (model, session):
        images, labels = drawn_batch(5)
        logits, losses = session.run([model.logits, model.loss], {model.x: images, model.y: labels})
    probs = 1 / (1 + np.exp(-logits.astype(np.float64)))
    targets = labels.reshape(probs.shape)
    expected = -(targets * np.log(probs) + (1 - targets) * np.log(1 - probs)).mean(axis=(1, 2))
    assert losses == pytest.approx(expected, rel=1e-5)


def test_each_place_is_read_by_itself_with_softmax_probabilities(tf):
    from captcha_cnn.classic_network import decode

    logits = np.random.default_rng(0).normal(size=(6, 3, 5)).astype(np.float32) * 3
    with tf.Graph().as_default(), tf.Session() as session:
        p = session.run(decode(tf.constant(logits), 3))
    probs = softmax(logits.astype(np.float64))
    ranked = np.sort(probs, axis=2)
    assert np.array_equal(p.chars, probs.argmax(axis=2))
    assert p.char_probs == pytest.approx(ranked[:, :, -1], rel=1e-5)
    assert p.confidence == pytest.approx(ranked[:, :, -1].prod(axis=1), rel=1e-5)
    place = (ranked[:, :, -2] / ranked[:, :, -1]).argmax(axis=1)
    expected = p.chars.copy()
    expected[range(6), place] = probs[range(6), place].argsort(axis=1)[:, -2]
    assert np.array_equal(p.runner_up, expected)
    of_runner_up = np.take_along_axis(probs, p.runner_up[:, :, None], axis=2)[:, :, 0].prod(axis=1)
    assert p.runner_up_confidence == pytest.approx(of_runner_up, rel=1e-5)


def test_the_probability_of_a_label_is_the_product_of_its_places(tf):
    with new_model(tf, CLASSIC) as (model, session):
        images, labels = drawn_batch(5)
        feed = {model.x: images, model.y: labels}
        logits, label_probs, likelihoods = session.run(
            [model.logits, model.label_prob, model.likelihood], feed
        )
    probs = (softmax(logits.astype(np.float64)) * labels.reshape(logits.shape)).sum(axis=2)
    assert label_probs == pytest.approx(probs.prod(axis=1), rel=1e-4)
    assert np.array_equal(label_probs, likelihoods)


def test_it_overfits_eight_images(tf):
    with new_model(tf, CLASSIC) as (model, session):
        images, labels = drawn_batch(8)
        feed = {model.x: images, model.y: labels}
        for _ in range(150):
            session.run(model.train_op, feed)
        losses, chars, classes = session.run([model.loss, model.predictions.chars, model.labels], feed)
    assert np.array_equal(chars, classes)
    assert losses.max() < 0.1


def test_inference_uses_the_weights_of_the_last_step(tf):
    """The published training averages nothing."""
    with new_model(tf, CLASSIC) as (model, session):
        images, labels = drawn_batch(5)
        for _ in range(3):
            session.run(model.train_op, {model.x: images, model.y: labels})
        trained = session.run({v.op.name: v for v in tf.trainable_variables()})
        weights = session.run(model.weights)
    assert set(weights) == {*trained, "inverse_temperature"}
    for name, value in trained.items():
        assert np.array_equal(weights[name], value), name


def test_a_dropout_layer_follows_each_of_its_layers_in_training_alone(tf):
    config = replace(CLASSIC, char_num=4)
    with new_model(tf, config) as (model, session):
        images, labels = drawn_batch(3, config)
        feed = {model.x: images, model.y: labels}
        masks = [op for op in session.graph.get_operations() if op.type == "StatelessRandomUniformV2"]
        assert len(masks) == 4
        assert all(op.name.startswith("training/") for op in masks)
        (training_1, inference_1), (training_2, inference_2) = (
            session.run([model.training_loss, model.loss], feed | {model.keep_prob: keep_prob})
            for keep_prob in (1.0, 0.3)
        )
        assert training_1 != training_2
        assert np.array_equal(inference_1, inference_2)


def test_pixels_are_divided_by_255_with_constants_that_float16_has(tf):
    from captcha_cnn.classic_network import divide_by_255

    pixels = np.arange(256, dtype=np.float32)
    found = run(tf, divide_by_255, pixels.reshape(1, 256))[0]
    np.testing.assert_allclose(found, pixels / np.float32(255), rtol=2**-23)
    assert found[255] == 1
    with tf.Graph().as_default() as graph:
        divide_by_255(tf.placeholder(tf.float32, [None]))
        constants = [op.get_attr("value") for op in graph.get_operations() if op.type == "Const"]
    values = np.array([tf.make_ndarray(each) for each in constants], np.float32)
    assert np.array_equal(values, values.astype(np.float16))
