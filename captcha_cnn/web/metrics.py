"""Metrics of a service for Prometheus. They hold no image and no text."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from captcha_cnn.prediction import Prediction

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # the variable that names it, where several processes serve
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """What one process counts."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("captcha_requests", "Requests", ["route", "status"], registry=registry)
        self.errors = Counter(
            "captcha_errors", "Requests refused, by the reason", ["kind"], registry=registry
        )
        self.seconds = Histogram(
            "captcha_request_seconds", "Time of a request", ["route"], buckets=SECONDS, registry=registry
        )
        self.waiting = Gauge(
            "captcha_waiting_images", "Images in the queue", registry=registry, multiprocess_mode="livesum"
        )
        self.confidence = Summary(
            "captcha_confidence", "Confidence of what was read: sum / count is its mean", registry=registry
        )
        self.images = Counter("captcha_images_read", "Images that were read", registry=registry)

    def count_predictions(self, predictions: Iterable[Prediction]) -> None:
        """Count images that were read."""
        for prediction in predictions:
            self.images.inc()
            self.confidence.observe(prediction.confidence)

    def text(self) -> bytes:
        """What Prometheus reads: the sum of all processes where several serve."""
        if SHARED_FOLDER not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)


class CountRequests:
    """ASGI middleware that counts and times requests.

    Args:
        routes: the paths that are counted by their name; all others are one.
        waiting: how many images wait.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, routes: Collection[str], waiting: Callable[[], int]
    ) -> None:
        self.app, self.metrics, self.routes, self.waiting = app, metrics, routes, waiting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, begin = 500, time.perf_counter()  # where no answer begins

        async def count_status(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self.metrics.waiting.set(self.waiting())
        try:
            await self.app(scope, receive, count_status)
        finally:
            route = scope["path"] if scope["path"] in self.routes else "other"
            self.metrics.seconds.labels(route).observe(time.perf_counter() - begin)
            self.metrics.requests.labels(route, str(status)).inc()
            if status >= 400:
                self.metrics.errors.labels(scope.get("error_kind", "other")).inc()
