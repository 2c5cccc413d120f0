"""TensorFlow as this project runs it: imported quietly, on the CPU; weights saved and restored.

A checkpoint holds the averaged weights and, beside them in the same files, the settings
that made them: neither is ever without the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config import CaptchaError, Config, ConfigError, printable

try:
    import fcntl
except ImportError:  # Windows has no such locks: there, nothing keeps two runs apart
    fcntl = None  # type: ignore[assignment]

NAME = "best"  # a checkpoint's files are best-<step>.*
SETTINGS = "settings"  # the tensor that holds the Config, as JSON


def load_tensorflow() -> Any:
    """TensorFlow's v1 interface, on the CPU, without the lines it prints while it is imported.

    oneDNN's kernels are off by default on CPUs without AVX-512, where a training step takes 1.6
    times as long without them.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(tempfile.TemporaryFile())
        stderr = os.dup(2)  # the C++ part writes there before it can be told not to
        stack.callback(os.close, stderr)
        stack.callback(os.dup2, stderr, 2)
        os.dup2(sink.fileno(), 2)
        import tensorflow.compat.v1 as tf
    tf.logging.set_verbosity(tf.logging.ERROR)
    return tf


def has_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether the CPU multiplies bfloat16. Where it does not, asking for it costs 3 to 4 times the time."""
    try:
        flags = Path(cpuinfo).read_text(encoding="utf-8").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def session_config(bfloat16: bool) -> Any:
    """The ConfigProto of a session: convolutions and matrix products in bfloat16 where asked for."""
    import tensorflow.compat.v1 as tf
    from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

    config = tf.ConfigProto()
    if bfloat16:
        config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 = RewriterConfig.ON
    return config


def tensorflow_reason(error: Any) -> str:
    """The line of a tf.errors.OpError that says what happened."""
    lines = [line.strip() for line in error.message.splitlines() if line.strip()]
    after = [i + 1 for i, line in enumerate(lines[:-1]) if line.startswith("Node:")]
    return str(lines[after[0] if after else 0])


class Checkpoint:
    """The best weights of a run, with their settings; each save replaces the one before.

    To be made while the graph is built, since saving adds to it.

    Args:
        weights: the variables to save and restore, by name.
    """

    def __init__(self, config: Config, weights: dict[str, Any]) -> None:
        import tensorflow.compat.v1 as tf

        self._path = os.path.join(config.checkpoint_folder, NAME)
        settings = tf.constant(json.dumps(config.as_dict()), name=SETTINGS)
        holder = tf.get_variable(SETTINGS, initializer=settings, trainable=False)
        # The state file that names the newest save is replaced last, and whole: a save that is cut
        # off leaves the one before it in force.
        self._saver = tf.train.Saver({**weights, SETTINGS: holder}, max_to_keep=1, save_relative_paths=True)

    def save(self, session: Any, step: int) -> str:
        """Save the weights; returns the path that the files' names begin with."""
        return str(self._saver.save(session, self._path, step, write_meta_graph=False))

    def restore(self, session: Any, folder: str) -> None:
        """Bring back the newest save in that folder."""
        self._saver.restore(session, newest(folder))


@contextlib.contextmanager
def alone(folder: str, flag: str) -> Iterator[None]:
    """Hold a folder for this process alone, and make it where it is missing.

    The system ends the hold with the process, however that ends: a lock left behind is no obstacle.

    Raises:
        CaptchaError: another process holds it.
    """
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "lock"), "a+", encoding="ascii") as lock:
        if fcntl:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise CaptchaError(
                    f"{printable(folder)} must be for one run at a time, but process {lock.read()} trains "
                    f"there: wait for it, or name another folder with {flag}"
                ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def newest(folder: str) -> str:
    """The path that the files of the newest checkpoint in a folder begin with.

    Raises:
        CaptchaError: there is none.
    """
    import tensorflow.compat.v1 as tf

    path = tf.train.latest_checkpoint(folder)
    if path is None:
        raise CaptchaError(
            f"{printable(folder)} must hold a trained model, but holds none: train one with "
            "`python driver.py`, or name the folder of another"
        )
    return str(path)


def load_config(folder: str) -> Config:
    """The settings of the newest checkpoint in a folder.

    Raises:
        CaptchaError: there is no checkpoint, or it cannot be read.
    """
    import tensorflow.compat.v1 as tf

    path = newest(folder)
    try:
        return Config(**json.loads(tf.train.load_checkpoint(path).get_tensor(SETTINGS)))
    except (tf.errors.OpError, ValueError, TypeError, ConfigError) as error:
        reason = tensorflow_reason(error) if isinstance(error, tf.errors.OpError) else error
        raise CaptchaError(
            f"{printable(path)} must be a checkpoint of this program, but cannot be read ({reason}): "
            "train again"
        ) from None


def keep_earlier(folder: str) -> str | None:
    """Move an earlier run's model to `previous`, where it replaces the one before; says where it is."""
    state = Path(folder, "checkpoint")
    if not state.is_file():
        return None
    previous = Path(folder, "previous")
    previous.mkdir(exist_ok=True)
    for path in previous.glob(f"{NAME}-*"):
        path.unlink()
    for path in [*Path(folder).glob(f"{NAME}-*"), state]:
        path.replace(previous / path.name)
    return str(previous)
