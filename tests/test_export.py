"""The exported forms read as the checkpoint does, and need nothing of this project."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import PROJECT, assert_refused, script
from packaging.requirements import Requirement
from PIL import Image
from test_readme import MODULES, README

import driver
import export
from config import CaptchaError
from driver import Data
from generate_captcha import ReadData
from predict import Predictor
from runtime import OUTPUTS, load_exported

SETTINGS = {"width": 37, "height": 23, "char_num": 3, "characters": "abcde"}
ELSE = "must be an earlier export to be replaced, but holds something else: move it away"
RUNTIMES = {"litert": "ai_edge_litert", "onnx": "onnxruntime", "saved_model": "tensorflow"}
WRITERS = {"onnx": "tf2onnx"}
FILES = pytest.mark.parametrize("form", ["litert", "onnx"])
ALL = pytest.mark.parametrize("form", ["litert", "onnx", "saved_model"])


def need(form):
    for package in (RUNTIMES[form], WRITERS.get(form)):
        if package:
            pytest.importorskip(package, reason="pip install -r requirements-export.txt")


@pytest.fixture(scope="module")
def place(drawn, tmp_path_factory):
    """A folder with a trained model in `checkpoints`, and a test picture."""
    folder = tmp_path_factory.mktemp("export")
    reader = ReadData(drawn)
    sets = [Data(*reader.load_data(path)[:2]) for _, path, _ in drawn.sets]
    places = {f"{name}_folder": str(folder / name) for name in ("checkpoints", "tensorboard")}
    places = {name.replace("checkpoints", "checkpoint"): path for name, path in places.items()}
    driver.run_model(replace(drawn, Epoch=8, **places), *sets)
    Image.fromarray(sets[2].images[0]).save(folder / "captcha.png")
    return folder


@pytest.fixture(scope="module")
def written(place):
    """A function that exports a form, once, into `exported` of that folder; its path."""

    def write(form):
        need(form)
        path = place / "exported" / export.FORMS[form]
        if not path.exists():
            assert export.main([form, *options(place)]) == 0
        return path

    return write


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The Python of a virtual environment that has what reading needs, no TensorFlow and not this project.

    Installed packages are linked into it: that needs no network.
    """
    need("litert")
    need("onnx")
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    wanted, linked = ["numpy", "pillow", "tqdm", "captcha", "onnxruntime", "ai-edge-litert"], set()
    while wanted:
        name = wanted.pop()
        if name in linked:
            continue
        linked.add(name)
        distribution = importlib.metadata.distribution(name)
        for inside in {each.parts[0] for each in distribution.files} - {".."}:
            (packages / inside).symlink_to(distribution.locate_file(inside))
        for needed in map(Requirement, distribution.requires or []):
            if not needed.marker or needed.marker.evaluate({"extra": ""}):
                wanted.append(needed.name.lower())
    python = folder / "bin" / "python"
    for name in sorted({"tensorflow"} | MODULES):
        assert "ModuleNotFoundError" in run(folder, f"import {name}", python).stderr
    return python


def options(place):
    return ["--checkpoint-folder", str(place / "checkpoints"), "--to", str(place / "exported")]


@pytest.fixture(scope="module")
def images(drawn):
    return ReadData(drawn).load_data(drawn.test_folder)[0]


@pytest.fixture(scope="module")
def expected(place, images):
    return Predictor(str(place / "checkpoints"))._models[0](images)


def assert_same(found, expected):
    for name, one, other in zip(OUTPUTS, found, expected, strict=True):
        assert (np.shape(one), one.dtype) == (other.shape, other.dtype)
        if name == "runner_up":  # of two that are as likely as each other, either
            assert (one != other).any(axis=1).sum() <= 1
        else:
            np.testing.assert_allclose(
                one, other, rtol=0, atol=1e-5 * (one.dtype == np.float32), err_msg=name
            )


# ---------------------------------------------------------------------- what they read


@FILES
@pytest.mark.parametrize("batch", [1, 7, 30])
def test_files_answer_as_the_checkpoint_does(form, batch, written, images, expected):
    settings, model = load_exported(str(written(form)))
    assert settings == SETTINGS
    parts = [model(images[start : start + batch]) for start in range(0, len(images), batch)]
    assert_same([np.concatenate(part) for part in zip(*parts, strict=True)], expected)


@pytest.mark.parametrize("batch", [1, 30])
def test_a_saved_model_answers_as_the_checkpoint_does(batch, written, images, expected, tf):
    folder = written("saved_model")
    assert json.loads((folder / "assets.extra" / "config.json").read_text()) == SETTINGS
    read = tf.compat.v2.saved_model.load(str(folder)).signatures["serving_default"]
    answers = read(pictures=tf.constant(images[:batch]))
    found = [answers[name].numpy() for name in OUTPUTS]
    for place in (0, 3):
        assert found[place].shape == (batch,)
        found[place] = np.array([list(map(ord, text.decode())) for text in found[place]], np.int32)
    assert_same(found, [each[:batch] for each in expected])


def test_the_settings_lie_where_such_files_have_them(written):
    assert json.loads(zipfile.ZipFile(written("litert")).read("config.json")) == SETTINGS
    onnx = pytest.importorskip("onnx")
    properties = onnx.load(written("onnx")).metadata_props
    assert {each.key: json.loads(each.value) for each in properties} == {"config": SETTINGS}


def test_litert_has_builtin_operations_alone(written):
    path = written("litert")
    from ai_edge_litert.interpreter import Interpreter

    names = {op["op_name"] for op in Interpreter(str(path))._get_ops_details()}
    assert not [name for name in names if name.startswith(("Flex", "CUSTOM"))]


@ALL
def test_files_are_small(form, written):
    path = written(form)
    assert sum(each.stat().st_size for each in (path, *path.rglob("*")) if each.is_file()) < 300_000


# ---------------------------------------------------------------------- what reads them


@ALL
def test_the_code_in_the_readme_reads_a_captcha(form, written, place, expected, request):
    written(form)
    python = sys.executable if form == "saved_model" else request.getfixturevalue("bare")
    (code,) = [
        each for each in re.findall(r"```python\n(.*?)```", README, re.S) if export.FORMS[form] in each
    ]
    done = run(place, code, python)
    assert done.returncode == 0, done.stderr
    text, confidence = done.stdout.split()
    assert text == "".join(map(chr, expected[0][0]))
    assert float(confidence) == pytest.approx(expected[1][0], abs=1e-5)


def run(folder, code, python):
    return subprocess.run(
        [python, "-I", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@FILES
def test_predict_reads_with_them_without_tensorflow(form, written, place, expected, bare):
    path = written(form)
    arguments = ["predict.py", "--model", str(path), "captcha.png"]
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(PROJECT)!r}); sys.argv = {arguments!r}\n"
        f"runpy.run_path({str(PROJECT / 'predict.py')!r}, run_name='__main__')"
    )
    done = run(place, code, bare)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    name, text, confidence = done.stdout.rstrip("\n").split("\t")
    assert (name, text) == ("captcha.png", "".join(map(chr, expected[0][0])))
    assert float(confidence) == pytest.approx(expected[1][0], abs=1e-4)  # four places


@FILES
def test_what_is_no_exported_model_is_named(form, written, place, tmp_path, monkeypatch):
    path = written(form)
    content = path.read_bytes()
    bad = tmp_path / path.name
    with pytest.raises(CaptchaError, match=r"must be an exported model, .* there is no such file: write one"):
        load_exported(str(bad))
    for damaged in (b"", b"no model", content[:1000], content[: len(content) // 2], content[:-5]):
        bad.write_bytes(damaged)
        with pytest.raises(
            CaptchaError, match=r"is damaged or none .*: write it anew with `python export.py`"
        ):
            load_exported(str(bad))
    with pytest.raises(CaptchaError, match=r"must be an exported model, .onnx or .tflite, but its name ends"):
        load_exported(str(tmp_path / "model.pb"))
    with pytest.raises(CaptchaError, match=r"its name ends otherwise: write one"):
        Predictor(str(place / "captcha.png")).config  # noqa: B018
    monkeypatch.setitem(sys.modules, RUNTIMES[form], None)
    for name in [name for name in sys.modules if name.startswith(f"{RUNTIMES[form]}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CaptchaError, match=r"is not installed: pip install -r requirements-export.txt"):
        load_exported(str(path))


# ---------------------------------------------------------------------- what cannot be written


def test_an_unknown_form_is_named():
    assert_refused(
        script("export.py", "pdf"), 2, "a form must be one of saved_model, litert, onnx, not 'pdf'"
    )


def test_without_a_model_one_sentence_says_so(tmp_path, tf):
    with pytest.raises(CaptchaError, match=r"must hold a trained model, but holds none"):
        export.main(["--checkpoint-folder", str(tmp_path)])


def test_a_package_that_is_missing_is_named_before_anything_is_written(place, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", ModuleType("onnx"))
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    wanted = r"ONNX must be written with tf2onnx, .*: pip install -r requirements-export.txt"
    with pytest.raises(CaptchaError, match=wanted):
        export.main(["--checkpoint-folder", str(place / "checkpoints"), "--to", str(tmp_path / "to")])
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("form", ["litert", "saved_model"])
def test_a_folder_that_cannot_be_written_to_is_named(form, place, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CaptchaError, match=r"could not be written \(.*\): make room for it, or name another"):
        export.main([form, *options(place)[:2], "--to", str(tmp_path / "file" / "inner")])


@pytest.mark.parametrize("form", ["litert", "saved_model"])
def test_a_full_disk_leaves_the_earlier_export(form, written, place, monkeypatch):
    path = written(form)
    before = {each: each.read_bytes() for each in (path, *path.rglob("*")) if each.is_file()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CaptchaError, match=r"could not be written .No space left on device"):
        export.main([form, *options(place)])
    assert {each: each.read_bytes() for each in (path, *path.rglob("*")) if each.is_file()} == before
    assert not [name for name in os.listdir(path.parent) if name.startswith(".")]


def test_only_an_earlier_export_is_replaced(written, place, tmp_path):
    target = tmp_path / "saved_model"
    arguments = ["saved_model", *options(place)[:2], "--to", str(tmp_path)]
    target.touch()
    with pytest.raises(CaptchaError, match=ELSE):
        export.main(arguments)
    assert target.is_file()
    target.unlink()
    target.mkdir()
    (target / "thesis.txt").touch()
    with pytest.raises(CaptchaError, match=ELSE):
        export.main(arguments)
    assert os.listdir(target) == ["thesis.txt"]
    shutil.rmtree(target)
    for _ in range(2):
        assert export.main(arguments) == 0
        assert os.listdir(tmp_path) == ["saved_model"]
        assert (target / "saved_model.pb").is_file()
