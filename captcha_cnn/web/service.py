"""The service of serve.py: what each route does."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from captcha_cnn.images import ImageError
from captcha_cnn.prediction import Prediction
from captcha_cnn.web.inference import Inference, Model
from captcha_cnn.web.limits import Allowance, Limits, RequestError, error_response
from captcha_cnn.web.metrics import CountRequests, Metrics
from captcha_cnn.web.openapi import describe
from captcha_cnn.web.uploads import MAX_BYTES, Upload, bad_request, image_of_form, read_form, read_uploads
from config import CaptchaError

MAX_HELD = 2**27  # bytes of uploads in memory
PAGES = {"/": ("read.html", "text/html"), "/style.css": ("style.css", "text/css")}
PAGES |= {"/read.js": ("read.js", "text/javascript")}
OPEN_PATHS = frozenset({*PAGES, "/openapi.json", "/health", "/ready"})  # need no API key
PAGE_HEADERS = {  # a page asks nobody but this server, and shows the images that were chosen
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
IMAGE_STATUS = {"not an image": 415, "a huge size": 413}  # by ImageError.category; 422 for all others
OCR_FLAGS = ("probability", "charsets", "png_fix")  # of ddddocr-fastapi


def create_app(models: Mapping[str, Model], api_key: str = "", seconds: float = 10.0) -> Starlette:
    """The service.

    Args:
        models: by name. api_key: that requests must bring; empty for none.
        seconds: for a body to arrive.
    """
    service = Service(models)
    routes = [
        *(Route(path, page(*file), methods=["GET"]) for path, file in PAGES.items()),
        Route("/read", service.read, methods=["POST"]),
        Route("/ocr", service.ocr, methods=["POST"]),
        Route("/health", service.health, methods=["GET"]),
        Route("/ready", service.ready, methods=["GET"]),
        Route("/metrics", service.show_metrics, methods=["GET"]),
        Route("/openapi.json", service.openapi, methods=["GET"]),
    ]
    allowance = Allowance(MAX_BYTES, seconds, MAX_HELD, api_key, OPEN_PATHS)
    paths = {route.path for route in routes}
    count = Middleware(CountRequests, service.metrics, paths, lambda: service.inference.waiting)
    return Starlette(
        routes=routes,
        middleware=[count, Middleware(Limits, allowance)],
        exception_handlers=dict.fromkeys((*EXPECTED, Exception), handle_error),
        lifespan=service.lifespan,
    )


EXPECTED = (RequestError, CaptchaError, HTTPException, ClientDisconnect, MemoryError)


def handle_error(request: Request, error: Exception) -> Response:
    """The answer to a request that failed: JSON, with one sentence."""
    found = as_request_error(error)
    if request.scope["path"] != "/ocr":
        return error_response(request, found)
    headers = error_response(request, found).headers
    values = {"code": found.status, "message": str(found), "data": None}
    kept = {name: headers[name] for name in ("retry-after", "allow") if name in headers}
    return JSONResponse(values, found.status, kept)


def as_request_error(error: Exception) -> RequestError:
    """How an exception is answered."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ImageError):
        return RequestError(IMAGE_STATUS.get(error.category, 422), error.category, str(error))
    if isinstance(error, CaptchaError):  # the parameters ask for what the model has not
        return bad_request(str(error))
    if isinstance(error, HTTPException):  # no such path, or not with this method
        return RequestError(
            error.status_code, error.detail.lower(), f"{error.detail}: see /openapi.json", error.headers
        )
    if isinstance(error, ClientDisconnect):
        return RequestError(400, "disconnected", "the body must arrive completely, but the client has gone")
    if isinstance(error, MemoryError):
        return RequestError(
            503, "memory", "the server has too little memory: try again", {"Retry-After": "1"}
        )
    return RequestError(500, "bug", "the server has a bug: its log says more")


def page(name: str, kind: str) -> Any:
    """An endpoint that answers with a file of this folder."""
    content = Path(__file__).with_name(name).read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=kind, headers=PAGE_HEADERS)

    return endpoint


class Service:
    """The endpoints, and what they share."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.inference, self.metrics = Inference(models), Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Before the first request is answered, an image has been read."""
        await self.inference.start()
        yield
        await asyncio.sleep(0.1)  # requests that took too long to be finished are told so: see Limits

    async def read(self, request: Request) -> Response:
        """POST /read: what `predict.py --json` says of an image, or a list of it for several."""
        self._check_parameters(request, {"min_confidence", "characters", "model"})
        min_confidence = parse_confidence(request.query_params.get("min_confidence", "0"))
        uploads = await read_uploads(request)
        predictions = await self._predict(request, uploads)
        answers = [
            prediction.as_json(upload.name, min_confidence)
            for upload, prediction in zip(uploads, predictions, strict=True)
        ]
        return JSONResponse(answers[0] if len(answers) == 1 else answers)

    async def ocr(self, request: Request) -> Response:
        """POST /ocr, as ddddocr-fastapi has it."""
        self._check_parameters(request, {"model"})
        parts = await read_form(request)
        given = {part.name: part.content.decode("utf-8", "replace").lower() for part in parts}
        if given.get("charsets") or given.get("probability", "false") not in ("", "false", "0"):
            raise bad_request(
                "this /ocr takes neither charsets nor probability: use /read, with ?characters="
            )
        (prediction,) = await self._predict(request, [image_of_form(parts)])
        return JSONResponse({"code": 200, "message": "Success", "data": prediction.text})

    async def _predict(self, request: Request, uploads: list[Upload]) -> list[Prediction]:
        query = request.query_params
        images, model = [upload.content for upload in uploads], self._model_name(query.get("model", ""))
        predictions = await self.inference.read(images, model, query.get("characters", ""))
        self.metrics.count_predictions(predictions)
        return predictions

    def _model_name(self, name: str) -> str:
        names = list(self.inference.models)
        if name in names or (not name and len(names) == 1):
            return name or names[0]
        raise bad_request(
            f"the parameter model must be one of {', '.join(names)}, but is {name or 'missing'}"
        )

    @staticmethod
    def _check_parameters(request: Request, allowed: set[str]) -> None:
        if unknown := set(request.query_params) - allowed:
            found = min(unknown)
            raise bad_request(
                f"a parameter must be one of {', '.join(sorted(allowed))}, but {found!r} is none"
            )

    async def health(self, _: Request) -> Response:
        """GET /health: the process lives."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """GET /ready: every model has read an image."""
        ready = self.inference.ready
        return JSONResponse({"ready": ready, "models": list(self.inference.models)}, 200 if ready else 503)

    async def show_metrics(self, _: Request) -> Response:
        """GET /metrics, for Prometheus."""
        self.metrics.waiting.set(self.inference.waiting)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def openapi(self, _: Request) -> Response:
        """GET /openapi.json: the description of all routes."""
        text = json.dumps(describe(list(self.inference.models)), indent=1)
        return Response(text, media_type="application/json")


def parse_confidence(text: str) -> float:
    """A number from 0 to 1.

    Raises:
        RequestError: it is another, or none.
    """
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) <= 1:
            return value
    raise bad_request(f"the parameter min_confidence must be a number from 0 to 1, not {text[:40]!r}")
