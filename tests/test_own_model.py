"""A model of own images: what it reads, on which of them it is evaluated, how it is resumed and exported."""

import contextlib
import io
import json
import os
import shutil
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY
from own_folder import make_labels, random_image, snapshot, write_images

import driver
import export
import predict
from captcha_cnn import checkpoint, ctc, progress
from captcha_cnn.exported_model import config_json, config_of
from captcha_cnn.images import ImageError, fit_image
from captcha_cnn.labels import image_order
from captcha_cnn.own_sets import read_split
from config import CaptchaError, Config
from predict import Predictor

SMALL = {"start_from": "none", "channels": 2, "dense": 5, "height": 23, "width": 53} | {
    "stretch": 1.2,
    "epoch": 2,
}
SMALL_FLAGS = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", value)]


def main(function, *arguments):
    """Exit status and what was printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = function(list(map(str, arguments)))
    return status, printed.getvalue()


@pytest.fixture(scope="module")
def trained_own(tmp_path_factory):
    """A folder with `mine`, 60 images of two lengths in Arabic, and `checkpoints`."""
    folder = tmp_path_factory.mktemp("own")
    write_images(folder / "mine", make_labels(30, characters="ابجد"))
    write_images(
        folder / "mine" / "more", make_labels(30, length=2, characters="ابجد"), first=100, size=(30, 25)
    )
    before, place = snapshot(folder / "mine"), os.getcwd()
    os.chdir(folder)
    try:
        status, out = main(driver.main, "--images", "mine", *SMALL_FLAGS, "--batch-size", 16)
    finally:
        os.chdir(place)
    assert status == 0
    assert snapshot(folder / "mine") == before
    return SimpleNamespace(folder=folder, out=out)


@pytest.fixture
def folder(trained_own, monkeypatch):
    monkeypatch.chdir(trained_own.folder)
    return trained_own.folder


@pytest.fixture(scope="module")
def predictor(trained_own):
    return Predictor(trained_own.folder / "checkpoints")


# ---------------------------------------------------------------------- reading


def test_images_of_any_size_are_read_as_the_model_sees_them(predictor, folder, capsys):
    big = random_image(7, (90, 31))
    seen = fit_image(np.asarray(big), (53, 23), 1.2)
    assert predictor.read(big) == predictor.read_arrays(seen[None])[0]
    assert predictor.read([big, seen])[0].text == predictor.read(big).text
    big.save("big.png")
    assert predict.main(["big.png"]) == 0
    assert capsys.readouterr().out.split("\t")[1] == predictor.read(big).text
    with pytest.raises(ImageError, match="not an image"):
        predictor.read(b"x")


def test_texts_and_probabilities_are_in_the_order_of_the_text(predictor):
    texts = [predictor.read(random_image(n)) for n in range(40)]
    for each in texts:
        assert 2 <= len(each.text) == len(each.char_probs) <= 3
        assert each.confidence <= min(each.char_probs) + 1e-5


@pytest.mark.parametrize("strings", [False, True])
def test_right_to_left_predictions_are_reversed_and_padded_at_the_end(strings, tf):
    config = replace(TINY, characters="ابجد", char_num="2-3")
    with tf.Graph().as_default(), tf.Session() as session:
        classes = tf.constant([[0, 1, 2], [3, 1, -1]])
        probs = tf.constant([[0.1, 0.2, 0.3], [0.4, 0.5, 0.0]])
        given = ctc.Predictions(classes, tf.zeros(2), probs, classes, tf.zeros(2))
        found = session.run(ctc.to_text(given, config, strings))
    for text in (found.chars, found.runner_up):
        if strings:
            assert [each.decode() for each in text] == ["جبا", "بد"]
        else:
            assert text.tolist() == [list(map(ord, "جبا")), [*map(ord, "بد"), 0]]
    assert found.char_probs.tolist() == pytest.approx(np.array([[0.3, 0.2, 0.1], [0.5, 0.4, 0.0]]))
    assert image_order("جبا", config.alphabet) == "ابج"


# ---------------------------------------------------------------------- evaluating


def test_of_the_folder_that_was_trained_on_the_test_images_are_read(folder, trained_own, capsys):
    assert predict.main(["--labelled", "mine"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "mine: the 6 test images of 60 are read; the others were trained on"
    accuracy = next(line for line in out.splitlines() if line.startswith("Captcha accuracy"))
    assert "of 6, 95% interval" in accuracy
    assert accuracy in trained_own.out.splitlines()
    assert "predict.py --labelled mine" in trained_own.out
    loss = next(line for line in out.splitlines() if line.startswith("Loss")).split()[1]
    assert f"loss: {float(loss):>5.2f}" in trained_own.out


def test_of_another_folder_all_are_read_in_sub_folders_and_with_a_list(folder, capsys, tmp_path):
    write_images(tmp_path / "other", ["اب", "اب"], first=500)
    write_images(tmp_path / "other" / "deep", ["اب"], first=510)
    assert predict.main(["--labelled", str(tmp_path / "other")]) == 0
    out = capsys.readouterr().out
    assert "of 3, 95% interval" in out
    assert "trained on" not in out
    lines = "اب_500.png,ابج\nاب_510.png,ابج\n"  # noqa: RUF001
    (tmp_path / "list.csv").write_text(lines, encoding="utf-8")
    command = ["--labelled", str(tmp_path / "other"), "--labels", str(tmp_path / "list.csv")]
    assert predict.main(command) == 0
    assert "of 2, 95% interval" in capsys.readouterr().out
    (tmp_path / "other" / "labels.csv").write_text(lines.splitlines()[0], encoding="utf-8")
    assert predict.main(["--labelled", str(tmp_path / "other")]) == 0
    assert "of 1, 95% interval" in capsys.readouterr().out


def test_bad_test_images_are_said(folder, capsys, tmp_path):
    shutil.copytree("checkpoints", tmp_path / "saved")
    shutil.copytree("mine", tmp_path / "mine")
    record = json.loads((tmp_path / "saved" / "split.json").read_text())
    record["images"] = str(tmp_path / "mine")
    record["test"] += record["train"][:30]
    (tmp_path / "saved" / "split.json").write_text(json.dumps(record))
    (tmp_path / "mine" / record["test"][0]).write_bytes(b"x")
    command = ["--checkpoint-folder", str(tmp_path / "saved"), "--labelled", str(tmp_path / "mine")]
    assert predict.main(command) == 1
    printed = capsys.readouterr()
    assert "1 of 36 files left out" in printed.err
    assert "of 35, 95% interval" in printed.out


def test_a_folder_that_was_trained_on_completely_is_refused(folder, tmp_path):
    shutil.copytree("checkpoints", tmp_path / "saved")
    record = json.loads((tmp_path / "saved" / "split.json").read_text())
    record["test"] = []
    (tmp_path / "saved" / "split.json").write_text(json.dumps(record))
    with pytest.raises(
        CaptchaError, match="mine must hold test images, but the model was trained on all of it"
    ):
        predict.main(["--checkpoint-folder", str(tmp_path / "saved"), "--labelled", "mine"])


def test_labels_need_a_folder(capsys):
    with pytest.raises(SystemExit) as ended:
        predict.main(["x.png", "--labels", "x.csv"])
    assert ended.value.code == 2
    assert "--labels needs --labelled FOLDER" in capsys.readouterr().err


def test_the_closing_lines_name_a_command_that_works():
    state = checkpoint.TrainState("x")
    assert "--labelled mine" in progress.closing_lines(state, Config(images="mine"))
    assert "--labelled exam" in progress.closing_lines(state, Config(images="mine", test_folder="exam"))
    assert "--labelled test" in progress.closing_lines(state, Config())


# ---------------------------------------------------------------------- resuming


def test_a_finished_run_is_resumed_with_the_images_that_it_began_with(folder, trained_own):
    split = read_split("checkpoints")
    assert [len(split.sets[name]) for name in ("train", "validation", "test")] == [48, 6, 6]
    status, out = main(driver.main, "--resume")
    assert status == 0
    accuracy = [line for line in trained_own.out.splitlines() if line.startswith("Captcha accuracy")]
    assert accuracy == [line for line in out.splitlines() if line.startswith("Captcha accuracy")]
    assert "Images for train :48, for validation : 6, for test : 6" in out
    assert read_split("checkpoints") == split


# ---------------------------------------------------------------------- exporting


def test_the_settings_of_scaling_are_stored_and_earlier_files_are_read():
    config = replace(TINY, images="mine", stretch=1.2, ignore_case=True, char_num="2-3")
    stored = json.loads(config_json(config))
    assert stored["any_size"] is True
    assert "images" not in stored, "the user's path stays private"
    found = config_of(stored)
    assert (found.stretch, found.ignore_case, bool(found.images)) == (1.2, True, True)
    assert json.loads(config_json(TINY)) == {"width": 37, "height": 23, "char_num": 3, "characters": "abcde"}
    assert not config_of(json.loads(config_json(TINY))).images
    assert config_of(json.loads(config_json(replace(config, characters="a/b")))).alphabet == "a/b"


@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_an_exported_file_scales_and_reads_as_the_checkpoint_does(
    format, predictor, folder, tmp_path, capsys
):
    for package in {"onnx": ["onnxruntime", "tf2onnx"], "litert": ["ai_edge_litert"]}[format]:
        pytest.importorskip(package, reason="pip install -r requirements-export.txt")
    assert export.main([format, "--to", str(tmp_path)]) == 0
    path = tmp_path / export.FORMATS[format]
    if format == "litert":
        assert json.loads(zipfile.ZipFile(path).read("config.json"))["any_size"] is True
    images = [random_image(n, (60 + n, 31)) for n in range(12)]
    for one, other in zip(Predictor(path).read(images), predictor.read(images), strict=True):
        assert one.text == other.text
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
        assert one.char_probs == pytest.approx(other.char_probs, abs=1e-4)
    images[0].save(tmp_path / "big.png")
    capsys.readouterr()
    assert predict.main(["--model", str(path), str(tmp_path / "big.png")]) == 0
    assert capsys.readouterr().out.split("\t")[1] == predictor.read(images[0]).text
