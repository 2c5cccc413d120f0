"""What is computed from labels, texts and confidences."""

import functools
import itertools
import math

import numpy as np
import pytest

from captcha_cnn.metrics import (
    EvalResult,
    Metrics,
    align,
    code_points,
    count_confusions,
    edit_distances,
    evaluate_predictions,
    wilson_interval,
)

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


# ---------------------------------------------------------------------- lengths that differ

ALL_TEXTS = ["".join(each) for n in range(5) for each in itertools.product("ab", repeat=n)]
ALL_PAIRS = list(itertools.product(ALL_TEXTS, ALL_TEXTS))


@functools.cache
def levenshtein(a, b):
    """The edit distance, as it is defined."""
    if not a or not b:
        return len(a) + len(b)
    replaced = levenshtein(a[1:], b[1:]) + (a[0] != b[0])
    return min(replaced, levenshtein(a[1:], b) + 1, levenshtein(a, b[1:]) + 1)


def test_edit_distances_are_those_of_the_definition():
    labels, texts = map(code_points, zip(*ALL_PAIRS, strict=True))
    expected = [levenshtein(*pair) for pair in ALL_PAIRS]
    assert edit_distances(labels, texts).tolist() == expected
    assert edit_distances(labels, np.pad(texts, [[0, 0], [0, 3]], constant_values=-1)).tolist() == expected
    assert edit_distances(*map(code_points, (["kitten"], ["sitting"]))).tolist() == [3]
    assert edit_distances(labels[:0], texts[:0]).shape == (0,)


def test_an_alignment_has_all_characters_and_the_fewest_edits():
    for label, text in ALL_PAIRS:
        pairs = align(label, text)
        assert "".join(a for a, _ in pairs) == label
        assert "".join(b for _, b in pairs) == text
        if len(label) != len(text):
            assert sum(a != b for a, b in pairs) == levenshtein(label, text)
        else:
            assert pairs == list(zip(label, text, strict=True))


def test_confusions_of_texts_of_another_length_are_substitutions_alone():
    assert count_confusions(["abcde"], ["bcxe"]) == {("d", "x"): 1}
    assert count_confusions(["abc", "abc"], ["abca", "ab"]) == {}
    assert count_confusions(["ab"], ["ba"]) == {("a", "b"): 1, ("b", "a"): 1}, "by place where equally long"


def test_the_character_error_rate_is_the_edit_distance_by_the_characters_of_the_labels():
    report = report_of([("abcd", "bcd", 0.5), ("ab", "ab", 0.9), ("abc", "abdd", 0.5)])
    assert (report.char_errors, report.chars, report.chars_correct) == (3, 9, 6)
    assert (report.correct, report.images) == (1, 3)
    assert [(m.label, m.text) for m in report.mistakes] == [("abcd", "bcd"), ("abc", "abdd")]
    shifted = report_of([("abcd", "bcda", 0.5)])  # place by place, where lengths are equal
    assert (shifted.char_errors, shifted.chars, shifted.chars_correct) == (2, 4, 0)
    assert report_of([("a", "bcd", 0.5)]).chars_correct == 0, "more edits than characters"


def metrics_of(labels, texts):
    loss = np.zeros(len(labels), np.float32)
    return Metrics.from_result(EvalResult(loss, loss, code_points(texts), code_points(labels)))


def test_the_accuracy_of_characters_is_1_less_the_error_rate_where_lengths_differ():
    metrics = metrics_of(["abcd", "ab", "abc"], ["bcd", "ab", "abdd"])
    assert metrics[1:4] == (pytest.approx(6 / 9), 1, 3)
    assert metrics_of(["abcd", "abc"], ["abcd", "abc"])[1:4] == (1, 2, 2)
    assert metrics_of(["a", "abc"], ["bcd", "bca"])[1:4] == (0, 0, 2), "more edits than characters"
    assert metrics_of(["abcd", "aaaa"], ["bcda", "aaaa"])[1:4] == (0.5, 1, 2), "by place where equally long"
