"""label.py as a user starts it, on a free port, with a stand-in for the training where a test has one."""

import contextlib
import http.client
import json
import re
import subprocess
import sys
import time

from conftest import PROJECT
from forks import default_sigint
from own_folder import random_image

# Starts label.py with another program in place of the training; its arguments: that, and those of label.py.
WITH_STAND_IN = f"""
import sys
sys.path.insert(0, {str(PROJECT)!r})
import label
from captcha_cnn import background_training
from captcha_cnn.cli import run_main
program = sys.argv.pop(1)
background_training.training_command = lambda settings, count, unlabelled: [
    sys.executable, "-c", program, settings.work, str(count), {str(PROJECT)!r}
]
run_main(label.main)
"""
# Makes a model of the general weights, as if they had been trained on so many labels.
GOOD_TRAINING = """
import json, pathlib, sys
work, count, project = sys.argv[1:]
sys.path.insert(0, project)
import numpy
from captcha_cnn.general_model import general_weights
config, weights = general_weights("0123456789", "3")
info = json.dumps({"config": config.as_dict(), "labels": int(count)})
with open(work + "/part.npz", "wb") as file:
    numpy.savez(file, **weights, info=numpy.array(info))
pathlib.Path(work, "part.npz").replace(work + "/model.npz")
"""
FAILED_TRAINING = """
import pathlib, sys
pathlib.Path(sys.argv[1], "training.log").write_text("many lines\\ndriver.py: the images are of paper\\n\\n")
sys.exit(1)
"""
ENDLESS_TRAINING = """
import pathlib, sys
pathlib.Path(sys.argv[1], "begun").touch()
sys.stdin.read()  # until label.py ends
pathlib.Path(sys.argv[1], "ended").touch()
"""


def make_images(folder, count, size=(40, 20)):
    """Images without labels: 00.png, 01.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        random_image(number, size).save(folder / f"{number:02d}.png")
    return folder


class Server:
    """A running label.py."""

    def __init__(self, process, address):
        self.process, self.address = process, address
        self.host = address.removeprefix("http://").rstrip("/")

    def ask(self, method, path, body=None, **headers):
        """Status and body of an answer, the body parsed where it is JSON."""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        with contextlib.closing(connection):
            if isinstance(body, dict):
                headers.setdefault("Content-Type", "application/json")
                body = json.dumps(body)
            connection.request(method, path, body, {name.replace("_", "-"): v for name, v in headers.items()})
            answer = connection.getresponse()
            content = answer.read()
            is_json = answer.headers["Content-Type"] == "application/json"
            return answer.status, json.loads(content) if is_json else content

    def post(self, path, **body):
        """The answer to a request that must succeed."""
        status, answer = self.ask("POST", path, body)
        assert status == 200, answer
        return answer

    def label(self, file, text):
        return self.post("/label", file=file, label=text)["status"]

    def wait_for(self, condition, seconds=60):
        """The state, once it is as expected."""
        end = time.monotonic() + seconds
        while not condition(state := self.ask("GET", "/state")[1]["status"]):
            assert time.monotonic() < end, state
            time.sleep(0.05)
        return state


@contextlib.contextmanager
def label_server(folder, *flags, training=None):
    """label.py with these flags; `training` is the source of a stand-in for it."""
    command = [sys.executable, str(PROJECT / "label.py")] if training is None else []
    command = command or [sys.executable, "-c", WITH_STAND_IN, training]
    flags = [*flags, *(["--no-training"] if training is None else [])]
    process = subprocess.Popen(
        [*command, str(folder), "--port", "0", "--no-browser", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_sigint,
    )
    try:
        lines = [process.stdout.readline() for _ in range(2)]
        address = re.search(r"http://\S+", lines[1])
        assert address, (lines, process.communicate())
        yield Server(process, address[0])
    finally:
        process.kill()
        process.communicate()
