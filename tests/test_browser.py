"""What people see in a browser: the report of an evaluated set, and TensorBoard's page."""

import io
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from forks import default_sigint
from PIL import Image

import predict

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")


def browse(tmp_path, address, *options):
    """What headless Chromium does with a page."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    return subprocess.run(
        [*command, *options, address], capture_output=True, cwd=tmp_path, timeout=300, check=True
    )


def test_the_report_of_an_evaluated_set(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.folder)
    assert predict.main(["--labelled", "test", "--report", str(tmp_path)]) == 0
    page = f"file://{tmp_path}/index.html"
    browse(tmp_path, page, "--screenshot=page.png", "--window-size=900,2600")
    screenshot = Image.open(tmp_path / "page.png").convert("RGB")
    colours = {colour for _, colour in screenshot.getcolors(10**6)}
    assert (31, 119, 180) in colours, "the curve of selective accuracy"
    assert (176, 0, 32) in colours, "what was read wrong"
    dom = browse(tmp_path, page, "--dump-dom").stdout.decode()
    wrong = int(re.search(r"<p>(\d+) of 50, the most confident first", dom)[1])
    assert dom.count("<figure>") == wrong > 0


def test_tensorboards_page_has_the_images(trained, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", "tensorboard", "--port", str(port)],
        cwd=trained.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=default_sigint,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        tags = f"{address}/data/plugin/images/tags"
        for _ in range(300):
            try:
                with urllib.request.urlopen(tags) as answer:
                    if b"worst_predictions" in answer.read():
                        break
            except OSError:
                pass
            time.sleep(0.2)
        page = f"{address}/?darkMode=false#images"
        browse(
            tmp_path, page, "--virtual-time-budget=30000", "--screenshot=page.png", "--window-size=1400,1500"
        )
        screenshot = Image.open(tmp_path / "page.png").convert("RGB")
        red = sum(count for count, (r, g, b) in screenshot.getcolors(10**7) if r > 150 and max(g, b) < 90)
        assert red > 50, "the texts under captchas that were read wrong"
        query = "run=validation&tag=worst_predictions&sample=0&index=0"
        with urllib.request.urlopen(f"{address}/data/plugin/images/images?{query}") as answer:
            (blob,) = re.findall(r'"blob_key": "([^"]+)"|query": "([^"]+)"', answer.read().decode())[:1]
        image = f"{address}/data/plugin/images/individualImage?{blob[0] or blob[1]}"
        with urllib.request.urlopen(image) as answer:
            assert Image.open(io.BytesIO(answer.read())).width > 3 * trained.config.width
    finally:
        server.terminate()
        server.wait()
