"""The evaluation of a labelled set, as text and as an HTML page."""

import base64
import html.parser
import io
import re
import sys

import numpy as np
import pytest
from PIL import Image
from test_metrics import ROWS, report_of

from captcha_cnn.metrics import count_confusions
from captcha_cnn.report import MAX_ON_PAGE, text_report, write_html_report
from captcha_cnn.summaries import draw_confusion_matrix, summary_images
from config import CaptchaError, Config

IMAGE = np.arange(23 * 37, dtype=np.uint8).reshape(23, 37)


def write_page(folder, rows, names=None, title="title"):
    """The page of rows (label, text, confidence), with the same image for each mistake."""
    report = report_of(rows)
    images = [IMAGE] * min(MAX_ON_PAGE, len(report.mistakes))
    names = names or [f"image{i}.png" for i in range(len(rows))]
    return write_html_report(str(folder), report, images, names, title).read_text(encoding="utf-8")


class Page(html.parser.HTMLParser):
    """The start tags of a page, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


# ---------------------------------------------------------------------- as text


def test_the_report_fits_a_terminal_and_a_script():
    names = [f"{label}_{i}.png" for i, (label, _, _) in enumerate(ROWS)]
    text = text_report(report_of(ROWS), names)
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(
        r"^Captcha accuracy:  57.14% \(4 of 7, 95% interval \d\d.\d\d to \d\d.\d\d\)$", text, re.M
    )
    assert "Character accuracy:  85.71% (18 of 21, " in text
    assert "Character error rate: 14.29% (edit distance 3, 21 characters)" in text
    assert "c read as d: 2" in text
    assert "abc read as abd, 0.9700: abc_1.png" in text


def test_a_set_without_mistakes_has_no_list_of_them(tmp_path):
    rows = [("abc", "abc", 0.9)] * 3
    text = text_report(report_of(rows), ["x"] * 3)
    assert "Captcha accuracy: 100.00% (3 of 3" in text
    assert "read as" not in text
    page = write_page(tmp_path, rows)
    assert "None: no character is read as another." in page
    assert "<img" not in page


def test_ten_of_many_mistakes_are_printed():
    text = text_report(report_of([("aaa", "bbb", 0.5)] * 12), ["x"] * 12)
    assert text.count("aaa read as bbb") == 10
    assert "(10 of 12)" in text


def test_texts_of_other_lengths_than_their_labels_are_mistakes(tmp_path):
    rows = [("abcd", "bcd", 0.5), ("ab", "ab", 0.9), ("abc", "abdd", 0.7)]
    text = text_report(report_of(rows), ["x.png", "y.png", "z.png"])
    assert "Captcha accuracy:  33.33% (1 of 3, " in text
    assert "Character accuracy:  66.67% (6 of 9, " in text
    assert "Character error rate: 33.33% (edit distance 3, 9 characters)" in text
    assert "Confusions:\n  c read as d: 1\n\n" in text
    assert text.endswith("abc read as abdd, 0.7000: z.png\n  abcd read as bcd, 0.5000: x.png")
    page = Page(write_page(tmp_path, rows)).text
    assert "Character error rate: 33.33% (edit distance 3, 9 characters)" in page
    assert "abcd, read as bcd, confidence 50.00%" in page


# ---------------------------------------------------------------------- as a page


def test_the_page_needs_no_other_file_and_escapes_what_it_shows(tmp_path):
    rows = [("a<b", "a&b", 0.8), ("&&&", "&&&", 1.0)]
    page = write_page(tmp_path / "new", rows, ["<script>\n.png", "y"], "Reading <x>")
    assert "<script" not in page
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    assert not re.search(r"url\(|@import|https?://", page)
    assert "Reading &lt;x&gt;" in page
    assert "a&lt;b, read as <del>a&amp;b</del>, confidence 80.00%" in page
    assert "&lt;script&gt;\\n.png" in page, "what a terminal cannot show is escaped too"
    assert page.count("<svg") == 2
    assert page.count("<figure><img") == 1
    assert page.count("<img") == 2, "and the confusion matrix"


def test_text_with_quotes_and_tags_stays_text(tmp_path):
    evil = "'\"><img src=x onerror=alert(1)>"
    rows = [(char, '"', 0.5) for char in "<'>&"]
    page = Page(write_page(tmp_path, rows, [evil] * 4, evil))
    assert not [attrs for _, attrs in page.tags if "onerror" in attrs]
    assert page.text.count(evil) == 2 + 4  # title and heading; a name for each mistake
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 1 + 4
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in images)
    assert [attrs["alt"] for attrs in images[1:]] == list("<'>&")
    for char in "<'>&":
        assert f'{char} read as ": 1.' in images[0]["alt"]


def test_the_page_shows_the_confusion_matrix_of_tensorboard(tmp_path):
    """There is one drawing of it, which docs/ shows too."""
    page = Page(write_page(tmp_path, ROWS))
    matrix = next(attrs for tag, attrs in page.tags if tag == "img")
    png = base64.b64decode(matrix["src"].removeprefix("data:image/png;base64,"))
    labels, texts, _ = zip(*ROWS, strict=True)
    drawn = io.BytesIO()
    draw_confusion_matrix(count_confusions(labels, texts)).save(drawn, "PNG")
    assert png == drawn.getvalue()

    config = Config(characters="abcde", char_num=3, width=37, height=23)
    classes = [[["abcde".index(char) for char in text] for text in each] for each in (labels, texts)]

    class Result:
        labels, chars = np.array(classes)
        loss = np.arange(7.0)

    images = summary_images(Result, np.stack([IMAGE] * 7), config)
    assert images["confusion_matrix"].tobytes() == Image.open(io.BytesIO(png)).tobytes()


def test_the_page_shows_the_images_of_the_mistakes_as_they_are(tmp_path):
    page = Page(write_page(tmp_path, ROWS))
    images = [attrs["src"] for tag, attrs in page.tags if tag == "img"][1:]
    assert len(images) == 3
    for src in images:
        png = base64.b64decode(src.removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), IMAGE)


def test_the_page_says_how_many_mistakes_it_shows(tmp_path):
    page = write_page(tmp_path, [("aaa", "bbb", 0.5)] * (MAX_ON_PAGE + 3))
    assert page.count("<figure>") == MAX_ON_PAGE
    assert f"{MAX_ON_PAGE + 3} of {MAX_ON_PAGE + 3}, the most confident first." in page
    assert f"The first {MAX_ON_PAGE} are shown." in page
    assert "are shown" not in write_page(tmp_path, ROWS)


def test_the_charts_hold_their_points(tmp_path):
    page = Page(write_page(tmp_path, ROWS))
    (line,) = [attrs for tag, attrs in page.tags if tag == "polyline"]
    points = [tuple(map(float, point.split(","))) for point in line["points"].split()]
    assert points[0][0] == 60  # coverage 3 / 7, at the left
    assert points[-1][0] == 460  # all images, at the right
    assert all(20 <= y <= 260 for _, y in points)
    circles = [attrs for tag, attrs in page.tags if tag == "circle"]
    assert len(circles) == 3  # one of each bin
    assert (float(circles[0]["cx"]), float(circles[0]["cy"])) == (236, 140)  # 0.44, half of them right


def test_without_the_template_engine_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(CaptchaError, match=r"a page needs jinja2, .*: pip install -r requirements.txt"):
        write_page(tmp_path, ROWS)
    assert not (tmp_path / "index.html").exists()
