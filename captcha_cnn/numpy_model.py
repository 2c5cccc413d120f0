"""A reader without TensorFlow: the general weights, or those of a training, in NumPy.

The weights of a checkpoint are written into one file, which is read in milliseconds. Only gray images can
be read here, with network ctc.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from captcha_cnn.checkpoint import load_latest
from captcha_cnn.files import atomic_write
from captcha_cnn.general_model import general_weights
from captcha_cnn.images import image_for
from captcha_cnn.labels import image_order
from captcha_cnn.numpy_ctc import PAST_END, decode, text_log_prob
from captcha_cnn.numpy_network import log_probs
from captcha_cnn.tf_runtime import load_tensorflow
from config import CaptchaError, Config, escape_unprintable

INFO = "info"  # the entry of the file that holds settings, as JSON


class Reading(NamedTuple):
    """What a model reads in an image."""

    text: str
    confidence: float  # probability of the text among all texts of the lengths allowed
    char_probs: list[float]  # probability of each character


class NumpyModel:
    """A network in memory. Several threads may use it.

    Args:
        config: the settings that it was trained with. weights: by name.
        labels: how many labelled images it was trained on; 0 for the general weights.
    """

    def __init__(self, config: Config, weights: dict[str, np.ndarray], labels: int = 0) -> None:
        self.config, self.weights, self.labels = config, weights, labels

    def decode_image(self, path: str) -> np.ndarray:
        """An image as the network sees it, uint8 [H, W].

        Raises:
            ImageError: not an image, or damaged.
        """
        return image_for(path, self.config)

    def read(self, images: np.ndarray) -> list[Reading]:
        """What images say, uint8 [N, H, W]."""
        return self._readings(log_probs(images, self.weights))

    def compare(self, images: np.ndarray, labels: list[str]) -> list[tuple[Reading, float]]:
        """What images say, and how much more probable that is than their label: the logarithm of the odds.

        Args:
            images: uint8 [N, H, W]. labels: N texts; infinite odds for one that the model cannot have.
        """
        emissions, alphabet = log_probs(images, self.weights), self.config.alphabet
        readings = self._readings(emissions)
        found = []
        for emission, reading, label in zip(emissions, readings, labels, strict=True):
            texts = [image_order(each, alphabet) for each in (reading.text, label)]
            length = max(map(len, texts))
            classes = [[alphabet.find(c) for c in text.ljust(length)] for text in texts]
            if not set(label) <= set(alphabet):
                found.append((reading, np.inf))
                continue
            rows = np.array(classes).reshape(2, length)  # find() gives PAST_END for the spaces at the end
            text_prob, label_prob = text_log_prob(np.stack([emission] * 2), rows)
            found.append((reading, float(text_prob - label_prob)))
        return found

    def _readings(self, emissions: np.ndarray) -> list[Reading]:
        answers, alphabet = (
            decode(emissions, self.config.min_length, self.config.max_length),
            self.config.alphabet,
        )
        found = []
        for classes, confidence, probs in zip(
            answers.chars, answers.confidence, answers.char_probs, strict=True
        ):
            text = "".join(alphabet[k] for k in classes if k != PAST_END)
            char_probs = probs[: len(text)].tolist()
            ordered = image_order(text, alphabet)
            found.append(
                Reading(ordered, float(confidence), char_probs if ordered == text else char_probs[::-1])
            )
        return found


def general_model(characters: str = "", char_num: int | str = "") -> NumpyModel:
    """The model that comes with the program.

    Args:
        characters, char_num: the only ones that texts may have, as Config has them; all if empty.
    Raises:
        ConfigError: it has no such character or length.
    """
    return NumpyModel(*general_weights(characters, char_num))


def export_checkpoint(folder: str, path: Path, labels: int) -> None:
    """Write the best weights of a checkpoint folder into one file for load_model(). Needs TensorFlow.

    Args:
        labels: how many labelled images they were trained on.
    Raises:
        CaptchaError: there is no checkpoint.
    """
    load_tensorflow()
    saved = load_latest(folder)
    info = json.dumps({"config": saved.config.as_dict(), "labels": labels})
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **saved.weights, **{INFO: np.array(info)})  # type: ignore[arg-type]


def load_model(path: Path) -> NumpyModel:
    """What export_checkpoint() wrote.

    Raises:
        CaptchaError: the file is missing or damaged.
    """
    try:
        with np.load(path) as archive:
            arrays = dict(archive)
        info = json.loads(str(arrays.pop(INFO)))
        return NumpyModel(Config(**info["config"]), arrays, int(info["labels"]))
    except Exception as error:  # zipfile and NumPy raise nearly anything on damaged data
        raise CaptchaError(
            f"{escape_unprintable(path)} must hold a trained model, but cannot be read ({error}): delete it"
        ) from None
