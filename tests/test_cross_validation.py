"""Few labelled images: how they are split into folds, what the folds say, and the whole run."""

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, assert_refused, script
from own_folder import make_labels, write_images
from test_own_training import draw_folder
from training_fakes import interrupter, numbered_images

import driver
from captcha_cnn import checkpoint, cross_validation, own_images, readings, self_training
from captcha_cnn.checkpoint import fold_folders, list_checkpoints, load_latest, newest_of_run
from captcha_cnn.initial_weights import SHIPPED, read_weights
from captcha_cnn.readings import Readings
from config import Config, ConfigError

FEW = (
    "--images",
    "mine",
    "--width",
    "55",
    "--epoch",
    "1",
    "--print-per-batch",
    "99",
    "--save-per-batch",
    "99",
)


# ---------------------------------------------------------------------- folds


def test_each_image_is_held_out_once_and_trained_on_by_all_other_folds():
    data = numbered_images(11)
    seen = []
    for trained, held_out in cross_validation.fold_sets(data, 3):
        inside, outside = ({*each.labels[:, 0].tolist()} for each in (held_out, trained))
        assert inside | outside == set(range(11))
        assert not inside & outside
        seen += inside
    assert sorted(seen) == list(range(11))


@pytest.mark.parametrize(
    ("count", "changes", "folds"),
    [
        (199, {}, 5),
        (200, {}, 1),
        (4000, {"folds": 7}, 7),
        (50, {"folds": 1}, 1),
        (50, {"start_from": "none"}, 1),
        (50, {"network": "classic"}, 1),
    ],
)
def test_few_images_are_cross_validated_unless_the_user_says_otherwise(count, changes, folds):
    assert own_images.number_of_folds(count, Config(images="mine", **changes), {*changes}) == folds


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start_from": "none"}, "folds must be left out with --start-from none"),
        ({"network": "classic"}, "folds must be left out with --network classic"),
        ({"validation_folder": "other"}, "folds must be left out with --validation-folder"),
        ({}, "folds must be at most the number of images, 3, not 4"),
    ],
)
def test_cross_validation_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        own_images.number_of_folds(3, Config(images="mine", folds=4, **changes), {*changes})


# ---------------------------------------------------------------------- what the folds say


def stage(temperature, *rows, after=0, share=1.0):
    """What read_held_out() notes: rows of label, text, confidence and probability of the label."""
    found = {"round": after, "share": share, "temperature": temperature}
    return found | {"readings": [list(each) for each in zip(*rows, strict=True)]}


def test_readings_of_the_folds_are_pooled_in_the_order_of_the_images():
    first = stage(1.0, ("a", "a", 0.9, 0.9), ("c", "x", 0.6, 0.3))
    second = stage(4.0, ("b", "b", 0.8, 0.8))
    pooled = cross_validation.pool([[first], [second]])
    assert pooled.readings == Readings(["a", "b", "c"], ["a", "b", "x"], [0.9, 0.8, 0.6], [0.9, 0.8, 0.3])
    assert pooled.rounds == 0
    assert pooled.temperatures == [pytest.approx(2.0)], "the mean of their logarithms"


def test_rounds_count_as_many_as_make_labels_more_probable():
    probs = [(0.5, 0.8, 0.4), (0.5, 0.7, 0.75)]
    stages = [[stage(1.0, ("a", "a", p, p), after=n) for n, p in enumerate(fold)] for fold in probs]
    pooled = cross_validation.pool(stages)
    assert pooled.rounds == 1
    assert pooled.readings.label_probs == [0.8, 0.7]
    assert len(pooled.temperatures) == 3


def test_folds_whose_training_came_to_nothing_are_an_error_in_one_sentence():
    with pytest.raises(driver.CaptchaError, match="the loss was not finite: try a smaller --alpha"):
        cross_validation.pool([[stage(1.0, ("a", "a", np.nan, np.nan))]])


def test_the_share_of_the_trained_weights_is_that_which_makes_labels_most_probable():
    probs = {(0, 0.5): 0.6, (0, 1.0): 0.7, (1, 0.5): 0.9, (1, 1.0): 0.8}
    fold = [
        stage(1 + share, ("a", "a", p, p), after=after, share=share) for (after, share), p in probs.items()
    ]
    pooled = cross_validation.pool([fold, fold])
    assert (pooled.rounds, pooled.share) == (1, 0.5)
    assert pooled.temperatures == [pytest.approx(1.5)] * 2
    assert pooled.readings.label_probs == [0.9, 0.9]


def test_a_record_of_another_version_is_one_sentence(tmp_path):
    (tmp_path / "old.json").write_text('{"rounds": 1, "temperatures": [], "readings": [[], [], [], []]}')
    with pytest.raises(driver.CaptchaError, match="must be of this version"):
        cross_validation.read_record(tmp_path / "old.json")


def test_the_report_names_accuracy_interval_and_what_helped():
    pooled = cross_validation.Pooled(
        2, 0.5, [1.0] * 4, Readings(["ab"] * 50, ["ab"] * 37 + ["ac"] * 13, [1.0] * 50, [])
    )
    text = cross_validation.report(pooled, Config(images="mine", unlabelled="more", folds=5))
    assert "Cross-validation accuracy:  74.00% (37 of 50, 95% interval 60.45 to 84.13)" in text
    assert "Self-training helped in 2 rounds" in text
    assert "trained on all 50 images" in text
    text = cross_validation.report(pooled._replace(rounds=0), Config(images="mine", folds=5))
    assert "Self-training" not in text


# ---------------------------------------------------------------------- labels that look wrong


ROWS = Readings(
    ["aaa", "bbb", "ccc", "ddd", "eee"],
    ["aaa", "abb", "ddc", "dda", "aaa"],
    [0.99, 0.97, 0.8, 0.6, 0.03],
    [0.99, 1e-5, 1e-9, 0.01, 1e-5],  # that of ddd is too probable
)


def test_labels_look_wrong_where_another_text_is_far_more_probable_the_surest_first():
    assert readings.suspicious(ROWS) == [2, 1, 4], (
        "the last is read with little confidence, but not as its label"
    )
    text = readings.describe(ROWS, ["0.png", "1\n.png", "2.png", "3.png", "4.png"])
    assert text.splitlines() == [
        "3 labels look wrong, the surest first; readings.csv beside the checkpoints has all:",
        "  2.png: label ccc, read as ddc with a confidence of 80.0%",
        "  1\\n.png: label bbb, read as abb with a confidence of 97.0%",
        "  4.png: label eee, read as aaa with a confidence of 3.0%",
    ]
    assert readings.describe(Readings(["a"], ["a"], [1.0], [1.0]), ["0.png"]) == ""


def test_many_are_counted_and_all_are_in_the_table(tmp_path):
    many = Readings(["a"] * 12, ["b"] * 12, [0.9] * 12, [0.001] * 12)
    paths = [f"{number}.png" for number in range(12)]
    assert readings.describe(many, paths).endswith("\n  and 2 others")
    readings.write(ROWS, paths[:5], str(tmp_path))
    with (tmp_path / "readings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["2.png", "1.png", "4.png", "0.png", "3.png"]
    assert [row["looks wrong"] for row in rows] == ["yes", "yes", "yes", "no", "no"]
    assert rows[1] | {"confidence": ""} == {
        "file": "1.png",
        "label": "bbb",
        "text": "abb",
        "confidence": "",
        "probability of the label": "1e-05",
        "looks wrong": "yes",
    }


# ---------------------------------------------------------------------- a run


@pytest.fixture
def place(tmp_path, monkeypatch, short_start):
    """A folder mine with 20 labelled captchas, and more with 20 others; short rounds of self-training."""
    draw_folder(tmp_path / "mine", "0123456789", (1, 2), (50, 70))
    (tmp_path / "more").mkdir()
    for path in sorted((tmp_path / "mine").iterdir())[20:]:
        path.rename(tmp_path / "more" / path.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(self_training, "ROUND_STEPS", 3)
    monkeypatch.setattr(self_training, "MIN_CONFIDENCE", 0.2)
    monkeypatch.setattr("captcha_cnn.plateau.PLATEAU_SHARE", 9.0)  # a few steps teach next to nothing
    return tmp_path


def test_few_images_give_a_figure_and_a_model_trained_on_all(place, capsys):
    assert driver.main([*FEW, "--folds", "2", "--unlabelled", "more"]) == 0
    out = capsys.readouterr().out
    assert "Fold 1 of 2: trained on 10 images, to read the 10 others" in out
    assert re.search(r"Cross-validation accuracy: +[\d.]+% \(\d+ of 20, 95% interval", out)
    assert re.search("Self-training (did not help|helped in [123] rounds?)", out)
    assert "See its mistakes: checkpoints/readings.csv" in out
    saved = load_latest("checkpoints")
    assert saved.progress["finished"]
    assert not fold_folders("checkpoints"), "their models are of no use any more"
    assert len(Path("checkpoints/readings.csv").read_text().splitlines()) == 21
    done = script("predict.py", "--labelled", "mine", cwd=place)
    assert_refused(done, 1, "mine must hold test images, but the model was trained on all of it")
    assert driver.main(["--resume"]) == 0, "says the same again"
    assert driver.main([*FEW, "--folds", "1"]) == 0, "another run"
    assert Path("checkpoints/previous/readings.csv").exists()


def test_the_kept_model_is_the_mean_that_cross_validation_chose(place, monkeypatch):
    monkeypatch.setattr(cross_validation, "SHARES", (0.0,))
    assert driver.main([*FEW, "--folds", "2"]) == 0
    kept, initial = load_latest("checkpoints").initial, read_weights(SHIPPED).weights
    for name in ("conv1_2x2/kernel", "conv2_4x2/mean", "dense/kernel"):
        assert np.array_equal(kept[name], initial[name]), "with a share of 0, training changes nothing"
    steps = load_latest("checkpoints").progress["step"]
    shutil.rmtree("checkpoints")
    monkeypatch.setattr(cross_validation, "SHARES", (1.0,))
    assert driver.main([*FEW, "--folds", "2"]) == 0
    assert load_latest("checkpoints").progress["step"] == steps
    assert not np.array_equal(
        load_latest("checkpoints").initial["conv1_2x2/kernel"], kept["conv1_2x2/kernel"]
    )


def test_an_interrupted_run_ends_as_one_never_interrupted(place, monkeypatch, capsys):
    assert driver.main([*FEW, "--folds", "2"]) == 0
    expected = load_latest("checkpoints")
    figure = re.search("Cross-validation accuracy.*", capsys.readouterr().out)[0]
    shutil.rmtree("checkpoints")
    interrupt_after = interrupter(monkeypatch)
    arguments = [*FEW, "--folds", "2"]
    for steps in (2, 9):  # in the first fold, and later
        interrupt_after(steps)
        assert driver.main(arguments) == 130
        assert newest_of_run("checkpoints").config.checkpoint_folder == "checkpoints"
        arguments = ["--resume"]
    interrupt_after(0)
    assert driver.main(["--resume"]) == 0
    assert figure in capsys.readouterr().out
    again = load_latest("checkpoints")
    assert again.progress["step"] == expected.progress["step"]
    for name, values in expected.weights.items():
        assert np.array_equal(again.weights[name], values), name
    interrupt_after(1)
    assert driver.main([*FEW, "--folds", "2"]) == 130, "without --resume, it is another run"
    assert Path("checkpoints/previous/readings.csv").exists()


def test_an_earlier_run_is_archived_with_its_folds(tmp_path):
    (tmp_path / "fold-1").mkdir()
    (tmp_path / "fold-1" / "state-3.index").touch()
    assert checkpoint.archive_previous_run(str(tmp_path)) == str(tmp_path / "previous")
    assert list_checkpoints(str(tmp_path / "previous" / "fold-1"))


def test_in_a_run_with_a_fixed_number_of_steps_the_last_weights_are_kept():
    config = replace(TINY, images="mine", folds=3)
    assert config.fixed_length
    assert not self_training.round_is_due(checkpoint.TrainState(""), config, 3)
    assert self_training.steps_left(checkpoint.TrainState("", step=4), config, 10, 0, 2) == 26
    more = replace(config, unlabelled="more")
    assert (
        self_training.steps_left(checkpoint.TrainState("", step=4), more, 10, 2, 1)
        == 2 * (10 + 2 * self_training.ROUND_STEPS) - 4
    )


# ---------------------------------------------------------------------- no labels at all


NO_LABELS = ("--unlabelled", "more", "--characters", "0123456789", "--char-num", "1-2")


def test_images_without_any_label_train_the_initial_weights_on_what_they_read(place, capsys):
    assert driver.main([*NO_LABELS, "--test-folder", "mine"]) == 0
    out = capsys.readouterr().out
    assert "more: 20 images without labels" in out
    assert re.search(r"Self-training, round 3: \d+ of 20 images", out)
    assert re.search(r"Captcha accuracy: .*\(\d+ of 20", out)
    saved = load_latest("checkpoints")
    assert saved.progress["step"] == 9
    assert saved.config.width == 100, "found from the images"
    done = script("predict.py", "more/" + next(Path("more").iterdir()).name, cwd=place)
    assert done.returncode == 0
    assert driver.main(["--resume"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (NO_LABELS[:2], "char_num and characters must be named where no image is labelled"),
        (NO_LABELS[:4], "char_num must be named where no image is labelled"),
        ((*NO_LABELS, "--start-from", "none"), "initial weights must read the images where none is labelled"),
        ((*NO_LABELS, "--folds", "3"), "folds must be left out, since --images FOLDER is missing"),
    ],
)
def test_what_labels_would_say_must_be_named(place, arguments, words):
    assert_refused(script("driver.py", *arguments, cwd=place), 2, words)
    assert not Path("checkpoints").exists()


def test_images_that_cannot_be_read_are_refused(place, monkeypatch):
    monkeypatch.setattr(self_training, "MIN_CONFIDENCE", 1.1)
    with pytest.raises(driver.CaptchaError, match=r"more must hold images that the initial weights can read"):
        driver.main([*NO_LABELS])
    few = write_images(Path("few"), make_labels(4))
    done = script("driver.py", "--unlabelled", few.name, *NO_LABELS[2:], cwd=place)
    assert_refused(done, 1, "few must hold at least 10 images, but holds 4 that can be used")
