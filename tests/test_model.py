"""The graph: sizes, training and inference network, dropout, averages, initial weights."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY
from graph_helpers import drawn_batch, new_model, run

from config import Config

LAYERS = ("conv1_2x2", "conv2_4x2", "conv3_2x2")


@pytest.fixture
def started(tf):
    """A model of the tiny size and a session in which its variables have their initial values."""
    with new_model(tf) as both:
        yield both


def parameter_count(config):
    """Kernels and batch normalisations of convolutions and dense layer; kernel and bias of the head."""
    convolutions = 25 * (1 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64)
    classes, inputs = len(config.alphabet) + 1, config.feature_map_height * 3 * 64
    if config.dense:
        return convolutions + (inputs + 2 + classes) * config.dense + classes
    return convolutions + (inputs + 1) * classes


# ---------------------------------------------------------------------- sizes and inputs


@pytest.mark.parametrize(
    ("config", "count"), [(Config(), 73083), (TINY, 66934), (replace(TINY, dense=5), 66590)]
)
def test_number_of_parameters(config, count, tf):
    from cnn_model import CNN

    with tf.Graph().as_default():
        CNN.build(config)
        found = sum(np.prod(v.shape.as_list()) for v in tf.trainable_variables())
        assert found == count == parameter_count(config)


@pytest.mark.parametrize(("width", "height"), [(33, 8), (37, 23), (40, 24), (41, 25), (160, 60)])
def test_the_last_feature_map_has_the_time_steps_that_config_says(width, height, tf):
    from cnn_model import ctc_network

    config = replace(TINY, width=width, height=height)
    with tf.Graph().as_default():
        logits = ctc_network(tf.placeholder(tf.uint8, [None, height, width]), config)
        assert logits.shape.as_list() == [config.time_steps, None, 6]
        kernel = tf.get_default_graph().get_tensor_by_name("ctc_head/kernel/Read/ReadVariableOp:0")
        assert kernel.shape[0] == config.feature_map_height


def test_fed_are_images_one_hot_labels_and_keep_prob(started):
    model, _ = started
    assert (model.x.shape.as_list(), model.x.dtype) == ([None, 23, 37], "uint8")
    assert (model.y.shape.as_list(), model.y.dtype) == ([None, 15], "float32")
    assert model.keep_prob.shape.as_list() == []


@pytest.mark.parametrize("network", ["ctc", "classic"])
def test_no_matrix_product_broadcasts(network, tf):
    """Of four dimensions by two, TensorFlow 2.21 writes past the end where oneDNN does it (issue 117700)."""
    from cnn_model import CNN

    with tf.Graph().as_default() as graph:
        CNN.build(replace(TINY, network=network))
        types = [op.type for op in graph.get_operations()]
    assert "MatMul" in types
    assert not [each for each in types if each.startswith("BatchMatMul")]


def test_an_empty_image_stays_finite(tf):
    from captcha_cnn.layers import standardize

    empty = np.full((2, 23, 37), 200, np.uint8)
    assert np.array_equal(run(tf, standardize, empty, "uint8"), np.zeros((2, 23, 37, 1)))


# ---------------------------------------------------------------------- training


def test_it_overfits_eight_images(started):
    model, session = started
    images, labels = drawn_batch(8)
    for _ in range(150):
        session.run(model.train_op, {model.x: images, model.y: labels})
    fetches = [model.loss, model.predictions.chars, model.labels]
    losses, chars, classes = session.run(fetches, {model.x: images, model.y: labels})
    assert np.array_equal(chars, classes)
    assert np.array_equal(classes, labels.reshape(8, 3, 5).argmax(axis=2))
    assert losses.max() < 0.1


def test_likelihood_is_what_the_loss_says_and_label_prob_is_among_texts_of_the_length(started):
    model, session = started
    images, labels = drawn_batch(5)
    feed = {model.x: images, model.y: labels}
    losses, likelihoods, label_probs = session.run([model.loss, model.likelihood, model.label_prob], feed)
    assert likelihoods == pytest.approx(np.exp(-3 * losses), rel=1e-5)
    assert (label_probs > likelihoods).all()


def test_initial_weights_depend_on_the_seed_alone(tf):
    def weights(seed):
        with new_model(tf, replace(TINY, seed=seed)) as (model, session):
            return session.run(model.weights["conv2_4x2/kernel"])

    assert np.array_equal(weights(1), weights(1))
    assert not np.array_equal(weights(1), weights(2))


def test_inference_uses_averages_of_weights_and_moments(started, tf):
    model, session = started
    images, labels = drawn_batch(7)
    trained = {v.op.name: v for v in tf.trainable_variables()}
    averages = session.run(trained)
    for step in range(4):
        session.run(model.train_op, {model.x: images, model.y: labels})
        decay = min(0.999, (1 + step) / (10 + step))
        now = session.run(trained)
        averages = {name: decay * averages[name] + (1 - decay) * now[name] for name in trained}
    saved = session.run(model.weights)
    moments = {f"{layer}/{moment}" for layer in LAYERS for moment in ("mean", "variance")}
    assert set(saved) == set(trained) | moments | {"inverse_temperature"}
    for name, average in averages.items():
        np.testing.assert_allclose(saved[name], average, rtol=1e-3, atol=1e-5)
    assert np.abs(saved["conv1_2x2/mean"]).max() > 0
    loss = session.run(model.loss, {model.x: images, model.y: labels})
    session.run([v.assign(tf.zeros_like(v)) for v in tf.trainable_variables()])
    assert np.array_equal(session.run(model.loss, {model.x: images, model.y: labels}), loss)


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
    assert "training/decay" in {op.name for op in before}


# ---------------------------------------------------------------------- dropout


def layer_outputs(model, session):
    """The tensors that leave the three layers: (in training, in inference)."""
    graph = session.graph
    found = []
    for scope in ("training", "inference"):
        operations = [op for op in graph.get_operations() if op.name.startswith(f"{scope}/")]
        first, second = [op.outputs[0] for op in operations if op.type == "Relu"][:2]
        (pad,) = [op for op in operations if op.type == "Pad" and "ctc_head" in op.name]
        found.append([first, second, pad.inputs[0]])
    return found


def test_dropout_acts_in_training_and_never_in_inference(started):
    model, session = started
    images, labels = drawn_batch(5)

    def losses(keep_prob):
        feed = {model.x: images, model.y: labels, model.keep_prob: keep_prob}
        return session.run([model.training_loss, model.loss], feed)

    (training_1, inference_1), (training_2, inference_2) = losses(1.0), losses(0.3)
    assert training_1 != training_2
    assert np.array_equal(inference_1, inference_2)
    assert losses(0.3)[0] == training_2, "what is dropped must depend on seed and step alone"
    session.run(model.train_op, {model.x: images, model.y: labels, model.keep_prob: 1.0})


def test_dropout_follows_every_convolution_and_changes_with_the_step(started, tf):
    model, session = started
    images, labels = drawn_batch(5)
    training, inference = layer_outputs(model, session)

    def outputs(step, keep_prob):
        tf.train.get_global_step().load(step, session)
        feed = {model.x: images, model.y: labels, model.keep_prob: keep_prob}
        return session.run([training, inference], feed)

    (complete, expected), (first, inferred), (second, _) = outputs(0, 1.0), outputs(0, 0.5), outputs(1, 0.5)
    for layer in range(3):
        assert np.array_equal(expected[layer], inferred[layer]), "inference drops nothing"
        assert not np.array_equal(first[layer] == 0, second[layer] == 0), "every step drops others"
        kept = (first[layer] != 0) & (complete[layer] != 0)
        assert 0 < kept.sum() < (complete[layer] != 0).sum()
    # The third layer loses single values of single images, and what is kept is scaled.
    share = (first[2] != 0).sum() / (complete[2] != 0).sum()
    assert 0 < share < 1
    assert len({tuple((image == 0).all(axis=(0, 1))) for image in first[2]}) > 1
    # The first loses whole channels, the same of all images.
    dropped = (first[0] == 0).all(axis=(0, 1, 2))
    assert 0 < dropped.sum() < 16
    assert not (complete[0] == 0).all(axis=(0, 1, 2)).any()
    np.testing.assert_allclose(first[0][..., ~dropped], 2 * complete[0][..., ~dropped], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_a_layer_drops_channels_or_values_and_scales_what_it_keeps(layer, tf):
    """The same input for each layer: what is dropped differs from layer to layer and step to step."""
    from cnn_model import Training, conv_layer

    random = np.random.default_rng(0)
    h = random.normal(size=(6, 8, 8, 2)).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        keep_prob, step = tf.placeholder(tf.float32, []), tf.placeholder(tf.int64, [])
        outputs = []
        for each in (1, 2, 3):
            with tf.variable_scope(f"layer{each}"):
                tf.set_random_seed(0)
                training = Training(keep_prob, tf.stack([tf.constant(0, tf.int64), step]), [])
                outputs.append(conv_layer(tf.constant(h), 64, (1, 1), each, training))
        session.run(tf.global_variables_initializer())
        complete = session.run(outputs[layer - 1], {keep_prob: 1.0, step: 0})
        found = session.run(outputs, {keep_prob: 0.75, step: 0})
        again = session.run(outputs, {keep_prob: 0.75, step: 1})
    found_here, again_here = found[layer - 1], again[layer - 1]
    scaled = np.isclose(found_here, complete / 0.75, rtol=1e-4, atol=1e-5)
    dropped = (found_here == 0) & (complete > 0)
    assert (scaled | dropped).all()
    assert 0.1 < dropped.sum() / (complete > 0).sum() < 0.4
    by_channel = (found_here == 0).all(axis=(0, 1, 2))
    if layer < 3:
        assert 4 < by_channel.sum() < 32, "whole channels, of all images"
        assert not dropped[..., ~by_channel].any()
        for other in (again_here, found[2 - layer]):
            assert not np.array_equal(by_channel, (other == 0).all(axis=(0, 1, 2)))
    else:
        assert not by_channel.any()
        masks = (found_here == 0).reshape(6, -1)
        assert len(np.unique(masks, axis=0)) == 6, "other values of each image"
        assert not np.array_equal(found_here == 0, again_here == 0)


def test_the_dense_layer_drops_single_values_in_training_alone(tf):
    images, labels = drawn_batch(5)
    with new_model(tf, replace(TINY, dense=50)) as (model, session):
        found = {}
        for op in session.graph.get_operations():
            scope, *names = op.name.split("/")
            if (op.type, names[:1]) in (("Relu", ["dense"]), ("Pad", ["ctc_head"])):
                found[scope, op.type] = op.outputs[0] if op.type == "Relu" else op.inputs[0]
        tensors = [found["training", "Pad"], found["training", "Relu"], found["inference", "Pad"]]
        feed = {model.x: images, model.y: labels, model.keep_prob: 0.5}
        kept, values, inferred = session.run(tensors, feed)
    assert values.shape == inferred.shape == (5, 1, TINY.time_steps, 50)
    assert found["inference", "Pad"] is found["inference", "Relu"], "nothing is dropped there"
    share = (kept[values > 0] == 0).mean()
    assert 0.3 < share < 0.7
    np.testing.assert_allclose(kept[kept > 0], 2 * values[kept > 0], rtol=1e-5)


def test_logits_of_the_dense_layer_depend_on_a_column_and_its_neighbours(tf):
    from cnn_model import ctc_head

    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(0)  # of other initial weights, some leave all four units at 0 in a column
        h = tf.placeholder(tf.float32, [1, 2, 9, 3])
        logits = ctc_head(h, replace(TINY, dense=4))
        session.run(tf.global_variables_initializer())
        values = np.random.default_rng(0).random((1, 2, 9, 3), np.float32)
        before = session.run(logits, {h: values})
        values[0, 1, 4, 0] += 50
        after = session.run(logits, {h: values})
    assert before.shape == (9, 1, 6)
    assert (before != after).any(axis=(1, 2)).nonzero()[0].tolist() == [3, 4, 5]


# ---------------------------------------------------------------------- the inference graph


@pytest.mark.parametrize("dense", [0, 5])
def test_the_inference_graph_of_constants_reads_as_the_model_does(dense, tf):
    from cnn_model import build_inference_graph

    config, (images, labels) = replace(TINY, dense=dense), drawn_batch(6)
    with new_model(tf, config) as (model, session):
        for _ in range(3):
            session.run(model.train_op, {model.x: images, model.y: labels})
        expected_predictions, expected_loss = session.run(
            [model.predictions, model.loss], {model.x: images, model.y: labels}
        )
        weights = session.run(model.weights)
    with tf.Graph().as_default(), tf.Session() as other:
        x, classes, loss, predictions, _ = build_inference_graph(config, weights)
        assert not tf.global_variables()
        feed = {x: images, classes: labels.reshape(-1, 3, 5).argmax(axis=2)}
        found, losses = other.run([predictions, loss], feed)
    assert losses == pytest.approx(expected_loss, rel=1e-4)
    for one, wanted in zip(found, expected_predictions, strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-3)
