"""Reading with an exported model, without TensorFlow: `load_exported("exported/captcha.onnx")`.

Importing this module imports no runtime: that of the file's kind is imported when it is loaded.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from config import CaptchaError, printable
from session import silence

SUFFIXES = (".onnx", ".tflite")
OUTPUTS = ("text", "confidence", "each", "runner_up", "runner_up_confidence")
SETTINGS = "config"  # ONNX: the key of the metadata; LiteRT: config.json in the ZIP behind the model
Model = Callable[[np.ndarray], tuple[np.ndarray, ...]]


def load_exported(path: str, threads: int = 0) -> tuple[dict[str, Any], Model]:
    """An exported model: the settings that a reader needs, and what reads.

    Args:
        path: a file that export.py wrote, .onnx or .tflite.
        threads: how many to use; 0 leaves it to the runtime.
    Returns:
        width, height, char_num and characters; a function from pictures, uint8 [B, H, W], to text,
        int32 [B, L] code points, confidence, float32 [B], each, float32 [B, L], runner_up, int32
        [B, L], and runner_up_confidence, float32 [B], as cnn_model.Answers explains them.
    Raises:
        CaptchaError: no such file, a damaged one, or its runtime is not installed.
    """
    shown = printable(path)
    load = dict(zip(SUFFIXES, (_onnx, _litert), strict=True)).get(Path(path).suffix)
    if load is None or not Path(path).is_file():
        found = "there is no such file" if load else "its name ends otherwise"
        raise CaptchaError(
            f"{shown} must be an exported model, {' or '.join(SUFFIXES)}, but {found}: write one with "
            "`python export.py`, or name another"
        )
    content = Path(path).read_bytes()
    try:
        with silence():  # LiteRT says what it is about to do
            settings, model = load(content, threads)
            model(np.zeros([1, settings["height"], settings["width"]], np.uint8))
    except ImportError as error:
        raise CaptchaError(
            f"{shown} must be read with {error.name or error}, which is not installed: "
            "pip install -r requirements-export.txt"
        ) from None
    except Exception as error:  # runtimes raise nearly anything on damaged data
        reason = printable(str(error).strip().split("\n")[0])
        raise CaptchaError(
            f"{shown} must be a model that export.py wrote, but is damaged or none ({reason}): write it anew "
            "with `python export.py`"
        ) from None
    return settings, model


def _onnx(content: bytes, threads: int) -> tuple[dict[str, Any], Model]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    settings = json.loads(session.get_modelmeta().custom_metadata_map[SETTINGS])
    return settings, lambda images: tuple(session.run(OUTPUTS, {"pictures": images}))


def _litert(content: bytes, threads: int) -> tuple[dict[str, Any], Model]:
    from ai_edge_litert.interpreter import Interpreter

    with zipfile.ZipFile(io.BytesIO(content)) as behind:
        settings = json.loads(behind.read(f"{SETTINGS}.json"))
    run = Interpreter(model_content=content, num_threads=threads or None).get_signature_runner()

    def model(images: np.ndarray) -> tuple[np.ndarray, ...]:
        answers = run(pictures=images)
        return tuple(answers[name] for name in OUTPUTS)

    return settings, model
