"""What is found from a folder of own images, what is left out, and the split into three sets."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import script
from own_folder import make_labels, random_image, snapshot, write_images
from PIL import Image

import driver
from captcha_cnn import checkpoint
from captcha_cnn.own_images import check_given, check_outside, describe, find_images
from captcha_cnn.own_sets import load_split, read_split, reload_sets, split_images
from config import CaptchaError, Config, ConfigError
from generate_captcha import ReadData


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder of 40 images, three of four letters each, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return write_images(tmp_path / "mine", make_labels(40))


def find(**settings):
    given = {"images": "mine", "folds": 1, **settings}
    return find_images(Config(**given), given)


# ---------------------------------------------------------------------- what is found


def test_characters_lengths_and_size_are_found(mine):
    found = find()
    config = found.config
    assert (config.alphabet, config.char_num, config.width, config.height) == ("abcd", 3, 120, 60)
    assert (config.stretch, len(found.images), found.left_out) == (1.0, 40, [])
    write_images(mine, ["abcd", "dcba"], first=100)
    assert find().config.char_num == "3-4"


def test_width_follows_the_widest_but_a_few(mine):
    write_images(mine, make_labels(40), first=50, size=(60, 20))
    assert find().config.width == 180
    shutil.rmtree(mine)
    write_images(mine, make_labels(99), size=(40, 20))
    write_images(mine, ["abc"], first=200, size=(200, 20))
    assert find().config.width == 120, "one of a hundred is scaled down"


def test_narrow_images_are_stretched_so_that_each_character_has_its_width(mine):
    shutil.rmtree(mine)
    write_images(mine, make_labels(20, length=4), size=(20, 20))
    found = find()
    assert (found.config.width, found.config.stretch) == (80, pytest.approx(80 / 60))
    assert find(stretch=2.0).config.width == 120
    assert find(width=100).config.width == 100
    shutil.rmtree(mine)
    write_images(mine, make_labels(20, length=8), size=(2, 60))
    assert (find().config.width, find().config.stretch) == (160, 10.0)
    shutil.rmtree(mine)
    write_images(mine, make_labels(20), size=(900, 8))
    assert find().config.width == 4096


def write_bars(mine, used, count=40):
    """Images of 100 rows, all black but for those from 40 to 40 + used."""
    shutil.rmtree(mine)
    mine.mkdir()
    for i, label in enumerate(make_labels(count)):
        rgb = np.zeros((100, 90, 3), np.uint8)
        rgb[40 : 40 + used] = np.random.default_rng(i).integers(0, 255, (used, 90, 3))
        Image.fromarray(rgb).save(mine / f"{label}_{i}.png")


def test_where_most_rows_are_empty_only_the_others_are_read(mine):
    write_bars(mine, 30)
    found = find()
    config = found.config
    assert (config.skip_top, config.skip_bottom, config.width) == (0.4, pytest.approx(0.3, abs=0.002), 180)
    assert "Not read:   the upper 40% and the lower 30% of the height" in describe(found)
    assert find(skip_top=0.0, skip_bottom=0.0).config.width == 60, "20 px a character"
    write_bars(mine, 60)
    assert (find().config.skip_top, find().config.skip_bottom) == (0, 0)
    assert "Not read" not in describe(find())


@pytest.mark.parametrize("skip_top", [0.7, 0.9])
def test_with_one_of_the_two_named_the_other_is_not_found(mine, skip_top):
    write_bars(mine, 30)
    config = find(skip_top=skip_top).config
    assert (config.skip_top, config.skip_bottom) == (skip_top, 0)


def test_rows_that_a_few_images_use_are_left_out(mine):
    write_bars(mine, 30, count=99)
    rgb = np.random.default_rng(1).integers(0, 255, (100, 90, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(mine / "abc_one.png")
    assert find().config.skip_top == 0.4


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"characters": "abcdef"}, {"alphabet": "abcdef"}),
        ({"char_num": "2-5"}, {"char_num": "2-5"}),
        ({"width": 111}, {"width": 111}),
        ({"height": 30}, {"height": 30, "width": 60}),
        ({"stretch": 3.0}, {"stretch": 3.0, "width": 360}),
    ],
)
def test_a_flag_overrules_what_is_found(settings, expected, mine):
    config = find(**settings).config
    assert {name: getattr(config, name) for name in expected} == expected


def test_the_case_is_ignored_where_asked_for(mine):
    write_images(mine, make_labels(40, characters="ABCD"), first=50)
    assert find().config.alphabet == "ABCDabcd"
    found = find(ignore_case=True)
    assert (found.config.alphabet, len(found.images), found.left_out) == ("abcd", 80, [])
    assert find(ignore_case=True, characters="ABCD").config.alphabet == "abcd"
    assert len(find(ignore_case=True, characters="ABCD").images) == 80


def test_labels_of_a_file_are_used_where_named(mine):
    names = sorted(path.name for path in mine.iterdir())
    labels = "".join(f"{name},{'12'[i % 2]}{'21'[i % 2]}\n" for i, name in enumerate(names))
    Path("other.csv").write_text(labels)
    found = find(labels="other.csv")
    assert (found.config.alphabet, found.config.char_num, found.source) == ("12", 2, "other.csv")
    assert "other.csv" in describe(found)


def test_of_an_animation_the_first_frame_is_read(mine):
    frames = [random_image(n) for n in (500, 501)]
    frames[0].save(mine / "abc_gif.gif", save_all=True, append_images=frames[1:])
    found = find()
    (image,) = [each for each in found.images if each.animated]
    assert image.path == "abc_gif.gif"
    assert "Animated:   1; the first frame of each is read" in describe(found)
    assert np.array_equal(ReadData(found.config).read_data(mine / "abc_gif.gif")[0].shape, (60, 120))
    still = np.asarray(Image.open(mine / "abc_gif.gif").convert("L"))
    assert np.array_equal(still, np.asarray(frames[0]))


def test_of_copies_one_is_used(mine):
    shutil.copy(mine / "aaa_0.png", mine / "aaa_copy.png")
    random_image(0).save(mine / "aaa_bmp.bmp")  # the same pixels in another format
    found = find()
    assert len(found.images) == 40
    assert found.copies == {"aaa_0.png": ["aaa_bmp.bmp", "aaa_copy.png"]}
    assert "2 copies" in describe(found)


def test_chinese_labels_are_found(mine):
    shutil.rmtree(mine)
    write_images(mine, make_labels(30, length=2, characters="漢字猫犬"))
    assert find().config.alphabet == "".join(sorted("漢字猫犬"))


@pytest.mark.parametrize(("characters", "flips"), [("ابجد", True), ("abcd", False)])
def test_arabic_labels_are_learned_from_left_to_right_in_the_image(characters, flips, mine):
    shutil.rmtree(mine)
    write_images(mine, make_labels(30, characters=characters))
    config = find().config
    reader = ReadData(config)
    label = characters[:3]
    classes = reader.label2vec(label).reshape(3, 4).argmax(axis=1)
    shown = "".join(config.alphabet[i] for i in classes)
    assert shown == (label[::-1] if flips else label)
    assert reader.vec2label(reader.label2vec(label)) == label


def test_labels_of_both_directions_are_warned_of(mine, capsys):
    shutil.rmtree(mine)
    write_images(mine, make_labels(30, characters="اب12"))  # noqa: RUF001
    find()
    err = capsys.readouterr().err
    assert "both writing directions must be in the order in which they stand in the image" in err


# ---------------------------------------------------------------------- what is left out


def left_out(capsys, **settings):
    """{file: reason} of what is left out, and it is said on standard error."""
    found = find(**settings)
    err = capsys.readouterr().err
    assert all(each.reason in err for each in found.left_out)
    return {each.name: each.reason for each in found.left_out}


def test_a_label_longer_than_all_others_among_thousands_is_left_out(mine, capsys):
    write_images(mine, make_labels(1200), first=100)
    write_images(mine, ["abcd"], first=5000)
    assert left_out(capsys) == {
        "abcd_5000.png": "label of a rare length: 'abcd' has 4 characters, as 1 of 1241 labels have: "
        "correct it, or allow it with --char-num"
    }
    assert left_out(capsys, char_num="3-4") == {}


def test_a_character_that_no_other_label_has_is_left_out(mine, capsys):
    write_images(mine, make_labels(100), first=100)
    write_images(mine, ["abX"], first=5000)
    assert left_out(capsys) == {
        "abX_5000.png": "label with a rare character: 'X' in 'abX' is in 1 of 141 labels: "
        "correct it, or allow it with --characters"
    }
    assert left_out(capsys, characters="abcdX") == {}


def test_the_same_image_with_two_labels_is_left_out(mine, capsys):
    shutil.copy(mine / "aaa_0.png", mine / "bbb_0.png")
    reason = "the same image has the labels 'aaa' and 'bbb'"
    assert left_out(capsys) == {"aaa_0.png": reason, "bbb_0.png": reason}


def test_bad_files_are_left_out_and_named(mine, capsys):
    (mine / "notes.txt").write_text("hello")
    (mine / "abc_cut.png").write_bytes((mine / "aaa_0.png").read_bytes()[:60])
    random_image(700).save(mine / "_700.png")
    found = left_out(capsys)
    assert found["notes.txt"].startswith("not an image")
    assert found["abc_cut.png"].startswith("damaged PNG")
    assert found["_700.png"] == "no label: nothing stands before the first _ . ( or space of its name"


def test_a_space_in_a_label_is_named(mine, capsys):
    lines = [f"{path.name},{path.name[:3]}" for path in sorted(mine.iterdir())]
    (mine / "labels.csv").write_text("\n".join([*lines[1:], "aaa_0.png,a a"]))
    assert left_out(capsys) == {"aaa_0.png": "label with a space: 'a a' has ' ' in it"}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([], "must hold at least 10 different labelled images, but holds none that can be used: put some"),
        (["abc"], "but holds 1 that can be used: label more"),
        (["abc", "abd", "acd"], "but holds 3 that can be used: label more"),
        (
            ["captcha"] * 12,
            "must hold different labels, but all 12 images are labelled 'captcha': put the text",
        ),
        (["a", "aa"] * 6, "must hold labels of at least two different characters, but all have 'a' alone"),
    ],
)
def test_too_little_is_one_sentence(labels, words, mine):
    shutil.rmtree(mine)
    write_images(mine, labels)
    with pytest.raises(CaptchaError, match=words):
        find()


# ---------------------------------------------------------------------- the split


def names_of(sets):
    return {name: [image.path for image in images] for name, images in sets.items()}


def test_the_split_is_repeatable_and_depends_on_pixels_and_seed_alone(mine):
    found = find()
    sets = split_images(found.images, found.config, ())
    assert {name: len(images) for name, images in sets.items()} == {"train": 32, "validation": 4, "test": 4}
    assert len({image.digest for images in sets.values() for image in images}) == 40
    assert names_of(split_images(find().images, found.config, ())) == names_of(sets)
    assert names_of(split_images(found.images[::-1], found.config, ())) == names_of(sets), "in any order"
    other = split_images(found.images, replace(found.config, seed=1), ())
    assert names_of(other) != names_of(sets)
    digests = {name: [image.digest for image in images] for name, images in sets.items()}
    for number, path in enumerate(sorted(mine.iterdir())):
        path.rename(mine / f"{path.name[:3]}_renamed{number % 7}{number}.png")
    renamed = split_images(find().images, found.config, ())
    assert {name: [image.digest for image in images] for name, images in renamed.items()} == digests


def test_identical_images_are_never_in_two_sets(mine):
    for path in list(mine.iterdir()):
        shutil.copy(path, mine / f"{path.stem}_again.png")
    found = find()
    sets = split_images(found.images, found.config, ())
    assert sum(map(len, sets.values())) == 40
    data, record = load_split(found, (), ReadData(found.config))
    pixels = [{image.tobytes() for image in each.images} for each in data]
    assert not pixels[0] & pixels[1] | pixels[0] & pixels[2] | pixels[1] & pixels[2]
    assert len(record["copies"]) == 40


def test_a_folder_replaces_a_set_and_takes_its_images_out_of_the_others(mine):
    given = {"images": "mine", "test_folder": "exam", "folds": 1}
    exam = write_images(Path("exam"), make_labels(7), first=900)
    for path in sorted(mine.iterdir())[:3]:
        shutil.copy(path, exam / path.name)
    found = find_images(Config(**given), given)
    assert names_of(split_images(found.images, found.config, given))["test"] == []
    (train, validation, test), record = load_split(found, given, ReadData(found.config))
    assert len(test.images) == 10
    assert len(train.images) + len(validation.images) == 37
    assert record["test"] == []
    assert len(record["train"]) == len(train.images)
    seen = {image.tobytes() for image in test.images}
    assert not seen & {image.tobytes() for image in [*train.images, *validation.images]}


def test_a_split_that_was_recorded_is_read_again_to_resume(mine):
    found = find()
    data, record = load_split(found, (), ReadData(found.config))
    config = replace(found.config, checkpoint_folder="saved")
    Path("saved").mkdir()
    checkpoint.record_split("saved", record)
    write_images(mine, ["abcde"], first=300)  # found later
    again, _ = reload_sets(config, ReadData(config))
    for one, other in zip(data, again, strict=True):
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.labels, other.labels)
    saved = SimpleNamespace(config=config)
    assert len(driver.load_sets(config, {}, saved)[1][0].images) == 32
    gone = mine / record["train"][5]
    gone.rename("elsewhere.png")
    with pytest.raises(
        CaptchaError, match=f"must hold the labelled images .*, but not {gone.name}: bring it"
    ):
        reload_sets(config, ReadData(config))
    Path("saved/split.json").write_text("{}")
    with pytest.raises(CaptchaError, match="must say which image is in which set, but is damaged"):
        reload_sets(config, ReadData(config))
    checkpoint.record_split("saved", None)
    assert read_split("saved") is None
    with pytest.raises(CaptchaError, match=r"must hold split.json to resume a run with --images"):
        reload_sets(config, ReadData(config))


def test_names_that_are_no_unicode_are_recorded(mine):
    try:
        (mine / "aaa_0.png").rename(mine / "aaa_\udcff.png")
    except OSError:
        pytest.skip("the file system has Unicode names alone")
    found = find()
    _, record = load_split(found, (), ReadData(found.config))
    Path("saved").mkdir()
    checkpoint.record_split("saved", record)
    paths = [path for paths in read_split("saved").sets.values() for path in paths]
    assert "aaa_\udcff.png" in paths


def test_an_image_that_is_gone_when_it_is_loaded_is_named(mine):
    found = find()
    (mine / found.images[0].path).unlink()
    with pytest.raises(
        CaptchaError, match=r"aaa_0.png must stay as it was .* \(no such file\): bring it back"
    ):
        load_split(found, (), ReadData(found.config))


# ---------------------------------------------------------------------- nothing is lost


def test_the_sets_of_the_driver_change_nothing_in_the_folder(mine, capsys):
    (mine / "notes.txt").write_text("hello")
    before = snapshot(mine)
    given = {"images": "mine", "folds": 1}
    config, data, own, initial = driver.load_sets(Config(**given), given)
    assert [len(each.images) for each in data] == [32, 4, 4]
    assert data[0].images.shape[1:] == (config.height, config.width)
    assert initial is not None
    assert own.record["images"] == str(mine)
    assert own.unlabelled is None
    assert snapshot(mine) == before
    printed = capsys.readouterr()
    assert "mine: 40 images with labels from file names" in printed.out
    assert "notes.txt: not an image" in printed.err


@pytest.mark.parametrize("flag", ["checkpoint_folder", "tensorboard_folder"])
@pytest.mark.parametrize("place", ["mine", "mine/inside", "link"])
def test_nothing_is_written_into_the_folder(flag, place, mine):
    Path("link").symlink_to("mine")
    given = {"images": "mine", flag: place}
    if place == "mine":
        given["images"] = "./mine"
    with pytest.raises(ConfigError, match=r"must lie outside of .*mine, into which nothing is ever written"):
        driver.load_sets(Config(**given), given)
    check_outside(Config(**given), "elsewhere")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"images": "mine", "train_folder": "x"},
            "train_folder must be left out, since --images FOLDER is split",
        ),
        ({"images": "mine", "generate_num": (1, 2, 3)}, "generate_num must be left out"),
        ({"labels": "x.csv"}, "labels must be left out, since --images FOLDER is missing"),
        ({"unlabelled": "more", "labels": "x.csv"}, "labels must be left out, since --images FOLDER is miss"),
        ({"unlabelled": "more", "folds": 3}, "folds must be left out, since --images FOLDER is missing"),
        ({"unlabelled": "more", "validation_folder": "x"}, "validation_folder must be left out, since --im"),
        (
            {"unlabelled": "more", "generate_num": (1, 2, 3)},
            "generate_num must be left out, since noth",
        ),
        ({"stretch": 2.0}, "stretch must be left out, since --images FOLDER is missing"),
        ({"skip_top": 0.1}, "skip_top must be left out, since --images FOLDER is missing"),
        ({"images": "mine", "test_folder": "mine/test"}, "test_folder must lie outside of mine"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        check_given(Config(**given), given)
    with pytest.raises(ConfigError, match=words):
        driver.load_sets(Config(**given), given)


def test_the_command_to_train_refuses_before_anything_is_written(mine):
    done = script("driver.py", "--images", "mine", "--train-folder", "x", cwd=mine.parent)
    assert done.returncode == 2
    assert re.fullmatch(r"driver.py: train_folder must be left out.*\n", done.stderr)
    done = script("driver.py", "--images", "none", cwd=mine.parent)
    assert (done.returncode, done.stderr) == (
        1,
        "driver.py: none must be a folder of images, but does not exist: check the path\n",
    )
    assert [path.name for path in mine.parent.iterdir()] == ["mine"]


def test_the_record_is_plain_json(mine):
    found = find()
    _, record = load_split(found, (), ReadData(found.config))
    assert json.loads(json.dumps(record)) == record
    assert set(record) == {
        "images",
        "labels",
        "seed",
        "train",
        "validation",
        "test",
        "copies",
        "from folders",
    }
