"""Weights that float16 holds exactly: what is tested is then what small exported files hold, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from captcha_cnn.numpy_network import BN_EPSILON

MIN_FLOAT16_SIZE = 1000  # values of a constant from which on an ONNX file stores it in float16
BN_NAMES = ("gamma", "beta", "mean", "variance")


def fold_bn_to_float16(weights: dict[str, Any]) -> dict[str, Any]:
    """The same network without batch normalisation, its weights rounded to float16.

    Batch normalisation is a scale and an offset per channel in inference: the scale is multiplied
    into the kernel before it, and the offset is left as beta, as all converters do it.

    Args:
        weights: float32 tensors by name. The same names are returned.
    """
    folded = dict(weights)
    for name, kernel in weights.items():
        scope = name.removesuffix("kernel")
        if not name.endswith("kernel") or f"{scope}gamma" not in weights:
            continue
        gamma, beta, mean, variance = (weights[f"{scope}{each}"] for each in BN_NAMES)
        scale = gamma * tf.rsqrt(variance + BN_EPSILON)
        identity = (
            tf.ones_like(gamma),
            beta - mean * scale,
            tf.zeros_like(mean),
            tf.ones_like(variance) - BN_EPSILON,
        )
        folded |= {f"{scope}{each}": value for each, value in zip(BN_NAMES, identity, strict=True)}
        folded[name] = kernel * scale
    return {
        name: value if name.endswith("variance") else tf.cast(tf.cast(value, tf.float16), tf.float32)
        for name, value in folded.items()
    }


def as_exact_float16(values: np.ndarray) -> np.ndarray | None:
    """A large float32 constant in float16; None where it is small, or float16 cannot hold it exactly."""
    if values.size < MIN_FLOAT16_SIZE:
        return None
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half, values) else None
