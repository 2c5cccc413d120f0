"""What the training loop needs of a network: the part in which the two networks differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from config import Config


class Head(NamedTuple):
    """A network with its loss and decoder."""

    network: Callable[[Any, Config, Any], Any]  # images, settings, Training or None to logits
    loss: Callable[[Any, Any, int], Any]  # logits, labels and min_length to float32 [B]
    decode: Callable[[Any, int, int], Any]  # logits, L and min_length to captcha_cnn.ctc.Predictions
    label_prob: Callable[[Any, Any, int], Any]  # logits, labels and min_length to float32 [B]
    loss_is_log_prob: bool  # whether the loss is -log p(label) / L
    muon: bool  # whether Muon trains the convolutions; Adam trains everything else
    ema_decay: float  # of the averaged weights
