import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import PROJECT
from training_fakes import load_sets

import driver
from captcha_cnn.tf_runtime import (
    GracefulStop,
    TrainingInterrupted,
    arithmetic_line,
    bfloat16_support,
    one_line_errors,
    session_config,
)
from config import CaptchaError

# ---------------------------------------------------------------------- bfloat16


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx2 fma", False), ("avx512f avx512_bf16", True), ("amx_bf16", True), ("avx_bf16x", False)],
)
def test_bfloat16_where_the_cpu_has_it(flags, expected, tmp_path, tf):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags} sse\n")
    assert bfloat16_support(str(tmp_path / "cpuinfo")) is expected
    rewriting = session_config(expected).graph_options.rewrite_options
    assert rewriting.auto_mixed_precision_onednn_bfloat16 == (1 if expected else 0)  # 1: ON


def test_where_nothing_is_known_of_the_cpu_nothing_is_said_of_it(tmp_path, tf):
    missing, arm = tmp_path / "missing", tmp_path / "cpuinfo"
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd aes bf16 i8mm\nCPU implementer\t: 0x41\n")
    for path in (missing, arm):
        assert bfloat16_support(str(path)) is None
    assert session_config(None).graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 == 0


def test_the_arithmetic_is_said_truthfully():
    assert arithmetic_line(True).startswith("Arithmetic: bfloat16 in convolutions")
    assert arithmetic_line(False) == "Arithmetic: float32 (this CPU does not multiply bfloat16)"
    unknown = arithmetic_line(None)
    assert unknown.startswith("Arithmetic: float32 (")
    assert "can only be seen on Linux on x86" in unknown
    assert "does not" not in unknown


# ---------------------------------------------------------------------- standard error


def stderr_of(code):
    """The standard error of a Python process, and its exit status."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import os, sys, time\nfrom captcha_cnn.tf_runtime import suppress_stderr\n{code}",
        ],
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stderr, done.returncode


# Every process of this one dies as a process does whose CPU TensorFlow cannot use.
ABORT = """
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for _ in range(50):
    pid = os.fork()
    if pid == 0:
        with suppress_stderr():
            os.write(2, b"reason\\n")
            os.abort()
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == 6
"""
# The noise must not be seen, by whichever way the block ends.
END = """
open_files = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
for i in range(50):
    try:
        with suppress_stderr():
            os.write(2, b"noise\\n")
            print("noise of Python", file=sys.stderr)
            time.sleep(0.001 * i)  # shorter and longer than the other process takes to start
            if i % 2:
                raise ValueError
    except ValueError:
        os.write(2, b"ValueError\\n")
    else:
        os.write(2, b"ended\\n")
    print("again", file=sys.stderr)
assert not open_files or os.listdir("/proc/self/fd") == open_files
"""


def test_what_is_written_before_a_process_aborts_is_shown():
    assert stderr_of(ABORT) == ("reason\n" * 50, 0)


def test_what_is_written_before_a_process_is_killed_is_shown():
    code = "with suppress_stderr():\n    os.write(2, b'reason\\n')\n    os.kill(os.getpid(), 9)"
    assert stderr_of(code) == ("reason\n", -9)


def test_nothing_is_shown_of_a_block_that_ends_and_standard_error_works_again():
    assert stderr_of(END) == ("ended\nagain\nValueError\nagain\n" * 25, 0)


# ---------------------------------------------------------------------- TensorFlow's errors


@pytest.mark.parametrize(
    "name", ["ResourceExhaustedError", "PermissionDeniedError", "DataLossError", "NotFoundError"]
)
def test_errors_of_disk_and_memory_are_one_sentence(name, tf):
    message = "Graph execution error:\n\nDetected at node 'n'\nNode: 'n'\nstate-2: no luck\n\tmore"
    sentence = r"^training could not go on \(state-2: no luck\): what was saved before is kept in my folder,"
    with pytest.raises(CaptchaError, match=sentence), one_line_errors("my folder"):
        raise getattr(tf.errors, name)(None, None, message)


@pytest.mark.parametrize(
    ("name", "words"), [("UnknownError", "Input/output error"), ("OutOfRangeError", "File too large")]
)
def test_errors_of_the_disk_that_have_no_class_are_one_sentence(name, words, tf):
    with pytest.raises(CaptchaError, match=words), one_line_errors("my folder"):
        raise getattr(tf.errors, name)(None, None, f"state-2; {words}")


@pytest.mark.parametrize(
    "name", ["InvalidArgumentError", "InternalError", "UnknownError", "OutOfRangeError", "UnimplementedError"]
)
def test_errors_of_the_program_are_not_hidden(name, tf):
    error = getattr(tf.errors, name)(None, None, "shapes do not match")
    with pytest.raises(type(error)) as raised, one_line_errors("my folder"):
        raise error
    assert raised.value is error


def test_a_broken_graph_keeps_its_traceback(drawn, tmp_path, tf, monkeypatch):
    import cnn_model

    def broken(loss, variables, kernels, learning_rate, step):
        return tf.assign(step, tf.gather(tf.constant([1, 2, 3], tf.int64), step + 2))  # fails in step 1

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cnn_model, "minimize", broken)
    with pytest.raises(tf.errors.InvalidArgumentError, match="indices"):
        driver.run_model(replace(drawn, Epoch=1), *load_sets(drawn))


# ---------------------------------------------------------------------- signals


@pytest.fixture
def ctrl_c():
    """SIGINT as Python has it by default, however the tests were started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_that_is_ignored_stays_ignored(ctrl_c):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with GracefulStop() as stop:
        signal.raise_signal(signal.SIGINT)
        stop.check()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(TrainingInterrupted):
            stop.check()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_the_first_signal_waits_for_the_step_and_the_second_does_not(ctrl_c, monkeypatch):
    ended = []
    monkeypatch.setattr(os, "kill", lambda *each: ended.append(each))
    with GracefulStop() as stop:
        stop.check()
        signal.raise_signal(signal.SIGTERM)
        assert not ended
        with pytest.raises(TrainingInterrupted) as interrupted:
            stop.check()
        assert interrupted.value.status == 143
        with pytest.raises(TrainingInterrupted), stop.interruptible():
            pytest.fail("a signal that came before must end the block before it begins")
        signal.raise_signal(signal.SIGINT)
        assert ended == [(os.getpid(), signal.SIGINT)]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with GracefulStop() as stop, pytest.raises(TrainingInterrupted), stop.interruptible():
        signal.raise_signal(signal.SIGINT)  # inside, it is raised at once


@pytest.mark.parametrize("moment", ["before the check", "after the check"])
def test_a_signal_while_an_interruptible_block_is_entered_is_acted_on_at_once(moment, ctrl_c, monkeypatch):
    check = GracefulStop.check

    def check_with_signal(self):
        if moment == "after the check":
            check(self)
        signal.raise_signal(signal.SIGTERM)
        if moment == "before the check":
            check(self)

    monkeypatch.setattr(GracefulStop, "check", check_with_signal)
    with GracefulStop() as stop, pytest.raises(TrainingInterrupted), stop.interruptible():
        pytest.fail("the block must not begin: it may take minutes")


def test_after_an_interruptible_block_a_signal_waits_for_the_step_again(ctrl_c):
    with GracefulStop() as stop:
        with stop.interruptible():
            pass
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(TrainingInterrupted):
            stop.check()
