"""What is computed from labels, texts and confidences."""

import math

import numpy as np
import pytest

from captcha_cnn.metrics import count_confusions, evaluate_predictions, wilson_interval

ROWS = [  # label, text, confidence
    ("abc", "abc", 0.99),
    ("abc", "abd", 0.97),
    ("eee", "eed", 0.41),
    ("aac", "aad", 0.55),
    ("bcd", "bcd", 0.93),
    ("dcb", "dcb", 1.0),
    ("dab", "dab", 0.47),
]


def report_of(rows, loss=0.5):
    """The evaluation of rows (label, text, confidence)."""
    return evaluate_predictions(*zip(*rows, strict=True), loss)


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (10, 10), (498, 500), (1, 2), (9967, 10000)])
def test_the_wilson_interval_ends_where_the_share_seen_is_1_96_deviations_off(correct, count):
    share, ends = correct / count, wilson_interval(correct, count)
    assert 0 <= ends[0] <= share + 1e-9
    assert share - 1e-9 <= ends[1] <= 1
    for end in ends:
        if 1e-9 < end < 1 - 1e-9:
            assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), rel=1e-5)


def test_captchas_and_characters_are_counted_separately():
    report = report_of(ROWS)
    assert (report.correct, report.images, report.chars_correct, report.chars) == (4, 7, 18, 21)


def test_confusions_are_counted_by_character_and_what_was_read():
    labels, texts, _ = zip(*ROWS, strict=True)
    assert count_confusions(labels, texts).most_common() == [(("c", "d"), 2), (("e", "d"), 1)]


def test_selective_accuracy_leaves_out_the_least_confidence_first():
    found = report_of(ROWS).selective_accuracy
    assert found == pytest.approx([1, 1, 2 / 3, 3 / 4, 3 / 5, 4 / 7 * 7 / 6, 4 / 7], abs=0.07)
    assert found[[0, 2, 6]] == pytest.approx([1, 2 / 3, 4 / 7])


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy():
    report = report_of(ROWS)  # in three of the ten bins from 0 to 1
    assert [count for count, _, _ in report.bins] == [2, 1, 4]
    assert report.bins[0] == pytest.approx((2, 0.44, 0.5))
    gaps = [2 * abs(0.44 - 0.5), 0.55, 4 * abs((0.99 + 0.97 + 0.93 + 1) / 4 - 0.75)]
    assert report.calibration_error == pytest.approx(sum(gaps) / 7)


def test_mistakes_begin_with_the_most_confident():
    assert [(m.position, m.label, m.text) for m in report_of(ROWS).mistakes] == [
        (1, "abc", "abd"),
        (3, "aac", "aad"),
        (2, "eee", "eed"),
    ]


def test_a_confidence_of_1_is_in_the_last_bin_and_0_in_the_first():
    report = report_of([("a", "a", 1.0), ("a", "b", 0.0), ("a", "a", 0.999)])
    assert report.bins == [(1, 0.0, 0.0), (2, pytest.approx(0.9995), 1.0)]
    assert np.array_equal(report.selective_accuracy, [1, 1, 2 / 3])
