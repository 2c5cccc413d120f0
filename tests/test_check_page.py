"""`generate_captcha.py --check FOLDER`: what it says, its page, and what it refuses; nothing is trained."""

import base64
import io
import os
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import assert_refused, script
from own_folder import make_labels, random_image, snapshot, write_images
from PIL import Image

import generate_captcha
from captcha_cnn import check_page
from captcha_cnn.check_page import SAMPLES
from captcha_cnn.images import fit_image
from config import CaptchaError, ConfigError


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_images(tmp_path / "mine", make_labels(70))


def check(capsys, *arguments):
    assert generate_captcha.main(["--check", "mine", *arguments]) == 0
    return capsys.readouterr()


def image_in(url):
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def figures(page):
    """[URL of the file's image, URL of what the network sees, label, file name] of each sample."""
    pattern = (
        r'<figure><img src="(.*?)".*?><img src="(.*?)".*?><figcaption><bdi>(.*?)</bdi><small>(.*?)</small>'
    )
    return re.findall(pattern, page)


# ---------------------------------------------------------------------- what it says


def test_the_command_says_what_training_would_find_and_needs_no_tensorflow(mine):
    (mine / "notes.txt").write_text("hello")
    before = snapshot(mine)
    done = script("generate_captcha.py", "--check", "mine", cwd=mine.parent)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "mine: 70 images with labels from file names",
        "  Left out:   0 copies, 0 without a label, 1 for other reasons",
        "  Characters: 4, abcd",
        "  Lengths:    3 (70)",
        "  Sizes:      40x20 px (70); read at 120x60 px",
        "  Sets:       train 70 in 5 folds",
        "Page: check.html",
    ]
    assert done.stderr.splitlines() == [
        "mine: 1 of 71 files left out",
        "  notes.txt: not an image: no PNG, JPEG, BMP, GIF or WEBP",
    ]
    assert snapshot(mine) == before
    assert sorted(os.listdir(mine.parent)) == ["check.html", "mine"]


def test_it_needs_no_tensorflow(mine, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert "70 images" in check(capsys).out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--char-num", "2-5"], "Lengths:    2 (1), 3 (70)"),
        (["--char-num", "3"], "Left out:   0 copies, 0 without a label, 1 for other reasons"),
        (["--characters", "abcdAZ"], "Characters: 6, abcdAZ"),
        (["--width", "99"], "read at 99x60 px"),
        (["--height", "40", "--start-from", "none"], "read at 80x40 px"),
        (["--labels", "other.csv"], "labels from other.csv"),
        (["--ignore-case"], "Characters: 4, abcd"),
        (["--test-folder", "exam"], "Sets:       train 71 in 5 folds, test all of exam"),
        (["--folds", "1"], "Sets:       train 57, validation 7, test 7"),
    ],
)
def test_flags_overrule(arguments, words, mine, capsys):
    random_image(600).save(mine / "aA_600.png")
    names = sorted(path.name for path in mine.iterdir())
    (mine.parent / "other.csv").write_text("".join(f"{name},{name[:2]}\n" for name in names))
    assert words in check(capsys, *arguments).out


# ---------------------------------------------------------------------- the page


def test_the_page_shows_samples_as_the_file_and_as_the_network_sees_them(mine, capsys):
    check(capsys)
    page = (mine.parent / "check.html").read_text(encoding="utf-8")
    found = figures(page)
    assert len(found) == SAMPLES
    assert len({name for *_, name in found}) == SAMPLES
    assert {label for _, _, label, _ in found} <= {path.name[:3] for path in mine.iterdir()}
    for original, seen, label, name in found[:5]:
        assert name.startswith(f"{label}_")
        pixels = np.asarray(Image.open(mine / name))
        assert np.array_equal(np.asarray(image_in(original).convert("L")), pixels)
        assert np.array_equal(np.asarray(image_in(seen)), fit_image(pixels, (120, 60)))
    check(capsys)
    assert (mine.parent / "check.html").read_text(encoding="utf-8") == page, "the samples are seeded"


def test_the_page_needs_no_other_file_and_is_well_formed(mine, capsys):
    check(capsys)
    page = (mine.parent / "check.html").read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|href)="(?!data:)(.*?)"', page)) == set()
    opened = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, _):
            if tag not in ("meta", "img"):
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Parser().feed(page)
    assert not opened


def test_the_page_counts_and_names(mine, capsys):
    (mine / "notes <b>.txt").write_text("hello")
    write_images(mine, ["abcd"] * 2, first=100, size=(50, 20))
    check(capsys, "--folds", "1")
    page = (mine.parent / "check.html").read_text(encoding="utf-8")
    rows = dict(re.findall(r"<bdi>(.*?)</bdi></th><td class=\"count\">(.*?)</td>", page))
    letters = "".join(path.name.partition("_")[0] for path in mine.glob("*.png"))
    assert {c: rows[c] for c in "abcd"} == {c: str(letters.count(c)) for c in "abcd"}
    assert (rows["3"], rows["4"]) == ("70", "2")
    assert (rows["40 × 20"], rows["50 × 20"]) == ("70", "2")  # noqa: RUF001
    assert "<td>notes &lt;b&gt;.txt</td><td>not an image" in page
    for name, size in (("training", 58), ("validation", 7), ("test", 7)):
        assert f"<dt>{name}</dt><dd>{size}</dd>" in page


def test_images_of_every_kind_are_shown(mine, capsys):
    shutil.rmtree(mine)
    write_images(mine, make_labels(10))
    random_image(800).convert("RGBA").save(mine / "aab_800.png")
    random_image(801).convert("P").save(mine / "aac_801.gif")
    Image.fromarray(np.asarray(random_image(802)).astype(np.uint16) * 257).save(mine / "aad_802.png")
    random_image(803, (1600, 800)).convert("CMYK").save(mine / "aba_803.jpg")
    random_image(804).convert("1").save(mine / "abb_804.bmp")
    check(capsys)
    page = (mine.parent / "check.html").read_text(encoding="utf-8")
    found = {name: image_in(original) for original, _, _, name in figures(page)}
    assert len(found) == 15
    assert found["aba_803.jpg"].size == (240, 120), "a large one is made smaller"
    deep = np.asarray(found["aad_802.png"].convert("L"))
    assert np.array_equal(deep, np.asarray(random_image(802)))


def test_without_the_template_engine_one_sentence_says_so(mine, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(CaptchaError, match="a page needs jinja2, which is not installed"):
        generate_captcha.main(["--check", "mine"])


# ---------------------------------------------------------------------- where the page goes


def test_the_page_may_have_another_name(mine, capsys):
    assert check(capsys, "--page", "other.html").out.endswith("Page: other.html\n")
    assert (mine.parent / "other.html").exists()
    assert not (mine.parent / "check.html").exists()


def test_the_page_is_never_written_into_the_folder_of_images(mine, capsys, monkeypatch):
    before = snapshot(mine)
    with pytest.raises(ConfigError, match=r"must lie outside of mine, into which nothing .* with --page"):
        check(capsys, "--page", "mine/check.html")
    monkeypatch.chdir(mine)
    with pytest.raises(ConfigError, match=r"check.html must lie outside of ., into which nothing"):
        generate_captcha.main(["--check", "."])
    assert snapshot(mine) == before


def test_a_file_that_is_no_page_of_ours_is_kept(mine, capsys):
    path = mine.parent / "thesis.html"
    path.write_text("my thesis")
    with pytest.raises(
        CaptchaError, match=r"must be an earlier page of --check to be replaced, .* move it away"
    ):
        check(capsys, "--page", "thesis.html")
    assert path.read_text() == "my thesis"
    with pytest.raises(CaptchaError, match="must be an earlier page"):
        check(capsys, "--page", str(mine.parent))


def test_a_page_that_cannot_be_written_is_one_sentence_and_leaves_the_earlier_one(mine, capsys, monkeypatch):
    with pytest.raises(
        CaptchaError, match=r"page.html could not be written \(No such file or directory\): make"
    ):
        check(capsys, "--page", "none/page.html")
    check(capsys)
    before = (mine.parent / "check.html").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(check_page.Path, "write_text", full)
    with pytest.raises(CaptchaError, match="No space left on device"):
        check(capsys)
    assert (mine.parent / "check.html").read_bytes() == before
    assert sorted(os.listdir(mine.parent)) == ["check.html", "mine"]


# ---------------------------------------------------------------------- what is refused

BAD_COMMANDS = [
    (["--page", "x.html"], "--page needs --check FOLDER"),
    (["--images", "mine"], "--images draws no captchas: use --check FOLDER, or driver.py to train"),
    (["--unlabelled", "more"], "--unlabelled draws no captchas: use --check FOLDER, or driver.py to train"),
    (["--labels", "x.csv"], "labels must be left out, since --images FOLDER is missing"),
    (["--check", "mine", "--images", "mine"], "--check must name one folder, in place of --images"),
    (["--check", ""], "--check must name one folder"),
    (["--check", "mine", "--generate-num", "1", "2", "3"], "generate_num must be left out"),
    (["--check", "mine", "--train-folder", "x"], "train_folder must be left out"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_COMMANDS)
def test_flags_that_would_do_nothing_are_refused(arguments, words, mine):
    with pytest.raises(ConfigError, match=words):
        generate_captcha.main(arguments)
    assert os.listdir(mine.parent) == ["mine"]


def broken_csv(folder):
    (folder / "labels.csv").write_text("")


def csv_of_nothing_there(folder):
    (folder / "labels.csv").write_text("".join(f"gone{i}.png,abc\n" for i in range(20)))


def latin_csv(folder):
    (folder / "labels.csv").write_bytes("aaa_0.png,é".encode("latin-1"))


def two_lists(folder):
    (folder / "labels.csv").write_text("a,b")
    (folder / "labels.txt").write_text("a,b")


def one_label(folder):
    for path in folder.iterdir():
        path.rename(folder / f"captcha_{path.name[4:]}")


def few(folder):
    for path in sorted(folder.iterdir())[3:]:
        path.unlink()


def none(folder):
    for path in folder.iterdir():
        path.unlink()


def no_folder(folder):
    shutil.rmtree(folder)


def a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("x")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (broken_csv, "must list files and labels, but is empty"),
        (csv_of_nothing_there, "but holds none that can be used: correct what is named above"),
        (latin_csv, "must be UTF-8, but is not"),
        (two_lists, "must hold one list of labels, but holds labels.csv and labels.txt"),
        (one_label, "must hold different labels, but all 70 images are labelled 'captcha'"),
        (few, "must hold at least 10 different labelled images, but holds 3 that can be used: label more"),
        (none, "but holds none that can be used: put some there"),
        (no_folder, "must be a folder of images, but does not exist: check the path"),
        (a_file, "must be a folder of images, but is a file: name the folder"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_trained_on_is_one_sentence(spoil, words, mine):
    spoil(mine)
    before = snapshot(mine)
    done = script("generate_captcha.py", "--check", "mine", cwd=mine.parent)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert words in last
    assert "Traceback" not in done.stderr
    if spoil is not csv_of_nothing_there:
        assert_refused(done, 1, words)
    assert done.stdout == ""
    assert snapshot(mine) == before
    assert set(os.listdir(mine.parent)) <= {"mine"}
