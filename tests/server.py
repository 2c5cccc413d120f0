"""Starting serve.py as a user does, and talking to it."""

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT, TINY
from graph_helpers import new_model
from PIL import Image

from captcha_cnn.checkpoint import CheckpointData


def write_model(tf, folder, config=TINY, name="captcha"):
    """Export an untrained model as ONNX; the path. Its answers are of no use, and always the same."""
    pytest.importorskip("tf2onnx", reason="pip install -r requirements-export.txt")
    import export

    with new_model(tf, config) as (model, session):
        random = np.random.default_rng(1)
        weights = {
            name: value + 0.1 * random.normal(size=value.shape).astype(np.float32)
            for name, value in session.run(model.weights).items()
        }
    written = export.export(
        CheckpointData("", config, {}, weights, {}, {}, frozenset()), "onnx", Path(folder)
    )
    return written.rename(written.with_stem(name))


def noise(seed, size=(TINY.height, TINY.width)):
    """A PNG file of random pixels."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def form(*parts, boundary="limit"):
    """The body of a multipart form and its headers; a part is (name, file name or None, bytes)."""
    body = b""
    for name, filename, content in parts:
        file = f'; filename="{filename}"' if filename else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return body + f"--{boundary}--\r\n".encode(), headers


class Server:
    """serve.py in a process of its own, on a free port, ready to read."""

    def __init__(self, folder, *arguments, **environment):
        self.folder = Path(folder)
        self.log = self.folder / "log"
        self.temporary = self.folder / "temporary"
        self.temporary.mkdir()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(PROJECT / "serve.py"), "--port", "0", *map(str, arguments)],
                cwd=folder,
                env=os.environ | {"TMPDIR": str(self.temporary)} | environment,
                stdout=log,
                stderr=log,
            )
        try:
            self.port = int(self._wait_for(lambda: re.search(r"on http://[\d.]+:(\d+) ", self.said()))[1])
            self._wait_for(lambda: self.get("/ready")[0] == 200)
        except BaseException:
            self.process.kill()
            raise

    def _wait_for(self, condition):
        for _ in range(1200):
            with contextlib.suppress(OSError):
                if found := condition():
                    return found
            assert self.process.poll() is None, self.said()
            time.sleep(0.05)
        raise AssertionError(self.said())

    def said(self):
        """All that it has printed."""
        return self.log.read_text(encoding="utf-8")

    def request(self, method, path, body=None, headers=()):
        """The status, the headers and the body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def get(self, path, headers=()):
        status, _, body = self.request("GET", path, headers=headers)
        return status, body.decode()

    def post(self, path, body, headers=()):
        """The status, and the JSON of the answer."""
        status, found, answer = self.request("POST", path, body, headers)
        assert found["Content-Type"] == "application/json"
        return status, json.loads(answer)

    def connect(self):
        """A socket to it, to send what is not HTTP or comes slowly."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def close(self):
        self.stop()

    def stop(self, number=signal.SIGTERM):
        """End it by a signal; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
