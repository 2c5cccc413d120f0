"""The optimiser: Muon for the kernels of the convolutions, Adam for everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow.compat.v1 as tf

MOMENTUM = 0.95  # of the kernels' gradients
MUON_UPDATE_RMS = 0.4  # root mean square of a kernel's update, as a share of the learning rate


def minimize(
    gradients: Sequence[Any],
    variables: Sequence[Any],
    kernels: Sequence[Any],
    learning_rate: float,
    step: Any,
) -> Any:
    """An operation that does one step: `kernels` by Muon (Jordan et al. 2024), the others by Adam.

    A kernel is a matrix, from the inputs of a channel to the channels. A few directions dominate its
    gradient; Muon goes equally far in all, so that what few images show is learned as fast as what
    all show. The size of the update follows Liu et al. (2025): about that of Adam.

    Args:
        gradients: of the loss by each variable. variables: all trained ones. kernels: those of them, float32
            [h, w, C, C'], that Muon updates. step: is counted up.
    """
    names = {kernel.op.name for kernel in kernels}
    pairs = list(zip(gradients, variables, strict=True))
    others = [(g, v) for g, v in pairs if v.op.name not in names]
    updates = [tf.train.AdamOptimizer(learning_rate).apply_gradients(others, step)]
    for gradient, kernel in pairs:
        if kernel.op.name not in names:
            continue
        name, zeros = f"{kernel.op.name}/momentum", tf.zeros_initializer()
        momentum = tf.get_variable(name, kernel.shape, initializer=zeros, trainable=False)
        new_momentum = tf.assign(momentum, MOMENTUM * momentum + gradient)
        direction = tf.reshape(gradient + MOMENTUM * new_momentum, [-1, kernel.shape[-1]])  # Nesterov's
        size = MUON_UPDATE_RMS * learning_rate * math.sqrt(int(direction.shape[0]))
        updates.append(tf.assign_sub(kernel, size * tf.reshape(newton_schulz(direction), kernel.shape)))
    return tf.group(*updates)


def newton_schulz(matrix: Any) -> Any:
    """About the nearest matrix with orthonormal columns: float32 [M, N], N at most M, to the same.

    Singular values become 0.7 to 1.2, not 1: five steps of a Newton-Schulz iteration with the
    coefficients of Jordan et al. (2024). It needs matrix products only; a singular value
    decomposition would take longer than the rest of a training step.
    """
    x = matrix / (tf.norm(matrix) + 1e-12)  # of a gradient of 0, the result is 0
    for _ in range(5):
        gram = tf.matmul(x, x, transpose_a=True)  # [N, N]
        x = 3.4445 * x + tf.matmul(x, -4.7750 * gram + 2.0315 * tf.matmul(gram, gram))
    return x
