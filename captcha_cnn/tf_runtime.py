"""TensorFlow as this project runs it: imported quietly, on the CPU, stopped gracefully."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config import CaptchaError, escape_unprintable

BATCH_SIZE = 250  # images evaluated at once: bounds memory
COPY_STDIN = "import sys; sys.stderr.buffer.write(sys.stdin.buffer.read())"


def load_tensorflow() -> Any:
    """TensorFlow's v1 interface, without the lines that it prints while it is imported.

    The environment of the process stays as it is.
    """
    if "tensorflow" not in sys.modules:
        with suppress_stderr():
            import tensorflow.compat.v1 as tf

            tf.logging.set_verbosity(tf.logging.ERROR)
    import tensorflow.compat.v1 as tf

    return tf


@contextlib.contextmanager
def suppress_stderr() -> Iterator[None]:
    """Inside, nothing reaches standard error, unless the process dies: then all of it does.

    TensorFlow's C++ part writes there whatever it is told. Another process holds back what is
    written, and shows it when this one is gone.
    """
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        stderr = os.dup(2)
        stack.callback(os.close, stderr)
        stack.callback(os.dup2, stderr, 2)
        holder = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", COPY_STDIN],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )
        stack.callback(holder.wait)
        stack.callback(holder.kill)  # before standard error is restored, which it would take for our end
        if holder.stdin:
            os.dup2(holder.stdin.fileno(), 2)
            holder.stdin.close()
        try:
            yield
        finally:
            sys.stderr.flush()


def bfloat16_support(cpuinfo: str = "/proc/cpuinfo") -> bool | None:
    """Whether the CPU multiplies bfloat16; None where that is not known (not Linux on x86).

    Where it does not, asking for bfloat16 costs 3 to 4 times the time.
    """
    try:
        words = Path(cpuinfo).read_text(encoding="utf-8").split()
    except OSError:
        return None
    if "flags" not in words:
        return None
    return "avx512_bf16" in words or "amx_bf16" in words


def arithmetic_line(bfloat16: bool | None) -> str:
    """What is printed of the arithmetic that training uses."""
    reason = {
        True: "bfloat16 in convolutions and matrix products, float32 elsewhere",
        False: "float32 (this CPU does not multiply bfloat16)",
        None: "float32 (whether this CPU multiplies bfloat16 can only be seen on Linux on x86)",
    }
    return f"Arithmetic: {reason[bfloat16]}"


def session_config(bfloat16: bool | None = False) -> Any:
    """The ConfigProto of a session: on the CPU, convolutions in bfloat16 where asked for."""
    import tensorflow.compat.v1 as tf
    from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

    config = tf.ConfigProto(device_count={"GPU": 0})
    if bfloat16:
        config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 = RewriterConfig.ON
    return config


def batch_slices(count: int) -> Iterator[slice]:
    """Slices that cover so many images, BATCH_SIZE each."""
    return (slice(start, start + BATCH_SIZE) for start in range(0, count, BATCH_SIZE))


def error_reason(error: Any) -> str:
    """The line of a tf.errors.OpError that says what happened."""
    lines = [line.strip() for line in error.message.splitlines() if line.strip()]
    after = [i + 1 for i, line in enumerate(lines[:-1]) if line.startswith("Node:")]
    return str(lines[after[0] if after else 0])


def is_disk_or_memory_error(error: Any) -> bool:
    """Whether a tf.errors.OpError is about the disk or the memory, and not about our program."""
    import tensorflow.compat.v1 as tf

    expected = (
        tf.errors.ResourceExhaustedError,  # full disk, no memory
        tf.errors.PermissionDeniedError,
        tf.errors.DataLossError,
        tf.errors.NotFoundError,  # a folder was removed meanwhile
    )
    messages = [os.strerror(number) for number in (errno.EIO, errno.EFBIG)]  # these have no class
    return isinstance(error, expected) or any(each in error.message for each in messages)


@contextlib.contextmanager
def one_line_errors(folder: str) -> Iterator[None]:
    """Errors of the disk and of memory become one sentence; others are bugs and keep their traceback.

    Args:
        folder: where the checkpoints are.
    """
    import tensorflow.compat.v1 as tf

    try:
        yield
    except tf.errors.OpError as error:
        if not is_disk_or_memory_error(error):
            raise
        raise CaptchaError(
            f"training could not go on ({error_reason(error)}): what was saved before is kept in "
            f"{escape_unprintable(folder)}, and --resume goes on from it"
        ) from error


class TrainingInterrupted(CaptchaError):  # noqa: N818 - it is not an error
    """Ctrl-C or SIGTERM ended the training."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped")
        self.status = 128 + number  # as shells have it


class GracefulStop:
    """Lets Ctrl-C and SIGTERM end a training between two steps. A second signal ends it at once."""

    def __init__(self) -> None:
        self._number = 0
        self._interruptible = False

    def __enter__(self) -> GracefulStop:
        numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._on_signal) for number in numbers}  # nohup stays
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: object) -> None:
        if self._number:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._number = number
        if self._interruptible:
            raise TrainingInterrupted(number)

    def check(self) -> None:
        """Raise TrainingInterrupted where a signal has come."""
        if self._number:
            raise TrainingInterrupted(self._number)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """For long work that changes nothing: inside, a signal raises TrainingInterrupted at once."""
        self._interruptible = True
        try:
            self.check()  # after the line above, so that no signal falls between the two
            yield
        finally:
            self._interruptible = False
