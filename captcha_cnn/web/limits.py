"""What a request may cost: bytes, seconds, and a key. Whoever is refused gets JSON.

Everything here is about HTTP alone, so that any service can use it.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Mapping
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DISCARDED = 2**24  # bytes beyond the limit that are read and thrown away, so that the client hears why


class RequestError(Exception):
    """A request that is refused.

    Args:
        status: of HTTP. kind: groups such errors in the metrics. message: one sentence for the client.
        headers: of the response.
    """

    def __init__(
        self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.headers = status, kind, headers


class OverloadError(RequestError):
    """There is no room for the request now."""

    def __init__(self, message: str) -> None:
        super().__init__(503, "overload", f"{message}: try again", {"Retry-After": "1"})


def error_response(request: Request, error: RequestError) -> JSONResponse:
    """The answer to a request that is refused; an exception handler of Starlette's can return it."""
    request.scope["error_kind"] = error.kind
    return JSONResponse({"error": str(error)}, error.status, error.headers)


def media_type(headers: Mapping[str, str]) -> str:
    """The media type of a body, in small letters and without its parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


class Allowance(NamedTuple):
    """What requests may cost.

    Args:
        max_bytes: of a body, by its media type; by "" for all others.
        seconds: for a body to arrive.
        max_held: bytes of all bodies together that are in memory at a time.
        api_key: that requests must bring as `Authorization: Bearer KEY`; empty for none.
        open_paths: that need no key.
    """

    max_bytes: Mapping[str, int]
    seconds: float
    max_held: int
    api_key: str = ""
    open_paths: frozenset[str] = frozenset()


class Limits:
    """ASGI middleware that enforces an Allowance while a body arrives."""

    def __init__(self, app: ASGIApp, allowance: Allowance) -> None:
        self.app, self.allowance = app, allowance
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, started = _Body(self, Headers(scope=scope), receive), False

        async def send_after_body(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if not await body.discard_rest():
                    message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        try:
            self._check_key(scope)
            await self.app(scope, body.receive, send_after_body)
        except RequestError as error:
            await error_response(Request(scope), error)(scope, body.receive, send_after_body)
        except asyncio.CancelledError:  # the server stops, and has waited long enough
            if not started:
                response = error_response(Request(scope), OverloadError("the server is stopping"))
                response.headers["Connection"] = "close"
                await response(scope, receive, send)  # at once: there is no time to read on
        finally:
            self.held -= body.held

    def _check_key(self, scope: Scope) -> None:
        if not self.allowance.api_key or scope["path"] in self.allowance.open_paths:
            return
        given = Headers(scope=scope).get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, b"Bearer " + self.allowance.api_key.encode()):
            message = (
                "the request must have the header Authorization: Bearer KEY, with the key of this server"
            )
            raise RequestError(401, "key", message, {"WWW-Authenticate": "Bearer"})


class _Body:
    """The body of one request."""

    def __init__(self, limits: Limits, headers: Headers, receive: Receive) -> None:
        self.limits, self._receive = limits, receive
        allowance = limits.allowance
        self.max_bytes = allowance.max_bytes.get(media_type(headers), allowance.max_bytes[""])
        declared = headers.get("content-length", "0")  # uvicorn has checked that it is a number
        self.declared = int(declared) if declared.isdecimal() else 0
        self.coming = self.declared > 0 or "transfer-encoding" in headers
        self.size = self.held = 0
        self.deadline = time.monotonic() + allowance.seconds

    async def receive(self) -> Message:
        """As ASGI has it.

        Raises:
            RequestError: too many bytes, or too slow.
        """
        if not self.coming:
            return await self._receive()
        if self.declared > self.max_bytes:
            raise self._too_large()
        message = await self._next()
        self.held += (count := len(message.get("body", b"")))
        self.limits.held += count
        if self.size > self.max_bytes:
            raise self._too_large()
        if self.limits.held > self.limits.allowance.max_held:
            raise OverloadError("the server has too many uploads at a time")
        return message

    async def _next(self) -> Message:
        try:
            message = await asyncio.wait_for(self._receive(), self.deadline - time.monotonic())
        except asyncio.TimeoutError:
            seconds = f"{self.limits.allowance.seconds:g}"
            raise RequestError(
                408, "slow", f"the body must arrive within {seconds} s, but did not: send it faster"
            ) from None
        self.size += len(message.get("body", b""))
        self.coming = message.get("more_body", False)
        return message

    async def discard_rest(self) -> bool:
        """Read on without keeping anything: a client that is still sending may not see an answer.

        Returns:
            whether the body has arrived.
        """
        most = self.max_bytes + DISCARDED
        try:
            while self.coming and max(self.size, self.declared) <= most:
                await self._next()
        except RequestError:
            return False
        return not self.coming

    def _too_large(self) -> RequestError:
        most = f"{self.max_bytes:,} bytes"
        return RequestError(413, "too large", f"the body must have at most {most}, but has more: send less")
