"""The project's own networks, ours and the classic one, timed in the same way as the other designs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import driver
from benchmarks.common import WARM_UP, Point, endless_batches, timed_curve
from captcha_cnn.batches import keep_prob
from captcha_cnn.dataset import Dataset
from captcha_cnn.metrics import Metrics
from captcha_cnn.tf_runtime import bfloat16_support, load_tensorflow, session_config
from config import Config


@contextlib.contextmanager
def training(train: Dataset, config: Config) -> Iterator[tuple[Any, Any, Any]]:
    """A session, the model, and a function that does the next training step."""
    tf = load_tensorflow()
    from cnn_model import CNN

    with tf.Graph().as_default():
        model = CNN.build(config)
        initialize = tf.global_variables_initializer()
        with tf.Session(config=session_config(bfloat16_support())) as session:
            session.run(initialize)
            batches = endless_batches(train, config)

            def step() -> None:
                epoch, x, y = next(batches)
                session.run(model.train_op, driver.feed_data(model, x, y, keep_prob(config, epoch)))

            with contextlib.closing(batches):
                yield session, model, step


def curve(train: Dataset, test: Dataset, config: Config, at: Sequence[float]) -> Iterator[Point]:
    """Train on `train`; a Point on `test` each time the training clock passes the next of `at`.

    The graph is built before the clock starts. TensorFlow prunes and rewrites it in the first step,
    which is counted.
    """
    with training(train, config) as (session, model, step):

        def score_now() -> tuple[float, float]:
            metrics = Metrics.from_result(driver.evaluate(session, model, test))
            return metrics.accuracy, metrics.captcha_accuracy

        yield from timed_curve(step, score_now, at)


def step_seconds(train: Dataset, config: Config, steps: int) -> list[float]:
    """Seconds of each of so many training steps, batch and averaging included, after a warm-up."""
    with training(train, config) as (_, _, step):
        seconds = []
        for _ in range(WARM_UP + steps):
            begin = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begin)
    return seconds[WARM_UP:]
