"""Write the trained model in the forms that people deploy: `python export.py`.

Each is one file or folder that needs nothing of this project: a SavedModel, LiteRT, ONNX. All take
pictures, uint8 [B, H, W], and say what cnn_model.Answers does; the settings lie inside.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from config import CaptchaError, Config, ConfigError, Parser, printable, run
from generate_captcha import whole
from runtime import SETTINGS
from session import Saved, load, load_tensorflow, silence, tensorflow_reason

FORMS = {"saved_model": "saved_model", "litert": "captcha.tflite", "onnx": "captcha.onnx"}


def settings_inside(config: Config) -> str:
    """What a reader needs to know, as JSON."""
    names = ("width", "height", "char_num", "characters")
    return json.dumps({name: config.as_dict()[name] for name in names}, ensure_ascii=False)


def add_graph(saved: Saved, strings: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Add what reads to the default graph; its input and its outputs, by name.

    Args:
        strings: the texts are string [B]; otherwise code points, int32 [B, L].
    """
    tf = load_tensorflow()
    from cnn_model import frozen, spelled

    x, _, answers = frozen(saved.config, saved.weights)
    outputs = spelled(answers, saved.config, strings)._asdict()
    outputs["text"] = outputs.pop("symbols")
    return {"pictures": x}, {name: tf.identity(tensor, name) for name, tensor in outputs.items()}


def write_saved_model(saved: Saved, folder: Path, strings: bool = True) -> None:
    """Write a SavedModel into a folder that there is not yet."""
    tf = load_tensorflow()
    with tf.Graph().as_default(), tf.Session() as session:
        tf.saved_model.simple_save(session, str(folder), *add_graph(saved, strings))
    extra = folder / "assets.extra"
    extra.mkdir()
    (extra / f"{SETTINGS}.json").write_text(settings_inside(saved.config), encoding="utf-8")


def write_litert(saved: Saved, path: Path) -> None:
    """Write a LiteRT file; behind the model is a ZIP, as its metadata have it, with the settings."""
    tf = load_tensorflow()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "saved_model")
        write_saved_model(saved, folder, strings=False)
        converter = tf.compat.v2.lite.TFLiteConverter.from_saved_model(str(folder))
        path.write_bytes(litert_halved(converter.convert()))
    with zipfile.ZipFile(path, "a") as behind:
        behind.writestr(zipfile.ZipInfo(f"{SETTINGS}.json"), settings_inside(saved.config))


def litert_halved(content: bytes) -> bytes:
    """The LiteRT file with its large constants in float16; they are float32 again when it runs.

    The converter's own way takes all constants, and those of the decoder are too large and too small.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    from cnn_model import exact_half

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    (graph,) = model.subgraphs
    kind = schema.OperatorCodeT()
    kind.builtinCode = kind.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    kind.version = 3  # from float16
    model.operatorCodes.append(kind)
    for index, constant in enumerate(list(graph.tensors)):
        data = model.buffers[constant.buffer].data
        if constant.type != schema.TensorType.FLOAT32 or data is None:
            continue
        halves = exact_half(np.frombuffer(bytes(data), np.float32))
        if halves is not None:
            half = copy.copy(constant)
            half.name, half.type = constant.name + b"/half", schema.TensorType.FLOAT16
            model.buffers[half.buffer].data = np.frombuffer(halves.tobytes(), np.uint8)
            constant.buffer = 0  # the empty one
            widen = schema.OperatorT()
            widen.opcodeIndex = len(model.operatorCodes) - 1
            widen.inputs, widen.outputs = [len(graph.tensors)], [index]
            graph.tensors.append(half)
            graph.operators.insert(0, widen)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def write_onnx(saved: Saved, path: Path) -> None:
    """Write an ONNX file."""
    import onnx
    import tf2onnx

    from cnn_model import exact_half

    tf = load_tensorflow()
    with tf.Graph().as_default() as graph:
        inputs, outputs = add_graph(saved, strings=False)
    model, _ = tf2onnx.convert.from_graph_def(
        graph.as_graph_def(),
        "captcha",
        [f"{name}:0" for name in inputs],
        [f"{name}:0" for name in outputs],
        opset=17,
        tensors_to_rename={f"{name}:0": name for name in (*inputs, *outputs)},
    )
    for constant in list(model.graph.initializer):
        values = onnx.numpy_helper.to_array(constant)
        half = exact_half(values) if values.dtype == np.float32 else None
        if half is not None:
            name = constant.name
            constant.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}/half"))
            widen = onnx.helper.make_node("Cast", [constant.name], [name], to=onnx.TensorProto.FLOAT)
            model.graph.node.insert(0, widen)
    onnx.helper.set_model_props(model, {SETTINGS: settings_inside(saved.config)})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to make, which takes the place of `folder` once all is written, or goes.

    Raises:
        CaptchaError: what is there already is not such a folder; it is left as it is.
    """
    part, old = (folder.with_name(f".{folder.name}.{word}{os.getpid()}") for word in ("part", "old"))
    try:
        yield part
        if os.path.lexists(folder):
            if not names_in(folder) <= names_in(part):
                raise CaptchaError(
                    f"{printable(str(folder))} must be an earlier export to be replaced, but holds something "
                    "else: move it away, or name another folder with --to"
                )
            folder.replace(old)
        part.replace(folder)
    finally:
        for each in (part, old):
            shutil.rmtree(each, ignore_errors=True)


def names_in(folder: Path) -> set[str]:
    """All that is inside, at any depth; of what is no folder, or a link, its own name."""
    if folder.is_symlink() or not folder.is_dir():
        return {str(folder)}
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def export(saved: Saved, form: str, folder: Path) -> Path:
    """Write one of FORMS into a folder, whole or not at all; the path written."""
    tf = load_tensorflow()
    path = folder / FORMS[form]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if form == "saved_model":
            with whole_folder(path) as part, silence():
                write_saved_model(saved, part)
        else:
            with whole(path) as part, silence():
                {"litert": write_litert, "onnx": write_onnx}[form](saved, part)
    except (OSError, tf.errors.OpError) as error:
        reason = tensorflow_reason(error) if isinstance(error, tf.errors.OpError) else error.strerror or error
        raise CaptchaError(
            f"{printable(str(path))} could not be written ({reason}): make room for it, or name another "
            "folder with --to"
        ) from error
    return path


def check_packages() -> None:
    """Raise a CaptchaError where what writes ONNX is not installed."""
    try:
        with silence():
            import onnx  # noqa: F401
            import tf2onnx  # noqa: F401
    except ImportError as error:
        raise CaptchaError(
            f"ONNX must be written with {error.name}, which is not installed: "
            "pip install -r requirements-export.txt"
        ) from None


def main(arguments: Sequence[str]) -> int:
    """Export the forms named; says where they are."""
    parser = Parser("Write the trained model in forms that need nothing of this project.")
    parser.add_argument("forms", nargs="*", metavar="FORM", help=f"{', '.join(FORMS)} (default: all)")
    parser.add_argument(
        "--checkpoint-folder",
        default=Config.checkpoint_folder,
        metavar="FOLDER",
        help="folder of the model (default: %(default)s)",
    )
    parser.add_argument(
        "--to", default="exported", metavar="FOLDER", help="folder to write to (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    for form in options.forms:
        if form not in FORMS:
            raise ConfigError(f"a form must be one of {', '.join(FORMS)}, not {printable(form)!r}")
    forms = dict.fromkeys(options.forms or FORMS)
    load_tensorflow()
    saved = load(options.checkpoint_folder)
    if "onnx" in forms:
        check_packages()
    for form in forms:
        path = export(saved, form, Path(options.to))
        files = [each for each in (path, *path.rglob("*")) if each.is_file()]
        size = sum(each.stat().st_size for each in files)
        print(f"{printable(str(path))}: {size / 1000:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    run(main)
