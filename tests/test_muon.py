"""The optimiser: Muon for kernels, Adam for everything else."""

import numpy as np
import pytest
from graph_helpers import run


@pytest.mark.parametrize("shape", [(25, 16), (13, 5), (7, 7)])
def test_newton_schulz_keeps_the_directions_and_makes_them_equally_long(shape, tf):
    from captcha_cnn.muon import newton_schulz

    random = np.random.default_rng(0)
    left, _, right = np.linalg.svd(random.normal(size=shape), full_matrices=False)
    lengths = np.geomspace(20, 1, shape[1])
    found = run(tf, newton_schulz, ((left * lengths) @ right).astype(np.float32))
    turned_back = left.T @ found @ right.T
    assert np.diag(turned_back) == pytest.approx(1, abs=0.35)
    assert turned_back - np.diag(np.diag(turned_back)) == pytest.approx(0, abs=1e-4)


def test_newton_schulz_of_zeros_is_zeros(tf):
    from captcha_cnn.muon import newton_schulz

    assert not run(tf, newton_schulz, np.zeros((9, 4), np.float32)).any()


def test_muon_updates_the_kernels_and_adam_everything_else(tf):
    from captcha_cnn.muon import MOMENTUM, MUON_UPDATE_RMS, minimize, newton_schulz

    with tf.Graph().as_default(), tf.Session() as session:
        ones = tf.ones_initializer()
        shapes = {"conv1_2x2/kernel": [3, 5, 2, 4], "conv1_2x2/gamma": [4], "ctc_head/kernel": [1, 3, 4, 6]}
        variables = [tf.get_variable(name, shape, initializer=ones) for name, shape in shapes.items()]
        gradients = [tf.placeholder(tf.float32, shape) for shape in shapes.values()]
        loss = tf.add_n([tf.reduce_sum(v * g) for v, g in zip(variables, gradients, strict=True)])
        step = tf.train.get_or_create_global_step()
        train_op = minimize(tf.gradients(loss, variables), variables, variables[:1], 0.01, step)
        session.run(tf.global_variables_initializer())
        random = np.random.default_rng(0)
        fed, values = [], [session.run(variables)]
        for _ in range(2):
            fed.append([random.normal(size=shape) for shape in shapes.values()])
            session.run(train_op, dict(zip(gradients, fed[-1], strict=True)))
            values.append(session.run(variables))
        momentum, expected = np.zeros((30, 4)), []
        for gradient in [each[0].reshape(30, 4) for each in fed]:
            momentum = MOMENTUM * momentum + gradient
            direction = newton_schulz(tf.constant(gradient + MOMENTUM * momentum, tf.float32))
            update = session.run(direction).reshape(3, 5, 2, 4) * MUON_UPDATE_RMS * 0.01 * np.sqrt(30)
            expected.append(update)
        assert session.run(step) == 2
    for before, after, update in zip(values, values[1:], expected, strict=False):
        assert before[0] - after[0] == pytest.approx(update, abs=1e-6)
        rms = np.sqrt(np.mean((before[0] - after[0]) ** 2))
        assert rms == pytest.approx(MUON_UPDATE_RMS * 0.01, rel=0.3)
    for n in (1, 2):  # Adam's first step is the learning rate against the gradient, whatever its size
        assert values[0][n] - values[1][n] == pytest.approx(0.01 * np.sign(fed[0][n]), rel=1e-3)


def test_muon_trains_convolutions_and_the_dense_layer_of_our_network_and_nothing_of_the_classic_one(tf):
    from dataclasses import replace

    from conftest import TINY

    from cnn_model import CNN

    convolutions = ["conv1_2x2", "conv2_4x2", "conv3_2x2"]
    for settings, expected in (
        ({}, convolutions),
        ({"dense": 5}, [*convolutions, "dense"]),
        ({"network": "classic"}, []),
    ):
        with tf.Graph().as_default():
            CNN.build(replace(TINY, **settings))
            names = [v.op.name for v in tf.global_variables()]
        momenta = [name for name in names if name.endswith("kernel/momentum")]
        assert momenta == [f"{layer}/kernel/momentum" for layer in expected]
