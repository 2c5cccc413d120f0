"""Labels from file names and from lists, and what is said of lists that cannot be used."""

import os
import unicodedata

import pytest

from captcha_cnn.labels import (
    image_order,
    label_in_name,
    labelled_files,
    mixes_directions,
    normalize_label,
    read_labels_file,
)
from config import CaptchaError


def make_files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize(
    "name", ["8818_17.png", "8818.1.png", "8818 (2).png", "8818(2).png", "8818.png", "8818"]
)
def test_the_label_ends_before_the_first_separator(name):
    assert label_in_name(name) == "8818"


def test_names_give_the_labels_in_sub_folders_too_and_hidden_files_are_left_out(tmp_path):
    make_files(tmp_path, "ab_1.png", "new/cd.jpg", "new/deep/ef (2).png", ".hidden.png", ".git/x.png")
    make_files(tmp_path, "Thumbs.db", "captchas.json", "new/.DS_Store")
    found = labelled_files(str(tmp_path))
    assert found.labels == {"ab_1.png": "ab", "new/cd.jpg": "cd", "new/deep/ef (2).png": "ef"}
    assert (found.bad, found.unlabelled, found.source) == ([], 0, "file names")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.csv", "a.png,8818\nb.png,0042\n"),
        ("labels.csv", "file,label\na.png,8818\nb.png,0042"),
        ("labels.csv", "label,file\n8818,a.png\n0042,b.png\n"),
        ("labels.csv", "id,Filename,Text\n1,a.png,8818\n2,b.png,0042\n"),
        ("labels.csv", '"a.png","8818"\r\n"b.png","0042"\r\n'),
        ("labels.csv", "a.png;8818\nb.png;0042\n"),
        ("labels.csv", "\ufeffimage,label\na.png, 8818\n\n  \nb.png, 0042\n"),
        ("labels.csv", "./a.png,8818\n.\\b.png,0042\n"),
        ("labels.tsv", "a.png\t8818\nb.png\t0042\n"),
        ("labels.tsv", "file\tlabel\na.png\t8818\nb.png\t0042\n"),
        ("labels.txt", "a.png 8818\nb.png   0042\n"),
        ("labels.txt", "a.png\t8818\nb.png\t0042\n"),
        ("labels.txt", "label file\n8818 a.png\n0042 b.png\n"),
    ],
)
def test_a_list_gives_the_labels(name, content, tmp_path):
    make_files(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / name).write_bytes(content.encode())
    found = labelled_files(str(tmp_path))
    assert found.labels == {"a.png": "8818", "b.png": "0042"}
    assert (found.bad, found.unlabelled, found.source) == ([], 1, name)


def test_a_list_may_hold_what_a_name_cannot(tmp_path):
    make_files(tmp_path, "a,1.png", "b 2.png", "c.png")
    (tmp_path / "labels.csv").write_text('"a,1.png","a/b"\nb 2.png,"x""y"\nc.png,漢字\n', encoding="utf-8")
    assert labelled_files(str(tmp_path)).labels == {"a,1.png": "a/b", "b 2.png": 'x"y', "c.png": "漢字"}


def test_names_with_spaces_in_a_list_with_spaces(tmp_path):
    make_files(tmp_path, "my image.png")
    (tmp_path / "labels.txt").write_text("my image.png 8818\n")
    assert labelled_files(str(tmp_path)).labels == {"my image.png": "8818"}


def test_a_list_names_files_in_sub_folders(tmp_path):
    folder = tmp_path / "mine"
    make_files(folder, "x/a.png", "x/b.png", "y/b.png", "c.png", "mine/c.png", "d.png", "e.png")
    lines = ["x/a.png,1", "b.png,2", "y/b.png,3", "mine/c.png,4", "mine/d.png,5", f"{folder}/e.png,6"]
    (folder / "labels.csv").write_text("\n".join(lines))
    found = labelled_files(str(folder))
    expected = {"x/a.png": "1", "y/b.png": "3", "mine/c.png": "4", "d.png": "5", "e.png": "6"}
    assert found.labels == expected
    assert [each.reason for each in found.bad] == ["2 files in sub-folders have this name"]


def test_a_bare_name_in_a_sub_folder_is_enough_where_it_is_unique(tmp_path):
    make_files(tmp_path, "deep/er/a.png")
    (tmp_path / "labels.csv").write_text("a.png,1")
    assert labelled_files(str(tmp_path)).labels == {"deep/er/a.png": "1"}


@pytest.mark.parametrize(("listed", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_composed_and_decomposed_names_are_the_same(listed, on_disk, tmp_path):
    make_files(tmp_path, unicodedata.normalize(on_disk, "é.png"))
    (tmp_path / "labels.csv").write_text(unicodedata.normalize(listed, "é.png,1"), encoding="utf-8")
    assert list(labelled_files(str(tmp_path)).labels.values()) == ["1"]


def test_what_a_list_says_wrong_is_named(tmp_path):
    make_files(tmp_path, "a.png", "b.png", "c.png", "d.png")
    (tmp_path / "labels.csv").write_text(
        "a.png,1\ngone.png,2\nb.png,3\nb.png,4\nc.png,\na.png,1\n../a.png,5\n"
    )
    found = labelled_files(str(tmp_path))
    assert found.labels == {"a.png": "1"}
    assert {each.name: each.reason for each in found.bad} == {
        "gone.png": "labels.csv names it, but there is no such file",
        "b.png": "two labels, '3' and '4'",
        "c.png": "labels.csv has no label for it",
        "../a.png": "labels.csv names it, but there is no such file",
    }
    assert found.unlabelled == 1, "d.png"


def test_the_list_that_is_named_is_used_and_is_no_image(tmp_path):
    make_files(tmp_path, "a.png")
    (tmp_path / "labels.csv").write_text("a.png,1")
    (tmp_path / "other.csv").write_text("a.png,2")
    found = labelled_files(str(tmp_path), str(tmp_path / "other.csv"))
    assert (found.labels, found.unlabelled, found.source) == ({"a.png": "2"}, 0, "other.csv")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "must list files and labels, but is empty: write a line for each image"),
        (b"file,label\n", "is empty"),
        (b"\n \n", "is empty"),
        ("a.png,é".encode("latin-1"), "must be UTF-8, but is not: save it as UTF-8"),
        (b'"a.png,1\nb.png,2', "must be a list of files and labels, but is not .*: check its quotes"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_sentence(content, words, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(CaptchaError, match=words):
        read_labels_file(str(path))
    with pytest.raises(CaptchaError, match=words):
        labelled_files(str(tmp_path))


def test_a_missing_list_two_lists_no_folder_and_a_file_are_one_sentence_each(tmp_path):
    make_files(tmp_path, "a.png", "labels.csv", "labels.txt")
    with pytest.raises(
        CaptchaError, match=r"must hold one list of labels, but holds labels.csv and labels.txt"
    ):
        labelled_files(str(tmp_path))
    with pytest.raises(CaptchaError, match=r"none.csv must be a list .*\(No such file or directory\): check"):
        labelled_files(str(tmp_path), str(tmp_path / "none.csv"))
    with pytest.raises(CaptchaError, match="but does not exist: check the path"):
        labelled_files(str(tmp_path / "none"))
    with pytest.raises(CaptchaError, match="but is a file: name the folder"):
        labelled_files(str(tmp_path / "a.png"))


@pytest.mark.parametrize("inside", ["", "sub"])
def test_a_folder_without_permission_is_one_sentence(inside, tmp_path, monkeypatch):
    make_files(tmp_path, "a.png", "sub/b.png")
    locked, scandir = str(tmp_path / inside), os.scandir

    def refuse(path):
        if os.fspath(path).rstrip("/") == locked:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CaptchaError, match=r"cannot be read \(Permission denied\): change its permissions"):
        labelled_files(str(tmp_path))


def test_labels_are_composed_and_small_where_the_case_is_ignored():
    assert normalize_label(unicodedata.normalize("NFD", "É1"), ignore_case=False) == "É1"
    assert normalize_label("ÉaB", ignore_case=True) == "éab"
    assert normalize_label("İ", ignore_case=True) == "İ", "two characters in small letters"


@pytest.mark.parametrize(
    ("alphabet", "reverses", "mixes"),
    [
        ("abc", False, False),
        ("0123456789", False, False),
        ("漢字", False, False),
        ("ابج", True, False),
        ("אבג", True, False),
        ("اب\u064b", True, False),  # with a vowel sign
        ("٠١٢", False, False),  # digits of Arabic stand from left to right
        ("اب1", False, True),  # noqa: RUF001
    ],
)
def test_text_from_right_to_left_stands_in_the_image_from_right_to_left(alphabet, reverses, mixes):
    text = alphabet[0] + alphabet[1]
    assert image_order(text, alphabet) == (text[::-1] if reverses else text)
    assert image_order(image_order(text, alphabet), alphabet) == text
    assert mixes_directions(alphabet) is mixes
