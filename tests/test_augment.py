"""What training does to pictures: moved, scaled, slanted, brought together, cluttered."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY

import augment


def distorted(picture, count=400, **settings):
    config = replace(TINY, **{"shift": 0, "scale": 0, "shear": 0} | settings)
    return augment.distort(np.repeat(picture[None], count, axis=0), config, np.random.default_rng(0))


def places(marks):
    """Row and column of the one marked pixel of each picture."""
    return np.array([np.argwhere(each == 255)[0] for each in marks if (each == 255).any()])


def test_without_distortion_a_picture_stays_as_it_is():
    picture = np.arange(23 * 37, dtype=np.uint8).reshape(23, 37)
    assert (distorted(picture, 3) == picture).all()


def test_pictures_move_by_up_to_the_shift():
    picture = np.zeros((23, 37), np.uint8)
    picture[11, 18] = 255
    rows, columns = places(distorted(picture, shift=0.1)).T  # 2.3 px down, 3.7 px across
    assert set(rows) == set(range(9, 14))
    assert set(columns) >= set(range(15, 22))
    assert set(columns) <= set(range(14, 23))


def test_pictures_are_scaled_about_their_middle():
    picture = np.zeros((23, 37), np.uint8)
    picture[3, 18] = 255  # 8 px above the middle
    rows, columns = places(distorted(picture, scale=0.4)).T
    assert set(columns) == {18}
    assert 11 - 8 * np.exp(0.4) - 1 <= rows.min() <= 1
    assert 5 <= rows.max() <= 11 - 8 * np.exp(-0.4) + 1


def test_pictures_are_slanted():
    picture = np.zeros((23, 37), np.uint8)
    picture[:, 18] = 255
    slants = []
    for each in distorted(picture, 50, shear=0.4):
        columns = [np.flatnonzero(row == 255).mean() for row in each if (row == 255).any()]
        assert abs(columns[11] - 18) <= 1, "the middle stays"
        assert np.abs(np.diff(columns)).max() <= 2
        slants.append(abs(columns[-1] - columns[0]))
    assert 3 < max(slants) < 22 * 0.4 + 3


def test_no_two_pictures_and_no_two_places_change_alike():
    picture = np.zeros((23, 37), np.uint8)
    picture[11] = 255
    down = np.array([p.argmax(axis=0) for p in distorted(picture, 50, shift=0.2)])
    assert len({tuple(each) for each in down}) == 50
    assert any(each[2] != each[-3] for each in down)


def test_what_comes_free_is_filled_by_the_edge():
    picture = np.full((23, 37), 7, np.uint8)
    assert (distorted(picture, shift=0.3, scale=0.3, shear=0.3) == 7).all()


def cluttered(picture, share, count=300):
    """As many copies of the picture as that share of clutter makes of it, and which pixels it changed."""
    images = np.repeat(picture[None], count, axis=0)
    result = augment.clutter(images.copy(), replace(TINY, clutter=share), np.random.default_rng(0))
    return result, result != images


@pytest.mark.parametrize(("ink", "ground"), [(10, 200), (250, 40)])
def test_clutter_is_drawn_in_a_grey_near_the_ink(ink, ground):
    picture = np.full((23, 37), ground, np.uint8)
    picture[8:12, 5:9] = ink
    images, changed = cluttered(picture, 1)
    for image, places in zip(images, changed, strict=True):
        (grey,) = set(image[places])
        assert abs(int(grey) - ink) <= 0.2 * abs(ground - ink) + 1
        assert 30 < places.sum() < 23 * 37 / 4
    assert len({each.tobytes() for each in changed}) == 300
    assert changed.any(axis=0).mean() > 0.95, "it may be anywhere"


def test_clutter_comes_to_the_share_of_pictures_asked_for():
    picture = np.full((23, 37), 200, np.uint8)
    picture[8:12, 5:9] = 10
    assert not cluttered(picture, 0)[1].any()
    assert 0.2 < cluttered(picture, 0.3)[1].any(axis=(1, 2)).mean() < 0.4


def pushed(picture, most, count=300, **settings):
    images = np.repeat(picture[None], count, axis=0)
    return augment.overlap(images, replace(TINY, overlap=most, **settings), np.random.default_rng(0))


@pytest.mark.parametrize(("ink", "ground"), [(10, 200), (240, 30)])
def test_symbols_come_closer_and_lie_over_each_other(ink, ground):
    picture = np.full((23, 37), ground, np.uint8)
    for left in (1, 13, 25):
        picture[5:15, left : left + 10] = ink  # three bars, two columns between them
    seen = set()
    for image in pushed(picture, 0.3):
        drawn = image[9] == ink
        first, *_, last = np.flatnonzero(drawn).tolist()
        assert 1 <= first < last <= 34, "what comes closer moves inwards"
        assert (image[5:15] == image[9]).all()
        assert (np.delete(image, range(5, 15), axis=0) == ground).all()
        seen.add((33 - (last - first), int(drawn.sum())))
    steps = range(5)  # up to 0.3 of 37 / 3 pixels; no bar is cut, and from 3 on two lie over each other
    assert seen == {(a + b, 30 - max(0, a - 2) - max(0, b - 2)) for a in steps for b in steps}


@pytest.mark.parametrize(("most", "length"), [(0, 3), (0.9, 1)])
def test_symbols_stay_where_none_is_to_come_closer(most, length):
    picture = np.random.default_rng(1).integers(0, 256, (23, 37), np.uint8)
    assert (pushed(picture, most, 9, char_num=length) == picture).all()


def test_symbols_may_come_as_close_as_they_will():
    picture = np.random.default_rng(1).integers(0, 256, (23, 37), np.uint8)
    images = pushed(picture, 0.99)
    assert (images.shape, images.dtype) == ((300, 23, 37), np.uint8)
    assert len({image.tobytes() for image in images}) > 100
