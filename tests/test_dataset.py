"""Labels, file names, and loading a folder of images."""

import os
import random
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bad_files import BAD_FILES, BAD_NAMES, png, write_bad_file
from conftest import TINY

from captcha_cnn import dataset, parallel
from captcha_cnn.dataset import label_from_filename
from captcha_cnn.drawing import draw_captcha
from captcha_cnn.images import ImageError
from config import CaptchaError
from generate_captcha import ReadData

# ---------------------------------------------------------------------- labels


def test_label2vec_is_one_hot_and_vec2label_its_inverse():
    reader = ReadData(replace(TINY, width=160, height=60, char_num=4, characters=range(10)))
    vector = reader.label2vec("1327")
    assert vector.shape == (40,)
    assert vector.dtype == np.float32
    assert np.flatnonzero(vector).tolist() == [1, 13, 22, 37]
    assert vector.sum() == 4
    random_labels = random.Random(1)
    for _ in range(50):
        label = "".join(random_labels.choices("0123456789", k=4))
        assert reader.vec2label(reader.label2vec(label)) == label
    with pytest.raises(CaptchaError, match="a label must be 4 characters of 0123456789, not '12'"):
        reader.label2vec("12")
    with pytest.raises(CaptchaError, match="a label's vector must have 40 values, not 39"):
        reader.vec2label(np.zeros(39))


@pytest.mark.parametrize("name", ["bad_000042.png", "bad.jpg", "bad_1_2_3.webp", "bad"])
def test_the_label_stands_before_the_first_underscore_or_the_extension(name):
    assert label_from_filename(name, TINY) == "bad"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_label_is_refused_with_the_reason(name, tmp_path):
    (tmp_path / name).write_bytes(png())
    with pytest.raises(ImageError) as caught:
        ReadData(TINY).read_data(tmp_path / name)
    assert str(caught.value).replace("\\\\", "\\") == BAD_NAMES[name]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_composed_and_decomposed_unicode_names_give_the_same_label(form, tmp_path):
    config = replace(TINY, characters="aéñ각")
    name = unicodedata.normalize(form, "éñ각_1.png")
    assert (len(name) == 9) is (form == "NFC")
    assert label_from_filename(name, config) == "éñ각"
    (tmp_path / name).write_bytes(png())
    _, labels, count = ReadData(config).load_data(str(tmp_path))
    assert (ReadData(config).vec2label(labels[0]), count) == ("éñ각", 1)


def test_combining_characters_of_the_alphabet_stay_characters():
    config = replace(TINY, characters="ae\u0301")
    assert label_from_filename("ae\u0301_1.png", config) == "ae\u0301"


def test_a_decomposed_character_outside_the_alphabet_is_refused():
    with pytest.raises(ImageError, match="label outside the alphabet: 'é' in 'abé' is not in abcde"):
        label_from_filename("abe\u0301_1.png", TINY)


# ---------------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path, drawn):
    """A folder of 150 good images, without a manifest."""
    for path in Path(drawn.train_folder).glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_load_data_gives_images_labels_and_their_number(folder):
    reader = ReadData(TINY)
    images, labels, count = reader.load_data(str(folder))
    assert (images.shape, images.dtype) == ((150, 23, 37), np.uint8)
    assert (labels.shape, labels.dtype, count) == ((150, 15), np.float32, 150)
    names = sorted(p.name for p in folder.iterdir())
    assert [reader.vec2label(vector) for vector in labels] == [name[:3] for name in names]
    for i in (0, 77, 149):
        assert np.array_equal(images[i], reader.read_data(folder / names[i])[0])


def test_one_process_and_several_load_the_same(folder, monkeypatch, capsys):
    write_bad_file(folder / "aaa_text.png", "text")
    images, labels, count = ReadData(TINY).load_data(str(folder))
    messages = capsys.readouterr().err
    monkeypatch.setattr(dataset, "SERIAL_LIMIT", 0)
    monkeypatch.setattr(parallel, "CHUNK_SIZE", 40)
    monkeypatch.setattr(parallel, "available_cores", lambda: 3)
    started, executor = [], parallel.ProcessPoolExecutor
    monkeypatch.setattr(
        parallel,
        "ProcessPoolExecutor",
        lambda workers, *rest: started.append(workers) or executor(workers, *rest),
    )
    others, other_labels, other_count = ReadData(TINY).load_data(str(folder))
    assert count == other_count == 150
    assert np.array_equal(images, others)
    assert np.array_equal(labels, other_labels)
    assert capsys.readouterr().err == messages
    assert started == [3]


def test_names_of_every_kind_are_read_or_named(tmp_path, capsys):
    content = png(np.asarray(draw_captcha(TINY, "train", 0)[1]))
    good = [f"{'abcde'[i % 5]}{'abcde'[i // 5 % 5]}{'abcde'[i // 25]}_{i}.png" for i in range(120)]
    good += [
        "abc_" + "x" * 247 + ".png",
        "abc_\u0627\u0644\u0639\u0631\u0628\u064a\u0629.png",
        "abc_\u6f22\u5b57.png",
    ]
    bad = [
        "ab\ncd.png",
        "ab\\c.png",
        "\u0430bc.png",
        "\U0001f600.png",
        "\u202eabc.png",
        "abc\u0301.png",
        "a c.png",
    ]
    for name in good + bad:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "abd.png").mkdir()
    (tmp_path / "abe.png").symlink_to("abe.png")
    os.mkfifo(tmp_path / "aba.png")
    images, labels, count = ReadData(TINY).load_data(str(tmp_path))
    assert (len(images), len(labels), count) == (len(good),) * 3
    messages = capsys.readouterr().err
    assert f"{len(bad) + 3} of {len(good) + len(bad) + 3} files left out" in messages
    assert all(line.isprintable() for line in messages.splitlines())


def test_bad_files_are_left_out_named_and_counted(folder, capsys):
    for kind in BAD_FILES:
        write_bad_file(folder / f"aaa_{kind}.png", kind)
    for name in BAD_NAMES:
        (folder / name).write_bytes(png())
    for name in (".DS_Store", "Thumbs.db", ".hidden.png", "desktop.ini"):
        (folder / name).write_bytes(b"x")
    images, labels, count = ReadData(TINY).load_data(str(folder))
    assert len(images) == len(labels) == count == 150
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{folder}: 14 of 164 files left out"
    assert len(lines) == 12
    named = {line.split(": ")[1] for line in lines[1:11]}
    counts = {"2 damaged PNG", "1 damaged JPEG", "2 another size", "1 a huge size", "1 an empty file"}
    counts |= {"1 not an image", "1 a folder", "1 a broken link"}
    counts |= {"2 label of another length", "2 label outside the alphabet"}
    assert named == {count[2:] for count in counts}, "one of each category comes first"
    assert lines[11].startswith("  and 4 more; in all: 2 ")
    assert set(lines[11][22:].split(", ")) == counts
    assert "hidden" not in "".join(lines)


def test_more_than_a_tenth_of_bad_files_stops(folder, capsys):
    for i in range(16):
        (folder / f"abc_bad{i}.png").write_bytes(b"")
    assert ReadData(TINY).load_data(str(folder))[2] == 150
    (folder / "abc_more.png").write_bytes(b"")
    with pytest.raises(CaptchaError, match="must hold at most a tenth of bad files, but 17 of 167 are"):
        ReadData(TINY).load_data(str(folder))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (False, "must be a folder of images, but does not exist"),
        (True, "but holds none that can be used"),
    ],
)
def test_a_missing_or_empty_folder_is_named(make, words, tmp_path):
    if make:
        (tmp_path / "own").mkdir()
    with pytest.raises(CaptchaError, match=words):
        ReadData(TINY).load_data(str(tmp_path / "own"))
