"""What is said of a set that was read."""

import math
import re

import numpy as np
import pytest

from judge import judge, report, wilson, write_page


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (498, 500), (1, 2), (9967, 10000)])
def test_the_wilson_interval_ends_where_what_was_seen_is_1_96_deviations_off(right, count):
    share, ends = right / count, wilson(right, count)
    assert 0 <= ends[0] <= share + 1e-9
    assert share - 1e-9 <= ends[1] <= 1
    for end in ends:
        if 1e-9 < end < 1 - 1e-9:
            assert abs(share - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), rel=1e-5)


def judged(rows, alphabet="abcde", loss=0.5):
    """What judge() makes of rows (label, text, confidence)."""
    return judge(*zip(*rows, strict=True), loss, alphabet)


ROWS = [
    ("abc", "abc", 0.99),
    ("abc", "abd", 0.97),
    ("eee", "eed", 0.41),
    ("aac", "aad", 0.55),
    ("bcd", "bcd", 0.93),
    ("dcb", "dcb", 1.0),
    ("dab", "dab", 0.47),
]


def test_captchas_and_symbols_are_counted_apart():
    j = judged(ROWS)
    assert (j.right, j.pictures, j.symbols_right, j.symbols) == (4, 7, 18, 21)


def test_confusions_by_frequency():
    assert judged(ROWS).confusions == [("c", "d", 2), ("e", "d", 1)]


def test_the_least_sure_are_refused_first():
    found = judged(ROWS).refusals
    assert found == pytest.approx([1, 1, 2 / 3, 3 / 4, 3 / 5, 4 / 7 * 7 / 6, 4 / 7], abs=0.07)
    assert found[[0, 2, 6]] == pytest.approx([1, 2 / 3, 4 / 7])


def test_calibration_is_the_gap_between_confidence_and_accuracy():
    j = judged(ROWS)  # in three of the ten tenths of 0 to 1
    assert [count for count, _, _ in j.bins] == [2, 1, 4]
    assert j.bins[0] == pytest.approx((2, 0.44, 0.5))
    gaps = [2 * abs(0.44 - 0.5), 0.55, 4 * abs((0.99 + 0.97 + 0.93 + 1) / 4 - 0.75)]
    assert j.calibration_error == pytest.approx(sum(gaps) / 7)


def test_mistakes_begin_with_the_surest():
    assert [(m.place, m.label, m.text) for m in judged(ROWS).mistakes] == [
        (1, "abc", "abd"),
        (3, "aac", "aad"),
        (2, "eee", "eed"),
    ]


def test_the_report_fits_a_terminal_and_a_script():
    names = [f"{label}_{i}.png" for i, (label, _, _) in enumerate(ROWS)]
    text = report(judged(ROWS), names)
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(
        r"^Captcha accuracy:  57.14% \(4 of 7, 95% interval \d\d.\d\d to \d\d.\d\d\)$", text, re.M
    )
    assert "Symbol accuracy:  85.71% (18 of 21, " in text
    assert "c read as d: 2" in text
    assert "abc read as abd, 0.9700: abc_1.png" in text


def test_a_set_without_mistakes_has_no_list_of_them(tmp_path):
    j = judged([("abc", "abc", 0.9)] * 3)
    text = report(j, ["x"] * 3)
    assert "Captcha accuracy: 100.00% (3 of 3" in text
    assert "read as" not in text
    assert "None." in write_page(str(tmp_path), j, [], ["x"] * 3, "t").read_text()


def test_ten_of_many_are_shown():
    text = report(judged([("aaa", "bbb", 0.5)] * 12), ["x"] * 12)
    assert text.count("aaa read as bbb") == 10
    assert "(10 of 12)" in text


def test_the_page_needs_no_other_file_and_escapes_what_it_shows(tmp_path):
    rows = [("a<b", "a&b", 0.8), ("&&&", "&&&", 1.0)]
    image = np.arange(23 * 37, dtype=np.uint8).reshape(23, 37)
    j = judged(rows, alphabet="ab<&")
    path = write_page(str(tmp_path / "new"), j, [image], ["<script>\n.png", "y"], "Reading <x>")
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    assert "Reading &lt;x&gt;" in page
    assert "a&lt;b, read <del>a&amp;b</del>, 80.00% sure" in page
    assert page.count("<svg") == 2
    assert page.count("<img") == 1
