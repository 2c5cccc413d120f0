"""The network of cnn_model.py in NumPy, for reading without TensorFlow.

Importing TensorFlow takes seconds; reading one image this way takes milliseconds. Images are read by it
before anything is trained (captcha_cnn/general_model.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

BN_EPSILON = 1e-3  # of batch normalisation, here and in TensorFlow's graphs


def log_probs(images: np.ndarray, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """Log softmax of each time step: uint8 [B, H, W] to float64 [B, T, K + 1].

    Args:
        weights: of network ctc, by name, as cnn_model.CNN has them in `weights`.
    """
    h = standardize(images)
    for name in sorted(weights):
        if name.startswith("conv") and name.endswith("/kernel"):  # conv2_4x2/kernel says its stride
            scope = name.removesuffix("kernel")
            stride = tuple(map(int, scope.rpartition("_")[2].strip("/").split("x")))
            h = normalized(convolve(pad_same(h, stride), weights[name], stride), weights, scope)
    if "dense/kernel" in weights:
        h = normalized(merge_rows(h, weights["dense/kernel"]), weights, "dense/")
    logits = merge_rows(h, weights["ctc_head/kernel"])[:, 0] + weights["ctc_head/bias"]
    calibrated = logits.astype(np.float64) * float(weights["inverse_temperature"])
    top = calibrated.max(axis=2, keepdims=True)
    result: np.ndarray = calibrated - top - np.log(np.exp(calibrated - top).sum(axis=2, keepdims=True))
    return result


def standardize(images: np.ndarray) -> np.ndarray:
    """Each image with mean 0 and standard deviation 1: [B, H, W] to float32 [B, H, W, 1]."""
    x = images.astype(np.float32)
    mean, variance = (f(x, axis=(1, 2), keepdims=True) for f in (np.mean, np.var))
    scaled: np.ndarray = (x - mean) / np.sqrt(variance + 1.0)
    return scaled[..., None]


def pad_same(h: np.ndarray, stride: tuple[int, ...], size: int = 5) -> np.ndarray:
    """Zeros around a feature map [B, H, W, C], as TensorFlow's padding SAME puts them."""
    sides = []
    for length, step in zip(h.shape[1:3], stride, strict=True):
        total = max(0, (-(-length // step) - 1) * step + size - length)
        sides.append((total // 2, total - total // 2))
    return np.pad(h, ((0, 0), *sides, (0, 0)))


def convolve(h: np.ndarray, kernel: np.ndarray, stride: tuple[int, ...] = (1, 1)) -> np.ndarray:
    """Convolution without padding: [B, rows, columns, C] to the same with other numbers.

    Args:
        kernel: float32 [rows, columns, C, outputs].
    """
    down, across = stride
    windows = np.lib.stride_tricks.sliding_window_view(h, kernel.shape[:2], axis=(1, 2))
    return np.tensordot(windows[:, ::down, ::across], kernel, axes=([4, 5, 3], [0, 1, 2]))


def normalized(h: np.ndarray, weights: Mapping[str, np.ndarray], scope: str) -> np.ndarray:
    """Batch normalisation by the moving statistics, and ReLU."""
    names = ("gamma", "beta", "mean", "variance")
    gamma, beta, mean, variance = (weights[f"{scope}{name}"] for name in names)
    result: np.ndarray = np.maximum((h - mean) * (gamma / np.sqrt(variance + BN_EPSILON)) + beta, 0.0)
    return result


def merge_rows(h: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """All rows of some columns to values of their middle one: [B, rows, T, C] to [B, 1, T, outputs]."""
    side = kernel.shape[1] // 2
    return convolve(np.pad(h, ((0, 0), (0, 0), (side, side), (0, 0))), kernel)
