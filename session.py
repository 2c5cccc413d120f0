"""TensorFlow as this project runs it: imported quietly, on the CPU; runs saved, restored and stopped.

A checkpoint holds a whole run: what training goes on from, the best weights so far, and the
settings that made them. None is ever without the others.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from config import CaptchaError, Config, printable

try:
    import fcntl
except ImportError:  # Windows has no such locks: there, nothing keeps two runs apart
    fcntl = None  # type: ignore[assignment]

NAME = "state"  # a checkpoint's files are state-<step>.*
RECORD = "record"  # the tensor that holds settings and progress, as JSON
BEST = "best/"  # begins the names of the best weights
READ_AT_ONCE = 250  # pictures: bounds memory
KEPT = 3  # newest checkpoints that stay: where one is damaged, the one before it serves


def load_tensorflow() -> Any:
    """TensorFlow's v1 interface, on the CPU, without the lines it prints while it is imported.

    oneDNN's kernels are off by default on CPUs without AVX-512, where a training step takes 1.6
    times as long without them.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    # Where convolutions are done in bfloat16, the matrix products of the decoder must not be.
    os.environ.setdefault("TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_ALLOWLIST_REMOVE", "MatMul")
    with silence():
        import tensorflow.compat.v1 as tf
    tf.logging.set_verbosity(tf.logging.ERROR)
    return tf


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Inside, nothing reaches standard error: TensorFlow's C++ part writes there whatever it is told."""
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(tempfile.TemporaryFile())
        stderr = os.dup(2)
        stack.callback(os.close, stderr)
        stack.callback(os.dup2, stderr, 2)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()


def has_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether the CPU multiplies bfloat16. Where it does not, asking for it costs 3 to 4 times the time."""
    try:
        flags = Path(cpuinfo).read_text(encoding="utf-8").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def session_config(bfloat16: bool) -> Any:
    """The ConfigProto of a session: convolutions in bfloat16 where asked for."""
    import tensorflow.compat.v1 as tf
    from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

    config = tf.ConfigProto()
    if bfloat16:
        config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 = RewriterConfig.ON
    return config


def parts(count: int) -> Iterator[slice]:
    """Slices that cover so many pictures, READ_AT_ONCE each."""
    return (slice(start, start + READ_AT_ONCE) for start in range(0, count, READ_AT_ONCE))


def tensorflow_reason(error: Any) -> str:
    """The line of a tf.errors.OpError that says what happened."""
    lines = [line.strip() for line in error.message.splitlines() if line.strip()]
    after = [i + 1 for i, line in enumerate(lines[:-1]) if line.startswith("Node:")]
    return str(lines[after[0] if after else 0])


class Saved(NamedTuple):
    """What a checkpoint holds for those who read captchas or go on training."""

    path: str  # that its files' names begin with
    config: Config
    progress: dict[str, Any]
    weights: dict[str, np.ndarray]  # the best ones, by name
    variables: frozenset[str]  # names of all that it holds


class Checkpoint:
    """A whole run on disk: all variables, the best weights, the settings, the progress.

    One save holds all of it, so that no part can be older than another. To be made when the graph is
    whole but for this.

    Args:
        weights: the variables that a reader needs, by name.
        deployed: what is kept of each for the best.
    """

    def __init__(self, config: Config, weights: dict[str, Any], deployed: dict[str, Any]) -> None:
        import tensorflow.compat.v1 as tf

        self._config = config
        best = {
            name: tf.get_variable(BEST + name, v.shape, initializer=tf.zeros_initializer(), trainable=False)
            for name, v in weights.items()
        }
        self._keep = tf.group(*[tf.assign(best[name], v) for name, v in deployed.items()])
        self._use = tf.group(*[tf.assign(v, best[name]) for name, v in weights.items()])
        self._text = tf.placeholder(tf.string, [])
        self._record = tf.assign(tf.get_variable(RECORD, initializer="", trainable=False), self._text)
        self._saver = tf.train.Saver(max_to_keep=KEPT, save_relative_paths=True)
        self.path = ""  # of the last one saved or restored

    def keep_best(self, session: Any) -> None:
        """Take the weights of this moment for the best; the next save has them."""
        session.run(self._keep)

    def use_best(self, session: Any) -> None:
        """Put the best weights in place of those of this moment."""
        session.run(self._use)

    def save(self, session: Any, progress: dict[str, Any]) -> None:
        """Save the run as it is at progress["step"]."""
        record = {"config": self._config.as_dict(), "progress": progress}
        session.run(self._record, {self._text: json.dumps(record)})
        path = os.path.join(self._config.checkpoint_folder, NAME)
        self.path = self._saver.save(session, path, progress["step"], write_meta_graph=False)

    def restore(self, session: Any, path: str) -> None:
        """Bring back all variables, and go on from those saves that the folder has."""
        self._saver.restore(session, path)
        self.path = path
        self._saver.recover_last_checkpoints(list(reversed(saves(self._config.checkpoint_folder))))


def files(folder: str) -> list[tuple[int, bool, Path]]:
    """Of each file of a checkpoint in a folder: the step, whether it was written to its end, the path."""
    name = re.compile(rf"{NAME}-(\d+)\.(?:index|data-\d+-of-\d+)(\.tempstate\d+)?")
    matches = [(name.fullmatch(path.name), path) for path in Path(folder).glob(f"{NAME}-*")]
    return [(int(match[1]), match[2] is None, path) for match, path in matches if match]


def saves(folder: str) -> list[str]:
    """The paths that the names of each checkpoint's files begin with, newest first; damaged ones too."""
    steps = sorted({step for step, whole, _ in files(folder) if whole}, reverse=True)
    return [os.path.join(folder, f"{NAME}-{step}") for step in steps]


def tidy(folder: str) -> None:
    """Remove what killed runs have left: files that were not written to their end, more than are kept."""
    kept = {os.path.basename(path) for path in saves(folder)[:KEPT]}
    for step, whole, path in files(folder):
        if not whole or f"{NAME}-{step}" not in kept:
            path.unlink()


def read_save(path: str) -> Saved:
    """All of a checkpoint, every tensor compared with its checksum.

    Raises:
        CaptchaError: it is damaged; says why.
    """
    import tensorflow.compat.v1 as tf

    try:
        reader = tf.train.load_checkpoint(path)
        tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
        record = json.loads(tensors[RECORD])
        weights = {name.removeprefix(BEST): v for name, v in tensors.items() if name.startswith(BEST)}
        return Saved(path, Config(**record["config"]), record["progress"], weights, frozenset(tensors))
    except Exception as error:  # the reader raises nearly anything on damaged data
        reason = tensorflow_reason(error) if isinstance(error, tf.errors.OpError) else error
        raise CaptchaError(f"{printable(path)} is damaged ({reason})") from None


def load(folder: str) -> Saved:
    """The newest checkpoint of a folder that is whole; says which damaged ones it passes over.

    Raises:
        CaptchaError: there is none.
    """
    damaged = []
    for path in saves(folder):
        try:
            saved = read_save(path)
        except CaptchaError as error:
            damaged.append(str(error))
        else:
            for each in damaged:
                print(f"{each}: passed over for the one before it", file=sys.stderr)
            return saved
    found = f"all that it holds is damaged: {damaged[0]}" if damaged else "holds none"
    raise CaptchaError(
        f"{printable(folder)} must hold a trained model, but {found}: train one with `python driver.py`, or "
        "name the folder of another"
    )


def keep_earlier(folder: str) -> str | None:
    """Move an earlier run out of the way of a new one; says where it is.

    It goes to `previous`, where it replaces a finished run; one that is not finished, or not whole,
    is never replaced: then it goes to `previous-2`, and so on.
    """
    if not saves(folder):
        return None
    places = (Path(folder, f"previous-{n}" if n > 1 else "previous") for n in itertools.count(1))
    place = next(each for each in places if not each.exists() or is_finished(str(each)))
    place.mkdir(exist_ok=True)
    for _, _, path in files(str(place)):
        path.unlink()
    for _, _, path in files(folder):
        path.replace(place / path.name)
    Path(folder, "checkpoint").unlink(missing_ok=True)
    return str(place)


def is_finished(folder: str) -> bool:
    """Whether the run saved there came to its end, as far as its newest checkpoint can say."""
    try:
        return all(read_save(path).progress["finished"] for path in saves(folder)[:1])
    except CaptchaError:
        return False


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


class Stopped(CaptchaError):  # noqa: N818 - it is no error
    """Ctrl-C or SIGTERM ended the training."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped")
        self.status = 128 + number  # as shells have it


class Stop:
    """Lets Ctrl-C and SIGTERM end a training between two steps. A second one ends it at once."""

    def __init__(self) -> None:
        self._number = 0
        self._waiting = False

    def __enter__(self) -> Stop:
        numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._heed) for number in numbers}  # nohup stays nohup
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heed(self, number: int, _: object) -> None:
        if self._number:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._number = number
        if self._waiting:
            raise Stopped(number)

    def check(self) -> None:
        """Raise Stopped where a signal has come."""
        if self._number:
            raise Stopped(self._number)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """For what takes long and changes nothing: inside it, a signal raises Stopped when it comes."""
        self.check()
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
