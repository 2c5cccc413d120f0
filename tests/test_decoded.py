"""Sets that are too large for memory: the file of their decoded images, and what reads from it."""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bad_files import png
from conftest import TINY
from own_folder import make_labels, write_images
from test_resume import contents
from training_fakes import load_sets

import driver
import predict
from captcha_cnn import decoded
from captcha_cnn.checkpoint import load_latest
from captcha_cnn.dataset import dataset_hash
from captcha_cnn.decoded import DamagedFileError, DecodedImages, archive_path
from captcha_cnn.own_images import find_images
from captcha_cnn.own_sets import load_split, reload_sets
from config import CaptchaError, Config, ConfigError
from generate_captcha import ReadData


@pytest.fixture
def place(drawn, tmp_path, monkeypatch):
    """A copy of the drawn sets in the current folder; any set is too large for memory there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decoded, "IN_MEMORY", 0)
    for _, folder, _ in drawn.sets:
        shutil.copytree(folder, tmp_path / Path(folder).name)
    return TINY


def in_memory(monkeypatch, config):
    """The three sets as arrays."""
    with monkeypatch.context() as patch:
        patch.setattr(decoded, "IN_MEMORY", 2**28)
        return load_sets(config)


def counting(monkeypatch):
    """A list that grows by the path of each image that is decoded."""
    paths, decode = [], decoded.image_for
    monkeypatch.setattr(decoded, "image_for", lambda path, config: paths.append(path) or decode(path, config))
    return paths


def train_archive(config):
    return archive_path(config.train_folder, config)


# ---------------------------------------------------------------------- what it holds


def test_what_is_read_is_what_memory_would_hold(place, monkeypatch):
    for expected, found in zip(in_memory(monkeypatch, place), load_sets(place), strict=True):
        assert isinstance(found.images, DecodedImages)
        assert isinstance(expected.images, np.ndarray)
        some = np.array([7, 0, 7, 11])
        mask = np.arange(len(expected.images)) % 3 == 1
        for a, b in zip(expected, found, strict=True):
            assert len(a) == len(b)
            for chosen in (slice(None), slice(3, 9), some):
                assert np.array_equal(a[chosen], b[chosen])
                assert a[chosen].dtype == b[chosen].dtype
            assert not isinstance(b[mask], np.ndarray), "a mask selects without reading"
            assert np.array_equal(a[mask], b[mask][:])
            assert np.array_equal(a[mask][some % 4], b[mask][some % 4])
        assert found.images.shape == expected.images.shape
        assert all(map(np.array_equal, found.images, expected.images))


def test_numpy_opens_the_file(place):
    images = load_sets(place)[0].images[:]
    with np.load(train_archive(place)) as arrays:
        assert np.array_equal(arrays["images"], images)


def test_the_hash_of_the_sets_is_the_same_in_memory(place, monkeypatch):
    train, validation, _ = in_memory(monkeypatch, place)
    on_disk = load_sets(place)
    assert dataset_hash(train, validation) == dataset_hash(*on_disk[:2])
    other = train.images.copy()
    other[5, 3, 3] ^= 1
    assert dataset_hash(train._replace(images=other), validation) != dataset_hash(train, validation)
    swapped = train.labels[::-1].copy()
    assert dataset_hash(train._replace(labels=swapped), validation) != dataset_hash(train, validation)


def test_files_that_are_left_out_are_the_same_and_named_each_time(place, monkeypatch, capsys):
    Path("train", "aaa_1000.png").write_text("no image")
    Path("train", "zzz_1001.png").write_bytes(png())
    Path("train", "abc_1002.png").write_bytes(png()[:60])
    expected, said = in_memory(monkeypatch, place)[0], capsys.readouterr().err
    assert "train: 3 of 153 files left out" in said
    for _ in range(2):
        found = load_sets(place)[0]
        assert all(np.array_equal(a, b[:]) for a, b in zip(expected, found, strict=True))
        assert sorted(capsys.readouterr().err.splitlines()) == sorted(said.splitlines())


def test_a_set_of_bad_files_is_refused_as_in_memory(place):
    for number in range(30):
        Path("train", f"abc_2{number:02d}.png").write_text("no image")
    with pytest.raises(CaptchaError, match="train must hold at most a tenth of bad files, but 30 of 180 are"):
        ReadData(place).load_set("train")


def test_colour_is_kept(place, monkeypatch):
    config = replace(place, colour=True)
    expected, found = in_memory(monkeypatch, config)[0], load_sets(config)[0]
    assert found.images.shape == (150, 23, 37, 3)
    assert np.array_equal(expected.images, found.images[:])


def test_small_sets_need_no_file(place, monkeypatch):
    monkeypatch.setattr(decoded, "IN_MEMORY", 150 * 23 * 37)
    load_sets(place)
    assert not os.path.exists("decoded")
    monkeypatch.setattr(decoded, "IN_MEMORY", 150 * 23 * 37 - 1)
    load_sets(place)
    assert sorted(os.listdir("decoded")) == ["lock", train_archive(place).name]


def test_two_threads_may_read_from_one_file(place):
    images = ReadData(place).load_set("train").images
    expected, parts = images[:], (images.select(range(75)), images.select(range(75, 150)))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            for _ in range(20):
                first, second = threads.map(lambda part: part[:], parts)
                assert np.array_equal(np.concatenate([first, second]), expected)
    finally:
        sys.setswitchinterval(interval)


# ---------------------------------------------------------------------- when it is written


def test_images_are_decoded_once(place, monkeypatch, capsys):
    paths = counting(monkeypatch)
    load_sets(place)
    assert len(paths) == 150 + 20 + 30
    load_sets(place)
    assert len(paths) == 150 + 20 + 30
    assert "decoded again" not in capsys.readouterr().out


def change_size(folder):
    path = next(folder.iterdir())
    path.write_bytes(path.read_bytes() + b"more")


def change_time(folder):
    os.utime(next(folder.iterdir()), ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_size, "0 files are new, 0 are gone, 1 have changed"),
        (change_time, "0 files are new, 0 are gone, 1 have changed"),
        (lambda folder: (folder / "abc_999999.png").write_bytes(png()), "1 files are new, 0 are gone"),
        (lambda folder: next(folder.glob("*.png")).unlink(), "0 files are new, 1 are gone, 0 have changed"),
    ],
    ids=["size", "time", "new", "gone"],
)
def test_a_changed_folder_is_noticed(change, message, place, monkeypatch, capsys):
    load_sets(place)
    change(Path("train"))
    paths = counting(monkeypatch)
    found = ReadData(place).load_set("train")
    assert f"train: decoded again, since {message}" in capsys.readouterr().out
    assert {Path(path).parent.name for path in paths} == {"train"}
    assert np.array_equal(found.images[:], in_memory(monkeypatch, place)[0].images)


def test_other_settings_of_the_images_are_noticed(place, capsys):
    ReadData(place).load_set("train")
    ReadData(replace(place, colour=True)).load_set("train")
    assert "train: decoded again, since it was decoded with colour False" in capsys.readouterr().out
    assert len(list(Path("decoded").glob("*.npz"))) == 1, "the earlier file is replaced"


def test_labels_may_change(place, monkeypatch):
    ReadData(place).load_set("train")
    paths = counting(monkeypatch)
    ReadData(replace(place, characters="abcdefg")).load_set("train")
    assert paths == []


def test_folders_of_the_same_name_have_files_of_their_own(place):
    shutil.copytree("test", "other/test")
    first, second = ReadData(place).load_set("test"), ReadData(place).load_set("other/test")
    assert len(list(Path("decoded").glob("test-*.npz"))) == 2
    assert np.array_equal(first.images[:], second.images[:])


def test_the_files_of_a_folder_are_listed_once(place, monkeypatch):
    monkeypatch.setattr(os, "listdir", listed := Counted(os.listdir))
    given = {name: getattr(place, name) for name in ("width", "height", "char_num", "characters")}
    _, sets, _, _ = driver.load_sets(replace(Config(**given), generate_num=(150, 20, 30)), given)
    assert [len(data.images) for data in sets] == [150, 20, 30]
    folders = [str(path) for path in listed.arguments if str(path) in ("test", "train", "validation")]
    assert sorted(folders) == ["test", "train", "validation"]


class Counted:
    """A function, and what it was called with."""

    def __init__(self, function):
        self.function, self.arguments = function, []

    def __call__(self, argument="."):
        self.arguments.append(argument)
        return self.function(argument)


# ---------------------------------------------------------------------- when something is wrong


def damage(path, place):
    """Change a byte of a file, as a failing disk does."""
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


def test_a_damaged_image_is_noticed_when_it_is_read(place):
    images = ReadData(place).load_set("train").images
    damage(train_archive(place), 23 * 37 * 10)
    images[:5]
    images[50:]
    with pytest.raises(DamagedFileError, match=r"decoded/train-.*\.npz must be as it was written, but is "):
        images[:]


def test_a_file_that_is_cut_short_while_it_is_used_is_noticed(place):
    images = ReadData(place).load_set("train").images
    os.truncate(train_archive(place), 23 * 37 * 100)
    images[:5]
    with pytest.raises(DamagedFileError):
        images[140:]


@pytest.mark.parametrize("size", [0, 10, 23 * 37 * 100, -1])
def test_a_file_that_is_no_archive_any_more_is_written_again(size, place, capsys, monkeypatch):
    ReadData(place).load_set("train")
    path = train_archive(place)
    os.truncate(path, size % path.stat().st_size)
    found = ReadData(place).load_set("train")
    assert f"train: decoded again, since {path} is damaged" in capsys.readouterr().out
    assert np.array_equal(found.images[:], in_memory(monkeypatch, place)[0].images)


def test_too_little_room_is_said_before_anything_is_decoded(place, monkeypatch):
    paths = counting(monkeypatch)
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 127_649))
    message = r"decoded must have room for 0\.0 GB of decoded images, but .* \(0\.0 GB are free\): make room"
    with pytest.raises(CaptchaError, match=message):
        ReadData(place).load_set("train")
    assert paths == []


def test_a_disk_that_fills_leaves_the_earlier_file_and_no_other(place, monkeypatch):
    ReadData(place).load_set("train")
    before = train_archive(place).read_bytes()
    change_time(Path("train"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(CaptchaError, match=r"\(No space left on device\): make room there, or name another"):
        ReadData(place).load_set("train")
    assert train_archive(place).read_bytes() == before
    assert sorted(os.listdir("decoded")) == ["lock", train_archive(place).name]


def test_the_folder_lies_outside_of_the_users_images(place):
    given = {"images": "train", "decoded_folder": "train/decoded"}
    with pytest.raises(ConfigError, match=r"train/decoded must lie outside of train.*--decoded-folder"):
        driver.load_sets(Config(**given), given)


# ---------------------------------------------------------------------- training


def run(config, sets):
    return driver.run_model(replace(config, checkpoint_per_batch=3), *sets)


@pytest.fixture(scope="module")
def uninterrupted(tf, drawn, tmp_path_factory):
    """What the checkpoint of a run holds whose sets are in memory."""
    folder = tmp_path_factory.mktemp("memory")
    config = replace(
        drawn, checkpoint_folder=str(folder / "checkpoints"), tensorboard_folder=str(folder / "curves")
    )
    run(config, load_sets(drawn))
    return contents(config.checkpoint_folder, tf)


def test_training_is_the_same_to_the_bit(place, tf, monkeypatch, uninterrupted):
    sets = load_sets(place)
    monkeypatch.setattr(decoded, "IN_MEMORY", 2**28)  # a validation set in memory, as such a one mostly is
    sets[1] = ReadData(place).load_set("validation")
    run(place, sets)
    assert contents("checkpoints", tf) == uninterrupted


def test_a_run_that_meets_a_damaged_image_is_saved_and_goes_on_where_it_was(
    place, tf, monkeypatch, uninterrupted
):
    sets, read, left = in_memory(monkeypatch, place), DecodedImages._read, 6
    sets[0] = ReadData(place).load_set("train")

    def fail_once(self, rows):
        nonlocal left
        left -= 1
        if left == 0:
            raise DamagedFileError("decoded/train.npz")
        return read(self, rows)

    monkeypatch.setattr(DecodedImages, "_read", fail_once)
    with pytest.raises(DamagedFileError):
        run(place, sets)
    saved = load_latest("checkpoints")
    assert 3 < saved.progress["step"] < 10
    config = replace(place, checkpoint_per_batch=3)
    driver.run_model(config, *sets, saved)
    assert contents("checkpoints", tf) == uninterrupted


# ---------------------------------------------------------------------- own images, and predict.py


def test_own_images_are_split_alike_and_share_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "mine", make_labels(40))
    given = {"images": "mine", "folds": 1}
    found = find_images(Config(**given), given)
    expected, record = load_split(found, given, ReadData(found.config))
    monkeypatch.setattr(decoded, "IN_MEMORY", 0)
    paths = counting(monkeypatch)
    data, again = load_split(found, given, ReadData(found.config))
    assert again == record
    assert len(paths) == 40
    for a, b in zip(expected, data, strict=True):
        assert isinstance(b.images, DecodedImages)
        assert np.array_equal(a.images, b.images[:])
        assert np.array_equal(a.labels, b.labels[:])
    assert len(list(Path("decoded").glob("*.npz"))) == 1
    (tmp_path / "checkpoints").mkdir()
    driver.checkpoint.record_split("checkpoints", record)
    resumed, _ = reload_sets(found.config, ReadData(found.config))
    assert len(paths) == 40
    assert all(np.array_equal(a.images, b.images[:]) for a, b in zip(expected, resumed, strict=True))


def test_an_own_image_that_was_damaged_meanwhile_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = write_images(tmp_path / "mine", make_labels(40))
    given = {"images": "mine", "folds": 1}
    found = find_images(Config(**given), given)
    monkeypatch.setattr(decoded, "IN_MEMORY", 0)
    sorted(mine.iterdir())[3].write_text("no image")
    with pytest.raises(CaptchaError, match=r"mine/.* must stay as it was .* \(not an image: no PNG"):
        load_split(found, given, ReadData(found.config))


def test_a_labelled_folder_is_evaluated_in_parts(drawn, model, monkeypatch, capsys):
    """predict.py --labelled needs no more memory for more images."""
    predictor, sizes = predict.Predictor(model), []
    monkeypatch.setattr(
        predictor, "read_arrays", lambda images: sizes.append(len(images)) or read_arrays(images)
    )
    read_arrays = predict.Predictor(model).read_arrays
    assert predict.evaluate_folder(predictor, drawn.train_folder, None) == 0
    assert sizes == [100, 50]
    assert "of 150" in capsys.readouterr().out
