"""Reading with an exported model, without TensorFlow: `load_exported("exported/captcha.onnx")`.

Importing this module imports no runtime: that of the file's format is imported when it is loaded.
"""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captcha_cnn.tf_runtime import suppress_stderr
from config import CaptchaError, Config, escape_unprintable

SUFFIXES = (".onnx", ".tflite")
INPUT = "pictures"  # the names of inputs and outputs are what deployed programs rely on
OUTPUTS = ("text", "confidence", "each", "runner_up", "runner_up_confidence")
LOG_PROBS = "log_probs"  # an output of network ctc: restrict_answers() decodes it for fewer characters
CONFIG_KEY = "config"  # ONNX: the key of the metadata; LiteRT: config.json in the ZIP behind the model
CONFIG_NAMES = ("width", "height", "char_num", "characters")
SCALING_NAMES = ("stretch", "skip_top", "skip_bottom", "ignore_case")  # stored too for own images
COLOUR = "colour"  # stored as true for a model that reads colour
ANY_SIZE = "any_size"  # stored as true there: captcha_cnn.images.image_for() scales images
PredictFn = Callable[..., tuple[np.ndarray, ...]]


def config_json(config: Config) -> str:
    """What a reader needs to know, as JSON."""
    values, names = config.as_dict(), CONFIG_NAMES + (SCALING_NAMES if config.own_images else ())
    stored = {name: values[name] for name in names} | ({ANY_SIZE: True} if config.own_images else {})
    return json.dumps(stored | ({COLOUR: True} if config.colour else {}), ensure_ascii=False)


def config_of(values: dict[str, Any]) -> Config:
    """The Config of what config_json() has written."""
    # The classic network accepts every width, and ctc every length; nothing else depends on it.
    network = "ctc" if isinstance(values["char_num"], str) else "classic"
    images = "any" if values.get(ANY_SIZE) else ""  # the folder matters only while training
    settings = {name: value for name, value in values.items() if name != ANY_SIZE}
    return Config(**settings, network=network, images=images)


def load_exported(path: str, threads: int = 0) -> tuple[Config, PredictFn]:
    """An exported model: its settings, and the function that reads, which several threads may use.

    Args:
        path: a file that export.py wrote, .onnx or .tflite.
        threads: how many to use; 0 leaves it to the runtime.
    Returns:
        The settings; a function from images, uint8 [B, H, W] or in colour [B, H, W, 3], to text, int32
        [B, L] code points with 0 past the end, confidence, float32 [B], each, float32 [B, L], runner_up,
        int32 [B, L], and runner_up_confidence, float32 [B], as captcha_cnn.ctc.Predictions explains them;
        or to the outputs that a second argument names, with KeyError for one that the file has not.
    Raises:
        CaptchaError: no such file, a damaged one, or its runtime is not installed.
    """
    shown = escape_unprintable(path)
    loaders = dict(zip(SUFFIXES, (_load_onnx, _load_litert), strict=True))
    load = loaders.get(Path(path).suffix)
    if load is None or not Path(path).is_file():
        found = "there is no such file" if load else "its name ends otherwise"
        raise CaptchaError(
            f"{shown} must be an exported model, {' or '.join(SUFFIXES)}, but {found}: write one with "
            "`python export.py`, or name another"
        )
    content = Path(path).read_bytes()
    try:
        values, predict = load(content, threads)
        config = config_of(values)
        predict(np.zeros([1, *config.image_shape], np.uint8))
    except ImportError as error:
        raise CaptchaError(
            f"{shown} must be read with {error.name or error}, which is not installed: "
            "pip install -r requirements-export.txt"
        ) from None
    except Exception as error:  # runtimes raise nearly anything on damaged data
        reason = escape_unprintable(str(error).strip().split("\n")[0])
        raise CaptchaError(
            f"{shown} must be a model that export.py wrote, but is damaged or none ({reason}): write it anew "
            "with `python export.py`"
        ) from None
    return config, predict


def exported_log_probs(predict: PredictFn) -> Callable[[np.ndarray], np.ndarray]:
    """What restrict_answers() needs of an exported model; `predict` is that of load_exported()."""

    def log_probs(images: np.ndarray) -> np.ndarray:
        try:
            return predict(images, (LOG_PROBS,))[0]
        except KeyError:
            raise CaptchaError(
                f"an exported file must have {LOG_PROBS} to read some characters or lengths only, but "
                "has none: export it anew with --characters or --char-num"
            ) from None

    return log_probs


def _load_onnx(content: bytes, threads: int) -> tuple[dict[str, Any], PredictFn]:
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # inside another program, whose environment is not ours
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is raised
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    values = json.loads(session.get_modelmeta().custom_metadata_map[CONFIG_KEY])
    known = {output.name for output in session.get_outputs()}

    def predict(images: np.ndarray, names: Sequence[str] = OUTPUTS) -> tuple[np.ndarray, ...]:
        if missing := set(names) - known:
            raise KeyError(*missing)
        return tuple(session.run(names, {INPUT: images}))

    return values, predict


def _load_litert(content: bytes, threads: int) -> tuple[dict[str, Any], PredictFn]:
    from ai_edge_litert.interpreter import Interpreter

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        values = json.loads(archive.read(f"{CONFIG_KEY}.json"))
    with suppress_stderr():  # LiteRT says what it is about to do
        interpreter = Interpreter(model_content=content, num_threads=threads or None)
        run = interpreter.get_signature_runner()
        run(**{INPUT: np.zeros([1, *config_of(values).image_shape], np.uint8)})
    lock = threading.Lock()  # an interpreter is not safe for two threads at once

    def predict(images: np.ndarray, names: Sequence[str] = OUTPUTS) -> tuple[np.ndarray, ...]:
        with lock:
            outputs = run(**{INPUT: images})
        return tuple(outputs[name] for name in names)

    return values, predict
