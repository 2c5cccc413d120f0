"""Which images a batch has, and the random numbers of each purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

from captcha_cnn.augment import FULL_STRENGTH_EPOCHS, augment, drawn_once, share_of_full_strength
from captcha_cnn.dataset import Dataset
from captcha_cnn.decoded import DecodedImages
from captcha_cnn.tf_runtime import batch_slices
from config import Config

Batch: TypeAlias = tuple[int, np.ndarray, np.ndarray]  # epoch, x and y
NextBatch: TypeAlias = Callable[[Dataset, Config, int, int], Iterator[tuple[np.ndarray, np.ndarray]]]

ORDER, AUGMENTATION, VALIDATION_COPIES, WORKERS = range(4)  # purposes of random numbers


def random_stream(seed: int, purpose: int, *numbers: int) -> np.random.Generator:
    """The random numbers of one purpose, and of one epoch or batch; no other purpose shares them."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, *numbers)))


def batch_starts(count: int, batch_size: int) -> range:
    """Where the batches of an epoch begin; a single last image belongs to the batch before it.

    In a batch of one, batch normalisation would take its statistics from one image.
    """
    starts = range(0, count, batch_size)
    single_last = len(starts) > 1 and batch_size > 1 and starts[-1] == count - 1
    return starts[:-1] if single_last else starts


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Batches of an epoch of so many images."""
    return len(batch_starts(count, batch_size))


def shuffled_batches(count: int, config: Config, epoch: int) -> list[np.ndarray]:
    """The indices of each batch of an epoch, int64 [B]; they depend on (seed, epoch) alone."""
    order = random_stream(config.seed, ORDER, epoch).permutation(count)
    return np.split(order, batch_starts(count, config.batch_size)[1:])


def keep_prob(config: Config, epoch: int) -> float:
    """The share that dropout keeps in that epoch.

    In a fixed set of drawn captchas, all in the first epoch and `config.keep_prob` from the hundredth on:
    images that were seen a few times cannot be known by heart, and dropout would make learning slower.
    """
    if not drawn_once(config):
        return config.keep_prob
    return 1.0 - (1.0 - config.keep_prob) * share_of_full_strength(epoch)


def batches_from(step: int, data: Dataset, config: Config, next_batch: NextBatch) -> Iterator[Batch]:
    """The batches of each step from that one on, to the end of the last epoch.

    Args:
        next_batch: gives the batches of an epoch, from one of them on.
    """
    first_epoch, first = divmod(step, steps_per_epoch(data.size, config.batch_size))
    for epoch in range(first_epoch, config.Epoch):
        for x, y in next_batch(data, config, epoch, first if epoch == first_epoch else 0):
            yield epoch, x, y


def add_augmented_copies(data: Dataset, config: Config) -> Dataset:
    """The images, and a copy of each with full augmentation; always the same.

    Of a few hundred validation images, nearly all are soon read right: then chance would say which
    network is best and when to stop. The copies are harder, and go on telling networks apart. A set
    that is too large for memory has enough images without them.
    """
    if not config.augmented or isinstance(data.images, DecodedImages):
        return data
    random = random_stream(config.seed, VALIDATION_COPIES)
    parts = [data.images[part] for part in batch_slices(len(data.images))]
    copies = [augment(part, config, random, FULL_STRENGTH_EPOCHS) for part in parts]
    return Dataset(np.concatenate([data.images, *copies]), np.concatenate([data.labels] * 2))
