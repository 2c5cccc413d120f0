"""Images without labels: which are used, when rounds begin and end, what they train on."""

import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY, assert_refused, script
from own_folder import make_labels, random_image, snapshot, write_images
from test_own_training import SHORT, draw_folder
from test_resume import contents
from training_fakes import interrupter, load_sets, numbered_images

import driver
from captcha_cnn import checkpoint, self_training
from captcha_cnn.checkpoint import TrainState, load_latest
from captcha_cnn.metrics import Metrics
from captcha_cnn.own_images import find_images
from captcha_cnn.own_sets import load_own_sets, reload_sets
from captcha_cnn.tf_runtime import TrainingInterrupted
from config import CaptchaError, Config, ConfigError
from driver import next_batch
from generate_captcha import ReadData

GIVEN = {"images": "mine", "unlabelled": "more"}
CONFIG = replace(TINY, images="mine", unlabelled="more")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The folders mine, with 40 labelled images, and more, with 12 others in a sub-folder."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "mine", make_labels(40))
    inside = tmp_path / "more" / "inside"
    inside.mkdir(parents=True)
    for number in range(100, 112):
        random_image(number).save(inside / f"{number}.png")
    return tmp_path


def load(**changes):
    given = GIVEN | {"folds": 1} | changes
    found = find_images(Config(**given), given)
    return found.config, *load_own_sets(found, given, ReadData(found.config))


# ---------------------------------------------------------------------- loading


def test_they_are_read_at_the_size_of_the_model_and_recorded(folders, capsys):
    before = snapshot(folders / "more")
    config, data, own = load()
    assert own.unlabelled.shape == (12, config.height, config.width)
    assert own.record["unlabelled"] == [f"inside/{number}.png" for number in range(100, 112)]
    assert sum(len(each.images) for each in data) == 40
    assert snapshot(folders / "more") == before
    assert "more: 12 images without labels; 0 others are labelled or copies" in capsys.readouterr().out


def test_labelled_images_and_copies_are_left_out(folders, capsys):
    for path in [*sorted((folders / "mine").iterdir())[:30], folders / "more" / "inside" / "103.png"]:
        shutil.copy(path, folders / "more" / f"copy_of_{path.name}")
    _, data, own = load()
    assert len(own.unlabelled) == 12
    assert "; 31 others are labelled or copies" in capsys.readouterr().out
    labelled = {image.tobytes() for each in data for image in each.images}
    assert not labelled & {image.tobytes() for image in own.unlabelled}


def test_damaged_files_are_named_and_left_out(folders, capsys):
    (folders / "more" / "broken.png").write_bytes(b"no image")
    (folders / "more" / "labels.csv").write_text("a.png,abc\n")
    _, _, own = load()
    assert len(own.unlabelled) == 12
    assert "broken.png: not an image" in capsys.readouterr().err


def test_the_folder_of_labelled_images_may_hold_the_others_too(folders):
    names = sorted(path.name for path in (folders / "mine").iterdir())
    lines = [f"{name},{name[:3]}" for name in names[:25]]
    (folders / "mine" / "labels.csv").write_text("\n".join(lines))
    _, data, own = load(unlabelled="mine")
    assert sum(len(each.images) for each in data) == 25
    assert own.record["unlabelled"] == names[25:]


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("empty", "empty must hold images without labels, but holds none: name another folder"),
        ("mine", "mine must lie outside of mine, all of whose images, in sub-folders too, have labels"),
        ("mine/inside", "mine/inside must lie outside of mine"),
        ("same", "same must hold images without labels, but all 40 are labelled already"),
        ("none", "none must be a folder of images, but does not exist"),
    ],
)
def test_a_folder_without_any_is_one_sentence(folder, words, folders):
    (folders / "empty").mkdir()
    (folders / "mine" / "inside").mkdir()
    shutil.copytree(folders / "mine", folders / "same")
    with pytest.raises(CaptchaError, match=words):
        load(unlabelled=folder)


def test_of_a_huge_folder_a_part_is_used(folders, monkeypatch, capsys):
    monkeypatch.setattr(self_training, "MAX_IMAGES", 5)
    _, _, own = load()
    assert own.record["unlabelled"] == [f"inside/{number}.png" for number in range(100, 105)]
    assert "more: the first 5 of 12 images are used" in capsys.readouterr().out


def test_nothing_is_written_into_their_folder(folders):
    given = GIVEN | {"checkpoint_folder": "more/here"}
    with pytest.raises(ConfigError, match="must lie outside of more, into which nothing is ever written"):
        driver.load_sets(Config(**given), given)


def test_a_resumed_run_has_the_same_ones(folders):
    config, _, own = load()
    Path("checkpoints").mkdir()
    checkpoint.record_split("checkpoints", own.record)
    random_image(300).save("more/new.png")
    _, again = reload_sets(config, ReadData(config))
    assert np.array_equal(again.unlabelled, own.unlabelled)
    Path("more/inside/104.png").unlink()
    with pytest.raises(CaptchaError, match=r"inside/104.png must stay as it was when the run began"):
        reload_sets(config, ReadData(config))


# ---------------------------------------------------------------------- rounds


def state(**changes):
    best = Metrics(0.1, 0.9, 9, 10, 0.01)
    return TrainState("hash", **{"best": best, "step": 1000, "last_eval_step": 1000} | changes)


@pytest.mark.parametrize(
    ("changes", "folder", "due"),
    [
        ({}, "more", True),
        ({}, "", False),
        ({"best": None}, "more", False),
        ({"best": Metrics(1.6, 0.2, 0, 10, 0.01)}, "more", False),  # it reads nothing
        ({"round": 1, "round_from": 400, "best_step": 700}, "more", True),
        ({"round": 1, "round_from": 400, "best_step": 400}, "more", False),  # it did not help
        ({"round": 3, "round_from": 400, "best_step": 700}, "more", False),
    ],
)
def test_a_round_comes_where_the_model_reads_and_the_last_one_has_helped(changes, folder, due):
    config = replace(TINY, images="mine", unlabelled=folder)
    assert self_training.round_is_due(state(**changes), config, 3) == due


class Reader:
    """Session and model of a network that reads the number of an image, and is the surer the larger it is."""

    predictions = SimpleNamespace(chars="chars", confidence="confidence")
    x = "x"

    def __init__(self):
        self.temperatures = []
        self.weights = {"inverse_temperature": SimpleNamespace(load=lambda v, _: self.temperatures.append(v))}

    def run(self, fetches, feed):
        numbers = feed["x"][:, 0, 0]
        assert fetches == ["chars", "confidence"]
        return np.stack([numbers % 5, numbers % 3, np.full(len(numbers), -1)], axis=1), numbers / 10


def test_texts_read_with_confidence_become_labels(monkeypatch):
    calibrated = []
    monkeypatch.setattr(self_training, "calibrate", lambda *each: calibrated.extend(each[2:]))
    reader, validation = Reader(), numbered_images(2)
    config = replace(TINY, char_num="2-3", width=53)
    texts = self_training.read_labels(reader, reader, numbered_images(11).images, validation, config)
    assert texts == [""] * 5 + ["ac", "ba", "cb", "dc", "ea", "ab"]
    assert all(np.array_equal(a, b) for a, b in zip(calibrated[0], validation, strict=True))
    assert reader.temperatures == [1.0], "validation during the round is that of before"


def test_reading_that_is_interrupted_leaves_the_temperature_as_it_was(monkeypatch):
    def interrupted(*_):
        raise TrainingInterrupted(signal.SIGINT)

    monkeypatch.setattr(self_training, "calibrate", interrupted)
    reader = Reader()
    with pytest.raises(TrainingInterrupted):
        self_training.read_labels(reader, reader, numbered_images(3).images, numbered_images(2), TINY)
    assert reader.temperatures == [1.0]


def test_a_round_says_what_joins():
    run = state()
    line = self_training.start_round(run, ["abc", "", "de"], CONFIG)
    assert "round 1: 2 of 3 images without labels are read with a confidence of at least 50%" in line
    assert (run.round, run.round_from, run.own_labels) == (1, 1000, ["abc", "", "de"])
    assert "round 2: 1 of 1 " in self_training.start_round(run, ["abc"], CONFIG)
    assert "Self-training ends: none of 2 images" in self_training.start_round(run, ["", ""], CONFIG)


def round_batches(done, config):
    """The batches of a round from that step of it on."""
    labels = ["", "abc", "cde", "", "eab", "bbb", "dda"]
    run = state(round=1, round_from=1000, step=1000 + done, own_labels=labels, epoch=6)
    reader = ReadData(config)
    train = numbered_images(21)
    train = train._replace(labels=np.tile(reader.label2vec("aaa"), (21, 1)))
    own = 100 + numbered_images(7).images
    sets = train, own
    return list(self_training.scheduled_batches(run, sets, config, next_batch))


def test_half_of_each_batch_is_labelled_and_the_rest_what_was_read_with_confidence(monkeypatch):
    monkeypatch.setattr(self_training, "ROUND_STEPS", 9)
    config = replace(TINY, batch_size=6, shift=0.0, scale=0.0, shear=0.0, squeeze=0.0, noise=0.0)
    reader, found = ReadData(config), set()
    coming = round_batches(0, config)
    assert len(coming) == 9
    for epoch, x, y in coming:
        numbers, labels = x[:, 0, 0], [reader.vec2label(each) for each in y]
        assert epoch == 6, "no line of an epoch is printed"
        assert (numbers[:3] < 21).all()
        assert labels[:3] == ["aaa"] * 3
        found |= set(zip(numbers[3:].tolist(), labels[3:], strict=True))
    assert found == {(101, "abc"), (102, "cde"), (104, "eab"), (105, "bbb"), (106, "dda")}


def test_a_resumed_round_goes_on_with_the_same_batches(monkeypatch):
    monkeypatch.setattr(self_training, "ROUND_STEPS", 9)
    config = replace(TINY, batch_size=6, images="mine")
    whole, rest = round_batches(0, config), round_batches(4, config)
    assert len(rest) == 5
    for (_, x, y), (_, other_x, other_y) in zip(whole[4:], rest, strict=True):
        assert np.array_equal(x, other_x)
        assert np.array_equal(y, other_y)


@pytest.fixture
def rounds(monkeypatch, drawn, tmp_path, short_start):
    """A Config of a short run with rounds of 12 steps, and its sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(self_training, "ROUND_STEPS", 12)
    monkeypatch.setattr(self_training, "MIN_CONFIDENCE", 0.01)
    monkeypatch.setattr("captcha_cnn.plateau.PLATEAU_SHARE", 9.0)  # it has learned next to nothing
    monkeypatch.setattr(driver, "reserve_folders", lambda *_: driver.contextlib.nullcontext())
    Path("checkpoints").mkdir()
    Path("tensorboard").mkdir()
    config = replace(drawn, images="mine", unlabelled="more", Epoch=1, checkpoint_per_batch=3)
    train, validation, test = load_sets(drawn)
    own = driver.OwnSets({}, train.images[100:])
    return config, [train._replace(images=train.images[:50], labels=train.labels[:50]), validation, test], own


def test_an_interrupted_round_ends_as_one_never_interrupted(rounds, tf, capsys, monkeypatch):
    config, sets, own = rounds
    finished, result = driver.run_model(config, *sets, None, own)
    expected = contents("checkpoints", tf)
    assert finished.round >= 1
    assert finished.step == 7 + 12 * finished.round
    assert "Self-training, round 1: " in capsys.readouterr().out
    shutil.rmtree("checkpoints")
    interrupt_after = interrupter(monkeypatch)
    saved = None
    for steps in (5, 8, 3):
        interrupt_after(steps)
        with pytest.raises(TrainingInterrupted):
            driver.run_model(config, *sets, saved, own)
        saved = load_latest("checkpoints")
    assert saved.progress["round"] == 1
    _, test = driver.run_model(config, *sets, saved, own)
    assert test == result
    assert contents("checkpoints", tf) == expected


def test_other_unlabelled_images_are_another_run(rounds):
    config, sets, own = rounds
    driver.run_model(config, *sets, None, own)
    saved = load_latest("checkpoints")
    with pytest.raises(CaptchaError, match="the images must be those that the run"):
        driver.run_model(config, *sets, saved, own._replace(unlabelled=own.unlabelled[1:]))


def test_the_best_weights_are_never_worse_than_those_before_the_rounds(rounds, monkeypatch, capsys):
    config, sets, own = rounds
    before, _ = driver.run_model(replace(config, unlabelled=""), *sets)
    shutil.rmtree("checkpoints")
    wrong = ["e" * TINY.max_length] * len(own.unlabelled)
    monkeypatch.setattr(self_training, "read_labels", lambda *_: wrong)
    after, _ = driver.run_model(config, *sets, None, own)
    assert not before.best.improves_on(after.best)
    assert re.search("Self-training (helped|did not help)", capsys.readouterr().out)


# ---------------------------------------------------------------------- as a user runs it


def test_the_command_trains_with_unlabelled_images(tmp_path, short_start, monkeypatch, capsys):
    draw_folder(tmp_path / "mine", "0123456789", (1, 2), (50, 70))
    done = script("driver.py", "--images", "mine", "--unlabelled", "mine", *SHORT, cwd=tmp_path)
    assert_refused(done, 1, "mine must lie outside of mine")
    more = tmp_path / "more"
    more.mkdir()
    for path in sorted((tmp_path / "mine").iterdir())[20:]:
        path.rename(more / path.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(self_training, "ROUND_STEPS", 3)
    monkeypatch.setattr(self_training, "MIN_CONFIDENCE", 0.2)
    assert driver.main(["--images", "mine", "--unlabelled", "more", "--epoch", "1", *SHORT[2:]]) == 0
    out = capsys.readouterr().out
    assert "more: 20 images without labels" in out
    assert re.search(r"Self-training, round 1: \d+ of 20 images", out)
    assert re.search("Self-training (helped|did not help)", out)
    assert "Captcha accuracy" in out
