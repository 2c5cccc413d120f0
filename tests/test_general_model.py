"""The reader that comes with the program, and its network and decoder in NumPy."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import PROJECT, TINY, assert_refused, script
from graph_helpers import drawn_batch, new_model
from PIL import Image

from captcha_cnn import general_model
from captcha_cnn.drawing import draw_captcha
from captcha_cnn.initial_weights import SHIPPED, read_weights
from captcha_cnn.numpy_ctc import PAST_END, decode, text_log_prob
from captcha_cnn.numpy_network import log_probs
from config import Config
from predict import Predictor

BLANK = 3  # of the alphabet of the decoder's tests, which has three characters


# ---------------------------------------------------------------------- the network


@pytest.mark.parametrize(
    "settings", [{}, {"dense": 6}, {"width": 53, "height": 31, "char_num": "1-3", "channels": 5}]
)
def test_it_is_the_network_of_the_graph(settings, tf):
    from cnn_model import HEADS

    config = replace(TINY, **settings)
    images, _ = drawn_batch(5, config)
    random = np.random.default_rng(3)
    with new_model(tf, config) as (model, session):
        weights = {
            name: value + 0.1 * random.random(value.shape, np.float32)
            for name, value in session.run(model.weights).items()
        }
    with (
        tf.Graph().as_default(),
        tf.Session() as session,
        tf.variable_scope("", custom_getter=lambda getter, name, **_: tf.constant(weights[name])),
    ):
        logits = HEADS["ctc"].network(tf.constant(images), config, None) * weights["inverse_temperature"]
        expected = session.run(tf.transpose(tf.nn.log_softmax(logits), [1, 0, 2]))
    assert log_probs(images, weights) == pytest.approx(expected, rel=1e-3, abs=1e-3)


# ---------------------------------------------------------------------- the decoder


def collapsed(path):
    """The text of an alignment, as a tuple of classes."""
    return tuple(k for k, _ in itertools.groupby(path) if k != BLANK)


def text_probs(emissions):
    """The probability of every text, from all alignments one by one: [T, K + 1] to a dictionary."""
    found = {}
    for path in itertools.product(range(BLANK + 1), repeat=len(emissions)):
        text = collapsed(path)
        found[text] = found.get(text, 0.0) + np.exp(
            sum(row[k] for row, k in zip(emissions, path, strict=True))
        )
    return found


def random_emissions(spread, images=6, time_steps=6):
    logits = spread * np.random.default_rng(7).normal(size=[images, time_steps, BLANK + 1])
    return logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))


def without_end(row):
    return tuple(int(k) for k in row if k != PAST_END)


@pytest.mark.parametrize("spread", [0.3, 2.0, 30.0])
@pytest.mark.parametrize("lengths", [(1, 3), (2, 2), (1, 1), (3, 3), (2, 3)])
def test_its_probabilities_are_those_of_all_alignments(lengths, spread):
    low, high = lengths
    emissions = random_emissions(spread)
    answers = decode(emissions, low, high)
    for i, each in enumerate(emissions):
        probs = {text: p for text, p in text_probs(each).items() if low <= len(text) <= high}
        total = sum(probs.values())
        text, second = without_end(answers.chars[i]), without_end(answers.runner_up[i])
        assert low <= len(text) <= high
        assert text != second
        assert answers.confidence[i] == pytest.approx(probs[text] / total, rel=1e-6)
        assert answers.runner_up_confidence[i] == pytest.approx(probs[second] / total, rel=1e-6, abs=1e-300)
        for place, k in enumerate(text):
            same = sum(p for other, p in probs.items() if other[place : place + 1] == (k,))
            assert answers.char_probs[i, place] == pytest.approx(same / total, rel=1e-6)
        assert not answers.char_probs[i, len(text) :].any()


def test_it_nearly_always_finds_the_most_probable_text():
    emissions = random_emissions(2.0, images=40)
    answers = decode(emissions, 1, 3)
    best = []
    for each in emissions:
        probs = {text: p for text, p in text_probs(each).items() if 1 <= len(text) <= 3}
        best.append(max(probs, key=probs.get))
    assert np.mean([a == without_end(b) for a, b in zip(best, answers.chars, strict=True)]) >= 0.9


def test_it_answers_as_the_decoder_of_the_graph(tf):
    from captcha_cnn import ctc

    random = np.random.default_rng(5)
    logits = 3 * random.normal(size=[20, 30, 12])
    emissions = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    answers = decode(emissions, 2, 5)
    with tf.Graph().as_default(), tf.Session() as session:
        expected = session.run(ctc.decode(tf.constant(emissions.transpose(1, 0, 2).astype(np.float32)), 5, 2))
    assert np.array_equal(answers.chars, expected.chars)
    assert np.array_equal(answers.runner_up, expected.runner_up)
    for name in ("confidence", "char_probs", "runner_up_confidence"):
        assert getattr(answers, name) == pytest.approx(getattr(expected, name), rel=1e-3)


def test_a_text_that_needs_more_time_steps_than_there_are_is_impossible():
    emissions = random_emissions(1.0, images=1, time_steps=4)
    possible, impossible = np.array([[1, 1]]), np.array([[1, 1, 1]])
    assert np.isfinite(text_log_prob(emissions, possible))
    assert text_log_prob(emissions, impossible) < -1e100


# ---------------------------------------------------------------------- what a user sees


@pytest.fixture
def captchas(tmp_path):
    """Paths of twenty drawn captchas of four digits, and their labels."""
    drawn = [draw_captcha(Config(), "test", i) for i in range(20)]
    paths = [tmp_path / f"{label}_{i}.png" for i, (label, _) in enumerate(drawn)]
    for path, (_, image) in zip(paths, drawn, strict=True):
        image.save(path)
    return paths, [label for label, _ in drawn]


def test_it_reads_before_any_training_and_says_so(tmp_path, captchas):
    (path, *_), _ = captchas
    done = script("predict.py", path, "--characters", "0123456789", "--char-num", "4", cwd=tmp_path)
    assert done.returncode == 0
    found_path, text, confidence = done.stdout.rstrip("\n").split("\t")
    assert found_path == str(path)
    assert len(text) == 4
    assert set(text) <= set("0123456789")
    assert 0 <= float(confidence) <= 1
    (remark,) = done.stderr.splitlines()
    assert "checkpoints holds no model yet, so the general weights are used" in remark
    assert "python driver.py --images FOLDER" in remark


def test_it_reads_most_captchas_of_the_captcha_library(captchas):
    paths, labels = captchas
    found = Predictor(None, "0123456789", 4).read(list(paths))
    assert sum(each.text == label for each, label in zip(found, labels, strict=True)) >= 10


def test_its_answers_are_made_as_those_of_other_models(tmp_path, captchas):
    (path, *_), _ = captchas
    done = script("predict.py", path, "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert 2 <= len(found["text"]) <= 8
    assert len(found["char_probs"]) == len(found["text"])
    assert found["confidence"] + found["runner_up"]["confidence"] <= 1.0 + 1e-5
    assert found["confidence"] <= min(found["char_probs"]) + 1e-5


def test_it_needs_no_tensorflow(captchas):
    (path, *_), _ = captchas
    read = f"predict.Predictor(None).read({str(path)!r})"
    code = f"import sys, predict; {read}; sys.exit('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, timeout=60, check=False)
    assert done.returncode == 0


def test_a_named_folder_without_a_model_is_refused(tmp_path, captchas):
    (path, *_), _ = captchas
    done = script("predict.py", path, "--checkpoint-folder", "elsewhere", cwd=tmp_path)
    assert_refused(done, 1, "elsewhere must hold a trained model, but holds none")


def test_a_trained_model_takes_its_place(trained):
    path = next((trained.folder / "test").glob("*.png"))
    done = script("predict.py", path, cwd=trained.folder)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--characters", "01é"), "must be some of those that the model reads"),
        (("--char-num", "9"), "must be within the lengths that the model reads, 2-8"),
    ],
)
def test_what_it_does_not_know_is_one_sentence(flags, words, tmp_path, captchas):
    (path, *_), _ = captchas
    done = script("predict.py", path, *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_labelled_folder_can_be_evaluated(tmp_path, captchas):
    paths, _ = captchas
    folder = tmp_path / "mine"
    folder.mkdir()
    for path in paths:
        path.rename(folder / path.name)
    done = script(
        "predict.py", "--labelled", folder, "--characters", "0123456789", "--char-num", "4", cwd=tmp_path
    )
    assert done.returncode == 0
    assert "of 20, 95% interval" in done.stdout


def test_any_image_is_read(tmp_path):
    sizes = [(1, 1), (300, 9), (7, 200), (640, 480)]
    images = [Image.effect_noise(size, 80).convert("RGB") for size in sizes]
    found = Predictor(None).read(images)
    assert all(2 <= len(each.text) <= 8 for each in found)


def test_its_settings_fit_its_weights():
    config, _ = general_model.load_general_model()
    initial = read_weights(SHIPPED)
    assert config.alphabet == initial.characters
    rows = initial.weights["dense/kernel"].shape[0]
    assert config.feature_map_height == rows
    assert 0.8 < float(initial.weights["inverse_temperature"]) < 1.2
