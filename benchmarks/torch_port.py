"""Our network and recipe in PyTorch, as well as a PyTorch user would write it.

Source: cnn_model.py, captcha_cnn/muon.py and driver.py; compare them line by line. The port has the
same layers in the same order, as many weights, the same loss, optimisers, learning rate, batches,
dropout, augmentation and averaged weights; it decodes for exactly L characters, too. What is its own:
channels_last, bfloat16 by autocast where the CPU multiplies that, fused Adam, dropout that stays what it
is in the first epoch, and padding that is the same on both sides, where TensorFlow's SAME puts an odd
rest at the far side. Muon is written out, as in ours: torch.optim.Muon takes no kernels of convolutions.

PyTorch and TensorFlow in one process fight over the cores: nothing here imports TensorFlow. That is
why the constants below are repeated; a test compares them with ours.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.common import (
    WARM_UP,
    Point,
    endless_batches,
    label_classes,
    load_package,
    score,
    timed_curve,
)
from captcha_cnn.batches import keep_prob
from captcha_cnn.dataset import Dataset
from captcha_cnn.parallel import available_cores
from captcha_cnn.tf_runtime import batch_slices, bfloat16_support
from config import Config

CHANNELS = (1, 2, 4)
STRIDES = ((2, 2), (4, 2), (2, 2))
KERNEL_SIZE = 5
HEAD_WIDTH = 3
BN_EPSILON = 1e-3
EMA_DECAY = 0.999
MOMENTUM = 0.95
MUON_UPDATE_RMS = 0.4


def load_torch() -> Any:
    """PyTorch.

    Raises:
        CaptchaError: it is not installed.
    """
    return load_package("torch", "requirements-torch.txt")


# ---------------------------------------------------------------------- the network


def build(config: Config) -> Any:
    """The layers with weights as nn.ModuleList: convolution and batch norm three times, then the head."""
    nn = load_torch().nn
    layers: list[Any] = []
    widths = [times * config.channels for times in CHANNELS]
    for before, channels, stride in zip((1, *widths[:-1]), widths, STRIDES, strict=True):
        layers.append(nn.Conv2d(before, channels, KERNEL_SIZE, stride, padding=KERNEL_SIZE // 2, bias=False))
        # momentum 1 leaves in the buffers the statistics of the last batch, to be averaged with the weights
        layers.append(nn.BatchNorm2d(channels, eps=BN_EPSILON, momentum=1.0))
    window, side = (config.feature_map_height, HEAD_WIDTH), HEAD_WIDTH // 2
    layers.append(nn.Conv2d(widths[-1], len(config.alphabet) + 1, window, padding=(0, side)))
    for convolution in layers[::2]:
        nn.init.kaiming_normal_(convolution.weight)
    nn.init.zeros_(layers[-1].bias)
    return nn.ModuleList(layers).to(memory_format=load_torch().channels_last)


def forward(network: Any, h: Any, keep_prob: float) -> Any:
    """float32 [B, 1, H, W] to logits [B, K + 1, 1, T]."""
    nn = load_torch().nn.functional
    *layers, head = network
    convolutions, norms = layers[::2], layers[1::2]
    for convolution, norm in zip(convolutions, norms, strict=True):
        last = convolution is convolutions[-1]
        h = nn.relu(batch_norm(convolution(h), norm, 1.0 if last else keep_prob))
    return head(nn.dropout(h, 1 - keep_prob, network.training))


def batch_norm(h: Any, norm: Any, keep_prob: float) -> Any:
    """Batch normalisation; in training, dropout of whole channels, the same for all images of the batch."""
    torch = load_torch()
    kept = torch.nn.functional.dropout(torch.ones_like(norm.weight), 1 - keep_prob, norm.training)
    return torch.nn.functional.batch_norm(
        h,
        norm.running_mean,
        norm.running_var,
        kept * norm.weight,
        kept * norm.bias,
        norm.training,
        norm.momentum,
        norm.eps,
    )


def log_probs_of(network: Any, images: Any, keep_prob: float, bfloat16: bool) -> Any:
    """Log softmax of each time step: uint8 [B, H, W] to float32 [T, B, K + 1]."""
    torch = load_torch()
    x = images.float()
    variance, mean = torch.var_mean(x, (1, 2), correction=0, keepdim=True)
    x = ((x - mean) * torch.rsqrt(variance + 1.0)).unsqueeze(1)  # [B, 1, H, W]
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = forward(network, x.contiguous(memory_format=torch.channels_last), keep_prob)
    return logits.squeeze(2).permute(2, 0, 1).float().log_softmax(2)


def decode(log_probs: np.ndarray, length: int) -> np.ndarray:
    """The characters of the most probable alignment with exactly `length` of them.

    The states are those of captcha_cnn.ctc.ctc_forward, (n, k): n characters so far, class k last. It
    takes the best alignment, where captcha_cnn.ctc.decode adds up all: the answers are the same but
    for images that neither is sure of.

    Args:
        log_probs: float32 [T, B, K + 1].
    Returns:
        int64 [B, L].
    """
    _, images, classes = log_probs.shape
    blank, every = classes - 1, np.arange(images)
    states = np.full((images, length + 1, classes), -np.inf, np.float32)
    states[:, 0, blank] = 0
    not_itself = np.where(np.eye(classes, dtype=bool), -np.inf, 0).astype(np.float32)
    sources = []  # of each time step: the class of the time step before, -1 for the state itself
    for emission in log_probs:
        changes = states[:, :, :, None] + not_itself  # [B, L + 1, from, to]
        source, reached = changes.argmax(axis=2), changes.max(axis=2)
        source[:, 1:, :blank] = source[:, :-1, :blank].copy()
        reached[:, 1:, :blank] = reached[:, :-1, :blank].copy()
        reached[:, 0, :blank] = -np.inf
        stay = states >= reached
        sources.append(np.where(stay, -1, source))
        states = np.where(stay, states, reached) + emission[:, None, :]
    answers = np.zeros((images, length), np.int64)
    count, last = np.full(images, length), states[:, length].argmax(axis=1)
    for source in reversed(sources):
        before = source[every, count, last]
        starts = (before >= 0) & (last != blank)  # at this time step the character begins
        answers[every[starts], count[starts] - 1] = last[starts]
        count, last = count - starts, np.where(before >= 0, before, last)
    return answers


# ---------------------------------------------------------------------- the recipe


def newton_schulz(matrix: Any, bfloat16: bool) -> Any:
    """About the nearest matrix with orthonormal rows: float32 [N, M], N at most M, to the same."""
    x = matrix / (matrix.norm() + 1e-12)
    x = x.bfloat16() if bfloat16 else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.float()


class Training:
    """A network in training: `step()` trains on the next batch, `read` reads with the averaged weights."""

    def __init__(self, train: Dataset, config: Config, compiled: bool) -> None:
        torch = load_torch()
        torch.set_num_threads(available_cores())
        torch.manual_seed(config.seed)
        self.config, self.bfloat16, self.steps = config, bool(bfloat16_support()), 0
        self.keep_prob = keep_prob(config, 0)  # torch.compile would compile anew for each value
        self.network = build(config)
        self.averaged = copy.deepcopy(self.network).eval()
        self.log_probs_of, self.newton_schulz = log_probs_of, newton_schulz
        if compiled:
            self.log_probs_of = torch.compile(log_probs_of, dynamic=False)
            self.newton_schulz = torch.compile(newton_schulz, dynamic=False)
        *convolutions, _ = (layer.weight for layer in self.network if isinstance(layer, torch.nn.Conv2d))
        self.kernels = [(kernel, torch.zeros(len(kernel), kernel[0].numel())) for kernel in convolutions]
        others = [v for v in self.network.parameters() if all(v is not kernel for kernel in convolutions)]
        self.adam = torch.optim.Adam(others, lr=config.alpha, fused=True)
        self.batches = endless_batches(train, config)

    def close(self) -> None:
        """End the thread that makes the batches."""
        self.batches.close()

    def step(self) -> None:
        """Train on the next batch."""
        torch = load_torch()
        _, x, y = next(self.batches)
        labels = torch.from_numpy(label_classes(y, self.config))
        log_probs = self.log_probs_of(self.network, torch.from_numpy(x), self.keep_prob, self.bfloat16)
        time_steps, images, classes = log_probs.shape
        lengths = [time_steps] * images, [self.config.max_length] * images
        loss = torch.nn.functional.ctc_loss(log_probs, labels, *lengths, classes - 1)
        loss.backward()
        self.adam.step()
        self.update_kernels()
        self.network.zero_grad()
        decay = min(EMA_DECAY, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(float_tensors(self.averaged), float_tensors(self.network), 1 - decay)
        self.steps += 1

    def update_kernels(self) -> None:
        """Muon's step, as captcha_cnn.muon.minimize() has it."""
        with load_torch().no_grad():
            for kernel, momentum in self.kernels:
                gradient = kernel.grad.flatten(1)  # [N, M]
                momentum.mul_(MOMENTUM).add_(gradient)
                direction = self.newton_schulz(gradient + MOMENTUM * momentum, self.bfloat16)
                size = MUON_UPDATE_RMS * self.config.alpha * math.sqrt(gradient.shape[1])
                kernel.sub_(size * direction.view_as(kernel))

    def read(self, images: np.ndarray) -> np.ndarray:
        """Read images: uint8 [B, H, W] to the classes of their characters, int64 [B, L]."""
        torch = load_torch()
        with torch.no_grad():
            log_probs = log_probs_of(self.averaged, torch.from_numpy(images), 1.0, self.bfloat16)
        return decode(log_probs.numpy(), self.config.max_length)


def float_tensors(network: Any) -> list[Any]:
    """The weights and statistics of a network, not copied."""
    return [value for value in network.state_dict().values() if value.is_floating_point()]


def curve(
    train: Dataset, test: Dataset, config: Config, at: Sequence[float], compiled: bool = False
) -> Iterator[Point]:
    """Train on `train`; a Point on `test` each time the training clock passes the next of `at`.

    The network is made before the clock starts. With `compiled`, torch.compile works in the first
    step, and again for an epoch's last batch where that is smaller: both are counted.
    """
    truth = label_classes(test.labels[:], config)
    with contextlib.closing(Training(train, config, compiled)) as training:

        def score_now() -> tuple[float, float]:
            parts = [training.read(test.images[part]) for part in batch_slices(len(truth))]
            return score(np.concatenate(parts), truth)

        yield from timed_curve(training.step, score_now, at)


def step_seconds(train: Dataset, config: Config, steps: int, compiled: bool = False) -> list[float]:
    """Seconds of each of so many training steps, batch and averaging included, after a warm-up."""
    with contextlib.closing(Training(train, config, compiled)) as training:
        for _ in range(WARM_UP):
            training.step()
        seconds = []
        for _ in range(steps):
            begin = time.perf_counter()
            training.step()
            seconds.append(time.perf_counter() - begin)
    return seconds
