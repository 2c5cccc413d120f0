"""Captchas that differ in length, from drawing to the exported files."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY

import driver
import export
import predict
from captcha_cnn import drawing, progress
from captcha_cnn.checkpoint import load_latest
from captcha_cnn.dataset import Dataset, label_from_filename, list_image_files
from captcha_cnn.exported_model import CONFIG_KEY, OUTPUTS, load_exported
from captcha_cnn.images import ImageError
from captcha_cnn.metrics import EvalResult, Metrics, code_points, edit_distances
from captcha_cnn.summaries import summary_images
from config import CaptchaError, Config
from generate_captcha import Generate, ReadData
from predict import Predictor

NO_AUGMENTATION = dict.fromkeys(("shift", "scale", "shear", "squeeze", "noise", "lines"), 0.0)


# ---------------------------------------------------------------------- drawing and loading


def test_every_length_is_drawn_as_often():
    config = replace(TINY, char_num="2-4", width=53)
    labels = [drawing.random_label(config, "train", i)[0] for i in range(3000)]
    counts = Counter(map(len, labels))
    assert sorted(counts) == [2, 3, 4]
    assert min(counts.values()) > 900  # 1000 each; 900 is four standard deviations off
    assert set("".join(labels)) == set("abcde")
    assert drawing.draw_captcha(config, "train", 7)[0] == labels[7]


def test_a_fixed_length_takes_no_random_number_for_it():
    label, stream = drawing.random_label(TINY, "train", 5)
    expected = drawing.SeededSecrets("0/train/5")
    assert label == "".join(expected.choice("abcde") for _ in range(3))
    assert stream.getstate() == expected.getstate()


def test_label_vectors_end_with_zeros():
    reader = ReadData(replace(TINY, char_num="1-3"))
    vector = reader.label2vec("cb").reshape(3, 5)
    assert vector.tolist() == [[0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0] * 5]
    for label in ("a", "ea", "bbb"):
        assert reader.label2vec(label).shape == (15,)
        assert reader.vec2label(reader.label2vec(label)) == label
    for label in ("", "aaaa", "ax"):
        with pytest.raises(CaptchaError, match=f"a label must be 1 to 3 characters of abcde, not '{label}'"):
            reader.label2vec(label)


def test_scores_end_a_text_where_none_is_above_0():
    reader = ReadData(replace(TINY, char_num="2-3", characters="ab"))
    scores = [[-1, -2], [-4, -3]]  # places that every text has
    assert reader.vec2label(np.array([*scores, [-1, 0]])) == "ab"
    assert reader.vec2label(np.array([*scores, [-1, 0.1]])) == "abb"
    fixed = ReadData(replace(TINY, char_num=3, characters="ab"))
    assert fixed.vec2label(np.array([*scores, [-1, -2]])) == "aba"


def test_labels_of_other_lengths_are_named():
    config = replace(TINY, char_num="2-3")
    assert [label_from_filename(f"{label}_1.png", config) for label in ("ab", "abc")] == ["ab", "abc"]
    for label in ("a", "abcd"):
        with pytest.raises(ImageError, match=f"'{label}' is not 2 to 3 characters"):
            label_from_filename(f"{label}_1.png", config)
    with pytest.raises(ImageError, match="'ab' is not 3 characters"):
        label_from_filename("ab_1.png", TINY)


# ---------------------------------------------------------------------- lines and images of training


def test_guessing_includes_the_length():
    config = Config(char_num="1-3")
    expected = np.log(10) + np.log(3) * np.mean([1 / 1, 1 / 2, 1 / 3])
    warning = progress.chance_level_warning(Metrics(2.6, 0.1, 0, 20, 0.0), config)
    assert f"(2.60; guessing gives {expected:.2f})" in warning
    only_lengths_known = Metrics(float(np.log(10)), 0.1, 0, 20, 0.0)
    assert progress.at_chance_level(only_lengths_known, config)
    assert not progress.at_chance_level(only_lengths_known._replace(loss=2.0), config)


def test_summaries_show_labels_and_texts_without_what_is_past_their_end(monkeypatch):
    config = replace(TINY, char_num="2-3")
    chars = np.array([[0, 1, -1], [0, 2, -1]])
    result = EvalResult(np.array([1.0, 2.0]), np.zeros(2), chars, np.array([[0, 1, 2], [0, 1, -1]]))
    seen = []
    monkeypatch.setattr("captcha_cnn.summaries.draw_worst_predictions", lambda *shown: seen.extend(shown[1:]))
    monkeypatch.setattr("captcha_cnn.summaries.draw_confusion_matrix", seen.append)
    summary_images(result, np.zeros([2, 23, 37], np.uint8), config)
    assert [seen[0], *seen[1:]] == [{("b", "c"): 1}, ["ab", "abc"], ["ac", "ab"]]


# ---------------------------------------------------------------------- a trained model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained model of two or three characters, and its test set."""
    folder = tmp_path_factory.mktemp("lengths")
    names = ("train", "validation", "test", "tensorboard", "checkpoint")
    places = {f"{name}_folder": str(folder / name) for name in names}
    config = replace(
        TINY, char_num="2-3", Epoch=6, generate_num=(630, 20, 40), alpha=6e-3, **places, **NO_AUGMENTATION
    )
    Generate(config).gen_captcha()
    reader = ReadData(config)
    sets = [Dataset(*reader.load_data(path)[:2]) for _, path, _ in config.sets]
    state, metrics = driver.run_model(config, *sets)
    labels = [reader.vec2label(each) for each in sets[2].labels]
    return SimpleNamespace(
        folder=folder, config=config, images=sets[2].images, labels=labels, state=state, metrics=metrics
    )


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor(run.config.checkpoint_folder)


@pytest.fixture(scope="module")
def predictions(run, predictor):
    found = predictor.read_arrays(run.images)
    assert {len(each.text) for each in found} == {2, 3}, "the tests below need answers of both lengths"
    assert any(len(each.text) != len(each.runner_up) for each in found)
    return found


@pytest.fixture(scope="module")
def exported(run):
    """The folder of the model in all formats."""
    for package in ("ai_edge_litert", "onnxruntime", "tf2onnx"):
        pytest.importorskip(package, reason="pip install -r requirements-export.txt")
    folder = run.folder / "exported"
    assert export.main(["--checkpoint-folder", run.config.checkpoint_folder, "--to", str(folder)]) == 0
    return folder


def error_rate(labels, texts):
    return edit_distances(code_points(labels), code_points(texts)).sum() / sum(map(len, labels))


def test_training_and_testing_count_as_reading_does(run, predictions):
    texts = [each.text for each in predictions]
    assert run.metrics.correct == sum(a == b for a, b in zip(run.labels, texts, strict=True))
    assert run.metrics.accuracy == pytest.approx(1 - error_rate(run.labels, texts))
    assert run.metrics.images == 40
    assert json.loads(Path(run.config.test_folder, "captchas.json").read_text())["char_num"] == "2-3"


def test_training_learns_and_calibrates(run):
    assert run.state.best_step > 0
    guessing = progress.chance_loss(run.config) + progress.length_loss(run.config)
    assert run.metrics.loss < guessing
    assert load_latest(run.config.checkpoint_folder).weights["inverse_temperature"] != 1


def test_a_prediction_has_probabilities_of_its_characters_alone(run, predictor, predictions):
    for prediction in predictions:
        assert len(prediction.char_probs) == len(prediction.text)
        assert set(prediction.text + prediction.runner_up) <= set("abcde")
        assert prediction.text != prediction.runner_up
        assert 1 >= min(prediction.char_probs) >= prediction.confidence >= prediction.runner_up_confidence > 0
    text, _, char_probs, *_ = predictor._model.predict(run.images)
    assert ((text > 0) == (char_probs > 0)).all()


def test_json_has_the_characters_that_are_there(run, predictions, capsys):
    files = [f"{run.config.test_folder}/{name}" for name in list_image_files(run.config.test_folder)]
    assert predict.main(["--json", "--checkpoint-folder", run.config.checkpoint_folder, *files]) == 0
    for prediction, line in zip(predictions, capsys.readouterr().out.splitlines(), strict=True):
        found = json.loads(line)
        assert (found["text"], found["runner_up"]["text"]) == (prediction.text, prediction.runner_up)
        assert found["char_probs"] == pytest.approx(prediction.char_probs, abs=1e-5)


def test_evaluation_agrees_with_training(run, predictor, predictions, capsys, tmp_path):
    texts = [each.text for each in predictions]
    arguments = ["--labelled", run.config.test_folder, "--report", str(tmp_path)]
    assert predict.main(["--checkpoint-folder", run.config.checkpoint_folder, *arguments]) == 0
    out = capsys.readouterr().out
    assert f"({run.metrics.correct} of 40, " in out
    assert f"Character error rate: {error_rate(run.labels, texts):.2%}" in out
    assert f"Loss: {run.metrics.loss:.4f} nats per character" in out
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert f"Character error rate: {error_rate(run.labels, texts):.2%}" in page
    for label, prediction in zip(run.labels, predictions, strict=True):
        assert (f">{label}, read as <del>{prediction.text}</del>" in page) == (label != prediction.text)


@pytest.mark.parametrize("name", ["captcha.onnx", "captcha.tflite"])
def test_exported_files_read_the_same(name, exported, run, predictor, predictions):
    config, predict_fn = load_exported(str(exported / name))
    assert (config.char_num, config.min_length, config.max_length) == ("2-3", 2, 3)
    expected = predictor._model.predict(run.images)
    for output, one, other in zip(OUTPUTS, predict_fn(run.images), expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5, err_msg=output)
    found = Predictor(exported / name).read_arrays(run.images)
    assert [(each.text, each.runner_up) for each in found] == [(e.text, e.runner_up) for e in predictions]
    assert [len(each.char_probs) for each in found] == [len(each.text) for each in found]


def test_a_saved_model_reads_strings_of_their_length(exported, run, predictions, tf):
    folder = exported / "saved_model"
    assert json.loads((folder / "assets.extra" / f"{CONFIG_KEY}.json").read_text())["char_num"] == "2-3"
    with tf.Graph().as_default(), tf.Session() as session:
        loaded = tf.saved_model.loader.load(session, ["serve"], str(folder))
        names = loaded.signature_def["serving_default"].outputs
        found = session.run({key: names[key].name for key in OUTPUTS}, {"pictures:0": run.images})
    assert [text.decode() for text in found["text"]] == [each.text for each in predictions]
    assert [text.decode() for text in found["runner_up"]] == [each.runner_up for each in predictions]
    assert found["confidence"] == pytest.approx([each.confidence for each in predictions], abs=1e-5)


def test_litert_has_builtin_operations_alone(exported):
    from ai_edge_litert.interpreter import Interpreter

    names = {op["op_name"] for op in Interpreter(str(exported / "captcha.tflite"))._get_ops_details()}
    assert not [name for name in names if name.startswith(("Flex", "CUSTOM"))]
