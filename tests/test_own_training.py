"""`driver.py --images` as a user runs it, from the weights that come with it, and from an earlier model."""

import json
import re

import numpy as np
import pytest
from conftest import script
from PIL import Image

from captcha_cnn.checkpoint import list_checkpoints, read_checkpoint
from captcha_cnn.initial_weights import SHIPPED, read_weights
from captcha_cnn.styles import draw_styles

DIGITS, LETTERS = "0123456789", "ABCDEFGH"
SHORT = ("--epoch", "2", "--folds", "1", "--print-per-batch", "1000", "--save-per-batch", "1000")


def draw_folder(folder, alphabet, lengths, size):
    """A folder of 40 captchas that no system of ours draws as such, with their labels in their names."""
    folder.mkdir()
    images, labels = draw_styles(40, 7, alphabet, lengths, size)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(folder / f"{label}_{i}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("own")
    draw_folder(place / "mine", DIGITS, (3, 4), (180, 70))
    return place


@pytest.fixture(scope="module")
def trained(place):
    before = {path.name: path.stat().st_mtime_ns for path in (place / "mine").iterdir()}
    done = script("driver.py", "--images", "mine", *SHORT, cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name: path.stat().st_mtime_ns for path in (place / "mine").iterdir()} == before
    return done.stdout


def first_accuracy(output):
    """Share of the characters of validation that are read before the first step."""
    return float(re.search(r"Step +0,.* val_acc: +([\d.]+)%", output)[1])


def test_it_says_what_it_finds_and_begins_with_weights_that_read(trained):
    assert "mine: 40 images with labels from file names" in trained
    assert "read at 154x60 px" in trained
    assert "Images for train :32, for validation : 4, for test : 4" in trained
    assert "Initial weights: captchas of many styles, which have 10 of the 10 characters" in trained
    assert first_accuracy(trained) > 40, "guessing reads 10%"


def test_the_split_is_recorded_beside_the_checkpoints(trained, place):
    split = json.loads((place / "checkpoints" / "split.json").read_text(encoding="utf-8"))
    assert [len(split[name]) for name in ("train", "validation", "test")] == [32, 4, 4]


def test_the_weights_that_training_began_with_stay_in_its_checkpoints(trained, place, tf):
    saved = read_checkpoint(list_checkpoints(str(place / "checkpoints"))[0])
    names = {name.removeprefix("start/") for name in saved.variables if name.startswith("start/")}
    assert names == set(saved.weights)
    reader = tf.train.load_checkpoint(saved.path)
    kernel = reader.get_tensor("start/conv2_4x2/kernel")
    assert np.array_equal(kernel, read_weights(SHIPPED).weights["conv2_4x2/kernel"])


def test_its_own_test_images_are_read_and_no_others(trained, place):
    done = script("predict.py", "--labelled", "mine", cwd=place)
    assert "mine: the 4 test images of 40 are read; the others were trained on" in done.stdout
    correct = re.search(r"Captcha accuracy: .*\(\d+ of 4,", trained)[0]
    assert correct in done.stdout


def test_an_earlier_model_begins_another_of_another_alphabet_size_and_length(trained, place):
    draw_folder(place / "letters", DIGITS[:4] + LETTERS, (5, 5), (220, 60))
    arguments = ("--images", "letters", "--start-from", "checkpoints", "--checkpoint-folder", "second")
    done = script("driver.py", *arguments, "--tensorboard-folder", "second_curves", *SHORT, cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Initial weights: checkpoints, which have 4 of the 12 characters" in done.stdout


def test_from_nothing_it_guesses_at_first(place):
    arguments = (
        "--start-from",
        "none",
        "--checkpoint-folder",
        "third",
        "--tensorboard-folder",
        "third_curves",
    )
    done = script("driver.py", "--images", "mine", *arguments, "--epoch", "1", *SHORT[2:], cwd=place)
    assert done.returncode == 0
    assert "Initial weights" not in done.stdout
    assert first_accuracy(done.stdout) < 40
