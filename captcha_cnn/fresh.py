"""Captchas drawn while training: each batch is new, and made by other processes ahead of its step.

A captcha depends on (seed, step, number in the batch) alone, and its augmentation on (seed, step): it does
not matter how many processes draw, and a resumed run goes on with the images that it would have had.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from captcha_cnn.augment import augment
from captcha_cnn.batches import AUGMENTATION, Batch, batch_starts, random_stream, steps_per_epoch
from captcha_cnn.cli import next_command
from captcha_cnn.dataset import Dataset, label_vectors, no_images
from captcha_cnn.drawing import draw_pixels
from captcha_cnn.images import to_grayscale
from captcha_cnn.parallel import (
    available_cores,
    children_ignore_sigint,
    exit_with_parent,
    process_pool,
    without_main_module,
)
from captcha_cnn.progress import log
from config import Config

BATCHES_PER_PROCESS = 2  # drawn or being drawn, ahead of the step that needs them
WATCHED_STEPS = 200  # over which it is measured whether training waits for drawing
LOWER_PRIORITY = 10  # of the processes that draw, as `nice` has it
MIN_WAITING = 0.1  # of the time; a shorter wait is not worth a line

Drawn: TypeAlias = tuple[np.ndarray, np.ndarray, float]  # x, y, and the seconds of a core that they took


def draw_batch(config: Config, step: int) -> Drawn:
    """The batch of a step: x uint8 [B, H, W], augmented, y float32 [B, L * K], and seconds of a core."""
    begin = time.process_time()
    count = config.generate_num[0]
    starts = batch_starts(count, config.batch_size)
    epoch, batch = divmod(step, len(starts))
    numbers = range([*starts[batch : batch + 2], count][1] - starts[batch])
    drawn = [draw_pixels(config, f"fresh/{step}", number, config.frequent) for number in numbers]
    texts, pixels = zip(*drawn, strict=True)
    images = np.concatenate(pixels)  # one below the other
    if not config.colour:
        images = to_grayscale(Image.fromarray(images))
    images = images.reshape(len(texts), *config.image_shape)
    random = random_stream(config.seed, AUGMENTATION, epoch, batch)
    return (
        augment(images, config, random, epoch),
        label_vectors(texts, config),
        time.process_time() - begin,
    )


def start_drawing() -> None:
    """What a process that draws begins with.

    It leaves the cores to training, which has them unless it waits: else both would slow each other down,
    and the time that is spent waiting would not say how much time drawing costs.
    """
    exit_with_parent()
    if hasattr(os, "nice"):
        os.nice(LOWER_PRIORITY)


class FreshCaptchas(Dataset):
    """A training set without images: those of each step are drawn for it, and then forgotten."""

    config: Config
    seconds: float  # of a core, that the last batch took
    _pool: ProcessPoolExecutor
    _step: int  # to which the first of the coming batches belongs
    _coming: deque[Future[Drawn]]

    def __new__(cls, config: Config) -> FreshCaptchas:
        """The training set that this Config describes."""
        self = super().__new__(cls, *no_images(config))
        self.config, self.seconds = config, 0.0
        return self

    @property
    def size(self) -> int:
        """How many captchas count as an epoch."""
        return self.config.generate_num[0]

    @contextlib.contextmanager
    def processes(self, step: int) -> Iterator[None]:
        """Inside, processes draw, from that step on.

        Raises:
            CaptchaError: one of them was killed.
        """
        self._step, self._coming = step, deque()
        command = next_command("driver.py", self.config, "--resume")
        advice = f"close other programs and go on from here with {command}"
        with process_pool(available_cores(), "Drawing", advice, start_drawing) as self._pool:
            with children_ignore_sigint(), without_main_module():
                self._draw_ahead()
            log(f"Training captchas are drawn while training, {self.size:,} of them to an epoch")
            yield

    def batches(self, epoch: int, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of an epoch, as driver.next_batch() gives them."""
        count = steps_per_epoch(self.size, self.config.batch_size)
        for step in range(epoch * count + first, (epoch + 1) * count):
            if step != self._step:
                self._step = step
                self._coming.clear()
            self._draw_ahead()
            x, y, self.seconds = self._coming.popleft().result()
            self._step += 1
            yield x, y

    def _draw_ahead(self) -> None:
        while len(self._coming) < BATCHES_PER_PROCESS * available_cores():
            step = self._step + len(self._coming)
            self._coming.append(self._pool.submit(draw_batch, self.config, step))


def processes(train: Dataset, step: int) -> contextlib.AbstractContextManager[None]:
    """train.processes(step) of fresh captchas; nothing for a set that is there."""
    return train.processes(step) if isinstance(train, FreshCaptchas) else contextlib.nullcontext()


# ---------------------------------------------------------------------- whether training waits


class StepTimes(NamedTuple):
    """What a step took, in seconds."""

    waiting: float  # until its batch was there
    training: float
    training_cores: float  # the same, summed over all cores
    drawing_cores: float  # of drawing, on all cores


def watch(prepared: Iterator[Batch], train: Dataset) -> Iterator[Batch]:
    """The same batches; says once where training waits for fresh captchas to be drawn."""
    return _watch(prepared, train) if isinstance(train, FreshCaptchas) else prepared


def _watch(prepared: Iterator[Batch], train: FreshCaptchas) -> Iterator[Batch]:
    times: list[StepTimes] = []
    line, begin = "", time.monotonic()
    for batch in prepared:
        there, cores = time.monotonic(), time.process_time()
        yield batch
        if line:
            continue
        done = time.monotonic()
        times.append(StepTimes(there - begin, done - there, time.process_time() - cores, train.seconds))
        begin = done
        if len(times) == WATCHED_STEPS:
            if line := waiting_line(times, available_cores()):
                log(line)
            times.clear()


def waiting_line(times: Sequence[StepTimes], cores: int) -> str:
    """What is said where these steps waited for drawing on so many cores; empty where they hardly did."""
    waiting = float(np.mean([each.waiting for each in times]))
    # The median, since some steps also validate and save.
    training, training_cores, drawing_cores = np.median([each[1:] for each in times], axis=0)
    share = waiting / (waiting + training)
    if share < MIN_WAITING:
        return ""
    needed = max(cores + 1, math.ceil((training_cores + drawing_cores) / training))
    return (
        f"Training waits for captchas to be drawn, {share:.0%} of its time: about {needed} cores would do, "
        f"here are {cores}"
    )
