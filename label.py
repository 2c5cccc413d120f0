"""Label a folder of images in the browser: `python label.py mine/`.

The model's guess is filled in, training runs in the background, and labels go to labels.csv in the folder.
"""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Sequence

from tqdm import tqdm

from captcha_cnn.background_training import BackgroundTraining
from captcha_cnn.cli import OneLineErrorParser, missing_package, parse_number, run_main, shell_command
from captcha_cnn.labelling import Labelling, Settings
from config import escape_unprintable

HOST, PORT = "127.0.0.1", 8765
STOP_SECONDS = 3  # that requests get when the program is stopped


def main(arguments: Sequence[str]) -> int:
    """Serve the page until it is stopped."""
    parser = make_label_parser()
    options = parser.parse_args(arguments)
    if not isinstance(options.until, float) or not 0 < options.until <= 1:
        parser.error(f"--until must be a number above 0 to 1, not {options.until!r}")
    if not isinstance(options.port, int) or not 0 <= options.port < 65536:
        parser.error(f"--port must be a whole number from 0 to 65535, not {options.port!r}")
    work = options.work or f"{os.path.abspath(options.folder)}.labelling"
    settings = Settings(options.folder, work, options.characters, options.char_num, options.until)
    labelling = Labelling(settings)
    if options.review:
        labelling.review(lambda parts: tqdm(parts, "Reading", unit=" parts", disable=None, leave=False))
    training = None if options.review or options.no_training else BackgroundTraining(labelling)
    return serve(labelling, training, options.port, not options.no_browser)


def make_label_parser() -> OneLineErrorParser:
    """The parser of the command line."""
    parser = OneLineErrorParser("Label a folder of images in the browser; a model is trained meanwhile.")
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="folder of the images; labels.csv is written there")
    add("--characters", default="", metavar="TEXT", help="the only ones that labels have")
    add("--char-num", default="", metavar="TEXT", help="the only lengths, such as 4 or 4-5")
    until = "say when that share of the last 100 random images was read right (default: 0.99)"
    add("--until", type=parse_number(float), default=0.99, metavar="X", help=until)
    add("--review", action="store_true", help="go through the labels that the model disagrees with")
    add("--work", metavar="FOLDER", help="folder of the trainings (default: FOLDER.labelling)")
    port = f"port of {HOST}; 0 takes any that is free (default: {PORT})"
    add("--port", type=parse_number(int), default=PORT, metavar="N", help=port)
    add("--no-training", action="store_true", help="train nothing in the background")
    add("--no-browser", action="store_true", help="do not open the page")
    return parser


def serve(labelling: Labelling, training: BackgroundTraining | None, port: int, browse: bool) -> int:
    """Answer the page until Ctrl-C.

    Args:
        port: of the loopback; 0 for any. browse: open the page.
    Raises:
        CaptchaError: packages are missing, or the port is taken.
    """
    try:
        import uvicorn

        from captcha_cnn.web.label_service import make_app
        from captcha_cnn.web.server import bind
    except ImportError as error:
        raise missing_package("label.py", str(error.name), "requirements-serve.txt") from None
    folder = labelling.settings.folder
    remedy = f"end the program that has port {port}, or use --port 0"
    with bind(HOST, port, remedy) as listener:  # a page that is opened early waits
        port = listener.getsockname()[1]
        address, count = f"http://{HOST}:{port}/", len(labelling.order)
        train = shell_command("python", "driver.py", "--images", folder, "--unlabelled", folder)
        app = make_app(labelling, training, port, train)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=STOP_SECONDS)
        )
        shown = escape_unprintable(folder)
        print(f"{shown}: {count:,} images, {len(labelling.labels):,} of them labelled", flush=True)
        print(f"Page: {address} (Ctrl-C stops)", flush=True)
        if browse:
            webbrowser.open(address)
        try:
            server.run([listener])
        except KeyboardInterrupt:  # the usual end
            shown = escape_unprintable(labelling.file.path)
            print(f"{len(labelling.labels):,} labels are in {shown}; go on with the same command")
    return 0


if __name__ == "__main__":
    run_main(main)
