"""Initial weights from a model of another size, length or alphabet."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY

from captcha_cnn import initial_weights
from captcha_cnn.checkpoint import CheckpointData
from captcha_cnn.initial_weights import (
    SHIPPED,
    InitialWeights,
    adapt,
    find_initial_weights,
    own_image_settings,
    read_weights,
    write_weights,
)
from config import CaptchaError, Config, ConfigError

SIZES = {"height": 23, "channels": 16, "dense": 0}


def make_weights(characters, seed, sizes=SIZES):
    """Random weights of the shapes of a model: a convolution and the head, whose last row is the blank's."""
    random = np.random.default_rng(seed)
    shapes = {"conv1/kernel": (5, 5, 1, 3)}
    shapes |= {"ctc_head/kernel": (2, 3, 3, len(characters) + 1), "ctc_head/bias": (len(characters) + 1,)}
    values = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return InitialWeights("a test", values, characters, sizes)


OLD = make_weights("dbxa", 0)
CONFIG = replace(TINY, width=80, char_num=5, characters="abcd")


def test_rows_of_the_head_are_taken_by_character_and_new_ones_stay_fresh():
    fresh = make_weights("abcd", 1).weights
    found = adapt(OLD, CONFIG, fresh)
    assert np.array_equal(found["conv1/kernel"], OLD.weights["conv1/kernel"])
    for name in ("ctc_head/kernel", "ctc_head/bias"):
        old, new = OLD.weights[name], found[name]
        for i, character in enumerate("abcd"):
            expected = old[..., OLD.characters.index(character)] if character != "c" else fresh[name][..., i]
            assert np.array_equal(new[..., i], expected), character
        assert np.array_equal(new[..., 4], old[..., 4]), "the blank"


def test_the_temperature_of_the_earlier_model_is_not_taken():
    old, fresh = (make_weights("dbxa", seed) for seed in (0, 1))
    old.weights["inverse_temperature"] = np.float32(0.7)
    fresh.weights["inverse_temperature"] = np.float32(1.0)
    assert adapt(old, replace(CONFIG, characters="dbxa"), fresh.weights)["inverse_temperature"] == 1.0


def test_an_alphabet_without_a_known_character_keeps_the_blank_alone():
    fresh = make_weights("xyzw", 1).weights
    found = adapt(make_weights("dbca", 0), replace(CONFIG, characters="xyzw"), fresh)
    assert np.array_equal(found["ctc_head/bias"][:4], fresh["ctc_head/bias"][:4])
    assert found["ctc_head/bias"][4] == OLD.weights["ctc_head/bias"][4]


def test_the_arrays_that_are_given_are_not_changed():
    fresh = make_weights("abcd", 1).weights
    before = {name: values.copy() for name, values in fresh.items()}
    adapt(OLD, CONFIG, fresh)["ctc_head/bias"][:] = 0
    assert all(np.array_equal(fresh[name], before[name]) for name in fresh)


@pytest.mark.parametrize("change", [{"height": 40}, {"channels": 8}, {"dense": 3}])
def test_other_sizes_are_one_sentence(change):
    ((name, value),) = change.items()
    with pytest.raises(
        CaptchaError, match=rf"a model with .*{name} {value}.* of .*{name} {SIZES[name]}.*: leave out"
    ):
        adapt(OLD, replace(CONFIG, **change), make_weights("abcd", 1).weights)


def test_another_height_with_the_same_feature_map_is_fine():
    adapt(OLD, replace(CONFIG, height=32), make_weights("abcd", 1).weights)


def test_weights_of_another_version_are_one_sentence():
    for damaged in (
        {name: values for name, values in OLD.weights.items() if name != "conv1/kernel"},
        OLD.weights | {"more": np.zeros(1)},
        OLD.weights | {"conv1/kernel": np.zeros((5, 5, 1, 4))},
        OLD.weights | {"ctc_head/bias": np.zeros(4)},
    ):
        with pytest.raises(
            CaptchaError, match=r"must be of this version of the program, .* --start-from none"
        ):
            adapt(OLD._replace(weights=damaged), CONFIG, make_weights("abcd", 1).weights)


# ---------------------------------------------------------------------- files


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "weights.npz"
    write_weights(path, OLD)
    found = read_weights(path)
    assert (found.characters, found.sizes) == ("dbxa", SIZES)
    for name, values in OLD.weights.items():
        assert np.array_equal(found.weights[name], values.astype(np.float16).astype(np.float32))


def test_a_missing_or_damaged_file_is_one_sentence(tmp_path):
    path = tmp_path / "weights.npz"
    words = r"must hold the initial weights of this program, but cannot be read .* or use --start-from none"
    with pytest.raises(CaptchaError, match=words):
        read_weights(path)
    write_weights(path, OLD)
    content = path.read_bytes()
    for damaged in (b"", b"text", content[: len(content) // 2], content[:-10]):
        path.write_bytes(damaged)
        with pytest.raises(CaptchaError, match=words):
            read_weights(path)
    for settings in ({"characters": "ab"}, {"characters": "ab", "sizes": {}, "more": 3}, [1]):
        np.savez_compressed(path, config=np.array(json.dumps(settings)))
        with pytest.raises(CaptchaError, match=words):
            read_weights(path)


def test_the_weights_that_ship_are_small_and_know_letters_and_digits():
    assert SHIPPED.stat().st_size < 2_000_000
    assert len(read_weights(SHIPPED).characters) >= 62


# ---------------------------------------------------------------------- which are used


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, False),
        ({"images": "mine"}, True),
        ({"images": "mine", "start_from": "none"}, False),
        ({"images": "mine", "network": "classic"}, False),
    ],
)
def test_the_weights_that_ship_are_for_own_images_alone(settings, expected):
    assert (find_initial_weights(Config(**settings)) is not None) is expected


def test_sizes_follow_the_weights_unless_they_are_given():
    config = Config(images="mine")
    found = own_image_settings(config, OLD, {"images"})
    for name, size in SIZES.items():
        assert getattr(found, name) == size
        assert getattr(own_image_settings(config, OLD, {name}), name) == getattr(config, name)
    assert own_image_settings(config, None, {"images"}).height == config.height


def saved_model(config, initial, start=None):
    return CheckpointData("state-1", config, {}, {}, initial, start or {}, frozenset())


def test_a_run_that_is_resumed_has_what_it_began_with_though_its_folder_holds_another_model_now():
    config = replace(CONFIG, images="mine", start_from="a folder that is gone", channels=16, dense=0)
    fresh = make_weights(CONFIG.characters, 1).weights
    begun = adapt(OLD, config, fresh)
    found = find_initial_weights(config, saved_model(config, {}, begun))
    again = adapt(found, config, make_weights(CONFIG.characters, 2).weights)
    assert all(np.array_equal(again[name], begun[name]) for name in begun)


def test_an_earlier_model_of_the_users_is_taken(monkeypatch):
    monkeypatch.setattr(initial_weights, "load_latest", lambda _: saved_model(TINY, OLD.weights))
    found = find_initial_weights(Config(images="mine", start_from="before"))
    assert (found.source, found.characters, found.sizes) == ("before", "abcde", SIZES)


@pytest.mark.parametrize("config", [replace(TINY, network="classic"), TINY])
def test_a_classic_model_or_one_without_initial_weights_is_one_sentence(config, monkeypatch):
    weights = OLD.weights if config.network == "classic" else {}
    monkeypatch.setattr(initial_weights, "load_latest", lambda _: saved_model(config, weights))
    with pytest.raises(CaptchaError, match=r"before must hold a model of network ctc .* with --start-from"):
        find_initial_weights(Config(images="mine", start_from="before"))


def test_a_folder_without_a_model_is_one_sentence(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(CaptchaError, match="must hold a trained model, but holds none"):
            find_initial_weights(Config(images="mine", start_from=str(folder)))


def test_the_classic_network_begins_with_nothing():
    with pytest.raises(ConfigError, match="start_from must be left out with network classic"):
        find_initial_weights(Config(network="classic", start_from="before"))
