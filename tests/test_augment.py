"""Augmentation: images shifted, scaled and sheared, characters moved together, noise drawn over them."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY

import driver
from captcha_cnn import augment, batches
from captcha_cnn.augment import FEW_IMAGES, FULL_STRENGTH_EPOCHS
from captcha_cnn.dataset import Dataset
from captcha_cnn.initial_weights import OWN_IMAGES
from config import Config


def warped(image, count=400, epoch=FULL_STRENGTH_EPOCHS, slope=0.0, **settings):
    config = replace(TINY, **{"shift": 0, "scale": 0, "shear": 0} | settings)
    images = np.repeat(image[None], count, axis=0)
    result = augment.random_warp(images, config, np.random.default_rng(0), epoch, slope)
    assert (images == image).all(), "the images that were given have changed"
    return result


def marked(rows, columns):
    """A black image with a white mark there."""
    image = np.zeros((23, 37), np.uint8)
    image[rows, columns] = 255
    return image


def centres(images):
    """Row and column of the centre of brightness of each image: float [2, B]."""
    weights = images / images.sum(axis=(1, 2), keepdims=True)
    places = np.arange(23)[:, None] * weights, np.arange(37) * weights
    return np.array([each.sum(axis=(1, 2)) for each in places])


def test_without_augmentation_an_image_stays_as_it_is():
    image = np.arange(23 * 37, dtype=np.uint8).reshape(23, 37)
    assert (warped(image, 3) == image).all()


def test_images_are_shifted_by_up_to_the_setting():
    rows, columns = centres(warped(marked(slice(10, 13), slice(17, 20)), shift=0.1))
    assert 2.0 < np.abs(rows - 11).max() <= 2.4  # 0.1 of 23 px, and a rounding
    assert 3.0 < np.abs(columns - 18).max() <= 3.8  # 0.1 of 37 px
    assert rows.min() < 10 < 12 < rows.max()
    assert columns.min() < 16 < 20 < columns.max()


def test_images_are_scaled_about_their_centre():
    rows, columns = centres(warped(marked(slice(4, 7), slice(17, 20)), scale=0.4))
    assert np.abs(columns - 18).max() < 1
    above = 11 - rows  # 6 px before
    assert 6 * np.exp(-0.4) - 0.2 < above.min() < 5
    assert 7.5 < above.max() < 6 * np.exp(0.4) + 0.2


def test_images_are_sheared():
    slants = []
    for each in warped(marked(slice(None), slice(17, 20)), 50, shear=0.4):
        columns = (each * np.arange(37)).sum(axis=1) / each.sum(axis=1)  # the line's centre in each row
        assert abs(columns[11] - 18) < 0.3, "the centre stays"
        assert np.ptp(np.diff(columns)) < 1, "the line stays straight"
        slants.append(abs(columns[-1] - columns[0]))
    assert 5 < max(slants) <= 22 * 0.4 + 0.3


def slopes(slope, **settings):
    """The largest rise of each of 50 level lines that are warped, in pixels per column."""
    rises = []
    for each in warped(marked(slice(10, 13), slice(None)), 50, slope=slope, **settings):
        rows = (each * np.arange(23)[:, None]).sum(axis=0) / each.sum(axis=0)  # the line's in each column
        rises.append(max(abs(rows[17] - rows[1]), abs(rows[35] - rows[19])) / 16)  # of the two parts
    return rises


def test_the_parts_of_an_image_slope_by_up_to_the_setting():
    rises = slopes(0.4)
    assert 0.3 < max(rises) < 0.45
    assert min(rises) < 0.2
    assert np.allclose(slopes(0.2), np.array(rises) / 2, atol=0.05)
    assert max(slopes(0, shear=0.4)) < 0.01


@pytest.mark.parametrize(
    ("settings", "epoch", "slope"),
    [
        ({"generate_num": (FEW_IMAGES - 1, 20, 30)}, FULL_STRENGTH_EPOCHS // 2, 0.2),
        ({"generate_num": (FEW_IMAGES - 1, 20, 30)}, 9 * FULL_STRENGTH_EPOCHS, 0.4),
        ({"generate_num": (FEW_IMAGES, 20, 30)}, 9 * FULL_STRENGTH_EPOCHS, 0),
        ({"images": "x"}, 9 * FULL_STRENGTH_EPOCHS, 0),
        ({"fresh": True}, 9 * FULL_STRENGTH_EPOCHS, 0),
    ],
)
def test_few_drawn_captchas_slope_in_the_end_by_up_to_the_shear(settings, epoch, slope):
    assert augment.largest_slope(replace(TINY, shear=0.4, **settings), epoch) == pytest.approx(slope)


def test_training_batches_slope_and_copies_of_validation_images_do_not(monkeypatch):
    slopes = []

    def fake(images, *_, slope=0.0):
        slopes.append(slope)
        return images

    for module in (driver, batches):
        monkeypatch.setattr(module, "augment", fake)
    data = Dataset(np.zeros([7, 23, 37], np.uint8), np.zeros([7, 30], np.float32))
    list(driver.next_batch(data, TINY, FULL_STRENGTH_EPOCHS))
    batches.add_augmented_copies(data, TINY)
    assert slopes == [TINY.shear, 0]


def test_no_two_images_and_no_two_characters_change_alike():
    down = np.array([image.argmax(axis=0) for image in warped(marked(11, slice(None)), 50, shift=0.2)])
    assert len({tuple(each) for each in down}) == 50
    assert any(each[2] != each[-3] for each in down)


@pytest.mark.parametrize(("background", "foreground"), [(200, 10), (40, 250)])
def test_the_background_fills_what_becomes_free(background, foreground):
    image = np.full((23, 37), background, np.uint8)
    image[:, :2] = foreground  # a line along the left edge
    low, high = min(background, foreground), max(background, foreground)
    for each in warped(image, shift=0.3):
        assert (each[:, -1] == background).all()
        assert set(each[11]) <= set(range(low, high + 1))
    assert any((each[:, 0] == background).all() for each in warped(image, shift=0.3))


def test_the_warp_grows_with_the_epochs():
    image = marked(slice(10, 13), slice(17, 20))
    full = FULL_STRENGTH_EPOCHS
    largest = [
        np.abs(centres(warped(image, epoch=epoch, shift=0.3))[1] - 18).max()
        for epoch in (0, full // 2, full, 9 * full)
    ]
    assert np.allclose(largest[:3], np.array([0.5, 0.75, 1]) * largest[2], atol=0.3)
    assert largest[3] == largest[2]


def noisy(image, share, count=300):
    """Copies of the image, that share of them with noise; and which pixels of each have changed."""
    images = np.repeat(image[None], count, axis=0)
    result = augment.add_noise(images.copy(), replace(TINY, noise=share), np.random.default_rng(0))
    return result, result != images


@pytest.mark.parametrize(("foreground", "background"), [(10, 200), (250, 40)])
def test_noise_is_drawn_in_a_grey_near_the_foreground(foreground, background):
    image = np.full((23, 37), background, np.uint8)
    image[8:12, 5:9] = foreground
    images, changed = noisy(image, 1)
    for each, places in zip(images, changed, strict=True):
        (grey,) = set(each[places])
        assert abs(int(grey) - foreground) <= 0.2 * abs(background - foreground) + 1
        assert 30 < places.sum() < 23 * 37 / 4
    assert len({each.tobytes() for each in changed}) == 300
    assert changed.any(axis=0).mean() > 0.95, "it may be anywhere"


def test_the_share_of_images_that_get_noise_is_the_setting():
    image = np.full((23, 37), 200, np.uint8)
    image[8:12, 5:9] = 10
    assert not noisy(image, 0)[1].any()
    assert 0.2 < noisy(image, 0.3)[1].any(axis=(1, 2)).mean() < 0.4


@pytest.mark.parametrize(("foreground", "background"), [(10, 200), (250, 40)])
def test_lines_are_drawn_over_that_share_of_the_images(foreground, background):
    image = np.full((23, 37), background, np.uint8)
    image[8:12, 5:9] = foreground
    images = np.repeat(image[None], 300, axis=0)
    result = augment.add_lines(images.copy(), replace(TINY, lines=0.3), np.random.default_rng(0))
    changed = result != images
    assert 0.2 < changed.any(axis=(1, 2)).mean() < 0.4
    for each, places in zip(result, changed, strict=True):
        assert len(set(each[places])) <= 1
        assert (abs(each[places].astype(int) - foreground) <= 0.3 * abs(background - foreground) + 1).all()
        assert places.sum() < 23 * 37 / 2
    assert changed.any(axis=0).mean() > 0.95, "they may be anywhere"
    wide = augment.add_lines(images.copy(), replace(TINY, lines=1.0), np.random.default_rng(0)) != images
    assert len({each.tobytes() for each in wide}) > 295


def test_only_own_images_get_lines():
    assert Config().lines == 0
    assert OWN_IMAGES["lines"] > 0
    images = np.random.default_rng(0).integers(0, 255, (40, 23, 37), dtype=np.uint8)
    without, with_lines = (
        augment.augment(images, replace(TINY, lines=lines, noise=0.5), np.random.default_rng(0), 0)
        for lines in (0.0, 1.0)
    )
    assert (without != with_lines).any(axis=(1, 2)).mean() > 0.9


def squeezed(image, most, count=300, **settings):
    images = np.repeat(image[None], count, axis=0)
    config = replace(TINY, squeeze=most, **settings)
    return augment.squeeze_characters(images, config, np.random.default_rng(0))


@pytest.mark.parametrize(("foreground", "background"), [(10, 200), (240, 30)])
def test_characters_move_together_and_lie_over_each_other(foreground, background):
    image = np.full((23, 37), background, np.uint8)
    for left in (1, 13, 25):
        image[5:15, left : left + 10] = foreground  # three bars, two columns between them
    seen = set()
    for each in squeezed(image, 0.3):
        covered = each[9] == foreground
        first, *_, last = np.flatnonzero(covered).tolist()
        assert 1 <= first < last <= 34, "characters move inwards"
        assert (each[5:15] == each[9]).all()
        assert (np.delete(each, range(5, 15), axis=0) == background).all()
        seen.add((33 - (last - first), int(covered.sum())))
    steps = range(5)  # up to 0.3 of 37 / 3 pixels; no bar is cut, and from 3 on two lie over each other
    assert seen == {(a + b, 30 - max(0, a - 2) - max(0, b - 2)) for a in steps for b in steps}


@pytest.mark.parametrize(("most", "length"), [(0, 3), (0.9, 1)])
def test_characters_stay_where_there_is_nothing_to_squeeze(most, length):
    image = np.random.default_rng(1).integers(0, 256, (23, 37), np.uint8)
    assert (squeezed(image, most, 9, char_num=length) == image).all()


def test_characters_can_be_squeezed_by_nearly_their_width():
    image = np.random.default_rng(1).integers(0, 256, (23, 37), np.uint8)
    images = squeezed(image, 0.99)
    assert (images.shape, images.dtype) == ((300, 23, 37), np.uint8)
    assert len({each.tobytes() for each in images}) > 100
