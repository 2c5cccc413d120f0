"""Self-training: images without labels are trained on with what the model reads in them.

After the training on labelled images come rounds. In each, the model reads the unlabelled images, and
those that it reads with confidence are half of every batch; the labelled images are the other half, so
that each of them weighs more (Lee 2013, Pseudo-Label; Xie et al. 2020, Noisy Student). Validation uses
labelled images alone, and the weights with the best validation are kept: a round that does not help
changes nothing, and is the last.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np

from captcha_cnn import plateau
from captcha_cnn.augment import FULL_STRENGTH_EPOCHS
from captcha_cnn.batches import Batch, NextBatch, batches_from, steps_per_epoch
from captcha_cnn.calibration import calibrate, set_temperature
from captcha_cnn.checkpoint import TrainState
from captcha_cnn.dataset import Dataset, label_vectors, no_images, report_left_out
from captcha_cnn.decoded import decode_files
from captcha_cnn.labels import LABELS_FILES, BadFile, image_order, list_files
from captcha_cnn.parallel import parallel_map
from captcha_cnn.progress import log
from captcha_cnn.tf_runtime import batch_slices
from config import CaptchaError, Config, escape_unprintable

ROUNDS = 3  # at most
ROUND_STEPS = 200
MIN_CONFIDENCE = 0.5  # of a text that is trained on
MAX_IMAGES = 20_000  # that are read; about 10 kB of memory each, in colour 30 kB
SERIAL_LIMIT = 1000  # images that one process decodes before others have started to help


class Unlabelled(NamedTuple):
    """The unlabelled images of a run."""

    images: np.ndarray  # uint8 [N, H, W]
    paths: list[str]  # inside the folder


# ---------------------------------------------------------------------- loading


def load_unlabelled(config: Config, labelled: Sequence[Dataset]) -> Unlabelled:
    """The images of the folder `config.unlabelled`, without copies and without those that have labels.

    Raises:
        CaptchaError: none is left.
    """
    paths = [path for path in list_files(config.unlabelled) if path not in LABELS_FILES]
    shown = escape_unprintable(config.unlabelled)
    if len(paths) > MAX_IMAGES:
        print(f"{shown}: the first {MAX_IMAGES:,} of {len(paths):,} images are used", flush=True)
    seen = {sha256(image.tobytes()).digest() for data in labelled for image in data.images}
    images, kept, bad, known = [], [], [], 0
    for path, image in _decode_all(config, paths[:MAX_IMAGES]):
        if isinstance(image, BadFile):
            bad.append(image)
        elif (digest := sha256(image.tobytes()).digest()) in seen:
            known += 1
        else:
            seen.add(digest)
            images.append(image)
            kept.append(path)
    report_left_out(config.unlabelled, bad, len(paths))
    if not images:
        found = f"all {known} are labelled already" if known else "holds none"
        raise CaptchaError(
            f"{shown} must hold images without labels, but {found}: name another folder with --unlabelled, "
            "or leave it out"
        )
    print(f"{shown}: {len(images)} images without labels; {known} others are labelled or copies", flush=True)
    return Unlabelled(np.stack(images), kept)


def _decode_all(config: Config, paths: Sequence[str]) -> Iterator[tuple[str, np.ndarray | BadFile]]:
    work = functools.partial(decode_files, config.unlabelled, config)
    title = f"Loading {escape_unprintable(config.unlabelled)}"
    decoded = itertools.chain.from_iterable(parallel_map(work, list(paths), title, SERIAL_LIMIT))
    return zip(paths, decoded, strict=True)


# ---------------------------------------------------------------------- rounds


def round_is_due(state: TrainState, config: Config, rounds: int) -> bool:
    """Whether a round is to come: the model has learned something, and the last round has helped.

    Args:
        rounds: at most so many.
    """
    if not config.unlabelled or state.round >= rounds:
        return False
    if config.fixed_length and (state.round or not config.images):
        return state.round == 0 or any(state.own_labels)
    if plateau.on_plateau(state.best, config):
        return False
    return state.round == 0 or state.best_step > state.round_from


def read_labels(
    session: Any, model: Any, unlabelled: np.ndarray, calibration: Dataset | float, config: Config
) -> list[str]:
    """What the model reads in unlabelled images, in the order of the image; empty where it is unsure.

    Args:
        model: cnn_model.CNN. unlabelled: uint8 [N, H, W].
        calibration: for captcha_cnn.calibration.calibrate().
    """
    texts = []
    try:
        calibrate(session, model, calibration)
        for part in batch_slices(len(unlabelled)):
            fetches = [model.predictions.chars, model.predictions.confidence]
            chars, confidences = session.run(fetches, {model.x: unlabelled[part]})
            for classes, confidence in zip(chars.tolist(), confidences.tolist(), strict=True):
                text = "".join(config.alphabet[k] for k in classes if k >= 0)
                texts.append(text if confidence >= MIN_CONFIDENCE else "")
    finally:  # an interrupted run is saved as it was
        set_temperature(session, model, 1.0)
    return texts


def start_round(state: TrainState, labels: list[str], config: Config) -> str:
    """Note that a round begins with these labels; what is said about it.

    Raises:
        CaptchaError: no image is labelled by anyone.
    """
    count, sure = sum(map(bool, labels)), f"read with a confidence of at least {MIN_CONFIDENCE:.0%}"
    if not count and not config.images:
        raise CaptchaError(
            f"{escape_unprintable(config.unlabelled)} must hold images that the initial weights can read, "
            f"but none is {sure}: label some, and name them with --images"
        )
    state.round, state.round_from, state.own_labels = state.round + 1, state.step, labels
    if not count:
        return f"Self-training ends: none of {len(labels):,} images without labels is {sure}"
    return (
        f"Self-training, round {state.round}: {count:,} of {len(labels):,} images without labels are {sure}, "
        f"and join for {ROUND_STEPS} steps"
    )


def log_summary(state: TrainState, config: Config) -> None:
    """Say whether the rounds have helped, where there were any."""
    first = state.round_from - ROUND_STEPS * (state.round - 1)
    if not any(state.own_labels) or config.fixed_length:  # there, cross-validation says it
        return
    if state.best_step <= first:
        log("Self-training did not help: the weights before it are kept, whose validation result is the best")
    else:
        log(f"Self-training helped: the best weights are {state.best_step - first} steps after its beginning")


def steps_left(state: TrainState, config: Config, total: int, rounds: int, models_left: int) -> int:
    """Steps until this round ends, or the training on labelled images, as plateau.steps_left() says.

    Where their number is fixed, those of all rounds and of the models to come are counted.

    Args:
        total: steps of all epochs on the training images.
    """
    if config.fixed_length:
        steps_of_model = total + rounds * ROUND_STEPS * bool(config.unlabelled)
        return (1 + models_left) * steps_of_model - state.step
    if state.round:
        return state.round_from + ROUND_STEPS - state.step
    return plateau.steps_left(state, config, total)


def scheduled_batches(
    state: TrainState,
    sets: tuple[Dataset, np.ndarray | None],
    config: Config,
    next_batch: NextBatch,
) -> Iterator[Batch]:
    """The batches from the present step on: those of a round, or of the training on labelled images.

    Args:
        sets: the labelled images, of which there may be none, and the unlabelled ones, uint8 [N, H, W].
    """
    train, unlabelled = sets
    if state.round:
        own = own_labelled(state, unlabelled, config)
        return mixed_batches(state, [each for each in (train, own) if len(each.images)], config, next_batch)
    if not train.size:
        return iter(())
    return plateau.scheduled_batches(state, train, config, next_batch)


def own_labelled(state: TrainState, unlabelled: np.ndarray | None, config: Config) -> Dataset:
    """The unlabelled images that the model has labelled, and these labels.

    Args:
        unlabelled: uint8 [N, H, W].
    """
    chosen = [i for i, text in enumerate(state.own_labels) if text]
    if unlabelled is None or not chosen:
        return no_images(config)
    texts = [image_order(state.own_labels[i], config.alphabet) for i in chosen]
    return Dataset(unlabelled[chosen], label_vectors(texts, config))


def mixed_batches(
    state: TrainState,
    sets: Sequence[Dataset],
    config: Config,
    next_batch: NextBatch,
) -> Iterator[Batch]:
    """The batches of a round from the present step on: of two sets, half of each is from the first."""
    half = replace(config, batch_size=max(1, config.batch_size // len(sets)), Epoch=10**9)
    done = state.step - state.round_from
    halves = [
        batches_from(
            done + FULL_STRENGTH_EPOCHS * steps_per_epoch(len(data.images), half.batch_size),
            data,
            replace(half, seed=(config.seed + number) % 2**31),  # each has random numbers of its own
            next_batch,
        )
        for number, data in enumerate(sets)
    ]
    for parts in itertools.islice(zip(*halves, strict=False), ROUND_STEPS - done):
        _, x, y = zip(*parts, strict=True)
        yield state.epoch, np.concatenate(x), np.concatenate(y)
