"""Serve a trained model to programs and browsers: `python serve.py`, then open the address that it prints.

The server reads captchas that it is sent, and nothing else: it fetches nothing and writes no upload to disk.
docs/serving.md has the routes, the limits and the metrics.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from captcha_cnn.checkpoint import list_checkpoints
from captcha_cnn.cli import OneLineErrorParser, missing_package, parse_number, run_main
from config import CaptchaError, Config

if TYPE_CHECKING:
    from starlette.types import ASGIApp

try:
    from captcha_cnn.web.inference import find_models, load_models
    from captcha_cnn.web.server import bind, run
    from captcha_cnn.web.service import create_app

    MISSING = ""
except ModuleNotFoundError as error:  # main() says it in one sentence
    MISSING = str(error.name).partition(".")[0]

EXPORTED = [Path("exported", name) for name in ("captcha.onnx", "captcha.tflite")]
KEY_VARIABLE = "CAPTCHA_API_KEY"


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    parser = OneLineErrorParser("Serve a trained model over HTTP, with a page for the browser.")
    newest = "default: the newest of exported/, or of a training, which is exported first"
    parser.add_argument(
        "--model", metavar="PATH", help=f"an exported file, or a folder of several ({newest})"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    number = parse_number(int)
    parser.add_argument("--port", type=number, default=8000, metavar="N", help="default: %(default)s; 0: any")
    text = f"key that requests must bring as Authorization: Bearer KEY (default: {KEY_VARIABLE}, or none)"
    parser.add_argument("--api-key", metavar="KEY", default=os.environ.get(KEY_VARIABLE, ""), help=text)
    parser.add_argument("--workers", type=number, default=1, metavar="N", help="processes (default: 1)")
    text = "seconds that a client has to send the head of a request, and its body (default: 10)"
    parser.add_argument("--timeout", type=parse_number(float), default=10.0, metavar="X", help=text)
    options = parser.parse_args(arguments)
    for name, low, high in (("port", 0, 65535), ("workers", 1, 64), ("timeout", 0.1, 3600)):
        value = getattr(options, name)
        if not isinstance(value, int | float) or not low <= value <= high:
            parser.error(f"--{name} must be a number from {low} to {high}, not {value!r}")
    if not options.api_key.isascii() or not options.api_key.isprintable():
        parser.error("--api-key must be printable ASCII characters")
    if MISSING:
        raise missing_package("serve.py", MISSING, "requirements-serve.txt")
    paths = find_models(options.model) if options.model else default_models()
    make_app = functools.partial(make_service, paths, options.api_key, options.timeout)
    listener = bind(options.host, options.port, "name another --host or --port")
    if options.workers > 1:
        load_models(paths)  # so that what is wrong is said once
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    served = ", ".join(paths.values()) or "the general weights"
    print(f"Serving {served} on {address} (Ctrl-C ends it)", flush=True)
    run(make_app, listener, options.workers, options.timeout)
    return 0


def make_service(paths: Mapping[str, str], api_key: str, seconds: float) -> ASGIApp:
    """The service, in the process that serves."""
    return create_app(load_models(paths), api_key, seconds)


def remark(text: str) -> None:
    """Say something beside what is asked for."""
    print(text, file=sys.stderr, flush=True)


def default_models() -> dict[str, str]:
    """The newest exported file; one of the newest checkpoint where there is none; else nothing, and a remark.

    Raises:
        CaptchaError: it cannot be exported.
    """
    checkpoints = list_checkpoints(Config.checkpoint_folder)
    found = sorted((path for path in EXPORTED if path.is_file()), key=lambda path: path.stat().st_mtime)
    if found:
        if checkpoints and os.path.getmtime(f"{checkpoints[0]}.index") > found[-1].stat().st_mtime:
            remark(
                f"The model in {Config.checkpoint_folder} is newer than {found[-1]}, which is served: write "
                "it anew with python export.py, and start again"
            )
        return find_models(str(found[-1]))
    if not checkpoints:
        remark(
            f"Neither exported nor {Config.checkpoint_folder} holds a model yet, so the general weights are "
            "served. A model of your captchas reads better; train one: python driver.py --images FOLDER"
        )
        return {}
    print(f"Exporting the model in {Config.checkpoint_folder}, which is not exported yet", flush=True)
    # In a process of its own, so that the one that serves never holds TensorFlow.
    if not importlib.util.find_spec("tensorflow"):
        raise CaptchaError(
            f"the model in {Config.checkpoint_folder} must be exported to be served, but TensorFlow "
            "is not installed here: run `python export.py onnx` where the model was trained"
        )
    script = Path(__file__).with_name("export.py")
    if subprocess.run([sys.executable, str(script), "onnx"], check=False).returncode:
        raise CaptchaError("the model must be exported to be served, but cannot be, as the line above says")
    return find_models(str(EXPORTED[0]))


if __name__ == "__main__":
    run_main(main)
