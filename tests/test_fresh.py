"""Captchas drawn while training: the same for any number of processes, for resuming, and after a kill."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY

import driver
from captcha_cnn import batches, fresh
from captcha_cnn.drawing import draw_captcha
from captcha_cnn.fresh import FreshCaptchas
from captcha_cnn.images import image_for
from generate_captcha import ReadData

FRESH = replace(TINY, fresh=True, generate_num=(15, 4, 5), Epoch=3)  # an epoch is batches of 7 and 8


def batches_from(step, config, cores, monkeypatch, count=100):
    """(epoch, x, y) of the steps from that one on, drawn by so many processes."""
    monkeypatch.setattr(fresh, "available_cores", lambda: cores)
    train = FreshCaptchas(config)
    with fresh.processes(train, step):
        return list(itertools.islice(batches.batches_from(step, train, config, driver.next_batch), count))


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for (epoch, x, y), (expected_epoch, expected_x, expected_y) in zip(found, expected, strict=True):
        assert epoch == expected_epoch
        assert np.array_equal(x, expected_x)
        assert np.array_equal(y, expected_y)


def test_the_same_batches_for_any_number_of_processes_and_from_any_step_on(monkeypatch):
    expected = batches_from(0, FRESH, 1, monkeypatch)
    assert [(epoch, len(x), len(y)) for epoch, x, y in expected] == [
        (e, n, n) for e in range(3) for n in (7, 8)
    ]
    assert_equal(batches_from(0, FRESH, 3, monkeypatch), expected)
    assert_equal(batches_from(3, FRESH, 2, monkeypatch), expected[3:])


def test_a_batch_is_drawn_captchas_augmented_as_those_of_files_are():
    config = replace(FRESH, **dict.fromkeys(("shift", "scale", "shear", "squeeze", "noise"), 0.0))
    x, y, seconds = fresh.draw_batch(config, 3)
    captchas = [draw_captcha(config, "fresh/3", number) for number in range(8)]
    images = np.stack([image_for(image, config) for _, image in captchas])
    assert (x.dtype, y.dtype) == (np.uint8, np.float32)
    assert np.array_equal(x, images)
    assert [ReadData(config).vec2label(each) for each in y] == [label for label, _ in captchas]
    assert seconds > 0
    random = batches.random_stream(FRESH.seed, batches.AUGMENTATION, 1, 1)
    assert np.array_equal(fresh.draw_batch(FRESH, 3)[0], driver.augment(images, FRESH, random, 1))


@pytest.mark.parametrize("other", [{"seed": 1}, {}])
def test_no_captcha_is_drawn_twice(other):
    config = replace(FRESH, **dict.fromkeys(("shift", "scale", "shear", "squeeze", "noise"), 0.0))
    drawn = [fresh.draw_batch(replace(config, **other), step)[0] for step in range(6)]
    if other:
        drawn += [fresh.draw_batch(config, step)[0] for step in range(6)]
    images = [image.tobytes() for x in drawn for image in x]
    assert len(set(images)) == len(images) == 45 * (1 + len(other))
