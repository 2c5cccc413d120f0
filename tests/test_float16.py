"""Best weights: without batch normalisation, and exact in float16."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY
from graph_helpers import drawn_batch, new_model


@pytest.fixture(scope="module")
def folded(tf):
    """Of a model after some steps: weights, folded, folded twice; logits with the first and the second."""
    with new_model(tf) as (model, session):
        images, labels = drawn_batch(7)
        for _ in range(30):
            session.run(model.train_op, {model.x: images, model.y: labels})
        weights, once = session.run([model.weights, model.inference_weights])
        before = session.run(model.logits, {model.x: images})
        for name, value in once.items():
            model.weights[name].load(value, session)
        after = session.run(model.logits, {model.x: images})
        twice = session.run(model.inference_weights)
        return weights, once, twice, before, after


def test_folded_weights_give_nearly_the_same_logits(folded):
    from captcha_cnn.numpy_network import BN_EPSILON

    _, once, _, before, after = folded
    np.testing.assert_allclose(after, before, atol=0.01 * np.abs(before).max())
    assert not np.array_equal(after, before)
    for scope in ("conv1_2x2", "conv2_4x2", "conv3_2x2"):  # multiplied by these, the kernels stay the same
        gamma, mean, variance = (once[f"{scope}/{name}"] for name in ("gamma", "mean", "variance"))
        assert (gamma / np.sqrt(variance + np.float32(BN_EPSILON)) == 1).all()
        assert (mean == 0).all()


def test_large_kernels_are_stored_in_float16_once_they_are_folded(folded):
    from captcha_cnn.float16 import as_exact_float16

    weights, once, *_ = folded
    assert as_exact_float16(weights["conv2_4x2/kernel"]) is None
    kernels = ["conv2_4x2/kernel", "conv3_2x2/kernel", "ctc_head/kernel"]
    assert [name for name in sorted(once) if as_exact_float16(once[name]) is not None] == kernels


def test_every_folded_weight_but_the_variances_is_exact_in_float16(folded):
    once = folded[1]
    assert len(once) == 3 * 5 + 3
    for name, value in once.items():
        if not name.endswith("/variance"):
            assert np.array_equal(value, np.float16(value)), name


def test_folding_twice_changes_nothing(folded):
    weights, once, twice, *_ = folded
    assert set(weights) == set(once) == set(twice)
    for name, value in once.items():
        assert np.array_equal(value, twice[name]), name
        assert value.dtype == np.float32


def test_the_weights_of_the_classic_network_are_rounded_alike(tf):
    with new_model(tf, replace(TINY, network="classic")) as (model, session):
        weights, folded = session.run([model.weights, model.inference_weights])
    assert set(weights) == set(folded)
    for name, value in weights.items():
        assert np.array_equal(folded[name], np.float16(value).astype(np.float32)), name
    assert not np.array_equal(folded["conv2/kernel"], weights["conv2/kernel"])


@pytest.mark.parametrize(
    ("values", "exact"),
    [
        (np.arange(1000), True),
        (np.arange(999), False),  # too small to be worth it
        (np.arange(3000), False),  # 2049 is not a float16
        (np.full(1000, 1e6), False),  # too large
        (np.full(1000, 1e-9), False),  # too small a number
        (np.full(1000, np.inf), True),
    ],
)
def test_a_constant_becomes_float16_where_it_is_large_and_exact(values, exact):
    from captcha_cnn.float16 import as_exact_float16

    values = values.astype(np.float32)
    half = as_exact_float16(values)
    assert (half is not None) == exact
    if exact:
        assert half.dtype == np.float16
        assert np.array_equal(half, values)
