"""The exported formats read as the checkpoint does, and need nothing of this project."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import PROJECT, assert_refused, script
from packaging.requirements import Requirement
from PIL import Image

import driver
import export
from captcha_cnn.checkpoint import load_latest
from captcha_cnn.dataset import Dataset
from captcha_cnn.exported_model import OUTPUTS, load_exported
from config import CaptchaError
from generate_captcha import ReadData
from predict import Predictor

SETTINGS = {"width": 37, "height": 23, "char_num": 3, "characters": "abcde"}
OCCUPIED = "must be an earlier export to be replaced, but holds something else: move it away"
RUNTIMES = {"litert": "ai_edge_litert", "onnx": "onnxruntime", "saved_model": "tensorflow"}
WRITERS = {"onnx": "tf2onnx"}
FILES = pytest.mark.parametrize("format", ["litert", "onnx"])
ALL = pytest.mark.parametrize("format", ["litert", "onnx", "saved_model"])
NETWORKS = pytest.mark.parametrize("network", ["ctc", "classic"])
DOCUMENTATION = "".join(
    page.read_text(encoding="utf-8") for page in [PROJECT / "README.md", *sorted(PROJECT.glob("docs/*.md"))]
)
MODULES = {path.stem for path in PROJECT.glob("*.py")} | {"captcha_cnn"}


def need(format):
    for package in (RUNTIMES[format], WRITERS.get(format)):
        if package:
            pytest.importorskip(package, reason="pip install -r requirements-export.txt")


@pytest.fixture(scope="module")
def folders(drawn, tmp_path_factory):
    """By network, a folder with a trained model in `checkpoints`, and a test image."""
    reader, found = ReadData(drawn), {}
    sets = [Dataset(*reader.load_data(path)[:2]) for _, path, _ in drawn.sets]
    for network, changes in (("ctc", {}), ("classic", {"alpha": 1e-3, "keep_prob": 1.0})):
        folder = found[network] = tmp_path_factory.mktemp(network)
        places = {f"{name}_folder": str(folder / name) for name in ("checkpoints", "tensorboard")}
        places = {name.replace("checkpoints", "checkpoint"): path for name, path in places.items()}
        driver.run_model(replace(drawn, Epoch=8, network=network, **changes, **places), *sets)
        Image.fromarray(sets[2].images[0]).save(folder / "captcha.png")
    return found


@pytest.fixture(scope="module")
def folder(folders):
    return folders["ctc"]


@pytest.fixture(scope="module")
def written(folders):
    """A function that exports a format, once, into `exported` of that network's folder; its path."""

    def write(format, network="ctc"):
        need(format)
        path = folders[network] / "exported" / export.FORMATS[format]
        if not path.exists():
            assert export.main([format, *options(folders[network])]) == 0
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
    wanted, linked = (
        ["numpy", "pillow", "tqdm", "captcha", "filelock", "onnxruntime", "ai-edge-litert"],
        set(),
    )
    while wanted:
        name = wanted.pop()
        if name in linked:
            continue
        linked.add(name)
        distribution = importlib.metadata.distribution(name)
        for inside in {each.parts[0] for each in distribution.files} - {"..", "__pycache__"}:
            (packages / inside).symlink_to(distribution.locate_file(inside))
        for needed in map(Requirement, distribution.requires or []):
            if not needed.marker or needed.marker.evaluate({"extra": ""}):
                wanted.append(needed.name.lower())
    python = folder / "bin" / "python"
    for name in sorted({"tensorflow"} | MODULES):
        assert "ModuleNotFoundError" in run(folder, f"import {name}", python).stderr
    return python


def options(folder):
    return ["--checkpoint-folder", str(folder / "checkpoints"), "--to", str(folder / "exported")]


@pytest.fixture(scope="module")
def images(drawn):
    return ReadData(drawn).load_data(drawn.test_folder)[0]


@pytest.fixture(scope="module")
def expected_of(folders, images):
    """By network, what the checkpoint reads."""
    return {
        network: Predictor(folder / "checkpoints")._model.predict(images)
        for network, folder in folders.items()
    }


@pytest.fixture(scope="module")
def expected(expected_of):
    return expected_of["ctc"]


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


def settings_of(config):
    return {name: getattr(config, name) for name in SETTINGS}


@FILES
@NETWORKS
@pytest.mark.parametrize("batch", [1, 7, 30])
def test_files_answer_as_the_checkpoint_does(format, network, batch, written, images, expected_of):
    config, predict = load_exported(str(written(format, network)))
    assert settings_of(config) == SETTINGS
    parts = [predict(images[start : start + batch]) for start in range(0, len(images), batch)]
    assert_same([np.concatenate(part) for part in zip(*parts, strict=True)], expected_of[network])


@NETWORKS
@pytest.mark.parametrize("batch", [1, 30])
def test_a_saved_model_answers_as_the_checkpoint_does(network, batch, written, images, expected_of, tf):
    folder = written("saved_model", network)
    assert json.loads((folder / "assets.extra" / "config.json").read_text()) == SETTINGS
    read = tf.compat.v2.saved_model.load(str(folder)).signatures["serving_default"]
    outputs = read(pictures=tf.constant(images[:batch]))
    found = [outputs[name].numpy() for name in OUTPUTS]
    for i in (0, 3):
        assert found[i].shape == (batch,)
        found[i] = np.array([list(map(ord, text.decode())) for text in found[i]], np.int32)
    assert_same(found, [each[:batch] for each in expected_of[network]])


@pytest.mark.parametrize("format", ["checkpoint", "litert", "onnx"])
def test_eight_threads_get_the_answers_of_one(format, folder, written, images, expected):
    path = folder / "checkpoints" if format == "checkpoint" else written(format)
    predictor = Predictor(path)  # the threads load it, too
    chosen = [i % len(images) for i in range(400)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda i: predictor.read(images[i]), chosen))
    texts = ["".join(map(chr, codes)) for codes in expected[0]]
    assert [p.text for p in found] == [texts[i] for i in chosen]
    assert [p.confidence for p in found] == pytest.approx(expected[1][chosen], abs=1e-5)
    char_probs = np.array([p.char_probs for p in found])
    np.testing.assert_allclose(char_probs, expected[2][chosen], atol=1e-5)


# ---------------------------------------------------------------------- float16 in the files


def litert_outputs(content, images):
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(model_content=content, num_threads=1).get_signature_runner()
    return [run(pictures=images)[name] for name in OUTPUTS]


@NETWORKS
def test_litert_with_float16_constants_answers_bit_for_bit_as_with_float32(
    network, folders, written, images, tf, tmp_path
):
    small = written("litert", network).read_bytes()
    saved = load_latest(str(folders[network] / "checkpoints"))
    assert saved.weights["inverse_temperature"] != 1
    export.write_saved_model(saved, tmp_path / "saved_model", strings=False)
    large = tf.compat.v2.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved_model")).convert()
    assert len(small) < 0.65 * len(large), "the converter must have stored float16"
    for one, other in zip(litert_outputs(small, images), litert_outputs(large, images), strict=True):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()


@NETWORKS
def test_onnx_with_float16_constants_holds_the_weights_bit_for_bit(network, folders, written):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(written("onnx", network))
    constants = [onnx.numpy_helper.to_array(each) for each in model.graph.initializer]
    halves = [each for each in constants if each.dtype == np.float16]
    saved = load_latest(str(folders[network] / "checkpoints"))
    kernels = [value for value in saved.weights.values() if value.size >= 1000]
    assert sorted(each.size for each in halves) == sorted(each.size for each in kernels)
    for kernel in kernels:
        (half,) = [each for each in halves if each.size == kernel.size]
        assert np.array_equal(np.sort(half.astype(np.float32), axis=None), np.sort(kernel, axis=None))
    assert not [each for each in constants if each.dtype == np.float32 and each.size >= 1000]


def test_writing_and_reading_use_public_interfaces_alone():
    """TensorFlow promises nothing of its private modules, such as tensorflow.lite.python."""
    for path in ("export.py", "captcha_cnn/float16.py", "captcha_cnn/exported_model.py"):
        tree = ast.parse((PROJECT / path).read_text(encoding="utf-8"))
        names = [
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        ]
        names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        private = [
            name for name in names if name.startswith("tensorflow.") and name != "tensorflow.compat.v1"
        ]
        assert not private, path
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not [name for name in attributes if name.startswith("experimental") or name == "python"], path


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
def test_files_are_small(format, written):
    path = written(format)
    assert sum(each.stat().st_size for each in (path, *path.rglob("*")) if each.is_file()) < 300_000


# ---------------------------------------------------------------------- what reads them


@ALL
def test_the_code_in_the_documentation_reads_a_captcha(format, written, folder, expected, request):
    written(format)
    python = sys.executable if format == "saved_model" else request.getfixturevalue("bare")
    (code,) = [
        each
        for each in re.findall(r"```python\n(.*?)```", DOCUMENTATION, re.S)
        if export.FORMATS[format] in each
    ]
    done = run(folder, code, python)
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
def test_predict_reads_with_them_without_tensorflow(format, written, folder, expected, bare):
    path = written(format)
    arguments = ["predict.py", "--model", str(path), "captcha.png"]
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(PROJECT)!r}); sys.argv = {arguments!r}\n"
        f"runpy.run_path({str(PROJECT / 'predict.py')!r}, run_name='__main__')"
    )
    done = run(folder, code, bare)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    name, text, confidence = done.stdout.rstrip("\n").split("\t")
    assert (name, text) == ("captcha.png", "".join(map(chr, expected[0][0])))
    assert float(confidence) == pytest.approx(expected[1][0], abs=1e-4)  # four places


@FILES
def test_what_is_no_exported_model_is_named(format, written, folder, tmp_path, monkeypatch):
    path = written(format)
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
        Predictor(str(folder / "captcha.png")).config  # noqa: B018
    monkeypatch.setitem(sys.modules, RUNTIMES[format], None)
    for name in [name for name in sys.modules if name.startswith(f"{RUNTIMES[format]}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CaptchaError, match=r"is not installed: pip install -r requirements-export.txt"):
        load_exported(str(path))


def test_an_export_of_some_characters_answers_as_the_checkpoint_does_with_these(folder, images, tmp_path):
    need("onnx")
    flags = ["--checkpoint-folder", str(folder / "checkpoints"), "--to", str(tmp_path)]
    assert export.main(["onnx", *flags, "--characters", "bd"]) == 0
    some = Predictor(tmp_path / "captcha.onnx")
    assert some.config.alphabet == "bd"
    expected = Predictor(folder / "checkpoints", characters="bd").read_arrays(images)
    assert [each.text for each in some.read_arrays(images)] == [each.text for each in expected]


@FILES
def test_a_file_answers_with_some_characters_as_the_checkpoint_does(format, folder, written, images):
    path = written(format)
    found, expected = (
        Predictor(model, characters="dac").read_arrays(images) for model in (path, folder / "checkpoints")
    )
    assert [each.text for each in found] == [each.text for each in expected]
    for part in ("confidence", "char_probs", "runner_up_confidence"):
        one, other = ([getattr(each, part) for each in predictions] for predictions in (found, expected))
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert set("".join(each.text + each.runner_up for each in found)) <= set("acd")


@FILES
def test_a_file_without_log_probabilities_names_the_other_way(format, written, images):
    predictor = Predictor(written(format, "classic"), characters="abc")
    with pytest.raises(CaptchaError, match=r"must have log_probs .* export it anew with --characters"):
        predictor.read_arrays(images)


# ---------------------------------------------------------------------- what cannot be written


def test_an_unknown_format_is_named():
    assert_refused(
        script("export.py", "pdf"), 2, "a format must be one of saved_model, litert, onnx, not 'pdf'"
    )


def test_without_a_model_one_sentence_says_so(tmp_path, tf):
    with pytest.raises(CaptchaError, match=r"must hold a trained model, but holds none"):
        export.main(["--checkpoint-folder", str(tmp_path)])


def test_a_package_that_is_missing_is_named_before_anything_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", ModuleType("onnx"))
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    wanted = r"ONNX must be written with tf2onnx, .*: pip install -r requirements-export.txt"
    with pytest.raises(CaptchaError, match=wanted):
        export.main(["--checkpoint-folder", str(folder / "checkpoints"), "--to", str(tmp_path / "to")])
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("format", ["litert", "saved_model"])
def test_a_folder_that_cannot_be_written_to_is_named(format, folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CaptchaError, match=r"could not be written \(.*\): make room for it, or name another"):
        export.main([format, *options(folder)[:2], "--to", str(tmp_path / "file" / "inner")])


@pytest.mark.parametrize("format", ["litert", "saved_model"])
def test_a_full_disk_leaves_the_earlier_export(format, written, folder, monkeypatch):
    path = written(format)
    before = {each: each.read_bytes() for each in (path, *path.rglob("*")) if each.is_file()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CaptchaError, match=r"could not be written .No space left on device"):
        export.main([format, *options(folder)])
    assert {each: each.read_bytes() for each in (path, *path.rglob("*")) if each.is_file()} == before
    assert not [name for name in os.listdir(path.parent) if name.startswith(".")]


def test_only_an_earlier_export_is_replaced(written, folder, tmp_path):
    target = tmp_path / "saved_model"
    arguments = ["saved_model", *options(folder)[:2], "--to", str(tmp_path)]
    target.touch()
    with pytest.raises(CaptchaError, match=OCCUPIED):
        export.main(arguments)
    assert target.is_file()
    target.unlink()
    target.mkdir()
    (target / "thesis.txt").touch()
    with pytest.raises(CaptchaError, match=OCCUPIED):
        export.main(arguments)
    assert os.listdir(target) == ["thesis.txt"]
    shutil.rmtree(target)
    for _ in range(2):
        assert export.main(arguments) == 0
        assert os.listdir(tmp_path) == ["saved_model"]
        assert (target / "saved_model.pb").is_file()
