"""Using what was trained: reading, refusing, judging."""

import io
import json
import os
import re
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import predict
import session
from config import CaptchaError
from generate_captcha import PictureError, ReadData
from predict import Predictor


@pytest.fixture
def folder(trained, monkeypatch):
    """The folder of a trained model, which is the current one."""
    monkeypatch.chdir(trained.folder)
    return trained.folder


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor(str(trained.folder / "checkpoints"))


def some(folder, count):
    """Paths of some of the test pictures."""
    return sorted(map(str, (folder / "test").glob("*.png")))[:count]


def run(capsys, *arguments):
    status = predict.main(list(map(str, arguments)))
    told = capsys.readouterr()
    return status, told.out, told.err


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        predict.main(list(arguments))
    error = capsys.readouterr().err
    assert (ended.value.code, len(error.splitlines())) == (2, 1)
    return error


# ---------------------------------------------------------------------- in Python


def test_a_picture_may_come_in_any_form(predictor, folder):
    path, other = some(folder, 2)
    content = open(path, "rb").read()  # noqa: SIM115
    picture = Image.open(path)
    grey = np.asarray(picture.convert("L"))
    forms = [path, Path(path), content, picture, picture.convert("RGBA"), grey]
    forms += [np.asarray(picture.convert("RGB"))]
    reading = predictor.read(path)
    assert isinstance(reading.text, str)
    for form in forms:
        found = predictor.read(form)
        assert found.text == reading.text
        assert found.confidence == pytest.approx(reading.confidence, abs=1e-2), "grey, or grey from colours"
    both = predictor.read([other, *forms])
    assert [each.text for each in both] == [predictor.read(other).text] + [reading.text] * len(forms)
    assert predictor.read([]) == []


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ("missing.png", "no such file"),
        (b"no picture", "not a picture"),
        (b"", "not a picture"),
        (np.zeros((23, 36), np.uint8), "another size: 36x23 px, not 37x23"),
        (np.zeros((23, 37)), r"must be uint8 \[H, W\].* not float64 \[23, 37\]"),
        (np.zeros((2, 3, 23, 37), np.uint8), "must be uint8"),
        (Image.new("L", (99, 9)), "another size"),
    ],
)
def test_what_is_no_picture_is_said(picture, words, predictor, folder):
    with pytest.raises(PictureError, match=words):
        predictor.read(picture)
    with pytest.raises(PictureError, match=f"picture 1 of the list: .*{words}"):
        predictor.read([some(folder, 1)[0], picture])


def test_a_reading_is_made_of_probabilities(predictor, folder):
    alphabet = predictor.config.alphabet
    for reading in predictor.read(some(folder, 30)):
        assert len(reading.text) == len(reading.symbols) == len(reading.runner_up) == 3
        assert set(reading.text + reading.runner_up) <= set(alphabet)
        assert sum(a != b for a, b in zip(reading.text, reading.runner_up, strict=True)) == 1
        assert 0 <= reading.confidence <= min(reading.symbols) + 1e-5
        assert reading.confidence + reading.runner_up_confidence <= 1 + 1e-5
        assert max(reading.symbols) <= 1


def test_many_are_read_as_one_by_one_and_in_batches(predictor, folder, monkeypatch):
    paths = some(folder, 12)
    alone = [predictor.read(path) for path in paths]
    sizes = []
    read, weigh = predictor._models
    watched = (lambda images: sizes.append(len(images)) or read(images)), weigh
    monkeypatch.setattr(session, "READ_AT_ONCE", 5)
    monkeypatch.setitem(vars(predictor), "_models", watched)
    together = predictor.read(paths)
    assert sizes == [5, 5, 2]
    for a, b in zip(alone, together, strict=True):
        assert (a.text, a.runner_up) == (b.text, b.runner_up)
        assert a.confidence == pytest.approx(b.confidence, abs=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_thousands_of_calls_do_not_grow_the_process(predictor, folder):
    path = some(folder, 1)[0]

    def megabytes(calls):
        for _ in range(calls):
            predictor.read(path)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    assert megabytes(3000) - megabytes(300) < 4


def test_a_model_of_another_version_is_named(trained):
    predictor = Predictor(str(trained.folder / "checkpoints"))
    del predictor._saved.weights["temperature"]
    with pytest.raises(CaptchaError, match=r"must be of this version .* has no temperature"):
        predictor.read_images(np.zeros((1, 23, 37), np.uint8))


# ---------------------------------------------------------------------- on the command line


def test_a_line_a_picture_in_the_order_given(folder, capsys):
    last, first = some(folder, 2)[::-1]
    status, out, err = run(capsys, last, "validation", first)
    assert (status, err) == (0, "")
    names = [line.split("\t")[0] for line in out.splitlines()]
    inside = sorted(name for name in os.listdir("validation") if name.endswith(".png"))
    assert names == [last, *(os.path.join("validation", name) for name in inside), first]
    assert all(re.fullmatch(r"[^\t]+\t[abcde]{3}\t[01]\.\d{4}", line) for line in out.splitlines())


def test_a_picture_on_standard_input(folder, capsys, monkeypatch):
    path = some(folder, 1)[0]
    _, named, _ = run(capsys, path)
    with open(path, "rb") as content:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=content))
        _, piped, _ = run(capsys, "-")
    assert piped == named.replace(path, "-")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"no picture")))
    status, out, err = run(capsys, "-")
    assert (status, out) == (1, "")
    assert err == "-: not a picture: no PNG, JPEG, BMP, GIF or WEBP\n"


def test_json_has_all_that_is_known(folder, capsys, predictor):
    paths = some(folder, 4)
    _, out, _ = run(capsys, "--json", *paths)
    for path, line in zip(paths, out.splitlines(), strict=True):
        reading, found = predictor.read(path), json.loads(line)
        assert (found["path"], found["text"]) == (path, reading.text)
        assert found["confidence"] == pytest.approx(reading.confidence, abs=1e-5)
        assert found["symbols"] == pytest.approx(reading.symbols, abs=1e-5)
        assert found["runner_up"]["text"] == reading.runner_up
        assert found["runner_up"]["confidence"] == pytest.approx(reading.runner_up_confidence, abs=1e-5)


def test_the_unsure_are_refused(folder, capsys, predictor):
    paths = some(folder, 20)
    sure = [predictor.read(path).confidence for path in paths]
    least = float(np.median(sure))
    _, out, _ = run(capsys, "--min-confidence", least, *paths)
    texts = [line.split("\t")[1] for line in out.splitlines()]
    assert [text != "" for text in texts] == [each >= least for each in sure]
    _, out, _ = run(capsys, "--min-confidence", "1", "--json", paths[0])
    assert json.loads(out)["text"] == ""


def test_a_bad_file_has_its_line_and_the_rest_go_on(folder, capsys, tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"text")
    (tmp_path / "empty").mkdir()
    good = some(folder, 2)
    status, out, err = run(capsys, good[0], tmp_path / "none.png", tmp_path, good[1], tmp_path / "empty")
    assert status == 1
    assert [line.split("\t")[0] for line in out.splitlines()] == good
    assert err.splitlines() == [
        f"{tmp_path}/empty: a folder without pictures",
        f"{tmp_path}/none.png: no such file",
        f"{tmp_path}/a\\nb.png: not a picture: no PNG, JPEG, BMP, GIF or WEBP",
        f"{tmp_path}/empty: a folder",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "there must be pictures to read, or a folder with --labelled, and not both"),
        (["x.png", "--labelled", "test"], "and not both"),
        (["x.png", "--report", "page"], "--report needs --labelled"),
        (["x.png", "--min-confidence", "1.1"], "--min-confidence must be a number from 0 to 1, not 1.1"),
        (["x.png", "--min-confidence", "nan"], "not nan"),
        (["x.png", "--min-confidence", "much"], "not 'much'"),
    ],
)
def test_a_wrong_command_is_one_sentence(arguments, words, capsys):
    assert words in refused(capsys, *arguments)


# ---------------------------------------------------------------------- judging


def test_a_labelled_folder_is_judged_as_training_did(folder, capsys, trained):
    status, out, err = run(capsys, "--labelled", "test")
    assert (status, err) == (0, "")
    line = re.search(r"^Captcha accuracy: .*$", out, re.M)[0]
    assert line in trained.out.splitlines()
    loss = re.search(r"Test accuracy: .*, loss: +(\d+\.\d\d)", trained.out)[1]
    assert f"{float(re.search(r'^Loss: ([0-9.]+) nats', out, re.M)[1]):.2f}" == loss
    symbols = re.search(r"Test accuracy: +([0-9.]+%)", trained.out)[1]
    assert re.search(r"^Symbol accuracy: +([0-9.]+%)", out, re.M)[1] == symbols


def test_the_page_shows_the_mistakes(folder, capsys, tmp_path, predictor):
    status, out, _ = run(capsys, "--labelled", "test", "--report", tmp_path / "page")
    assert status == 0
    assert out.splitlines()[-1] == f"Page: {tmp_path}/page/index.html"
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    wrong = [p for p in some(folder, 99) if predictor.read(p).text != os.path.basename(p)[:3]]
    assert page.count("<img") == len(wrong) > 0
    assert all(os.path.basename(path) in page for path in wrong)


def test_a_page_that_cannot_be_written_is_one_sentence(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(
        CaptchaError, match=r"page could not be written to \(Not a directory\): make room there"
    ):
        predict.main(["--labelled", str(folder / "test"), "--report", str(tmp_path / "file" / "page")])
    assert "Captcha accuracy" in capsys.readouterr().out, "what was found is not lost"


def test_judging_says_what_it_left_out(folder, capsys, tmp_path):
    for path in some(folder, 20):
        os.link(path, tmp_path / os.path.basename(path))
    (tmp_path / "abc_bad.png").write_bytes(b"text")
    status, out, err = run(capsys, "--labelled", tmp_path)
    assert status == 1
    assert "of 20, 95% interval" in out
    assert "abc_bad.png: not a picture" in err


@pytest.mark.parametrize("make", [None, "empty", "file"])
def test_what_is_no_labelled_folder_is_one_sentence(make, folder, tmp_path):
    path = tmp_path / "set"
    if make == "empty":
        path.mkdir()
    elif make == "file":
        path.write_text("x")
    with pytest.raises(CaptchaError, match=r"must (be a folder of|hold) pictures"):
        predict.main(["--labelled", str(path)])


def test_calibration_makes_the_labels_likelier(tf, trained):
    import driver
    from cnn_model import CNN

    config = trained.config
    with tf.Graph().as_default(), tf.Session() as session:
        model = CNN.build(config)
        session.run(tf.global_variables_initializer())
        reader = ReadData(config)
        data = driver.Data(*reader.load_data(str(trained.folder / "validation"))[:2])
        sharp = [session.run(model.scores, {model.x: data.images}) * 40]  # far too sure

        class Sharp:
            def run(self, fetches, feed):
                if fetches is model.scores:
                    return sharp[0]
                return session.run(fetches, feed)

        def likelihood(temperature):
            session.run(model.set_temperature, {model.new_temperature: temperature})
            found = session.run(model.likelihood, {model.scores: sharp[0], model.y: data.labels})
            return np.log(np.maximum(found, 1e-30)).sum() - driver.PRIOR * np.log(temperature) ** 2

        driver.calibrate(Sharp(), model, data)
        chosen = float(session.run(model.weights["temperature"]))
        assert 1 < chosen <= 4.01
        best = max(likelihood(t) for t in np.exp(np.linspace(-1.38, 1.38, 60)))
        assert likelihood(chosen) >= best - 0.01 * abs(best)
