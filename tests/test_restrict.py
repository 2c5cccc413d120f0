"""Reading with a part of the characters or lengths: exact, as if the model had no others."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY
from graph_helpers import drawn_batch, new_model

from captcha_cnn.restrict import restrict, restrict_answers
from config import ConfigError


def texts_of(config):
    lengths = range(config.min_length, config.max_length + 1)
    return ["".join(text) for n in lengths for text in itertools.product(config.alphabet, repeat=n)]


def random_weights(tf, config):
    """The weights of a new model, with which no two characters are alike."""
    with new_model(tf, config) as (model, session):
        random = np.random.default_rng(1)
        return {
            name: value + 0.1 * random.normal(size=value.shape).astype(np.float32)
            for name, value in session.run(model.weights).items()
        }


def classes_of(texts, config):
    """int32 [N, L], -1 past the end."""
    classes = np.full([len(texts), config.max_length], -1, np.int32)
    for row, text in zip(classes, texts, strict=True):
        row[: len(text)] = [config.alphabet.index(character) for character in text]
    return classes


@pytest.mark.parametrize(
    ("settings", "characters", "char_num"),
    [
        ({}, "db", ""),
        ({"char_num": "1-3"}, "eca", ""),
        ({"char_num": "1-3"}, "", 2),
        ({"char_num": "1-3", "dense": 4}, "bd", "1-2"),
        ({"network": "classic", "char_num": 2}, "eb", ""),
    ],
)
def test_the_confidence_is_that_among_the_texts_that_are_allowed(settings, characters, char_num, tf):
    from cnn_model import HEADS, build_inference_graph

    config, (images, _) = replace(TINY, **settings), drawn_batch(4)
    weights = random_weights(tf, config)
    wanted, restricted = restrict(config, weights, characters, char_num)
    texts = texts_of(wanted)
    with tf.Graph().as_default(), tf.Session() as session:
        x, _, _, predictions, _ = build_inference_graph(wanted, restricted)
        found = session.run(predictions, {x: images})
    with (
        tf.Graph().as_default(),
        tf.Session() as session,
        tf.variable_scope("", custom_getter=lambda getter, name, **_: tf.constant(weights[name])),
    ):
        head = HEADS[config.network]
        x = tf.placeholder(tf.uint8, [None, config.height, config.width])
        logits = head.network(x, config, None) * weights["inverse_temperature"]
        axis = 0 if config.network == "classic" else 1
        labels = classes_of(texts, config)
        all_probs = [
            session.run(
                head.label_prob(
                    tf.repeat(tf.gather(logits, [i], axis=axis), len(texts), axis), labels, config.min_length
                ),
                {x: images},
            )
            for i in range(len(images))
        ]
    for i, probs in enumerate(np.array(all_probs, np.float64)):
        expected = probs / probs.sum()
        answer = "".join(wanted.alphabet[k] for k in found.chars[i] if k >= 0)
        second = "".join(wanted.alphabet[k] for k in found.runner_up[i] if k >= 0)
        assert found.confidence[i] == pytest.approx(expected[texts.index(answer)], rel=1e-3)
        assert found.runner_up_confidence[i] == pytest.approx(expected[texts.index(second)], rel=1e-3)


def test_nothing_named_changes_nothing():
    weights = {"conv1_2x2/kernel": np.ones(3), "ctc_head/bias": np.arange(6)}
    config, found = restrict(TINY, weights)
    assert config == TINY
    assert all(np.array_equal(found[name], weights[name]) for name in weights)


def test_columns_of_the_other_characters_go_and_the_blank_stays():
    weights = {"conv1_2x2/kernel": np.ones(3), "ctc_head/bias": np.arange(6)}
    config, found = restrict(TINY, weights, "da")
    assert config.alphabet == "ad", "in the order of the model"
    assert found["ctc_head/bias"].tolist() == [0, 3, 5]
    assert np.array_equal(found["conv1_2x2/kernel"], np.ones(3))


@pytest.mark.parametrize(
    ("characters", "char_num", "message"),
    [
        ("abz", "", "some of those that the model reads, abcde, but 'z' is none"),
        ("", "1", "within the lengths that the model reads, 2-3, not 1: .* train with --char-num 1"),
        ("", "1-2", "within the lengths"),
        ("a", "", "at least two different"),
        ("", "many", "a whole number from 1 to 64"),
    ],
)
def test_what_the_model_does_not_read_is_one_sentence(characters, char_num, message):
    with pytest.raises(ConfigError, match=message):
        restrict(replace(TINY, char_num="2-3"), {}, characters, char_num)


@pytest.mark.parametrize(
    ("settings", "characters", "char_num"),
    [
        ({}, "db", ""),
        ({"char_num": "1-3"}, "eca", "1-2"),
        ({"char_num": "1-3", "characters": "אבגדה"}, "דגב", ""),
        ({"char_num": 2, "characters": "אבגדה"}, "", ""),
    ],
)
def test_log_probabilities_are_enough(settings, characters, char_num, tf):
    """An exported file has no weights to take columns from, and answers the same."""
    from captcha_cnn.ctc import to_text
    from cnn_model import build_inference_graph

    config, (images, _) = replace(TINY, **settings), drawn_batch(9)
    weights = random_weights(tf, config)
    with tf.Graph().as_default(), tf.Session() as session:
        x, _, _, _, logits = build_inference_graph(config, weights)
        found = session.run(tf.nn.log_softmax(tf.transpose(logits, [1, 0, 2])), {x: images})
    config_then, predict = restrict_answers(config, lambda images: found, characters, char_num)
    wanted, restricted = restrict(config, weights, characters, char_num)
    assert config_then == wanted
    with tf.Graph().as_default(), tf.Session() as session:
        x, _, _, predictions, _ = build_inference_graph(wanted, restricted)
        expected = session.run(to_text(predictions, wanted, strings=False), {x: images})
    for one, other in zip(predict(images), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
