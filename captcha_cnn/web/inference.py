"""Reading images off the event loop: a bounded queue, and one thread that reads what has come together."""

from __future__ import annotations

import asyncio
import contextlib
import io
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from captcha_cnn.exported_model import SUFFIXES, PredictFn, exported_log_probs, load_exported
from captcha_cnn.general_model import general_log_probs
from captcha_cnn.images import ImageError, image_for
from captcha_cnn.prediction import Prediction, to_predictions
from captcha_cnn.restrict import restrict_answers
from captcha_cnn.web.limits import OverloadError
from config import CaptchaError, Config, escape_unprintable

GENERAL = "general"  # the name of the weights that come with the program
MAX_PIXELS = 2**20  # of an image; one that is larger costs seconds, and is no captcha
MAX_BATCH = 8  # images that are read at once: while these are read, the others arrive
MAX_WAITING = 256  # images


class Model(NamedTuple):
    """A model that is served."""

    config: Config
    predict: PredictFn  # as captcha_cnn.exported_model.load_exported() explains it
    log_probs: Callable[[np.ndarray], np.ndarray]  # for restrict_answers()


def find_models(path: str) -> dict[str, str]:
    """The exported files of a folder, or the file itself, by their names without the suffix.

    Of two files with the same name, the newer one is taken.

    Raises:
        CaptchaError: there is none.
    """
    files = [Path(path)]
    if files[0].is_dir():
        files = [each for each in files[0].iterdir() if each.suffix in SUFFIXES and each.is_file()]
        files.sort(key=lambda file: (file.stat().st_mtime, file.suffix))
    if not files:
        raise CaptchaError(
            f"{escape_unprintable(path)} must hold exported models, {' or '.join(SUFFIXES)}, but has none: "
            "write one with `python export.py`, or name another with --model"
        )
    return {file.stem: str(file) for file in files}


def load_models(paths: Mapping[str, str]) -> dict[str, Model]:
    """The models of find_models(), ready to read; without any, the weights that come with the program.

    Raises:
        CaptchaError: one cannot be loaded.
    """
    models = {}
    for name, path in sorted(paths.items()):
        config, predict = load_exported(path, threads=1)
        models[name] = Model(config, predict, exported_log_probs(predict))
    if not models:
        config, log_probs = general_log_probs()
        _, predict = restrict_answers(config, log_probs)
        models[GENERAL] = Model(config, predict, log_probs)
    return models


class Job(NamedTuple):
    """Images that wait to be read with one model."""

    images: list[bytes]
    model: str
    characters: str  # the only ones that texts may have; all if empty
    result: asyncio.Future[list[Prediction]]


class Inference:
    """Reads images in a thread of its own, those of several requests at once."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.models = models
        self.waiting = 0  # images
        self.ready = False  # every model has read an image
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()

    async def start(self) -> None:
        """Start the thread, and read an empty image with each model."""
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._work, daemon=True).start()
        for name, model in self.models.items():
            image = io.BytesIO()
            Image.fromarray(np.zeros(model.config.image_shape, np.uint8)).save(image, "PNG")
            await self.read([image.getvalue()], name)
        self.ready = True

    async def read(self, images: list[bytes], model: str, characters: str = "") -> list[Prediction]:
        """What images say.

        Args:
            images: contents of files. model: its name. characters: of restrict_answers().
        Raises:
            OverloadError: too many images wait.
            ImageError: one cannot be read.
            CaptchaError: the model cannot be restricted in this way.
        """
        if self.waiting + len(images) > MAX_WAITING:
            raise OverloadError("the server has too many images to read")
        self.waiting += len(images)
        job = Job(images, model, characters, self._loop.create_future())
        self._jobs.put(job)
        return await job.result

    def _work(self) -> None:
        while True:
            jobs = [self._jobs.get()]
            with contextlib.suppress(queue.Empty):
                while sum(len(job.images) for job in jobs) < MAX_BATCH:
                    jobs.append(self._jobs.get_nowait())
            groups: dict[tuple[str, str], list[Job]] = {}
            for job in jobs:
                groups.setdefault((job.model, job.characters), []).append(job)
            done = [each for group in groups.values() for each in self._read_together(group)]
            try:
                self._loop.call_soon_threadsafe(self._deliver, done)
            except RuntimeError:  # the server has stopped without waiting
                return

    def _deliver(self, done: Iterable[tuple[Job, list[Prediction] | Exception]]) -> None:
        for job, result in done:
            self.waiting -= len(job.images)
            if job.result.done():  # its request was cancelled
                continue
            if isinstance(result, Exception):
                job.result.set_exception(result)
            else:
                job.result.set_result(result)

    def _read_together(self, jobs: Iterable[Job]) -> list[tuple[Job, list[Prediction] | Exception]]:
        """Jobs of the same model and characters, each with what its images say or why they do not."""
        done: list[tuple[Job, list[Prediction] | Exception]] = []
        good, arrays = [], []
        for job in jobs:
            try:
                arrays += decode(job.images, self.models[job.model].config)
                good.append(job)
            except Exception as error:  # of this job alone
                done.append((job, error))
        if not good:
            return done
        try:
            model, characters = self.models[good[0].model], good[0].characters
            predict = model.predict
            if characters:
                _, predict = restrict_answers(model.config, model.log_probs, characters)
            predictions = iter(to_predictions(predict(np.stack(arrays))))
            return done + [(job, [next(predictions) for _ in job.images]) for job in good]
        except Exception as error:
            return done + [(job, error) for job in good]


def decode(images: list[bytes], config: Config) -> list[np.ndarray]:
    """Images as the model of that Config sees them, by the checks of training.

    Raises:
        ImageError: one cannot be read; says which of several.
    """
    arrays = []
    for i, image in enumerate(images, 1):
        try:
            if not image:
                raise ImageError("an empty file")
            arrays.append(image_for(image, config, MAX_PIXELS))
        except ImageError as error:
            if len(images) == 1:
                raise
            error.args = (f"image {i} of {len(images)}: {error}",)
            raise
    return arrays
