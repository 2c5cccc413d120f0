"""What training does to pictures: moved, scaled, slanted, brought together, cluttered."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY

import augment


def distorted(picture, count=400, seen=augment.OFTEN, **settings):
    config = replace(TINY, **{"shift": 0, "scale": 0, "shear": 0} | settings)
    images = np.repeat(picture[None], count, axis=0)
    result = augment.distort(images, config, np.random.default_rng(0), seen)
    assert (images == picture).all(), "what is given stays as it is"
    return result


def marked(rows, columns):
    """A black picture with a white mark there."""
    picture = np.zeros((23, 37), np.uint8)
    picture[rows, columns] = 255
    return picture


def middles(images):
    """Row and column of the middle of the light of each picture: float [2, B]."""
    light = images / images.sum(axis=(1, 2), keepdims=True)
    places = np.arange(23)[:, None] * light, np.arange(37) * light
    return np.array([each.sum(axis=(1, 2)) for each in places])


def test_without_distortion_a_picture_stays_as_it_is():
    picture = np.arange(23 * 37, dtype=np.uint8).reshape(23, 37)
    assert (distorted(picture, 3) == picture).all()


def test_pictures_move_by_up_to_the_shift():
    rows, columns = middles(distorted(marked(slice(10, 13), slice(17, 20)), shift=0.1))
    assert 2.0 < np.abs(rows - 11).max() <= 2.4  # 0.1 of 23 px, and a rounding
    assert 3.0 < np.abs(columns - 18).max() <= 3.8  # 0.1 of 37 px
    assert rows.min() < 10 < 12 < rows.max()
    assert columns.min() < 16 < 20 < columns.max()


def test_pictures_are_scaled_about_their_middle():
    rows, columns = middles(distorted(marked(slice(4, 7), slice(17, 20)), scale=0.4))
    assert np.abs(columns - 18).max() < 1
    above = 11 - rows  # 6 px before
    assert 6 * np.exp(-0.4) - 0.2 < above.min() < 5
    assert 7.5 < above.max() < 6 * np.exp(0.4) + 0.2


def test_pictures_are_slanted():
    slants = []
    for each in distorted(marked(slice(None), slice(17, 20)), 50, shear=0.4):
        columns = (each * np.arange(37)).sum(axis=1) / each.sum(axis=1)  # the line's middle in each row
        assert abs(columns[11] - 18) < 0.3, "the middle stays"
        assert np.ptp(np.diff(columns)) < 1, "the line stays straight"
        slants.append(abs(columns[-1] - columns[0]))
    assert 5 < max(slants) <= 22 * 0.4 + 0.3


def test_no_two_pictures_and_no_two_symbols_change_alike():
    down = np.array([p.argmax(axis=0) for p in distorted(marked(11, slice(None)), 50, shift=0.2)])
    assert len({tuple(each) for each in down}) == 50
    assert any(each[2] != each[-3] for each in down)


@pytest.mark.parametrize(("paper", "ink"), [(200, 10), (40, 250)])
def test_the_ground_fills_what_comes_free(paper, ink):
    picture = np.full((23, 37), paper, np.uint8)
    picture[:, :2] = ink  # a line along the left edge
    for each in distorted(picture, shift=0.3):
        assert (each[:, -1] == paper).all()
        assert set(each[11]) <= set(range(min(paper, ink), max(paper, ink) + 1))
    assert any((each[:, 0] == paper).all() for each in distorted(picture, shift=0.3))


def test_distortion_grows_as_pictures_are_seen_again():
    picture = marked(slice(10, 13), slice(17, 20))
    often = augment.OFTEN
    most = [
        np.abs(middles(distorted(picture, seen=seen, shift=0.3))[1] - 18).max()
        for seen in (0, often // 2, often, 9 * often)
    ]
    assert np.allclose(most[:3], np.array([0.5, 0.75, 1]) * most[2], atol=0.3)
    assert most[3] == most[2]


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
