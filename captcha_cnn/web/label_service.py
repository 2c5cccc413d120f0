"""The routes of the page on which a folder is labelled: `python label.py FOLDER`.

Only this machine's browser is answered, and only this page's requests change anything: another web page
has another Origin, and a name that another site points to this machine has another Host.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from captcha_cnn.background_training import BackgroundTraining
from captcha_cnn.images import FORMATS, ImageError, open_image_file
from captcha_cnn.labelling import Item, Labelling
from captcha_cnn.web.limits import Allowance, Limits, RequestError, media_type
from config import CaptchaError

WEB = Path(__file__).parent
PAGE_FILES = {"/": "label.html", "/label.js": "label.js", "/label.css": "label.css"}
PAGE_FILES |= {"/style.css": "style.css"}
ALLOWANCE = Allowance(max_bytes={"": 2**14}, seconds=10.0, max_held=2**20)
IMAGE_SECONDS = 600  # that the browser may keep an image
RECENT = 50  # labelled images that a new page can go back to
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; script-src 'self'; "
    "style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class LocalPageOnly:
    """Refuses requests that another web page may have caused."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] == "http":
            request = Request(scope)
            host, origin = request.headers.get("host", ""), request.headers.get("origin")
            if host not in self.hosts:
                await error_response(421, f"The address must be http://{min(self.hosts)}/.")(
                    scope, receive, send
                )
                return
            if origin is not None and origin.removeprefix("http://") not in self.hosts:
                await error_response(403, "Another web page must not use this one.")(scope, receive, send)
                return
        await self.app(scope, receive, send)


def error_response(status: int, sentence: str) -> JSONResponse:
    """An error as the page shows it."""
    return JSONResponse({"error": sentence}, status, HEADERS)


def make_app(
    labelling: Labelling, training: BackgroundTraining | None, port: int, next_command: str
) -> Starlette:
    """The application that answers the page.

    Args:
        training: None where nothing is to be trained.
        port: of 127.0.0.1. next_command: what to do once the model is good enough.
    """
    routes = Routes(labelling, training, next_command)
    hosts = frozenset({f"127.0.0.1:{port}", f"localhost:{port}"})

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        labelling.start()
        routes.train()
        yield
        if training:
            await run_in_threadpool(training.close)
        await run_in_threadpool(labelling.close)

    return Starlette(
        routes=[
            *(Route(path, _page_file(name)) for path, name in PAGE_FILES.items()),
            Route("/image", routes.image),
            Route("/state", routes.state),
            Route("/start", routes.begin, methods=["POST"]),
            Route("/next", routes.next, methods=["POST"]),
            Route("/label", routes.label, methods=["POST"]),
        ],
        middleware=[Middleware(LocalPageOnly, hosts=hosts), Middleware(Limits, ALLOWANCE)],
        exception_handlers={
            HTTPException: lambda _, error: error_response(error.status_code, _sentence(error.detail)),
            RequestError: lambda _, error: error_response(error.status, _sentence(error)),
            CaptchaError: lambda _, error: error_response(422, _sentence(error)),
            OSError: lambda _, error: error_response(500, _sentence(f"The folder cannot be used ({error})")),
            Exception: lambda _, error: error_response(500, f"This is a bug: {type(error).__name__}."),
        },
        lifespan=lifespan,
    )


def _page_file(name: str) -> Callable[[Request], Response]:
    return lambda _: FileResponse(WEB / name, headers=HEADERS)


def _sentence(text: object) -> str:
    words = str(text).rstrip(".")
    return f"{words[:1].upper()}{words[1:]}."


class Routes:
    """What the routes do. Each may block for a moment, and so runs in a thread of its own."""

    def __init__(self, labelling: Labelling, training: BackgroundTraining | None, next_command: str) -> None:
        self.labelling, self.training, self.next_command = labelling, training, next_command

    def train(self) -> None:
        """Begin a training where one is due."""
        if self.training:
            self.training.start_if_due()

    def status(self) -> dict[str, Any]:
        """What every answer says beside its own."""
        found = self.labelling.status() | {"folder": self.labelling.settings.folder}
        training = self.training.status() if self.training else {}
        return {"status": found | training | {"next_command": self.next_command}}

    def image(self, request: Request) -> Response:
        """The file of an image as it is."""
        name = self._known(request.query_params.get("file"))
        with open_image_file(os.path.join(self.labelling.settings.folder, name)) as file:
            content = file.read()
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                kind = Image.MIME[str(image.format)]
        except Exception as error:  # Pillow raises nearly anything on damaged data
            raise ImageError("not an image", str(error)) from None
        kept = {"Cache-Control": f"private, max-age={IMAGE_SECONDS}"}  # the page fetches it ahead
        return Response(content, headers=HEADERS | kept, media_type=kind)

    def state(self, _: Request) -> Response:
        """The figures alone."""
        self.labelling.update_model()
        return JSONResponse(self.status(), headers=HEADERS)

    async def begin(self, request: Request) -> Response:
        """The images that were labelled last, for a page that is opened."""
        await read_json(request)

        def answer() -> dict[str, Any]:
            recent = [] if self.labelling.disagreements is not None else self.labelling.recent(RECENT)
            return {"items": [_json(self.labelling.item(path)) for path in recent]} | self.status()

        return JSONResponse(await run_in_threadpool(answer), headers=HEADERS)

    async def next(self, request: Request) -> Response:
        """The next image, of those that the page does not hold."""
        held = (await read_json(request)).get("held")
        if not isinstance(held, list) or not all(isinstance(each, str) for each in held):
            raise HTTPException(400, "held must be a list of the images that the page has")

        def answer() -> dict[str, Any]:
            item = self.labelling.next(held)
            return {"item": item and _json(item)} | self.status()

        return JSONResponse(await run_in_threadpool(answer), headers=HEADERS)

    async def label(self, request: Request) -> Response:
        """Write a label; "" for an image that nobody can read."""
        values = await read_json(request)
        name, label = self._known(values.get("file")), values.get("label")
        if not isinstance(label, str):
            raise HTTPException(400, "label must be the text in the image, or empty where nobody can read it")

        def answer() -> dict[str, Any]:
            self.labelling.record(name, label)
            self.train()
            return self.status()

        return JSONResponse(await run_in_threadpool(answer), headers=HEADERS)

    def _known(self, name: object) -> str:
        if not isinstance(name, str) or not self.labelling.has(name):
            raise HTTPException(404, "there is no such image in the folder")
        return name


def _json(item: Item) -> dict[str, Any]:
    return item._asdict()


async def read_json(request: Request) -> dict[str, Any]:
    """The object in the body of a request.

    Raises:
        HTTPException: it is no JSON, which another page could not send.
        RequestError: it is too long or too slow.
    """
    if media_type(request.headers) != "application/json":
        raise HTTPException(415, "the body must be application/json")
    try:
        values = json.loads(await request.body())
    except (ValueError, RecursionError, ClientDisconnect):
        values = None
    if not isinstance(values, dict):
        raise HTTPException(400, "the body must be an object in JSON")
    return values
