"""What is read in an image: the text, how sure it is, and what it might be instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Prediction(NamedTuple):
    """What an image says. Every probability is one among all texts of the lengths allowed."""

    text: str
    confidence: float  # probability of the text
    char_probs: list[float]  # probability of each character
    runner_up: str  # the most probable text with one other character, or of another length
    runner_up_confidence: float

    def as_json(self, name: str, min_confidence: float = 0.0) -> dict[str, Any]:
        """As `predict.py --json` and serve.py answer; an empty text where the confidence is less than that.

        Args:
            name: of the image.
        """
        char_probs = [round(each, 6) for each in self.char_probs]
        return {
            "path": name,
            "text": self.text if self.confidence >= min_confidence else "",
            "confidence": round(self.confidence, 6),
            "char_probs": char_probs,
            "symbols": char_probs,  # the earlier name, for one more release
            "runner_up": {"text": self.runner_up, "confidence": round(self.runner_up_confidence, 6)},
        }


def to_predictions(outputs: Sequence[np.ndarray]) -> list[Prediction]:
    """The outputs of a model, as captcha_cnn.exported_model.load_exported() has them, image by image."""
    text, confidence, char_probs, runner_up, runner_up_confidence = outputs
    texts, runners_up = (
        ["".join(chr(code) for code in codes if code) for codes in each.tolist()]  # 0 past the end
        for each in (text, runner_up)
    )
    columns = (
        texts,
        confidence.tolist(),
        [probs[: len(text)] for probs, text in zip(char_probs.tolist(), texts, strict=True)],
        runners_up,
        runner_up_confidence.tolist(),
    )
    return [Prediction(*row) for row in zip(*columns, strict=True)]
