"""Read captchas with a trained model: `python predict.py captcha.png more/`.

Prints a line per image: path, text and confidence (the probability of the text among all texts of
the lengths allowed), separated by tabs. `--labelled FOLDER` reads a folder whose file names hold the labels,
and says how well.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, overload

import numpy as np
from tqdm import tqdm

from captcha_cnn.checkpoint import list_checkpoints
from captcha_cnn.cli import OneLineErrorParser, parse_number, run_main
from captcha_cnn.dataset import label_classes, labels_in_folder, list_image_files, load_parts
from captcha_cnn.exported_model import SUFFIXES, PredictFn, exported_log_probs, load_exported
from captcha_cnn.general_model import load_general_model
from captcha_cnn.images import MAX_FILE_SIZE, ImageError, ImageSource, image_for
from captcha_cnn.labels import BadFile
from captcha_cnn.metrics import evaluate_predictions
from captcha_cnn.own_sets import read_split
from captcha_cnn.prediction import Prediction, to_predictions
from captcha_cnn.report import MAX_ON_PAGE, text_report, write_html_report
from captcha_cnn.restrict import add_restriction_flags, restrict, restrict_answers
from captcha_cnn.tf_runtime import batch_slices, load_tensorflow, session_config, suppress_stderr
from config import CaptchaError, Config, escape_unprintable


class LoadedModel(NamedTuple):
    """A model in memory. Several threads may use its functions."""

    config: Config
    predict: PredictFn  # as captcha_cnn.exported_model.load_exported() explains it
    loss: Callable[[np.ndarray, np.ndarray], np.ndarray] | None  # of images and classes, int [B, L]


class Predictor:
    """Reads images with a trained model, which brings its settings. Several threads may use it.

    Args:
        path: a checkpoint folder, whose best weights are used; or a file that export.py wrote, which
            needs no TensorFlow; or None for the general weights that come with the program, which need
            none either.
        characters: the only ones that texts may have; all that the model reads if empty.
        char_num: the only lengths that texts may have, such as 4 or "4-5"; all if empty.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = Config.checkpoint_folder,
        characters: str = "",
        char_num: int | str = "",
    ) -> None:
        self.path = None if path is None else os.fspath(path)
        self.characters, self.char_num = characters, char_num
        self._lock = threading.Lock()

    @property
    def config(self) -> Config:
        """The settings that the model was trained with, with the characters and lengths that are read."""
        return self._model.config

    @property
    def _model(self) -> LoadedModel:
        with self._lock:  # one thread loads it
            return self._load

    @functools.cached_property
    def _load(self) -> LoadedModel:
        if self.path is None:
            return LoadedModel(*load_general_model(self.characters, self.char_num), None)
        if self.path.endswith(SUFFIXES) or os.path.isfile(self.path):
            config, predict = load_exported(self.path)
            if self.characters or self.char_num:
                config, predict = restrict_answers(
                    config, exported_log_probs(predict), self.characters, self.char_num
                )
            return LoadedModel(config, predict, None)
        return load_checkpoint_model(self.path, self.characters, self.char_num)

    @overload
    def read(self, images: ImageSource) -> Prediction: ...
    @overload
    def read(self, images: list[ImageSource] | tuple[ImageSource, ...]) -> list[Prediction]: ...
    def read(
        self, images: ImageSource | list[ImageSource] | tuple[ImageSource, ...]
    ) -> Prediction | list[Prediction]:
        """What an image says, or each of a list or tuple of them.

        Args:
            images: a path, the bytes of a file, a PIL image, an array (uint8 [H, W], [H, W, 3] or
                [H, W, 4]), or a list or tuple of such.
        Raises:
            ImageError: not an image, or not one that the model takes: one of its size, unless it was
                trained with --images; says which of a list.
        """
        if not isinstance(images, list | tuple):
            return self.read_arrays(image_for(images, self.config)[None])[0]
        predictions = []
        for part in batch_slices(len(images)):
            arrays = []
            for i, image in enumerate(images[part], part.start):
                try:
                    arrays.append(image_for(image, self.config))
                except ImageError as error:
                    raise ImageError(error.category, f"image {i} of the list: {error}") from None
            predictions += self.read_arrays(np.stack(arrays))
        return predictions

    def read_arrays(self, images: np.ndarray) -> list[Prediction]:
        """What images say that are as the model sees them: uint8 [N, H, W], or [N, H, W, 3] in colour."""
        predict = self._model.predict
        return [each for part in batch_slices(len(images)) for each in to_predictions(predict(images[part]))]

    def loss(self, images: np.ndarray, labels: Sequence[str]) -> float | None:
        """The mean loss of these labels, as in training; an exported model has none.

        Args:
            images: as read_arrays() takes them.
        """
        loss_fn = self._model.loss
        if loss_fn is None:
            return None
        classes = label_classes(labels, self.config)
        losses = [loss_fn(images[part], classes[part]) for part in batch_slices(len(images))]
        return float(np.concatenate(losses).mean(dtype=np.float64))


def load_checkpoint_model(folder: str, characters: str = "", char_num: int | str = "") -> LoadedModel:
    """The newest model of a checkpoint folder, in a graph and session of its own, on the CPU.

    Args:
        characters, char_num: as Predictor has them.
    """
    tf = load_tensorflow()
    from captcha_cnn.checkpoint import load_latest
    from captcha_cnn.ctc import to_text
    from cnn_model import build_inference_graph

    saved = load_latest(folder)
    config, weights = restrict(saved.config, saved.weights, characters, char_num)
    with tf.Graph().as_default():
        x, labels, loss, predictions, _ = build_inference_graph(config, weights)
        outputs = to_text(predictions, config, strings=False)
        with suppress_stderr():  # TensorFlow remarks on missing GPUs, and with the first prediction on itself
            session = tf.Session(config=session_config())
            predict = session.make_callable([*outputs], [x])
            predict(np.zeros([1, *config.image_shape], np.uint8))
        return LoadedModel(config, predict, session.make_callable(loss, [x, labels]))


def main(arguments: Sequence[str]) -> int:
    """Read the images and folders named, or evaluate a labelled folder; 1 where a file failed."""
    parser = OneLineErrorParser("Read captchas with a trained model, or with the general weights.")
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="an image, a folder of them, or - for one on standard input"
    )
    parser.add_argument(
        "--checkpoint-folder",
        metavar="FOLDER",
        help=f"folder of the model (default: {Config.checkpoint_folder}, or the general weights where "
        "there is none)",
    )
    parser.add_argument("--model", metavar="FILE", help="a file that export.py wrote, to read with instead")
    parser.add_argument("--json", action="store_true", help="print a JSON object per line")
    parser.add_argument(
        "--min-confidence",
        type=parse_number(float),
        default=0.0,
        metavar="X",
        help="print an empty text where the confidence is less, from 0 to 1 (default: 0)",
    )
    add_restriction_flags(parser)
    text = "read a labelled folder and say how well; of a model's own --images, only the test images"
    parser.add_argument("--labelled", metavar="FOLDER", help=text)
    parser.add_argument("--labels", metavar="FILE", help="file that names the labels of --labelled")
    parser.add_argument("--report", metavar="FOLDER", help="also write what --labelled says as an HTML page")
    options = parser.parse_args(arguments)
    if bool(options.paths) == bool(options.labelled):
        parser.error("name images to read, or a folder with --labelled, and not both")
    for name in ("report", "labels"):
        if getattr(options, name) and not options.labelled:
            parser.error(f"--{name} needs --labelled FOLDER")
    minimum = options.min_confidence
    if not isinstance(minimum, float) or not 0 <= minimum <= 1:
        parser.error(f"--min-confidence must be a number from 0 to 1, not {minimum!r}")
    path = options.model or options.checkpoint_folder or default_model()
    predictor = Predictor(path, options.characters, options.char_num)
    if options.labelled:
        return evaluate_folder(predictor, options.labelled, options.report, options.labels or "")
    return read_paths(predictor, options.paths, minimum, options.json)


def default_model() -> str | None:
    """The folder that a training writes to; None, after a remark, where no training has done so yet."""
    if list_checkpoints(Config.checkpoint_folder):
        return Config.checkpoint_folder
    print(
        f"{Config.checkpoint_folder} holds no model yet, so the general weights are used. A model of your "
        "captchas reads better; train one: python driver.py --images FOLDER",
        file=sys.stderr,
        flush=True,
    )
    return None


def read_paths(predictor: Predictor, paths: Iterable[str], min_confidence: float, as_json: bool) -> int:
    """Print what each image says, in their order; 1 where one could not be read."""
    config = predictor.config
    all_paths, failed = [], 0
    for path in paths:
        found = image_paths(path)
        if not found:
            print(f"{escape_unprintable(path)}: a folder without images", file=sys.stderr)
            failed += 1
        all_paths += found
    # A bar only where the lines go elsewhere: they show the progress themselves.
    hidden = sys.stdout.isatty() or None
    with tqdm(total=len(all_paths), desc="Reading", unit=" images", disable=hidden, leave=False) as bar:
        for part in batch_slices(len(all_paths)):
            names, images = [], []
            for path in all_paths[part]:
                try:
                    source = sys.stdin.buffer.read(MAX_FILE_SIZE) if path == "-" else path
                    images.append(image_for(source, config))
                    names.append(path)
                except ImageError as error:
                    tqdm.write(f"{escape_unprintable(path)}: {error}", file=sys.stderr)
                    failed += 1
            if images:
                for name, prediction in zip(names, predictor.read_arrays(np.stack(images)), strict=True):
                    print(format_prediction(name, prediction, min_confidence, as_json))
                sys.stdout.flush()
            bar.update(len(all_paths[part]))
    return 1 if failed else 0


def format_prediction(name: str, prediction: Prediction, min_confidence: float, as_json: bool) -> str:
    """What is printed for an image; an empty text where the confidence is less than that."""
    values = prediction.as_json(name, min_confidence)
    if not as_json:
        return f"{escape_unprintable(name)}\t{values['text']}\t{prediction.confidence:.4f}"
    return json.dumps(values, ensure_ascii=False)


def image_paths(path: str) -> list[str]:
    """The path itself, or the files of the folder that it is, in the order of their names."""
    return [os.path.join(path, name) for name in list_image_files(path)] if os.path.isdir(path) else [path]


def labels_to_evaluate(
    predictor: Predictor, folder: str, labels_file: str
) -> tuple[dict[str, str], list[BadFile]]:
    """The labels of a folder, and files without one; only test images of the one that the model has learned.

    Raises:
        CaptchaError: no such folder, or one all of whose images were trained on.
    """
    config, shown = predictor.config, escape_unprintable(folder)
    model = predictor.path
    split = read_split(model) if config.images and model and os.path.isdir(model) else None
    if not split or os.path.realpath(split.images) != os.path.realpath(folder):
        return labels_in_folder(folder, config, labels_file)
    names, bad = labels_in_folder(folder, config, labels_file or split.labels)
    chosen = {name: names[name] for name in split.sets["test"] if name in names}
    if not chosen:
        raise CaptchaError(
            f"{shown} must hold test images, but the model was trained on all of it (readings.csv beside it "
            "says what cross-validation read): name another folder, such as "
            f"{escape_unprintable(config.test_folder)}, with --labelled"
        )
    total = sum(map(len, split.sets.values()))
    print(f"{shown}: the {len(chosen):,} test images of {total:,} are read; the others were trained on")
    return chosen, [each for each in bad if each.name in split.sets["test"]]


def evaluate_folder(
    predictor: Predictor, folder: str, report_folder: str | None, labels_file: str = ""
) -> int:
    """Read a labelled folder and print how well; also write it as a page where asked for."""
    names_and_labels, bad = labels_to_evaluate(predictor, folder, labels_file)
    labels, texts, confidences, names = list[str](), list[str](), list[float](), list[str]()
    losses: list[float] = []  # the sum of each part; none of an exported model
    for images, part_labels, part_names in load_parts(folder, names_and_labels, bad, predictor.config):
        predictions = predictor.read_arrays(images)
        texts += [prediction.text for prediction in predictions]
        confidences += [prediction.confidence for prediction in predictions]
        if part_labels and (loss := predictor.loss(images, part_labels)) is not None:
            losses.append(loss * len(images))
        labels += part_labels
        names += part_names
    report = evaluate_predictions(labels, texts, confidences, sum(losses) / len(labels) if losses else None)
    print(text_report(report, names), flush=True)
    if report_folder:
        paths = [os.path.join(folder, names[each.position]) for each in report.mistakes[:MAX_ON_PAGE]]
        wrong = [image_for(path, predictor.config) for path in paths]
        try:
            page = write_html_report(report_folder, report, wrong, names, f"Reading {folder}")
        except OSError as error:
            raise CaptchaError(
                f"{escape_unprintable(report_folder)} could not be written to ({error.strerror or error}): "
                "make room there, or name another folder with --report"
            ) from error
        print(f"Page: {escape_unprintable(page)}")
    return 1 if len(names) < len(names_and_labels) + len(bad) else 0


if __name__ == "__main__":
    run_main(main)
