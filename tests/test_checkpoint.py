"""Checkpoints that are damaged, of another version, or of earlier runs."""

import contextlib
import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_fakes import interrupter, load_sets

import driver
import export
import predict
from captcha_cnn import checkpoint
from captcha_cnn.checkpoint import list_checkpoints, load_latest, read_checkpoint
from captcha_cnn.tf_runtime import TrainingInterrupted
from config import CaptchaError, ConfigError
from predict import Predictor


@pytest.fixture(scope="module")
def sets(drawn):
    return load_sets(drawn)


@pytest.fixture
def own(drawn, tmp_path, monkeypatch):
    """A Config of a short run in a temporary folder, on sets drawn elsewhere."""
    monkeypatch.chdir(tmp_path)
    return replace(drawn, checkpoint_per_batch=3, Epoch=1)


@pytest.fixture(scope="module")
def three_checkpoints(drawn, sets, tmp_path_factory):
    """A folder with three checkpoints."""
    folder = tmp_path_factory.mktemp("three")
    places = {name: str(folder / name) for name in ("checkpoint_folder", "tensorboard_folder")}
    driver.run_model(replace(drawn, Epoch=1, checkpoint_per_batch=10, **places), *sets)
    names = [Path(path).name for path in list_checkpoints(places["checkpoint_folder"])]
    assert names == ["state-22", "state-20", "state-10"]
    return Path(places["checkpoint_folder"])


def test_a_folder_without_a_model_is_named(tmp_path, tf):
    with pytest.raises(CaptchaError, match="must hold a trained model, but holds none: train one with"):
        load_latest(str(tmp_path))


# ---------------------------------------------------------------------- damage


def damages(name, content):
    """A file cut off at many lengths, and with some bits of many bytes flipped."""
    chosen = random.Random(name)
    for length in [0, 1, *chosen.sample(range(len(content)), 40), len(content) - 1]:
        yield content[:length]
    for place in chosen.sample(range(len(content)), 150):
        changed = bytearray(content)
        changed[place] ^= chosen.randrange(1, 256)
        yield bytes(changed)


def test_damage_is_noticed_named_and_passed_over(three_checkpoints, capfd, tf):
    good = {path: read_checkpoint(path) for path in list_checkpoints(str(three_checkpoints))}
    newest, before, _ = good
    files = sorted(three_checkpoints.glob("state-22.*"))
    assert len(files) == 2
    noticed = 0
    for file in files:
        content = file.read_bytes()
        for changed in damages(file.name, content):
            file.write_bytes(changed)
            found = load_latest(str(three_checkpoints))
            errors = capfd.readouterr().err
            assert found.path in (newest, before)
            noticed += found.path == before
            assert (f"{newest} is damaged (" in errors) == (found.path == before)
            assert found.progress == good[found.path].progress
            assert found.config == good[found.path].config
            for name, value in good[found.path].weights.items():
                assert np.array_equal(found.weights[name], value)
        file.unlink()
        assert load_latest(str(three_checkpoints)).path == before
        assert f"{newest} is damaged (" in capfd.readouterr().err
        file.write_bytes(content)
    assert load_latest(str(three_checkpoints)).path == newest
    assert noticed > 370, "of 386; what is not read, such as the padding of the index, may change"


def test_where_all_are_damaged_one_sentence_says_so(three_checkpoints, tmp_path, tf):
    for path in three_checkpoints.glob("state-*"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:100])
    with pytest.raises(CaptchaError, match=r"but all its checkpoints are damaged: .*state-22 is damaged"):
        load_latest(str(tmp_path))


# ---------------------------------------------------------------------- other versions


def rewrite_records(paths, tf, change):
    """Write checkpoints anew, their records as `change` returns them."""
    for path in paths:
        reader = tf.train.load_checkpoint(path)
        tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
        tensors["record"] = np.array(json.dumps(change(json.loads(tensors["record"]))).encode(), object)
        with tf.Graph().as_default(), tf.Session() as session:
            names = sorted(tensors)
            values = [tf.constant(tensors[name]) for name in names]
            save = tf.raw_ops.SaveV2(
                prefix=path, tensor_names=names, shape_and_slices=[""] * len(names), tensors=values
            )
            session.run(save)


@pytest.fixture
def copied(three_checkpoints, tmp_path, monkeypatch):
    """A copy of the three checkpoints, in the checkpoint folder of the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(three_checkpoints, "checkpoints")
    return tmp_path / "checkpoints"


def without_format(record):
    """The record that the program wrote before checkpoints had a format number."""
    return {key: value for key, value in record.items() if key != "format"}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (without_format, 1),
        (lambda record: without_format(record) | {"config": {"overlap": 0.3}}, 1),
        (lambda record: record | {"format": 3}, 3),
        (lambda record: {"format": 1000, "other": []}, 1000),
    ],
)
def test_a_checkpoint_of_another_format_is_refused_and_not_called_damaged(change, found, copied, tf):
    paths = list_checkpoints("checkpoints")
    rewrite_records(paths, tf, change)
    path = paths[0]
    sentence = f"{path} must have checkpoint format 2, but has format {found}, of another version of this"
    for refused in (
        lambda: read_checkpoint(path),
        lambda: load_latest("checkpoints"),
        lambda: Predictor("checkpoints").config,
        lambda: predict.main(["x.png"]),
        lambda: export.main(["saved_model"]),
        lambda: driver.main(["--resume"]),
    ):
        with pytest.raises(checkpoint.VersionError) as raised:
            refused()
        assert str(raised.value).startswith(sentence)
        assert "damaged" not in str(raised.value)
        assert "\n" not in str(raised.value)
        assert raised.value.status == 1
    assert {path.name for path in copied.parent.iterdir()} == {"checkpoints"}, "nothing was written"


def test_where_the_newest_is_of_another_format_no_older_one_is_used(copied, tf):
    rewrite_records(["checkpoints/state-22"], tf, lambda record: record | {"format": 3})
    assert read_checkpoint("checkpoints/state-20").progress["step"] == 20
    with pytest.raises(
        checkpoint.VersionError, match="state-22 must have checkpoint format 2, but has format 3"
    ):
        load_latest("checkpoints")


def test_a_checkpoint_written_anew_is_read_alike(copied, tf):
    """What the tests above change is the record alone."""
    before = read_checkpoint("checkpoints/state-22")
    rewrite_records(["checkpoints/state-22"], tf, lambda record: record)
    after = read_checkpoint("checkpoints/state-22")
    assert after[:3] == before[:3]
    assert all(np.array_equal(after.weights[name], value) for name, value in before.weights.items())


@pytest.mark.parametrize("values", [{}, {"best": [1, 2]}, {"best": None, "dataset_hash": "", "other": 1}])
def test_a_run_of_another_version_is_named(values):
    with pytest.raises(
        CaptchaError, match="must be of this version of the program to be resumed, but is of another"
    ):
        checkpoint.TrainState.from_dict(values)


def test_a_run_of_another_network_is_named_though_its_weights_have_the_same_shapes(
    own, sets, tf, monkeypatch
):
    import cnn_model

    driver.run_model(own, *sets)
    monkeypatch.setattr(cnn_model, "STRIDES", ((2, 2), (2, 2), (4, 2)))
    saved = load_latest("checkpoints")
    with pytest.raises(CaptchaError, match=r"of another \(best/conv2_2x2/beta\): resume it with that"):
        driver.run_model(own, *sets, saved)
    with (
        tf.Graph().as_default(),
        pytest.raises(CaptchaError, match=r"this version .* has no conv2_2x2/kernel"),
    ):
        cnn_model.build_inference_graph(own, saved.weights)


def test_a_run_of_another_optimiser_is_named(own, sets, tf, monkeypatch):
    import cnn_model

    def adam(gradients, variables, kernels, learning_rate, step):
        pairs = zip(gradients, variables, strict=True)
        return tf.train.AdamOptimizer(learning_rate).apply_gradients(pairs, step)

    with monkeypatch.context() as patched:
        patched.setattr(cnn_model, "minimize", adam)
        driver.run_model(own, *sets)
    with pytest.raises(CaptchaError, match=r"of another \(conv1_2x2/kernel/Adam\): resume it with that"):
        driver.run_model(own, *sets, load_latest("checkpoints"))


# ---------------------------------------------------------------------- earlier runs


def test_every_earlier_run_is_kept_finished_or_not(own, sets, tf, capsys, monkeypatch, short_start):
    def contents(folder):
        return {path.name: path.read_bytes() for path in Path(folder).glob("state-*")}

    interrupt_after = interrupter(monkeypatch)
    places, runs = [], []
    for steps in (0, 8, 0, 5):  # the runs with 0 are finished
        interrupt_after(steps)
        with contextlib.suppress(TrainingInterrupted):
            driver.run_model(own, *sets)
        places += re.findall("The earlier run is kept in (.*)", capsys.readouterr().out)
        runs.append(contents("checkpoints"))
    assert places == [f"checkpoints/previous{each}" for each in ("", "-2", "-3")]
    for place, run in zip([*places, "checkpoints"], runs, strict=True):
        assert contents(place) == run
    saved = [load_latest(place) for place in places]
    assert [each.progress["finished"] for each in saved] == [True, False, True]
    assert [each.progress["step"] == 22 for each in saved] == [True, False, True]
    predictions = [Predictor(place).read_arrays(sets[2].images) for place in places]
    assert predictions[0] == predictions[2]
    assert {len(each) for each in predictions} == {30}


def test_a_run_that_was_not_archived_by_this_program_is_not_overwritten(three_checkpoints, tmp_path):
    for path in three_checkpoints.glob("state-22*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "previous").write_text("a file")
    (tmp_path / "previous-2").mkdir()
    assert checkpoint.archive_previous_run(str(tmp_path)) == str(tmp_path / "previous-3")
    assert (tmp_path / "previous").read_text() == "a file"
    assert not list((tmp_path / "previous-2").iterdir())
    assert checkpoint.archive_previous_run(str(tmp_path)) is None


def test_only_files_of_checkpoints_are_moved_or_removed(three_checkpoints, tmp_path, tf):
    ours = sorted(path.name for path in three_checkpoints.glob("state-*"))
    for name in ours:
        shutil.copy(three_checkpoints / name, tmp_path)
        shutil.copy(three_checkpoints / name, tmp_path / name.replace("state-", "state-1"))
    canaries = [
        "state-22",
        "state-22.txt",
        "state-x.index",
        "best.index",
        "checkpoint.txt",
        "my-state-22.index",
    ]
    for name in canaries:
        (tmp_path / name).touch()
    (tmp_path / "state-3.index.tempstate9").touch()
    checkpoint.remove_stale_files(str(tmp_path))
    left = {name.replace("state-", "state-1") for name in ours}
    assert {path.name for path in tmp_path.iterdir()} == left | set(canaries)
    assert checkpoint.archive_previous_run(str(tmp_path)) == str(tmp_path / "previous")
    assert {path.name for path in tmp_path.iterdir()} == {"previous", *canaries}
    assert {path.name for path in (tmp_path / "previous").iterdir()} == left


def test_other_settings_than_those_of_the_run_are_refused(own):
    with pytest.raises(ConfigError, match="char_num must be 3"):
        checkpoint.settings_to_resume(own, replace(own, char_num=2), ["char_num"])
