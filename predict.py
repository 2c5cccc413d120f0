"""Read captchas with a trained model: `python predict.py captcha.png more/`.

Prints a line a picture: path, text and confidence (the probability of the text among all texts of
its length), separated by tabs. `--labelled FOLDER` reads a folder whose names hold the labels, and
says how well.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from tqdm import tqdm

from config import CaptchaError, Config, Parser, number, printable, run
from generate_captcha import LARGEST_FILE, Picture, PictureError, ReadData, visible_names
from judge import ON_PAGE, judge, report, write_page
from runtime import SUFFIXES, Model, load_exported
from session import Saved, load, load_tensorflow, parts


class Reading(NamedTuple):
    """What a picture says. Every probability is one among all texts of that length."""

    text: str
    confidence: float  # probability of the text
    symbols: list[float]  # probability of each symbol
    runner_up: str  # the likeliest text that differs in one symbol
    runner_up_confidence: float


class Predictor:
    """Reads pictures with a trained model, which brings its settings.

    Args:
        path: a checkpoint folder, whose best weights read; or a file that export.py wrote, which needs
            no TensorFlow.
    """

    def __init__(self, path: str = Config.checkpoint_folder) -> None:
        self.path = path

    @functools.cached_property
    def _saved(self) -> Saved:
        load_tensorflow()
        return load(self.path)

    @functools.cached_property
    def _exported(self) -> tuple[dict[str, Any], Model] | None:
        is_file = self.path.endswith(SUFFIXES) or os.path.isfile(self.path)
        return load_exported(self.path) if is_file else None

    @property
    def config(self) -> Config:
        """The settings that the model was trained with."""
        return Config(**self._exported[0]) if self._exported else self._saved.config

    @functools.cached_property
    def _reader(self) -> ReadData:
        return ReadData(self.config)

    @functools.cached_property
    def _models(self) -> tuple[Model, Callable[..., np.ndarray] | None]:
        """What reads pictures, as load_exported() explains it, and what loss() calls, where there is one."""
        if self._exported:
            return self._exported[1], None
        tf = load_tensorflow()
        from cnn_model import ctc_loss, frozen, spelled

        config = self.config
        with tf.Graph().as_default():
            x, logits, answers = frozen(config, self._saved.weights)
            labels = tf.placeholder(tf.int32, [None, config.char_num])
            loss = ctc_loss(logits, labels)
            session = tf.Session()
            said = spelled(answers, config, strings=False)
            return session.make_callable([*said], [x]), session.make_callable(loss, [x, labels])

    @overload
    def read(self, pictures: Picture) -> Reading: ...
    @overload
    def read(self, pictures: list[Picture]) -> list[Reading]: ...
    def read(self, pictures: Picture | list[Picture]) -> Reading | list[Reading]:
        """What a picture says, or each of a list of them.

        Args:
            pictures: a path, the bytes of a file, a PIL picture, an array (uint8 [H, W], [H, W, 3] or
                [H, W, 4]), or a list of such.
        Raises:
            PictureError: what is no picture of the model's size; says which of a list.
        """
        if not isinstance(pictures, list):
            return self.read_images(self._reader.read_picture(pictures)[None])[0]
        readings = []
        for part in parts(len(pictures)):
            images = []
            for i, picture in enumerate(pictures[part], part.start):
                try:
                    images.append(self._reader.read_picture(picture))
                except PictureError as error:
                    raise PictureError(error.kind, f"picture {i} of the list: {error}") from None
            readings += self.read_images(np.stack(images))
        return readings

    def read_images(self, images: np.ndarray) -> list[Reading]:
        """What grey pictures of the model's size say, uint8 [N, H, W]."""
        read, _ = self._models
        readings = []
        for part in parts(len(images)):
            text, confidence, each, runner_up, runner_up_confidence = read(images[part])
            columns = (
                ["".join(map(chr, codes)) for codes in text.tolist()],
                confidence.tolist(),
                each.tolist(),
                ["".join(map(chr, codes)) for codes in runner_up.tolist()],
                runner_up_confidence.tolist(),
            )
            readings += [Reading(*row) for row in zip(*columns, strict=True)]
        return readings

    def loss(self, images: np.ndarray, labels: Sequence[str]) -> float | None:
        """The mean loss of these labels, nats a symbol, as in training; an exported model has none."""
        _, weigh = self._models
        if weigh is None:
            return None
        classes = np.array([[self.config.alphabet.index(symbol) for symbol in label] for label in labels])
        found = [weigh(images[part], classes[part]) for part in parts(len(images))]
        return float(np.concatenate(found).mean(dtype=np.float64))


def main(arguments: Sequence[str]) -> int:
    """Read the pictures and folders named, or judge a labelled folder; 1 where a file could not be read."""
    parser = Parser("Read captchas with a trained model.")
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="a picture, a folder of them, or - for one on standard input"
    )
    parser.add_argument(
        "--checkpoint-folder",
        default=Config.checkpoint_folder,
        metavar="FOLDER",
        help="folder of the model (default: %(default)s)",
    )
    parser.add_argument("--model", metavar="FILE", help="a file that export.py wrote, to read with instead")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    parser.add_argument(
        "--min-confidence",
        type=number(float),
        default=0.0,
        metavar="X",
        help="print an empty text where the confidence is less, from 0 to 1 (default: 0)",
    )
    parser.add_argument(
        "--labelled", metavar="FOLDER", help="read a folder whose names hold the labels, and say how well"
    )
    parser.add_argument("--report", metavar="FOLDER", help="write what --labelled says as a page, too")
    options = parser.parse_args(arguments)
    if bool(options.paths) == bool(options.labelled):
        parser.error("there must be pictures to read, or a folder with --labelled, and not both")
    if options.report and not options.labelled:
        parser.error("--report needs --labelled FOLDER")
    least = options.min_confidence
    if not isinstance(least, float) or not 0 <= least <= 1:
        parser.error(f"--min-confidence must be a number from 0 to 1, not {least!r}")
    predictor = Predictor(options.model or options.checkpoint_folder)
    if options.labelled:
        return judge_folder(predictor, options.labelled, options.report)
    return read_paths(predictor, options.paths, least, options.json)


def read_paths(predictor: Predictor, paths: Iterable[str], least: float, as_json: bool) -> int:
    """Print what each picture says, in their order; 1 where one could not be read."""
    reader = ReadData(predictor.config)
    every, failed = [], 0
    for path in paths:
        found = pictures(path)
        if not found:
            print(f"{printable(path)}: a folder without pictures", file=sys.stderr)
            failed += 1
        every += found
    # A bar only where the lines go elsewhere: they show the progress themselves.
    with tqdm(
        total=len(every), desc="Reading", unit=" pictures", disable=sys.stdout.isatty() or None, leave=False
    ) as bar:
        for part in parts(len(every)):
            names, images = [], []
            for path in every[part]:
                try:
                    picture = sys.stdin.buffer.read(LARGEST_FILE) if path == "-" else path
                    images.append(reader.read_picture(picture))
                    names.append(path)
                except PictureError as error:
                    tqdm.write(f"{printable(path)}: {error}", file=sys.stderr)
                    failed += 1
            if images:
                for name, reading in zip(names, predictor.read_images(np.stack(images)), strict=True):
                    print(line(name, reading, least, as_json))
                sys.stdout.flush()
            bar.update(len(every[part]))
    return 1 if failed else 0


def line(name: str, reading: Reading, least: float, as_json: bool) -> str:
    """What is printed for a picture; an empty text where it is less sure than that."""
    text = reading.text if reading.confidence >= least else ""
    if not as_json:
        return f"{printable(name)}\t{text}\t{reading.confidence:.4f}"
    values = {
        "path": name,
        "text": text,
        "confidence": round(reading.confidence, 6),
        "symbols": [round(each, 6) for each in reading.symbols],
        "runner_up": {"text": reading.runner_up, "confidence": round(reading.runner_up_confidence, 6)},
    }
    return json.dumps(values, ensure_ascii=False)


def pictures(path: str) -> list[str]:
    """The path itself, or the files of the folder that it is, in name order."""
    return [os.path.join(path, name) for name in visible_names(path)] if os.path.isdir(path) else [path]


def judge_folder(predictor: Predictor, folder: str, page_folder: str | None) -> int:
    """Read a labelled folder and print how well; write it as a page where asked for."""
    images, labels, names = ReadData(predictor.config).load_named(folder)
    readings = predictor.read_images(images)
    judged = judge(
        labels,
        [reading.text for reading in readings],
        [reading.confidence for reading in readings],
        predictor.loss(images, labels),
        predictor.config.alphabet,
    )
    print(report(judged, names), flush=True)
    if page_folder:
        wrong = [images[mistake.place] for mistake in judged.mistakes[:ON_PAGE]]
        try:
            page = write_page(page_folder, judged, wrong, names, f"Reading {folder}")
        except OSError as error:
            raise CaptchaError(
                f"{printable(page_folder)} could not be written to ({error.strerror or error}): make room "
                "there, or name another folder with --report"
            ) from error
        print(f"Page: {printable(str(page))}")
    return 1 if len(names) < len(visible_names(folder)) else 0


if __name__ == "__main__":
    run(main)
