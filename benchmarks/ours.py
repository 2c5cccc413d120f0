"""This project's own network and recipe, followed by the same clock as the others."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.common import WARM_UP, Data, Point, follow
from config import Config
from session import has_bfloat16, load_tensorflow, session_config


@contextlib.contextmanager
def training(train: Data, config: Config) -> Iterator[tuple[Any, Any, Any]]:
    """A session, the model, and a function that does the next training step."""
    import driver

    tf = load_tensorflow()
    from cnn_model import CNN

    with tf.Graph().as_default():
        model = CNN.build(config)
        initialize = tf.global_variables_initializer()
        with tf.Session(config=session_config(has_bfloat16())) as session:
            session.run(initialize)
            data = driver.Data(train.images, train.labels)
            epochs = (driver.next_batch(data, config, epoch) for epoch in itertools.count())
            batches = driver.ahead(itertools.chain.from_iterable(epochs))

            def step() -> None:
                x, y = next(batches)
                session.run(model.train_op, driver.feed_data(model, x, y, config.keep_prob))

            with contextlib.closing(batches):
                yield session, model, step


def curve(train: Data, test: Data, config: Config, seed: int, at: Sequence[float]) -> Iterator[Point]:
    """Train on `train`; a Point on `test` each time the training clock passes the next of `at`.

    The graph is built before the clock starts. TensorFlow prunes and rewrites it in the first step,
    which is counted.
    """
    import driver

    with training(train, replace(config, seed=seed)) as (session, model, step):

        def score_now() -> tuple[float, float]:
            answered = driver.evaluate(session, model, driver.Data(test.images, test.labels))
            metrics = driver.Metrics.of(answered)
            return metrics.accuracy, metrics.captcha_accuracy

        yield from follow(step, score_now, at)


def step_seconds(train: Data, config: Config, steps: int) -> list[float]:
    """Seconds of each of so many training steps, batch and averaging included, after a warm-up."""
    with training(train, config) as (_, _, step):
        seconds = []
        for _ in range(WARM_UP + steps):
            begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begun)
    return seconds[WARM_UP:]
