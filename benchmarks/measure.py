"""The rows that need no whole run: curves, speed, exported files, other readers.

Every function returns what goes into the record: plain JSON values.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from benchmarks import keras_ocr, ours, pretrained, torch_port
from benchmarks.common import Point, label_classes, score, text_classes, time_to_threshold
from benchmarks.runs import run_script
from captcha_cnn.dataset import Dataset
from captcha_cnn.drawing import draw_captcha
from captcha_cnn.images import to_grayscale
from captcha_cnn.parallel import parallel_map
from captcha_cnn.tf_runtime import bfloat16_support, load_tensorflow
from config import CaptchaError, Config
from generate_captcha import Generate, ReadData

DESIGNS: dict[str, tuple[Any, Config]] = {  # of the row "curves": module and settings
    "ours": (ours, Config()),
    "ours in PyTorch": (torch_port, Config()),
    "Keras' OCR": (keras_ocr, Config()),
    "the original": (ours, Config.classic()),
}
TRAINING_FLAGS = ("--generate-num", "500", "50", "50", "--epoch", "1")  # a model to time, good or not


# ---------------------------------------------------------------------- training, in memory


def make_dataset(config: Config, name: str, count: int) -> Dataset:
    """A drawn set in memory."""
    work = functools.partial(_draw_part, config, name)
    parts = list(parallel_map(work, range(count), f"Drawing {name}"))
    return Dataset(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _draw_part(config: Config, name: str, indices: Sequence[int]) -> Dataset:
    labelled = [draw_captcha(config, name, index) for index in indices]
    vector = ReadData(config).label2vec
    images, labels = [to_grayscale(image) for _, image in labelled], [vector(label) for label, _ in labelled]
    return Dataset(np.stack(images), np.stack(labels))


def in_subprocess(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments) in a process of its own: TensorFlow and PyTorch would fight over the cores."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def time_to_accuracy(seeds: Iterable[int]) -> dict[str, Any]:
    """Of 10,000 training images and of 5,000: seconds of training to 93% of the characters and to 99% of
    the captchas, and how many of 10,000 others are read wrong after 45 s; steps, too, for other machines."""
    found: dict[str, dict[str, list[Any]]] = {}
    for config in (Config(seed=seed) for seed in seeds):
        train, test = make_dataset(config, "train", 10000), make_dataset(config, "test", 10000)
        for count in (10000, 5000):
            first = Dataset(*(each[:count] for each in train))
            points = in_subprocess(measure_curve, "ours", first, test, config, curve_times(45))
            runs = found.setdefault(f"{count:,} images", {})
            values = {
                "seconds to 93% of characters": time_to_threshold(points, 2, 0.93),
                "seconds to 99% of captchas": time_to_threshold(points, 3, 0.99),
                "steps to 99% of captchas": time_to_threshold(points, 3, 0.99, unit=1),
                "steps in 45 s": points[-1][1],
                "captchas wrong of 10,000 after 45 s": round(10000 * (1 - points[-1][3])),
            }
            for name, value in values.items():
                runs.setdefault(name, []).append(value)
        print(f"  seed {config.seed}: {found}", flush=True)
    return found


def curve_times(seconds: float) -> list[float]:
    """Seconds at which a curve has its points, closer at first; the last one included."""
    return [seconds / 1.15**i for i in reversed(range(round(math.log(2 * seconds, 1.15))))]


def curves(seconds: float) -> dict[str, Any]:
    """Characters and captchas of 2,000 right against seconds of training, of each design, on the same
    images."""
    train, test = make_dataset(Config(), "train", 10000), make_dataset(Config(), "test", 2000)
    found: dict[str, Any] = {}
    for name, (_, config) in DESIGNS.items():
        at = curve_times(min(seconds, 60) if name.startswith("ours") else seconds)
        try:
            found[name] = in_subprocess(measure_curve, name, train, test, config, at)
        except CaptchaError as error:
            print(f"  {name} left out: {error}", flush=True)
            continue
        print(f"  {name}: {found[name][-1]}", flush=True)
    return found


def measure_curve(
    name: str, train: Dataset, test: Dataset, config: Config, at: list[float]
) -> list[list[float]]:
    """The points of a design's curve, as the record has them."""

    def rounded(point: Point) -> list[float]:
        shares = round(point.character_accuracy, 5), round(point.captcha_accuracy, 4)
        return [round(point.seconds, 2), point.step, *shares]

    module, _ = DESIGNS[name]
    return [rounded(point) for point in module.curve(train, test, config, at)]


def steps() -> dict[str, Any]:
    """Milliseconds of a training step, ours and in PyTorch in turn, and the operations in it."""
    config = Config()
    train = make_dataset(config, "train", 1000)
    found: dict[str, list[float]] = {}
    for _ in range(3):
        for name, compiled in (("ours", None), ("PyTorch", False), ("PyTorch, compiled", True)):
            with contextlib.suppress(CaptchaError):  # PyTorch is not installed
                seconds = in_subprocess(step_seconds, train, config, compiled)
                found.setdefault(name, []).extend(seconds)
    peak, operations = in_subprocess(matmul_speed), in_subprocess(count_operations, config)
    ms = {name: round(1000 * statistics.median(each), 2) for name, each in found.items()}
    achieved = operations * config.batch_size / (ms["ours"] / 1000) / 1e9
    return {
        "milliseconds per step": ms,
        "images per step": config.batch_size,
        "operations per image and step": operations,
        "matrix product, GFLOP/s": peak,
        "training step, GFLOP/s": round(achieved, 1),
    }


def step_seconds(train: Dataset, config: Config, compiled: bool | None) -> list[float]:
    """Seconds of each of 100 training steps: ours, or in PyTorch where `compiled` is not None."""
    if compiled is None:
        return ours.step_seconds(train, config, 100)
    return torch_port.step_seconds(train, config, 100, compiled)


def count_operations(config: Config) -> int:
    """Multiplications and additions for one image in a training step: forward, and both gradients."""
    tf = load_tensorflow()
    from cnn_model import ctc_network

    with tf.Graph().as_default() as graph:
        ctc_network(tf.placeholder(tf.uint8, [1, config.height, config.width]), config)
        total = 0
        for op in graph.get_operations():
            if op.type == "Conv2D":
                kernel = op.inputs[1].shape.as_list()
                forward = 2 * int(np.prod(op.outputs[0].shape.as_list())) * int(np.prod(kernel[:-1]))
                first = "conv1" in op.name  # the gradient with respect to the images is not needed
                total += forward * (2 if first else 3)
    return total


def matmul_speed() -> float:
    """GFLOP/s of the fastest of 30 large matrix products, in the arithmetic of training."""
    tf = load_tensorflow()
    size, dtype = 2048, tf.bfloat16 if bfloat16_support() else tf.float32
    with tf.Graph().as_default(), tf.Session() as session:
        ones = tf.ones_initializer()
        a, b = (tf.get_variable(name, [size, size], dtype, initializer=ones) for name in "ab")
        product = tf.matmul(a, b).op
        session.run(tf.global_variables_initializer())
        best = min(timed(lambda: session.run(product)) for _ in range(30))
    return round(2 * size**3 / best / 1e9, 1)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


# ---------------------------------------------------------------------- drawing, loading, reading


def drawing() -> dict[str, Any]:
    """Captchas drawn and written as PNG per second, and seconds to load 10,000."""
    with tempfile.TemporaryDirectory() as folder:
        train, validation, test = (os.path.join(folder, name) for name in ("train", "validation", "test"))
        config = Config(
            generate_num=(10000, 1, 1), train_folder=train, validation_folder=validation, test_folder=test
        )
        seconds = timed(Generate(config).gen_captcha)
        loading = [timed(lambda: ReadData(config).load_data(config.train_folder)) for _ in range(3)]
    return {"drawn per second": round(10000 / seconds), "seconds to load 10,000": round(min(loading), 2)}


def reading() -> dict[str, Any]:
    """Captchas read per second, many at once, and milliseconds for a single one, by a trained model."""
    with tempfile.TemporaryDirectory() as folder:
        run_script(folder, "driver.py", *TRAINING_FLAGS)
        return dict(in_subprocess(time_predictor, os.path.join(folder, "checkpoints")))


def time_predictor(checkpoints: str) -> dict[str, Any]:
    """How fast the model of a checkpoint folder reads."""
    from predict import Predictor

    images, predictor = some_images(), Predictor(checkpoints)
    predictor.read_arrays(images)
    many = min(timed(lambda: predictor.read_arrays(images)) for _ in range(10))
    single = statistics.median(timed(functools.partial(predictor.read, each)) for each in images[:500])
    return {"read per second": round(len(images) / many), "milliseconds for one": round(1000 * single, 2)}


def some_images() -> np.ndarray:
    """Drawn captchas, uint8 [1000, H, W]."""
    return np.stack([to_grayscale(draw_captcha(Config(), "test", index)[1]) for index in range(1000)])


def exported() -> dict[str, Any]:
    """Of each file that export.py writes: kB, milliseconds for one image and images per second on one core.

    `whole command` is `python predict.py --model` on one image, the best of five.
    """
    from export import FORMATS

    with tempfile.TemporaryDirectory() as folder:
        run_script(folder, "driver.py", *TRAINING_FLAGS)
        printed, _ = run_script(folder, "export.py")
        image = os.path.join("test", sorted(os.listdir(os.path.join(folder, "test")))[0])
        found = {}
        for format, name in FORMATS.items():
            path = os.path.join("exported", name)
            size = re.search(rf"^{re.escape(path)}: (\d+) kB$", printed, re.M)
            found[format] = {"kB": int(size[1]) if size else None}
            found[format] |= in_subprocess(time_exported, os.path.join(folder, path))
            if format != "saved_model":
                command = functools.partial(run_script, folder, "predict.py", "--model", path, image)
                best = min(timed(command) for _ in range(5))
                found[format]["whole command, milliseconds"] = round(1000 * best)
        return found


def time_exported(path: str) -> dict[str, Any]:
    """How fast an exported file reads, on one core."""
    images, model = some_images(), load_exported_model(path)
    model(images[:100])
    many = min(timed(lambda: model(images[:100])) for _ in range(20))
    single = statistics.median(timed(functools.partial(model, each[None])) for each in images[:500])
    return {"milliseconds for one": round(1000 * single, 2), "read per second": round(100 / many)}


def load_exported_model(path: str) -> Callable[[np.ndarray], Any]:
    """The function that reads images with an exported file, on one core."""
    from captcha_cnn.exported_model import INPUT, load_exported

    if not os.path.isdir(path):
        return load_exported(path, threads=1)[1]
    tf = load_tensorflow()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    signature = tf.compat.v2.saved_model.load(path).signatures["serving_default"]
    return lambda images: [each.numpy() for each in signature(**{INPUT: tf.constant(images)}).values()]


def readers() -> dict[str, Any]:
    """Captchas that pretrained readers get right, in per cent, and milliseconds for one image."""
    config, count = Config(), 1000
    labelled = [draw_captcha(config, "test", index) for index in range(count)]
    vectors = np.stack([ReadData(config).label2vec(label) for label, _ in labelled])
    truth, images = label_classes(vectors, config), [image for _, image in labelled]

    def captchas_right(texts: list[str]) -> float:
        return round(100 * score([text_classes(text, config) for text in texts], truth)[1], 1)

    found = {}
    for name in pretrained.READERS:
        raw, answers, milliseconds = in_subprocess(pretrained.read, name, images, config)
        found[name] = {
            "test images": count,
            "captchas right as answered, %": captchas_right(raw),
            "captchas right, %": captchas_right(answers),
            "milliseconds for one": round(milliseconds, 1),
        }
    return found
