import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY
from training_fakes import numbered_images

import driver
from captcha_cnn import batches
from captcha_cnn.batches import add_augmented_copies, batch_starts, random_stream, steps_per_epoch
from captcha_cnn.dataset import Dataset
from captcha_cnn.parallel import prefetch
from config import Config


def order(data, config, epoch, first=0):
    """The numbers of the images of an epoch, batch after batch."""
    return [y[:, 0].tolist() for _, y in driver.next_batch(data, config, epoch, first)]


# ---------------------------------------------------------------------- order


def test_an_epoch_has_every_image_once_with_its_label():
    found = list(driver.next_batch(numbered_images(17), TINY, 0))  # noise on one grey leaves that grey
    assert [len(x) for x, _ in found] == [7, 7, 3]
    labels = np.concatenate([y[:, 0] for _, y in found])
    assert sorted(labels) == list(range(17))
    assert np.array_equal(np.concatenate([x[:, 11, 18] for x, _ in found]), labels)


def test_the_order_depends_on_seed_and_epoch_alone():
    def flat(config, epoch):
        return tuple(itertools.chain(*order(numbered_images(50), config, epoch)))

    assert flat(TINY, 0) == flat(TINY, 0)
    assert len({flat(config, epoch) for config in (TINY, replace(TINY, seed=9)) for epoch in (0, 1)}) == 4
    assert list(flat(TINY, 0)) != sorted(flat(TINY, 0))


def test_prefetched_items_are_the_same_in_the_same_order():
    assert list(prefetch(iter(range(7)))) == list(range(7))


def test_an_error_while_prefetching_is_raised():
    def broken():
        yield 1
        raise ValueError("no second batch")

    with pytest.raises(ValueError, match="no second batch"):
        list(prefetch(broken()))


# ---------------------------------------------------------------------- random streams


def test_no_two_streams_share_numbers():
    keys = [(seed, purpose) for seed in (0, 1) for purpose in range(3)]
    keys += [(*key, epoch) for key in keys for epoch in range(3)]
    keys += [(*key, batch) for key in keys if len(key) == 3 for batch in range(3)]
    assert {(0, batches.AUGMENTATION, 2), (0, batches.AUGMENTATION, 2, 0)} < set(keys)
    streams = [random_stream(*key).integers(2**63, size=100).tolist() for key in keys]
    assert len(set(itertools.chain(*streams))) == 100 * len(keys)
    assert random_stream(*keys[-1]).integers(2**63, size=100).tolist() == streams[-1]


def test_order_augmentation_and_validation_copies_have_streams_of_their_own(monkeypatch):
    used = []

    def spy(*key):
        stream = random_stream(*key)
        used.append(stream.bit_generator.state["state"]["state"])
        return stream

    monkeypatch.setattr(batches, "random_stream", spy)
    for epoch in range(2):
        list(driver.next_batch(numbered_images(50), TINY, epoch))
    add_augmented_copies(numbered_images(20), TINY)
    # of two epochs, each with an order and the augmentation of seven batches, and of the copies
    assert len(used) == 2 * (1 + 7) + 1
    assert len(set(used)) == len(used)


def test_the_augmentation_of_a_batch_depends_on_seed_epoch_and_batch():
    images = np.full((21, 23, 37), 9, np.uint8)
    images[:, 11, 18] = 200
    data = Dataset(images, np.zeros((21, 15), np.float32))  # all images are equal: only augmentation differs

    def augmented(config, epoch):
        return [x.tobytes() for x, _ in driver.next_batch(data, config, epoch)]

    assert augmented(TINY, 1) == augmented(TINY, 1)
    batches_of_three = [augmented(TINY, 0), augmented(TINY, 1), augmented(replace(TINY, seed=1), 1)]
    assert len(set(itertools.chain(*batches_of_three))) == 9


# ---------------------------------------------------------------------- the last batch


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_no_batch_is_a_single_image_where_there_are_more(size):
    for count in range(1, 70):
        ends = [*batch_starts(count, size)[1:], count]
        sizes = np.diff([0, *ends]).tolist()
        assert sum(sizes) == count
        assert all(each == size for each in sizes[:-1])
        assert 1 <= sizes[-1] <= size + 1
        assert sizes[-1] > 1 or count == 1 or size == 1
        assert steps_per_epoch(count, size) == len(sizes)


@pytest.mark.parametrize(("count", "expected"), [(14, [7, 7]), (15, [7, 8]), (16, [7, 7, 2]), (1, [1])])
def test_a_last_image_belongs_to_the_batch_before_it(count, expected):
    assert [len(each) for each in order(numbered_images(count), TINY, 0)] == expected
    assert steps_per_epoch(count, TINY.batch_size) == len(expected)


@pytest.mark.parametrize("count", [14, 15, 16, 6, 1])
def test_from_any_step_on_the_batches_are_those_of_a_run_from_the_beginning(count):
    config, data = replace(TINY, Epoch=3), numbered_images(count)
    complete = list(batches.batches_from(0, data, config, driver.next_batch))
    assert len(complete) == 3 * steps_per_epoch(count, config.batch_size)
    for step in range(len(complete) + 1):
        rest = list(batches.batches_from(step, data, config, driver.next_batch))
        assert len(rest) == len(complete) - step
        for (epoch, x, y), (expected_epoch, expected_x, expected_y) in zip(
            rest, complete[step:], strict=True
        ):
            assert epoch == expected_epoch
            assert np.array_equal(x, expected_x)
            assert np.array_equal(y, expected_y)


# ---------------------------------------------------------------------- copies of the validation images


def test_each_validation_image_gets_an_augmented_copy_that_is_always_the_same():
    random = np.random.default_rng(0)
    data = Dataset(random.integers(0, 255, (300, 23, 37), np.uint8), random.random((300, 15), np.float32))
    both = add_augmented_copies(data, TINY)
    assert np.array_equal(both.images[:300], data.images)
    assert np.array_equal(both.labels, np.concatenate([data.labels, data.labels]))
    assert both.images.shape == (600, 23, 37)
    assert (both.images[300:] != data.images).any(axis=(1, 2)).all()
    assert np.array_equal(add_augmented_copies(data, TINY).images, both.images)
    assert not np.array_equal(add_augmented_copies(data, replace(TINY, seed=1)).images, both.images)


def test_without_augmentation_there_are_no_copies():
    data = numbered_images(9)
    assert add_augmented_copies(data, Config.classic(width=37, height=23)) is data
    only_noise = Config.classic(width=37, height=23, noise=0.1)
    assert len(add_augmented_copies(data, only_noise).images) == 18
