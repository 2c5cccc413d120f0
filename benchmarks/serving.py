"""How fast serve.py answers: `python -m benchmarks serving`.

The server is the real one, with a model that reads captchas of the default size. The load generator runs
beside it, in a process of its own. What is compared is measured in turn, so that what else the machine does
is in all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.runs import run_script

CONNECTIONS = 16  # that send one request after the other
ROUNDS, ROUND_SECONDS = 5, 4.0
GROWTH_REQUESTS = 200_000
TRAINING_FLAGS = ("--generate-num", "500", "50", "50", "--epoch", "1")  # a model to time, good or not
SERVE = Path(__file__).parent.parent / "serve.py"
LENGTH = re.compile(rb"content-length: (\d+)")


class Running(NamedTuple):
    """A server."""

    process: int  # its number
    port: int
    seconds: float  # from its start until it was ready


@contextlib.contextmanager
def serving(folder: str, model: str) -> Iterator[Running]:
    """serve.py with that model, from when it is ready."""
    begin = time.perf_counter()
    command = [sys.executable, str(SERVE), "--port", "0", "--model", model]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(re.findall(r":(\d+) ", process.stdout.readline() if process.stdout else "")[0])
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready").close()
            yield Running(process.pid, port, time.perf_counter() - begin)
        finally:
            process.terminate()


def resident(process: int) -> float:
    """MB of memory that a process has."""
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


class Client(asyncio.Protocol):
    """One connection that sends a request again and again, each when the last is answered or is due."""

    def __init__(self, requests: Sequence[bytes], seconds: list[float], end: float, interval: float) -> None:
        self.requests, self.seconds, self.end, self.interval = requests, seconds, end, interval
        self.buffer, self.done = b"", asyncio.get_running_loop().create_future()
        self.due = time.perf_counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self.transport: Any = transport
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server has closed the connection"))

    def send(self) -> None:
        """Send the next request; late ones are counted from when they were due."""
        self.begin = self.due if self.interval else time.perf_counter()
        self.transport.write(self.requests[len(self.seconds) % len(self.requests)])

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if not found or not length or len(body) < int(length[1]):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(ValueError(head.decode("latin-1")))
            return
        now, self.buffer = time.perf_counter(), b""
        self.seconds.append(now - self.begin)
        self.due += self.interval
        if now >= self.end:
            self.done.set_result(None)
        elif self.due > now:
            asyncio.get_running_loop().call_later(self.due - now, self.send)
        else:
            self.send()


async def load(port: int, requests: Sequence[bytes], seconds: float, rate: float = 0.0) -> list[float]:
    """Seconds that each request took, of as many as could be sent, or of `rate` a second."""
    taken: list[float] = []
    loop, end = asyncio.get_running_loop(), time.perf_counter() + seconds
    clients, interval = [], CONNECTIONS / rate if rate else 0.0
    for i in range(CONNECTIONS):
        _, client = await loop.create_connection(
            lambda: Client(requests, taken, end, interval), "127.0.0.1", port
        )
        clients.append(client)
        await asyncio.sleep(interval / CONNECTIONS * (i < CONNECTIONS - 1))
    await asyncio.gather(*(client.done for client in clients))
    for client in clients:
        client.transport.close()
    return taken


def throughput(port: int, requests: Sequence[bytes]) -> float:
    """Requests answered in a second."""
    begin = time.perf_counter()
    return len(asyncio.run(load(port, requests, ROUND_SECONDS))) / (time.perf_counter() - begin)


def request(path: str, body: bytes = b"") -> bytes:
    """The bytes of a request."""
    method = "POST" if body else "GET"
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def measure() -> dict[str, Any]:
    """Throughput, latency and memory of POST /read, and of the empty handler /health beside it."""
    with tempfile.TemporaryDirectory() as folder:
        run_script(folder, "driver.py", *TRAINING_FLAGS)
        run_script(folder, "export.py", "onnx")
        images = [path.read_bytes() for path in sorted(Path(folder, "train").glob("*.png"))[:200]]
        return measure_server(folder, "exported/captcha.onnx", images)


def measure_server(folder: str, model: str, images: Sequence[bytes]) -> dict[str, Any]:
    """The same of a model that is there."""
    starts = []
    for _ in range(3):
        with serving(folder, model) as server:
            starts.append(server.seconds)
    reading, empty = [request("/read", image) for image in images], [request("/health")]
    with serving(folder, model) as server:
        memory = resident(server.process)
        throughput(server.port, reading)  # until everything is warm
        rounds = [(throughput(server.port, empty), throughput(server.port, reading)) for _ in range(ROUNDS)]
        handler, read = (statistics.median(each) for each in zip(*rounds, strict=True))
        taken = sorted(asyncio.run(load(server.port, reading, 2 * ROUND_SECONDS, read / 2)))
        warm, count = resident(server.process), 0
        while count < GROWTH_REQUESTS:
            count += len(asyncio.run(load(server.port, reading, ROUND_SECONDS)))
        grown = resident(server.process) - warm
    return {
        "requests per second, empty handler": round(handler),
        "requests per second, POST /read": round(read),
        "ratio": round(statistics.median(read / handler for handler, read in rounds), 3),
        "95th percentile at half of that load, milliseconds": round(1000 * taken[int(0.95 * len(taken))], 1),
        "memory after start, MB": memory,
        "memory growth, MB": round(grown, 1),
        "requests of the growth": count,
        "start to ready, seconds": round(statistics.median(starts), 2),
    }
