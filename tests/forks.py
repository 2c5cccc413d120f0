"""Runs the project's scripts in forks of a process that has imported TensorFlow, which takes seconds.

A fork is a process like that of `python script.py`: with a folder, an environment, arguments, output and an
exit status of its own, and it can be killed. What a test changes in its own process is unknown to it.
"""

import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
# As run_main() has them, which sets them too late for the TensorFlow that is imported here.
FOR_TENSORFLOW = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1", "CUDA_VISIBLE_DEVICES": "-1"}


def default_sigint():
    """Let Ctrl-C end a process (as preexec_fn): one started in the background of a shell would ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class ForkServer:
    """A process that has imported TensorFlow, and forks."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=FOR_TENSORFLOW | os.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=default_sigint,
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, script, *arguments, cwd=None, before="", meanwhile=lambda pid, out: None):
        """Run a script in a fork, as subprocess.run() would.

        Args:
            before: code that the fork runs first, in this module.
            meanwhile: a function that is called with the number of the process and the file of its output.
        """
        argv = [str(PROJECT / script), *map(str, arguments)]
        with tempfile.TemporaryDirectory() as folder:
            out, errors = Path(folder, "out"), Path(folder, "errors")
            pid = self.start(argv, out, errors, cwd or ".", before)
            timer = threading.Timer(300, os.kill, (pid, signal.SIGKILL))
            timer.start()
            meanwhile(pid, out)
            status = self.wait(pid)
            timer.cancel()
            return subprocess.CompletedProcess(argv, status, out.read_text(), errors.read_text())

    def start(self, argv, out, errors, cwd, before=""):
        """Start a script in a fork, whose output goes to those files; the number of the process."""
        order = {"cwd": os.path.abspath(cwd), "env": dict(os.environ), "argv": argv, "before": before}
        return self._order(order | {"out": str(out), "errors": str(errors)})

    def wait(self, pid):
        """The status of a process that was started, once it has ended."""
        return self._order(pid)

    def _order(self, value):
        self.process.stdin.write(json.dumps(value) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def leave_graphs_unoptimised(set_attribute=setattr):
    """Leave out TensorFlow's optimisation of graphs, a third of the time of a training of few steps."""
    from captcha_cnn import tf_runtime

    make_config = tf_runtime.session_config

    def session_config(*arguments):
        config = make_config(*arguments)
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        return config

    set_attribute(tf_runtime, "session_config", session_config)


@functools.cache
def fork_server():
    """One for all tests of this process; it ends with it."""
    return ForkServer()


def next_order():
    """Fork for each order, and return it in the fork; a number is a process to wait for."""
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if isinstance(order, int):
            print(os.waitstatus_to_exitcode(os.waitpid(order, 0)[1]), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            return order
    sys.exit()


if __name__ == "__main__":
    sys.path[0] = str(PROJECT)
    environment = dict(os.environ)
    from captcha_cnn.tf_runtime import load_tensorflow

    load_tensorflow()
    for module in ("cnn_model", "driver", "predict"):
        importlib.import_module(module)

    changed = {name: value for name, value in os.environ.items() if environment.get(name) != value}
    order = next_order()
    os.environ.clear()
    os.environ.update(order["env"] | changed)
    os.chdir(order["cwd"])
    for number, name in enumerate((os.devnull, order["out"], order["errors"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = order["argv"]
    exec(order["before"])
    runpy.run_path(sys.argv[0], run_name="__main__")
