"""Write the trained model in the formats that people deploy: `python export.py`.

Each is one file or folder that needs nothing of this project: a SavedModel, LiteRT, ONNX. All take
images, uint8 [B, H, W] or in colour [B, H, W, 3], and return captcha_cnn.ctc.Predictions and the log
probabilities that these are decoded from; the settings lie inside.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captcha_cnn.checkpoint import CheckpointData, load_latest
from captcha_cnn.cli import OneLineErrorParser, run_main
from captcha_cnn.exported_model import CONFIG_KEY, INPUT, LOG_PROBS, config_json
from captcha_cnn.files import atomic_folder, atomic_write
from captcha_cnn.restrict import add_restriction_flags, restrict
from captcha_cnn.tf_runtime import error_reason, load_tensorflow, suppress_stderr
from config import CaptchaError, Config, ConfigError, escape_unprintable

FORMATS = {"saved_model": "saved_model", "litert": "captcha.tflite", "onnx": "captcha.onnx"}


def add_graph(saved: CheckpointData, strings: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Add the inference network to the default graph; its input and its outputs, by name.

    Args:
        strings: the texts are string [B]; otherwise code points, int32 [B, L], 0 past the end.
    """
    tf = load_tensorflow()
    from captcha_cnn.ctc import to_text
    from cnn_model import build_inference_graph

    x, _, _, predictions, logits = build_inference_graph(saved.config, saved.weights)
    predictions = to_text(predictions, saved.config, strings)
    outputs = {
        "text": predictions.chars,
        "confidence": predictions.confidence,
        "each": predictions.char_probs,
        "runner_up": predictions.runner_up,
        "runner_up_confidence": predictions.runner_up_confidence,
    }
    if saved.config.network == "ctc":
        outputs[LOG_PROBS] = tf.nn.log_softmax(tf.transpose(logits, [1, 0, 2]))  # [B, T, K + 1]
    return {INPUT: x}, {name: tf.identity(tensor, name) for name, tensor in outputs.items()}


def write_saved_model(saved: CheckpointData, folder: Path, strings: bool = True) -> None:
    """Write a SavedModel into a folder that does not exist yet."""
    tf = load_tensorflow()
    with tf.Graph().as_default(), tf.Session() as session:
        tf.saved_model.simple_save(session, str(folder), *add_graph(saved, strings))
    extra = folder / "assets.extra"
    extra.mkdir()
    (extra / f"{CONFIG_KEY}.json").write_text(config_json(saved.config), encoding="utf-8")


def write_litert(saved: CheckpointData, path: Path) -> None:
    """Write a LiteRT file; behind the model is a ZIP, as its metadata have it, with the settings.

    The converter stores all constants in float16, and computes in float32. It loses nothing: all
    weights were rounded to float16 before they were tested.
    """
    tf = load_tensorflow()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "saved_model")
        write_saved_model(saved, folder, strings=False)
        converter = tf.compat.v2.lite.TFLiteConverter.from_saved_model(str(folder))
        converter.optimizations = [tf.compat.v2.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
        path.write_bytes(converter.convert())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(f"{CONFIG_KEY}.json"), config_json(saved.config))


def write_onnx(saved: CheckpointData, path: Path) -> None:
    """Write an ONNX file, its large constants in float16."""
    import onnx
    import tf2onnx

    from captcha_cnn.float16 import as_exact_float16

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
        half = as_exact_float16(values) if values.dtype == np.float32 else None
        if half is not None:
            name = constant.name
            constant.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}/float16"))
            cast = onnx.helper.make_node("Cast", [constant.name], [name], to=onnx.TensorProto.FLOAT)
            model.graph.node.insert(0, cast)
    onnx.helper.set_model_props(model, {CONFIG_KEY: config_json(saved.config)})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def export(saved: CheckpointData, format: str, folder: Path) -> Path:
    """Write one of FORMATS into a folder, completely or not at all; the path written."""
    tf = load_tensorflow()
    path = folder / FORMATS[format]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if format == "saved_model":
            with atomic_folder(path) as temporary, suppress_stderr():
                write_saved_model(saved, temporary)
        else:
            with atomic_write(path) as temporary, suppress_stderr():
                {"litert": write_litert, "onnx": write_onnx}[format](saved, temporary)
    except (OSError, tf.errors.OpError) as error:
        reason = error_reason(error) if isinstance(error, tf.errors.OpError) else error.strerror or error
        raise CaptchaError(
            f"{escape_unprintable(path)} could not be written ({reason}): make room for it, or name another "
            "folder with --to"
        ) from error
    return path


def check_packages() -> None:
    """Raise a CaptchaError where what writes ONNX is not installed."""
    try:
        with suppress_stderr():
            import onnx  # noqa: F401
            import tf2onnx  # noqa: F401
    except ImportError as error:
        raise CaptchaError(
            f"ONNX must be written with {error.name}, which is not installed: "
            "pip install -r requirements-export.txt"
        ) from None


def main(arguments: Sequence[str]) -> int:
    """Export the formats named; says where they are."""
    parser = OneLineErrorParser("Write the trained model in formats that need nothing of this project.")
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=f"{', '.join(FORMATS)} (default: all)")
    parser.add_argument(
        "--checkpoint-folder",
        default=Config.checkpoint_folder,
        metavar="FOLDER",
        help="folder of the model (default: %(default)s)",
    )
    parser.add_argument(
        "--to", default="exported", metavar="FOLDER", help="folder to write to (default: %(default)s)"
    )
    add_restriction_flags(parser)
    options = parser.parse_args(arguments)
    for format in options.formats:
        if format not in FORMATS:
            raise ConfigError(
                f"a format must be one of {', '.join(FORMATS)}, not {escape_unprintable(format)!r}"
            )
    formats = dict.fromkeys(options.formats or FORMATS)
    load_tensorflow()
    saved = load_latest(options.checkpoint_folder)
    config, weights = restrict(saved.config, saved.weights, options.characters, options.char_num)
    saved = saved._replace(config=config, weights=weights)
    if "onnx" in formats:
        check_packages()
    for format in formats:
        path = export(saved, format, Path(options.to))
        size = sum(each.stat().st_size for each in (path, *path.rglob("*")) if each.is_file())
        print(f"{escape_unprintable(os.fspath(path))}: {size / 1000:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    run_main(main)
