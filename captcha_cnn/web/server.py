"""Runs a service with uvicorn: time-outs for slow clients, JSON for what is not HTTP, several processes."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.supervisors import Multiprocess

from captcha_cnn.web.metrics import SHARED_FOLDER
from config import CaptchaError

MAX_CONNECTIONS = 1000  # at a time
SWITCH_SECONDS = 0.001  # that a thread may run while another waits: with Python's 5 ms, answers are late
STOP_SECONDS = 8  # for the requests that are being answered when the server is told to stop


class Protocol(H11Protocol):
    """HTTP of a client that must send the head of a request in time; uvicorn waits for it for ever."""

    head_seconds = 10.0
    _too_slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # noqa: D102
        super().connection_made(transport)
        self._wait_for_head()
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(503, "the server has too many connections: try again", (b"retry-after", b"1"))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_waiting()
        elif self._too_slow is None:
            self._wait_for_head()

    def _wait_for_head(self) -> None:
        message = f"the head of a request must arrive within {self.head_seconds:g} s, but did not"
        self._too_slow = self.loop.call_later(self.head_seconds, self._refuse, 408, message)

    def _stop_waiting(self) -> None:
        if self._too_slow:
            self._too_slow.cancel()
            self._too_slow = None

    def send_400_response(self, msg: str) -> None:  # noqa: D102
        self._refuse(400, "the request must be HTTP/1.1, but is damaged")

    def _refuse(self, status: int, message: str, *headers: tuple[bytes, bytes]) -> None:
        """Answer in place of the service, where no answer has begun, and close the connection."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": message}).encode()
            names = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            head = h11.Response(
                status_code=status,
                headers=[*names, (b"connection", b"close"), *headers],
                reason=STATUS_PHRASES[status],
            )
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def bind(host: str, port: int, remedy: str) -> socket.socket:
    """A socket that listens there.

    Args:
        remedy: what to do where it cannot.
    Raises:
        CaptchaError: it cannot, for example since another program does.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
        # Head and body of an answer are two writes: the second would wait up to 40 ms for a delayed ACK.
        # asyncio sets this only for sockets of a named protocol; connections inherit it from here.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CaptchaError(
            f"{host}:{port} must be free to listen on, but is not ({reason}): {remedy}"
        ) from None


def run(make_app: Callable[[], ASGIApp], listener: socket.socket, workers: int, seconds: float) -> None:
    """Serve until SIGTERM or Ctrl-C; then finish what has begun, within ten seconds.

    Args:
        make_app: can be pickled; each process calls it.
        workers: processes.
        seconds: for the head of a request to arrive.
    """
    options: dict[str, Any] = {
        "factory": True,
        "http": Protocol,
        "ws": "none",
        "lifespan": "on",
        "workers": workers,
        "log_level": "warning",  # no line for a request
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "timeout_graceful_shutdown": STOP_SECONDS,
        "timeout_keep_alive": int(min(5, max(1, seconds))),
    }
    config = uvicorn.Config(functools.partial(_prepare, make_app, seconds), **options)
    if workers == 1:
        uvicorn.Server(config).run([listener])
        return
    with tempfile.TemporaryDirectory() as folder:  # where the processes add up their metrics
        os.environ[SHARED_FOLDER] = folder
        Multiprocess(config, [listener]).run()


def _prepare(make_app: Callable[[], ASGIApp], seconds: float) -> ASGIApp:
    """The service of this process."""
    sys.setswitchinterval(SWITCH_SECONDS)
    Protocol.head_seconds = seconds
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it would log what clients send
    return make_app()
