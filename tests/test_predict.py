"""Reading captchas with a trained model: in Python, on the command line, and evaluating a labelled folder."""

import io
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PROJECT, assert_refused, script
from PIL import Image

import predict
from captcha_cnn import checkpoint, tf_runtime
from captcha_cnn.images import ImageError
from config import CaptchaError
from predict import Predictor


@pytest.fixture
def folder(trained, monkeypatch):
    """The folder of a trained model, as the current folder."""
    monkeypatch.chdir(trained.folder)
    return trained.folder


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(str(trained.folder / "checkpoints"))


def image_paths(folder, count):
    """Paths of the first test images."""
    return sorted(map(str, (folder / "test").glob("*.png")))[:count]


def run(capsys, *arguments):
    status = predict.main(list(map(str, arguments)))
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        predict.main(list(arguments))
    error = capsys.readouterr().err
    assert (ended.value.code, len(error.splitlines())) == (2, 1)
    return error


# ---------------------------------------------------------------------- in Python


def test_an_image_may_come_in_any_form(predictor, folder):
    path, other = image_paths(folder, 2)
    content = open(path, "rb").read()  # noqa: SIM115
    image = Image.open(path)
    gray = np.asarray(image.convert("L"))
    forms = [path, Path(path), content, image, image.convert("RGBA"), gray]
    forms += [np.asarray(image.convert("RGB"))]
    prediction = predictor.read(path)
    assert isinstance(prediction.text, str)
    for form in forms:
        found = predictor.read(form)
        assert found.text == prediction.text
        assert found.confidence == pytest.approx(prediction.confidence, abs=1e-2), (
            "gray, or gray from colours"
        )
    for several in ([other, *forms], (other, *forms)):
        found = predictor.read(several)
        assert isinstance(found, list)
        expected = [predictor.read(other).text] + [prediction.text] * len(forms)
        assert [each.text for each in found] == expected
    assert predictor.read([]) == predictor.read(()) == []


def test_the_model_may_be_named_by_a_path_object(predictor, folder):
    path = image_paths(folder, 1)[0]
    found = Predictor(Path("checkpoints"))
    assert found.read(path) == predictor.read(path)
    assert found.config == predictor.config


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("missing.png", "no such file"),
        (b"no image", "not an image"),
        (b"", "not an image"),
        (np.zeros((23, 36), np.uint8), "another size: 36x23 px, not 37x23"),
        (np.zeros((23, 37)), r"must be uint8 \[H, W\].* not float64 \[23, 37\]"),
        (np.zeros((2, 3, 23, 37), np.uint8), "must be uint8"),
        (Image.new("L", (99, 9)), "another size"),
    ],
)
def test_what_is_no_image_is_said(image, words, predictor, folder):
    with pytest.raises(ImageError, match=words):
        predictor.read(image)
    for several in ([image_paths(folder, 1)[0], image], (image_paths(folder, 1)[0], image)):
        with pytest.raises(ImageError, match=f"image 1 of the list: .*{words}"):
            predictor.read(several)


def test_a_prediction_is_made_of_probabilities(predictor, folder):
    alphabet = predictor.config.alphabet
    for p in predictor.read(image_paths(folder, 30)):
        assert len(p.text) == len(p.char_probs) == len(p.runner_up) == 3
        assert set(p.text + p.runner_up) <= set(alphabet)
        assert sum(a != b for a, b in zip(p.text, p.runner_up, strict=True)) == 1
        assert 0 <= p.confidence <= min(p.char_probs) + 1e-5
        assert p.confidence + p.runner_up_confidence <= 1 + 1e-5
        assert max(p.char_probs) <= 1


def test_many_images_are_read_as_one_by_one_and_in_batches(predictor, folder, monkeypatch):
    paths = image_paths(folder, 12)
    single = [predictor.read(path) for path in paths]
    sizes = []
    model = predictor._model
    watched = model._replace(predict=lambda images: sizes.append(len(images)) or model.predict(images))
    monkeypatch.setattr(tf_runtime, "BATCH_SIZE", 5)
    monkeypatch.setitem(vars(predictor), "_load", watched)
    together = predictor.read(paths)
    assert sizes == [5, 5, 2]
    for a, b in zip(single, together, strict=True):
        assert (a.text, a.runner_up) == (b.text, b.runner_up)
        assert a.confidence == pytest.approx(b.confidence, abs=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_thousands_of_calls_do_not_grow_the_process(predictor, folder):
    path = image_paths(folder, 1)[0]

    def megabytes(calls):
        for _ in range(calls):
            predictor.read(path)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    assert megabytes(3000) - megabytes(300) < 4


def test_a_model_of_another_version_is_named(trained, monkeypatch):
    folder = str(trained.folder / "checkpoints")
    saved = checkpoint.load_latest(folder)
    del saved.weights["inverse_temperature"]
    monkeypatch.setattr(checkpoint, "load_latest", lambda _: saved)
    with pytest.raises(CaptchaError, match=r"must be of this version .* has no inverse_temperature"):
        Predictor(folder).read_arrays(np.zeros((1, 23, 37), np.uint8))


def test_only_the_characters_named_are_read(predictor, folder, capsys):
    paths = image_paths(folder, 8)
    some = Predictor(folder / "checkpoints", characters="db")
    assert (some.config.alphabet, some.config.char_num) == ("bd", 3)
    found = some.read(paths)
    assert {character for each in found for character in each.text + each.runner_up} <= {"b", "d"}
    for before, after in zip(predictor.read(paths), found, strict=True):
        if before.text == after.text:
            assert after.confidence >= before.confidence
    status, out, _ = run(capsys, paths[0], "--characters", "bd", "--char-num", "3")
    assert (status, out.split("\t")[1]) == (0, found[0].text)


@pytest.mark.parametrize(("flag", "value"), [("--characters", "abz"), ("--char-num", "2")])
def test_characters_or_lengths_that_the_model_does_not_read_are_one_sentence(flag, value, folder):
    done = script("predict.py", image_paths(folder, 1)[0], flag, value, cwd=folder)
    assert_refused(done, 2, "that the model reads")


# ---------------------------------------------------------------------- inside another program

HOST = """
import json, os, sys
before = dict(os.environ)
project, read, *paths = sys.argv[1:]
predictions = []
if read == "read":
    sys.path.insert(0, project)
    from predict import Predictor
    predictor = Predictor("checkpoints")
    predictions = [prediction._asdict() for prediction in predictor.read(paths)]
    predictor.loss(__import__("numpy").zeros([1, 23, 37], "uint8"), ["abc"])
else:
    import tensorflow
after = dict(os.environ)
changed = {name: after.get(name) for name in {*before, *after} if before.get(name) != after.get(name)}
print(json.dumps([predictions, changed]))
"""
KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT")  # TensorFlow sets others here
OURS = ("TF_CPP_MIN_LOG_LEVEL", "CUDA_VISIBLE_DEVICES", "TF_ENABLE_ONEDNN_OPTS")


def run_host(folder, read, **variables):
    """A program that uses Predictor, or only imports TensorFlow.

    Returns:
        The predictions that it made; what it changed in os.environ; its standard error.
    """
    done = subprocess.run(
        [sys.executable, "-c", HOST, str(PROJECT), read, *image_paths(folder, 7)],
        cwd=folder,
        env={name: os.environ[name] for name in KEPT if name in os.environ} | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return *json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def changed_by_tensorflow(trained):
    """What `import tensorflow` changes in os.environ."""
    return run_host(trained.folder, "nothing")[1]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"TF_CPP_MIN_LOG_LEVEL": "0"},
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"TF_CPP_MIN_LOG_LEVEL": "0", "CUDA_VISIBLE_DEVICES": "0", "TF_ENABLE_ONEDNN_OPTS": "1"},
    ],
    ids=lambda variables: " ".join(variables) or "none",
)
def test_inside_another_program_it_prints_nothing_and_leaves_the_environment(
    variables, folder, predictor, changed_by_tensorflow
):
    found, changed, err = run_host(folder, "read", **variables)
    assert err == ""
    assert changed == changed_by_tensorflow
    assert not set(OURS) & set(changed)
    for one, p in zip(found, predictor.read(image_paths(folder, 7)), strict=True):
        assert (one["text"], one["runner_up"]) == (p.text, p.runner_up)
        assert one["confidence"] == pytest.approx(p.confidence, abs=1e-5)
        assert one["char_probs"] == pytest.approx(p.char_probs, abs=1e-5)


# ---------------------------------------------------------------------- on the command line


def test_one_line_per_image_in_the_order_given(folder, capsys):
    last, first = image_paths(folder, 2)[::-1]
    status, out, err = run(capsys, last, "validation", first)
    assert (status, err) == (0, "")
    names = [line.split("\t")[0] for line in out.splitlines()]
    inside = sorted(name for name in os.listdir("validation") if name.endswith(".png"))
    assert names == [last, *(os.path.join("validation", name) for name in inside), first]
    assert all(re.fullmatch(r"[^\t]+\t[abcde]{3}\t[01]\.\d{4}", line) for line in out.splitlines())


def test_an_image_on_standard_input(folder, capsys, monkeypatch):
    path = image_paths(folder, 1)[0]
    _, named, _ = run(capsys, path)
    with open(path, "rb") as content:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=content))
        _, piped, _ = run(capsys, "-")
    assert piped == named.replace(path, "-")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"no image")))
    status, out, err = run(capsys, "-")
    assert (status, out) == (1, "")
    assert err == "-: not an image: no PNG, JPEG, BMP, GIF or WEBP\n"


def test_json_has_all_that_is_known(folder, capsys, predictor):
    paths = image_paths(folder, 4)
    _, out, _ = run(capsys, "--json", *paths)
    for path, line in zip(paths, out.splitlines(), strict=True):
        prediction, found = predictor.read(path), json.loads(line)
        assert (found["path"], found["text"]) == (path, prediction.text)
        assert found["confidence"] == pytest.approx(prediction.confidence, abs=1e-5)
        assert found["char_probs"] == pytest.approx(prediction.char_probs, abs=1e-5)
        assert found["symbols"] == found["char_probs"], "the name of earlier releases"
        assert found["runner_up"]["text"] == prediction.runner_up
        assert found["runner_up"]["confidence"] == pytest.approx(prediction.runner_up_confidence, abs=1e-5)
        assert list(found) == ["path", "text", "confidence", "char_probs", "symbols", "runner_up"]


def test_below_the_minimum_confidence_the_text_is_empty(folder, capsys, predictor):
    paths = image_paths(folder, 20)
    confidences = [predictor.read(path).confidence for path in paths]
    minimum = float(np.median(confidences))
    _, out, _ = run(capsys, "--min-confidence", minimum, *paths)
    texts = [line.split("\t")[1] for line in out.splitlines()]
    assert [text != "" for text in texts] == [each >= minimum for each in confidences]
    _, out, _ = run(capsys, "--min-confidence", "1", "--json", paths[0])
    assert json.loads(out)["text"] == ""


def test_a_bad_file_has_its_line_and_the_rest_go_on(folder, capsys, tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"text")
    (tmp_path / "empty").mkdir()
    good = image_paths(folder, 2)
    status, out, err = run(capsys, good[0], tmp_path / "none.png", tmp_path, good[1], tmp_path / "empty")
    assert status == 1
    assert [line.split("\t")[0] for line in out.splitlines()] == good
    assert err.splitlines() == [
        f"{tmp_path}/empty: a folder without images",
        f"{tmp_path}/none.png: no such file",
        f"{tmp_path}/a\\nb.png: not an image: no PNG, JPEG, BMP, GIF or WEBP",
        f"{tmp_path}/empty: a folder",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name images to read, or a folder with --labelled, and not both"),
        (["x.png", "--labelled", "test"], "and not both"),
        (["x.png", "--report", "page"], "--report needs --labelled"),
        (["x.png", "--min-confidence", "1.1"], "--min-confidence must be a number from 0 to 1, not 1.1"),
        (["x.png", "--min-confidence", "nan"], "not nan"),
        (["x.png", "--min-confidence", "much"], "not 'much'"),
    ],
)
def test_a_wrong_command_is_one_sentence(arguments, words, capsys):
    assert words in refused(capsys, *arguments)


# ---------------------------------------------------------------------- evaluating a labelled folder


def test_a_labelled_folder_is_evaluated_as_training_did(folder, capsys, trained):
    status, out, err = run(capsys, "--labelled", "test")
    assert (status, err) == (0, "")
    line = re.search(r"^Captcha accuracy: .*$", out, re.M)[0]
    assert line in trained.out.splitlines()
    loss = re.search(r"Test accuracy: .*, loss: +(\d+\.\d\d)", trained.out)[1]
    assert f"{float(re.search(r'^Loss: ([0-9.]+) nats', out, re.M)[1]):.2f}" == loss
    characters = re.search(r"Test accuracy: +([0-9.]+%)", trained.out)[1]
    assert re.search(r"^Character accuracy: +([0-9.]+%)", out, re.M)[1] == characters


def test_the_page_shows_the_mistakes(folder, capsys, tmp_path, predictor):
    status, out, _ = run(capsys, "--labelled", "test", "--report", tmp_path / "page")
    assert status == 0
    assert out.splitlines()[-1] == f"Page: {tmp_path}/page/index.html"
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    wrong = [p for p in image_paths(folder, 99) if predictor.read(p).text != os.path.basename(p)[:3]]
    assert page.count("<figure><img") == len(wrong) > 0
    assert page.count("<img") == len(wrong) + 1, "and the confusion matrix"
    assert all(os.path.basename(path) in page for path in wrong)


def test_a_page_that_cannot_be_written_is_one_sentence(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(
        CaptchaError, match=r"page could not be written to \(Not a directory\): make room there"
    ):
        predict.main(["--labelled", str(folder / "test"), "--report", str(tmp_path / "file" / "page")])
    assert "Captcha accuracy" in capsys.readouterr().out, "what was found is not lost"


def test_evaluation_says_what_it_left_out(folder, capsys, tmp_path):
    for path in image_paths(folder, 20):
        os.link(path, tmp_path / os.path.basename(path))
    (tmp_path / "abc_bad.png").write_bytes(b"text")
    status, out, err = run(capsys, "--labelled", tmp_path)
    assert status == 1
    assert "of 20, 95% interval" in out
    assert "abc_bad.png: not an image" in err


@pytest.mark.parametrize("make", [None, "empty", "file"])
def test_what_is_no_labelled_folder_is_one_sentence(make, folder, tmp_path):
    path = tmp_path / "set"
    if make == "empty":
        path.mkdir()
    elif make == "file":
        path.write_text("x")
    with pytest.raises(CaptchaError, match=r"must (be a folder of|hold) images"):
        predict.main(["--labelled", str(path)])
