"""Our network and recipe in PyTorch, as well as a PyTorch user would write it.

Source: cnn_model.py and driver.py; compare them line by line. The twin has the same layers in the
same order, as many weights, the same loss, optimisers, rate, batch, dropout, moves of the pictures
and averaged weights; it reads with the same search for exactly L symbols. Its own: channels_last,
bfloat16 by autocast where the CPU multiplies that, fused Adam, and padding that is the same on both
sides, where TensorFlow's SAME gives an odd rest to the far one. Muon is written out, as in ours:
torch.optim.Muon takes no kernels of convolutions, and its arithmetic is bfloat16 on every CPU.

PyTorch and TensorFlow in one process fight over the cores: nothing here imports TensorFlow. That is
why the constants below are repeated; a test compares them with cnn_model's.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from augment import augment
from benchmarks.common import WARM_UP, Data, Point, batches, classes, follow, missing, score
from config import Config
from generate_captcha import available_cores
from session import has_bfloat16, parts

CHANNELS = (16, 32, 64)
STRIDES = ((2, 2), (4, 2), (2, 2))
KERNEL = 5
NEIGHBOURS = 3
EPSILON = 1e-3
AVERAGE = 0.999
MOMENTUM = 0.95
PACE = 0.4


def load_torch() -> Any:
    """PyTorch.

    Raises:
        CaptchaError: it is not installed.
    """
    try:
        import torch
    except ImportError:
        raise missing("torch", "requirements-torch.txt") from None
    return torch


# ---------------------------------------------------------------------- the network


def build(config: Config) -> Any:
    """The network as nn.Sequential: [B, 1, H, W] to [B, K + 1, 1, T]."""
    torch = load_torch()
    nn = torch.nn
    layers: list[Any] = []
    inputs = (1, *CHANNELS[:-1])
    for before, channels, stride in zip(inputs, CHANNELS, STRIDES, strict=True):
        layers.append(nn.Conv2d(before, channels, KERNEL, stride, padding=KERNEL // 2, bias=False))
        # momentum 1 leaves in the buffers the moments of the last batch, to be averaged with the weights
        layers.append(nn.BatchNorm2d(channels, eps=EPSILON, momentum=1.0))
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Dropout(1 - config.keep_prob))
    window, side = (config.rows, NEIGHBOURS), NEIGHBOURS // 2
    layers.append(nn.Conv2d(CHANNELS[-1], len(config.alphabet) + 1, window, padding=(0, side)))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    nn.init.zeros_(layers[-1].bias)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def log_probabilities(network: Any, images: Any, bfloat16: bool) -> Any:
    """Read pictures: uint8 [B, H, W] to log-probabilities float32 [T, B, K + 1]."""
    torch = load_torch()
    x = images.float()
    variance, mean = torch.var_mean(x, (1, 2), correction=0, keepdim=True)
    x = ((x - mean) * torch.rsqrt(variance + 1.0)).unsqueeze(1)  # [B, 1, H, W]
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        h = network(x.contiguous(memory_format=torch.channels_last))  # [B, K + 1, 1, T]
    return h.squeeze(2).permute(2, 0, 1).float().log_softmax(2)


def decode(log_probs: np.ndarray, length: int) -> np.ndarray:
    """The symbols of the best way through the columns that says exactly `length` of them.

    The states are those of cnn_model.lattice. It chooses the likeliest way, where cnn_model.decode
    adds up all ways: the answers are the same but for pictures of which neither is sure.

    Args:
        log_probs: float32 [T, B, K + 1].
    Returns:
        int64 [B, L].
    """
    _, pictures, classes = log_probs.shape
    blank, every = classes - 1, np.arange(pictures)
    states = np.full((pictures, length + 1, classes), -np.inf, np.float32)
    states[:, 0, blank] = 0
    not_itself = np.where(np.eye(classes, dtype=bool), -np.inf, 0).astype(np.float32)
    sources = []  # of each column: the symbol of the column before, -1 for the state itself
    for column in log_probs:
        ways = states[:, :, :, None] + not_itself  # [B, L + 1, from, to]
        source, reached = ways.argmax(axis=2), ways.max(axis=2)
        source[:, 1:, :blank] = source[:, :-1, :blank].copy()
        reached[:, 1:, :blank] = reached[:, :-1, :blank].copy()
        reached[:, 0, :blank] = -np.inf
        stay = states >= reached
        sources.append(np.where(stay, -1, source))
        states = np.where(stay, states, reached) + column[:, None, :]
    answers = np.zeros((pictures, length), np.int64)
    said, symbol = np.full(pictures, length), states[:, length].argmax(axis=1)
    for source in reversed(sources):
        before = source[every, said, symbol]
        new = (before >= 0) & (symbol != blank)  # this column is the first to say the symbol
        answers[every[new], said[new] - 1] = symbol[new]
        said, symbol = said - new, np.where(before >= 0, before, symbol)
    return answers


# ---------------------------------------------------------------------- the recipe


def orthogonal(matrix: Any) -> Any:
    """About the nearest matrix with orthonormal rows: float32 [N, M], M at least N, to the same."""
    x = matrix / (matrix.norm() + 1e-12)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


class Training:
    """A network in training: `step()` trains on the next batch, `read` reads with the averaged weights."""

    def __init__(self, train: Data, config: Config, seed: int, compiled: bool) -> None:
        torch = load_torch()
        torch.set_num_threads(available_cores())
        torch.manual_seed(seed)
        self.config, self.bfloat16, self.steps = config, has_bfloat16(), 0
        self.train = train
        self.labels = torch.from_numpy(classes(train.labels, config))
        self.network = build(config)
        self.averaged = copy.deepcopy(self.network).eval()
        self.forward, self.orthogonal = log_probabilities, orthogonal
        if compiled:
            self.forward = torch.compile(log_probabilities, dynamic=False)
            self.orthogonal = torch.compile(orthogonal, dynamic=False)
        *convolutions, _ = (layer.weight for layer in self.network if isinstance(layer, torch.nn.Conv2d))
        self.kernels = [(kernel, torch.zeros(len(kernel), kernel[0].numel())) for kernel in convolutions]
        others = [v for v in self.network.parameters() if all(v is not kernel for kernel in convolutions)]
        self.adam = torch.optim.Adam(others, lr=config.alpha, fused=True)
        self.batches = batches(len(train.images), config.batch_size, seed)
        self.random = np.random.default_rng(seed)

    def step(self) -> None:
        """Train on the next batch."""
        torch = load_torch()
        batch = next(self.batches)
        seen = self.steps // math.ceil(len(self.train.images) / self.config.batch_size)  # epochs
        x = torch.from_numpy(augment(self.train.images[batch], self.config, self.random, seen))
        log_probs = self.forward(self.network, x, self.bfloat16)
        columns, pictures, blank = log_probs.shape[0], len(batch), log_probs.shape[2] - 1
        lengths = [columns] * pictures, [self.config.char_num] * pictures
        loss = torch.nn.functional.ctc_loss(log_probs, self.labels[batch], *lengths, blank)
        loss.backward()
        self.adam.step()
        self.move_kernels()
        self.network.zero_grad()
        decay = min(AVERAGE, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(floats(self.averaged), floats(self.network), 1 - decay)
        self.steps += 1

    def move_kernels(self) -> None:
        """Muon's step, as cnn_model.descend() has it."""
        with load_torch().no_grad():
            for kernel, momentum in self.kernels:
                gradient = kernel.grad.flatten(1)  # [N, M]
                momentum.mul_(MOMENTUM).add_(gradient)
                far = PACE * self.config.alpha * math.sqrt(gradient.shape[1])
                kernel.sub_(far * self.orthogonal(gradient + MOMENTUM * momentum).view_as(kernel))

    def read(self, images: np.ndarray) -> np.ndarray:
        """Read pictures: uint8 [B, H, W] to the classes of their symbols, int64 [B, L]."""
        torch = load_torch()
        with torch.no_grad():
            log_probs = log_probabilities(self.averaged, torch.from_numpy(images), self.bfloat16)
        return decode(log_probs.numpy(), self.config.char_num)


def floats(network: Any) -> list[Any]:
    """The weights and moments of a network, as they are and not copied."""
    return [value for value in network.state_dict().values() if value.is_floating_point()]


def curve(
    train: Data, test: Data, config: Config, seed: int, at: Sequence[float], compiled: bool = False
) -> Iterator[Point]:
    """Train on `train`; a Point on `test` each time the training clock passes the next of `at`.

    The network is made before the clock starts. With `compiled`, torch.compile works in the first
    step, and again for an epoch's last batch where that is smaller: both are counted.
    """
    training, truth = Training(train, config, seed, compiled), classes(test.labels, config)

    def score_now() -> tuple[float, float]:
        return score(np.concatenate([training.read(test.images[p]) for p in parts(len(truth))]), truth)

    yield from follow(training.step, score_now, at)


def step_seconds(train: Data, config: Config, steps: int, compiled: bool = False) -> list[float]:
    """Seconds of each of so many training steps, batch and averaging included, after a warm-up."""
    training = Training(train, config, config.seed, compiled)
    for _ in range(WARM_UP):
        training.step()
    seconds = []
    for _ in range(steps):
        begun = time.perf_counter()
        training.step()
        seconds.append(time.perf_counter() - begun)
    return seconds
