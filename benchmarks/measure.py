"""How each row is measured. Every function returns what goes into the record: plain JSON values."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import keras_ocr, original, ours, shelf, torch_twin
from benchmarks.common import Point, classes, reached, score, spelled
from config import CaptchaError, Config
from generate_captcha import Generate, ReadData, draw, grey, in_parallel

ROOT = Path(__file__).parent.parent
TRAINERS = {"ours": ours, "ours in PyTorch": torch_twin, "Keras' OCR": keras_ocr, "the original": original}
OTHERS = ("500", "10000")  # validation and test pictures of every run
MOST_WRONG = 40  # captchas read wrong that are kept in the record


# ---------------------------------------------------------------------- whole runs


def accuracy(count: int, seeds: Iterable[int], flags: Sequence[str] = ()) -> dict[str, Any]:
    """Train with `python driver.py` on `count` pictures of each seed, read 10,000 others."""
    runs = [train_and_read(count, seed, flags) for seed in seeds]
    return {"train": count, "runs": runs}


def train_and_read(count: int, seed: int, flags: Sequence[str]) -> dict[str, Any]:
    """One run of driver.py in an empty folder, and predict.py on its test set."""
    numbers = ["--generate-num", str(count), *OTHERS, "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        printed, memory = command(folder, "driver.py", *numbers, *flags)
        seconds = time.monotonic() - begun
        answers, _ = command(folder, "predict.py", "test")
    captchas = find(r"Captcha accuracy: .* \((\d+) of (\d+)", printed)
    closing = find(r"(\d+) steps in ([\d:]+), ([\d:]+) of it training; .* of step (\d+)", printed)
    right, confusions, wrong = read_answers(answers, {"O": "0"})
    result = {
        "seed": seed,
        "tested": int(captchas[1]),
        "right": int(captchas[0]),
        "symbols": float(find(r"Test accuracy: +([\d.]+)%", printed)[0]) / 100,
        "right with O as 0": right,
        "steps": int(closing[0]),
        "best step": int(closing[3]),
        "training seconds": in_seconds(closing[2]),
        "first line to last, seconds": round(seconds, 1),
        "memory, GB": round(memory / 1e9, 2),
        "confusions": confusions,
        "wrong": wrong[:MOST_WRONG],
    }
    print(f"  seed {seed}: {result['right']} of {result['tested']}, {closing[2]}", flush=True)
    return result


def command(folder: str, program: str, *arguments: str) -> tuple[str, int]:
    """Run one of our programs in that folder; what it printed, and the bytes of memory it had at most."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / program), *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        printed = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise CaptchaError(f"{program} must succeed to be measured, but said: {errors.read().strip()}")
    return printed, usage.ru_maxrss * 1024


def find(pattern: str, text: str) -> tuple[str, ...]:
    """The groups of the last place in the text that the pattern fits."""
    return [match.groups() for match in re.finditer(pattern, text)][-1]


def in_seconds(text: str) -> int:
    """1:02:03 in seconds."""
    return functools.reduce(lambda all, part: 60 * all + int(part), text.split(":"), 0)


def read_answers(lines: str, same: dict[str, str]) -> tuple[int, dict[str, int], list[list[str]]]:
    """What predict.py made of a test set.

    Args:
        lines: path, text and confidence of each picture.
        same: symbols that count as another.
    Returns:
        captchas right when those count as one; how often one symbol was read for another ("1>7");
        file, text and confidence of each captcha read wrong.
    """
    right, confusions, wrong = 0, Counter[str](), []
    for line in lines.splitlines():
        path, text, confidence = line.split("\t")
        truth = os.path.basename(path).split("_")[0]
        alike = [same.get(a, a) == same.get(b, b) for a, b in zip(truth, text, strict=True)]
        right += all(alike)
        if text != truth:
            wrong.append([os.path.basename(path), text, confidence])
            confusions.update(f"{a}>{b}" for a, b in zip(truth, text, strict=True) if a != b)
    return right, dict(confusions.most_common()), wrong


# ---------------------------------------------------------------------- in memory


def drawn(config: Config, name: str, count: int) -> Any:
    """A drawn set in memory, as driver.Data."""
    from driver import Data

    parts = list(in_parallel(functools.partial(_drawn, config, name), range(count), f"Drawing {name}"))
    return Data(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))


def _drawn(config: Config, name: str, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    labelled = [draw(config, name, index) for index in indices]
    vector = ReadData(config).label2vec
    return np.stack([grey(p) for _, p in labelled]), np.stack([vector(label) for label, _ in labelled])


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments) in a process of its own: TensorFlow and PyTorch would fight over the cores."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def pace(seeds: Iterable[int]) -> dict[str, Any]:
    """Of 10,000 pictures and of 5,000: seconds of training to 93% of digits and to 99% of captchas, and how
    many of 10,000 others are read wrong after 45 s."""
    found: dict[str, dict[str, list[Any]]] = {}
    for config in (Config(seed=seed) for seed in seeds):
        train, test = drawn(config, "train", 10000), drawn(config, "test", 10000)
        for count in (10000, 5000):
            first = train._make(each[:count] for each in train)
            points = apart(_curve, "ours", first, test, config, moments(45))
            runs = found.setdefault(f"{count:,} pictures", {})
            runs.setdefault("seconds to 93% of digits", []).append(reached(points, 2, 0.93))
            runs.setdefault("to 99% of captchas", []).append(reached(points, 3, 0.99))
            wrong = round(10000 * (1 - points[-1][3]))
            runs.setdefault("captchas wrong of 10,000 after 45 s", []).append(wrong)
        print(f"  seed {config.seed}: {found}", flush=True)
    return found


def moments(seconds: float) -> list[float]:
    """Seconds at which a curve has its points, closer at first; the last one included."""
    return [seconds / 1.15**i for i in reversed(range(round(math.log(2 * seconds, 1.15))))]


def curves(seconds: float) -> dict[str, Any]:
    """Digits and captchas of 2,000 read against seconds of training, of each design, on the same pictures."""
    config = Config()
    train, test = drawn(config, "train", 10000), drawn(config, "test", 2000)
    found: dict[str, Any] = {}
    for name in TRAINERS:
        at = moments(min(seconds, 60) if name.startswith("ours") else seconds)
        try:
            found[name] = apart(_curve, name, train, test, config, at)
        except CaptchaError as error:
            print(f"  {name} left out: {error}", flush=True)
            continue
        print(f"  {name}: {found[name][-1]}", flush=True)
    return found


def _curve(name: str, train: Any, test: Any, config: Config, at: list[float]) -> list[list[float]]:
    def rounded(point: Point) -> list[float]:
        return [round(point.seconds, 2), point.step, round(point.symbols, 5), round(point.captchas, 4)]

    return [rounded(point) for point in TRAINERS[name].curve(train, test, config, config.seed, at)]


def steps() -> dict[str, Any]:
    """Milliseconds of a training step, ours and in PyTorch by turns, and the arithmetic in it."""
    config = Config()
    train = drawn(config, "train", 1000)
    found: dict[str, list[float]] = {}
    for _ in range(3):
        for name, compiled in (("ours", None), ("PyTorch", False), ("PyTorch, compiled", True)):
            with contextlib.suppress(CaptchaError):  # PyTorch is not installed
                seconds = apart(_steps, train, config, compiled)
                found.setdefault(name, []).extend(seconds)
    peak, operations = apart(_matmul), apart(_operations, config)
    ms = {name: round(1000 * statistics.median(each), 2) for name, each in found.items()}
    achieved = operations * config.batch_size / (ms["ours"] / 1000) / 1e9
    return {
        "ms a step": ms,
        "batch": config.batch_size,
        "operations a picture and step": operations,
        "matrix product, GFLOP/s": peak,
        "achieved, GFLOP/s": round(achieved, 1),
    }


def _steps(train: Any, config: Config, compiled: bool | None) -> list[float]:
    if compiled is None:
        return ours.step_seconds(train, config, 100)
    return torch_twin.step_seconds(train, config, 100, compiled)


def _operations(config: Config) -> int:
    """Multiplications and additions of one picture in a training step: forward, and both gradients."""
    from session import load_tensorflow

    tf = load_tensorflow()
    from cnn_model import network

    with tf.Graph().as_default() as graph:
        network(tf.placeholder(tf.uint8, [1, config.height, config.width]), config)
        total = 0
        for op in graph.get_operations():
            if op.type == "Conv2D":
                weights = op.inputs[1].shape.as_list()
                once = 2 * int(np.prod(op.outputs[0].shape.as_list())) * int(np.prod(weights[:-1]))
                pictures = "conv1" in op.name  # nobody asks for the gradient by the pictures
                total += once * (2 if pictures else 3)
    return total


def _matmul() -> float:
    """GFLOP/s of the fastest of many large matrix products, in the arithmetic of training."""
    from session import has_bfloat16, load_tensorflow

    tf = load_tensorflow()
    size, kind = 2048, tf.bfloat16 if has_bfloat16() else tf.float32
    with tf.Graph().as_default(), tf.Session() as session:
        ones = tf.ones_initializer()
        a, b = (tf.get_variable(name, [size, size], kind, initializer=ones) for name in "ab")
        product = tf.matmul(a, b).op
        session.run(tf.global_variables_initializer())
        best = min(timed(lambda: session.run(product)) for _ in range(30))
    return round(2 * size**3 / best / 1e9, 1)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


# ---------------------------------------------------------------------- drawing, loading, reading


def drawing() -> dict[str, Any]:
    """Captchas drawn and written as PNG a second, and seconds to load 10,000."""
    with tempfile.TemporaryDirectory() as folder:
        train, validation, test = (os.path.join(folder, name) for name in ("train", "validation", "test"))
        config = Config(
            generate_num=(10000, 1, 1), train_folder=train, validation_folder=validation, test_folder=test
        )
        drawn_in = timed(Generate(config).gen_captcha)
        loaded = [timed(lambda: ReadData(config).load_data(config.train_folder)) for _ in range(3)]
    return {"drawn a second": round(10000 / drawn_in), "seconds to load 10,000": round(min(loaded), 2)}


def reading() -> dict[str, Any]:
    """Captchas read a second, many at once, and milliseconds for one alone, by a trained model."""
    with tempfile.TemporaryDirectory() as folder:
        command(folder, "driver.py", "--generate-num", "500", "50", "50", "--epoch", "1")
        return dict(apart(_reading, os.path.join(folder, "checkpoints")))


def _reading(checkpoints: str) -> dict[str, Any]:
    from predict import Predictor

    images, predictor = some_images(), Predictor(checkpoints)
    predictor.read_images(images)
    many = min(timed(lambda: predictor.read_images(images)) for _ in range(10))
    one = statistics.median(timed(functools.partial(predictor.read, each)) for each in images[:500])
    return {"read a second": round(len(images) / many), "ms for one": round(1000 * one, 2)}


def some_images() -> np.ndarray:
    """Drawn captchas, uint8 [1000, H, W]."""
    return np.stack([grey(draw(Config(), "test", index)[1]) for index in range(1000)])


def exported() -> dict[str, Any]:
    """Of each file that export.py writes: kB, ms for one picture and a second's pictures on one core.

    `from start to end` is `python predict.py --model` on one picture, the best of five.
    """
    from export import FORMS

    with tempfile.TemporaryDirectory() as folder:
        command(folder, "driver.py", "--generate-num", "500", "50", "50", "--epoch", "1")
        printed, _ = command(folder, "export.py")
        picture = os.path.join("test", sorted(os.listdir(os.path.join(folder, "test")))[0])
        found = {}
        for form, name in FORMS.items():
            path = os.path.join("exported", name)
            size = re.search(rf"^{re.escape(path)}: (\d+) kB$", printed, re.M)
            found[form] = {"kB": int(size[1]) if size else None}
            found[form] |= apart(_exported, os.path.join(folder, path))
            if form != "saved_model":
                start = functools.partial(command, folder, "predict.py", "--model", path, picture)
                found[form]["from start to end, ms"] = round(1000 * min(timed(start) for _ in range(5)))
        return found


def _exported(path: str) -> dict[str, Any]:
    images, model = some_images(), _model(path)
    model(images[:100])
    many = min(timed(lambda: model(images[:100])) for _ in range(20))
    one = statistics.median(timed(functools.partial(model, each[None])) for each in images[:500])
    return {"ms for one": round(1000 * one, 2), "read a second": round(100 / many)}


def _model(path: str) -> Callable[[np.ndarray], Any]:
    """What an exported file reads with, on one core."""
    from runtime import load_exported
    from session import load_tensorflow

    if not os.path.isdir(path):
        return load_exported(path, threads=1)[1]
    tf = load_tensorflow()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    signature = tf.compat.v2.saved_model.load(path).signatures["serving_default"]
    return lambda images: [each.numpy() for each in signature(pictures=tf.constant(images)).values()]


def readers() -> dict[str, Any]:
    """Captchas read by what can be had trained, and milliseconds for one."""
    config, count = Config(), 1000
    labelled = [draw(config, "test", index) for index in range(count)]
    truth = classes(np.stack([ReadData(config).label2vec(label) for label, _ in labelled]), config)
    found = {}
    for name in shelf.READERS:
        raw, answers, milliseconds = apart(shelf.read, name, [p for _, p in labelled], config)
        found[name] = {
            "tested": count,
            "captchas, as answered": score([spelled(text, config) for text in raw], truth)[1],
            "captchas": score([spelled(text, config) for text in answers], truth)[1],
            "ms": round(milliseconds, 1),
        }
    return found
