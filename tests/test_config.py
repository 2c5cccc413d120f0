"""Settings: defaults, what is allowed, the published ones, and their flags."""

import contextlib
import dataclasses
import io
import json
import os
import re
from dataclasses import replace

import pytest
from conftest import TINY, assert_refused, flags, script
from hypothesis import given, settings
from hypothesis import strategies as st

from captcha_cnn.cli import parse
from config import Config, ConfigError


def test_classic_fields_keep_their_defaults_on_the_class():
    assert (Config.width, Config.height, Config.char_num) == (160, 60, 4)
    assert list(Config.characters) == list(range(10))
    assert (Config.train_folder, Config.validation_folder, Config.test_folder) == (
        "train",
        "validation",
        "test",
    )
    assert (Config.tensorboard_folder, Config.checkpoint_folder) == ("tensorboard", "checkpoints")
    assert Config.generate_num == (5000, 500, 500)
    assert (Config.print_per_batch, Config.save_per_batch, Config.patience) == (20, 20, 1000)


def test_an_instance_is_frozen_and_changes_nothing_on_the_class():
    config = Config(width=200)
    assert (config.width, Config.width) == (200, 160)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 5


@pytest.mark.parametrize("characters", ["0123456789", range(10), list("0123456789"), tuple(range(10))])
def test_alphabets_of_any_type_become_one_word(characters):
    assert Config(characters=characters).alphabet == "0123456789"


def test_derived_sizes():
    assert (Config().time_steps, Config().feature_map_height) == (20, 4)
    assert (TINY.time_steps, TINY.feature_map_height) == (5, 2)
    assert [each[0] for each in TINY.sets] == ["train", "validation", "test"]
    assert [each[2] for each in TINY.sets] == [150, 20, 30]


def test_settings_survive_json():
    assert Config(**json.loads(json.dumps(TINY.as_dict()))) == TINY


BAD = [
    ({"width": 0}, "width must be a whole number from 8 to 4096, not 0"),
    ({"width": "wide"}, "width must be a whole number from 8 to 4096, not 'wide'"),
    ({"height": 10**9}, "height must be a whole number from 8 to 4096, not 1000000000"),
    ({"height": 60.5}, "height must be a whole number from 8 to 4096, not 60.5"),
    (
        {"skip_top": 0.7, "skip_bottom": 0.3},
        "skip_top and skip_bottom must be less than 1 in all, not 0.7 and 0.3",
    ),
    ({"char_num": -1}, "char_num must be a whole number from 1 to 64, or a range such as 4-6, not -1"),
    ({"char_num": True}, "from 1 to 64, or a range such as 4-6, not True"),
    ({"char_num": 4.0}, "from 1 to 64, or a range such as 4-6, not 4.0"),
    ({"char_num": 65}, "from 1 to 64, or a range such as 4-6, not 65"),
    ({"char_num": "x"}, "from 1 to 64, or a range such as 4-6, not 'x'"),
    ({"char_num": "6-4"}, "from 1 to 64, or a range such as 4-6, not '6-4'"),
    ({"char_num": "4-65"}, "from 1 to 64, or a range such as 4-6, not '4-65'"),
    ({"char_num": "0-3"}, "from 1 to 64, or a range such as 4-6, not '0-3'"),
    ({"char_num": "4-"}, "from 1 to 64, or a range such as 4-6, not '4-'"),
    ({"char_num": (4, 5, 6)}, "from 1 to 64, or a range such as 4-6, not (4, 5, 6)"),
    ({"char_num": [True, 6]}, "from 1 to 64, or a range such as 4-6, not [True, 6]"),
    ({"char_num": "\u0664-6"}, "from 1 to 64, or a range such as 4-6, not"),
    (
        {"char_num": "4-6", "network": "classic"},
        "char_num must be one number for network classic, not '4-6'",
    ),
    ({"Epoch": 0}, "Epoch must be a whole number from 1 to 1000000000, not 0"),
    ({"batch_size": 0}, "batch_size must be a whole number from 1 to 1000000, not 0"),
    ({"print_per_batch": 0}, "print_per_batch must be a whole number from 1 to 1000000000, not 0"),
    ({"save_per_batch": -3}, "save_per_batch must be a whole number from 1 to 1000000000, not -3"),
    ({"patience": 0}, "patience must be a whole number from 1 to 1000000000, not 0"),
    ({"seed": -1}, "seed must be a whole number from 0 to 2147483647, not -1"),
    ({"alpha": 0}, "alpha must be a number above 0 to 1 (included), not 0"),
    ({"alpha": float("nan")}, "alpha must be a number above 0 to 1 (included), not nan"),
    ({"keep_prob": 1.5}, "keep_prob must be a number above 0 to 1 (included), not 1.5"),
    ({"squeeze": 1}, "squeeze must be a number from 0 (included) to below 1, not 1"),
    ({"noise": 1.5}, "noise must be a number from 0 (included) to 1 (included), not 1.5"),
    ({"shift": 1}, "shift must be a number from 0 (included) to below 1, not 1"),
    (
        {"generate_num": (5, 5)},
        "generate_num must be three whole numbers (train, validation, test), not (5, 5)",
    ),
    ({"generate_num": (5, 0, 5)}, "generate_num must be a whole number from 1 to 100000000, not 0"),
    ({"characters": "0"}, "characters must be at least two different characters, not '0'"),
    ({"characters": "0120"}, "characters must be at least two different characters, not '0' twice"),
    ({"characters": "01_"}, "characters must be single printable characters"),
    ({"characters": "01/"}, "characters must be single printable characters"),
    ({"characters": "01\n"}, "characters must be single printable characters"),
    ({"characters": range(11)}, "(labels are file names), not '10'"),
    ({"characters": 5}, "characters must be an alphabet such as 0123456789, not 5"),
    ({"train_folder": ""}, "train_folder must be the path of a folder, not ''"),
    ({"train_folder": "test"}, "test_folder and train_folder must be different folders, both are 'test'"),
    ({"test_folder": "./train/"}, "test_folder and train_folder must be different folders"),
    ({"network": "rnn"}, "network must be one of ctc, classic, not 'rnn'"),
    ({"network": 5}, "network must be one of ctc, classic, not 5"),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD)
def test_bad_settings_are_refused_with_a_sentence(settings, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        Config(**settings)


@pytest.mark.parametrize(("char_num", "width"), [(3, 33), (4, 49), (7, 97)])
def test_too_few_time_steps_are_refused_with_the_width_that_is_needed(char_num, width):
    with pytest.raises(ConfigError, match=f"use a width of at least {width}$"):
        Config(char_num=char_num, width=width - 1)
    assert Config(char_num=char_num, width=width).time_steps == 2 * char_num - 1


def test_a_range_of_lengths_needs_time_steps_for_the_longest():
    with pytest.raises(ConfigError, match=r"for each of 7 characters .* use a width of at least 97$"):
        Config(char_num="1-7", width=96)
    assert Config(char_num="1-7", width=97).time_steps == 13


@pytest.mark.parametrize(
    ("given", "stored", "lengths"),
    [
        (5, 5, (5, 5)),
        ("5", 5, (5, 5)),
        ("5-5", 5, (5, 5)),
        ([5, 5], 5, (5, 5)),
        ("4-6", "4-6", (4, 6)),
        ((4, 6), "4-6", (4, 6)),
        ([4, 6], "4-6", (4, 6)),
        ("1-10", "1-10", (1, 10)),
    ],
)
def test_lengths_are_a_number_or_a_range(given, stored, lengths):
    config = Config(char_num=given)
    assert (config.char_num, (config.min_length, config.max_length)) == (stored, lengths)
    assert type(config.char_num) is type(stored)
    assert Config(**json.loads(json.dumps(config.as_dict()))) == config == Config(char_num=stored)
    assert parse([f"--char-num={stored}"], "") == config


def test_every_field_is_a_flag():
    assert parse(flags(TINY), "") == TINY
    assert parse(["--epoch", "7"], "").Epoch == 7
    assert parse(["--generate-num", "3", "2", "1"], "").generate_num == (3, 2, 1)
    assert parse(["--network", "classic"], "").network == "classic"


@pytest.mark.parametrize(("old", "new"), [("overlap", "squeeze"), ("clutter", "noise")])
def test_old_spellings_of_flags_still_work_and_help_names_them(old, new, capsys):
    assert parse([f"--{old}", "0.125"], "") == replace(Config(), **{new: 0.125})
    assert parse([f"--{new}", "0.125"], "") == replace(Config(), **{new: 0.125})
    with pytest.raises(SystemExit):
        parse(["--help"], "")
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"--{new}( X)?, --{old} X ", text)
    assert re.search(rf"; the old spelling --{old} works for one more release\)", text)


# ---------------------------------------------------------------------- the published settings

PUBLISHED = {  # all fifteen of the original's class Config
    "width": 160,
    "height": 60,
    "char_num": 4,
    "characters": range(10),
    "test_folder": "test",
    "train_folder": "train",
    "validation_folder": "validation",
    "tensorboard_folder": "tensorboard",
    "generate_num": (5000, 500, 500),
    "alpha": 1e-3,
    "Epoch": 100,
    "batch_size": 64,
    "keep_prob": 0.5,
    "print_per_batch": 20,
    "save_per_batch": 20,
}


def test_classic_has_the_published_settings_and_network_without_augmentation():
    classic = Config.classic()
    found = {name: getattr(classic, name) for name in PUBLISHED}
    assert found == PUBLISHED | {"characters": "0123456789"}
    assert classic.network == "classic"
    assert not classic.augmented
    others = {"network", "shift", "scale", "shear", "squeeze", "noise"}
    for f in dataclasses.fields(Config):
        assert f.name in {*PUBLISHED, *others} or getattr(classic, f.name) == f.default, f.name


def test_classic_settings_can_be_replaced():
    assert Config.classic(alpha=0.01, char_num=3) == replace(Config.classic(), alpha=0.01, char_num=3)
    with pytest.raises(ConfigError, match="alpha must be a number above 0"):
        Config.classic(alpha=0)


def test_the_classic_network_needs_no_time_steps():
    assert replace(Config.classic(), char_num=64).char_num == 64
    with pytest.raises(ConfigError, match="width must leave a time step"):
        Config(char_num=64)


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ([], {}),
        (["--alpha", "0.002"], {"alpha": 0.002}),
        (["--epoch", "7", "--noise", "0.5"], {"Epoch": 7, "noise": 0.5}),
        (["--generate-num", "3", "2", "1", "--clutter", "0.25"], {"generate_num": (3, 2, 1), "noise": 0.25}),
        (["--network", "ctc"], {"network": "ctc"}),
    ],
)
def test_the_classic_flag_gives_the_classic_settings_and_other_flags_win(arguments, changes):
    expected = Config.classic(**changes)
    assert parse(["--classic", *arguments], "") == expected
    assert parse([*arguments, "--classic"], "") == expected
    assert parse(arguments, "") == Config(**changes), "without --classic nothing is classic"


def test_help_explains_every_field_with_its_default():
    done = script("driver.py", "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for f in dataclasses.fields(Config):
        assert f"--{f.name.replace('_', '-')}" in text
        assert f.metadata["help"] in text
    assert "(default: 0123456789)" in text
    assert "(default: 5000 500 500)" in text
    assert "(default: 160)" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--width", "wide"], "width must be a whole number from 8 to 4096, not 'wide'"),
        (["--width", "-5"], "not -5"),
        (["--alpha", "nan"], "alpha must be a number above 0"),
        (["--generate-num", "5"], "--generate-num: expected 3 arguments"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--wid", "5"], "unrecognized arguments"),
    ],
)
def test_bad_flags_end_with_one_sentence_and_status_2(arguments, words, tmp_path):
    for name in ("driver.py", "generate_captcha.py"):
        assert_refused(script(name, *arguments, cwd=tmp_path), 2, name, words)
    assert not os.listdir(tmp_path)


# ---------------------------------------------------------------------- random settings

ANY_NUMBER = st.one_of(
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.sampled_from(
        ["", "0", "-0", "1e400", "nan", "inf", "0x10", "1_000", "\u0663", " 7", "--", "None", "1e-999"]
    ),
)
ANY_TEXT = st.text(max_size=80)


def any_value(field):
    if isinstance(field.default, tuple):
        return st.lists(ANY_NUMBER, max_size=5)
    return (ANY_NUMBER if isinstance(field.default, int | float) else ANY_TEXT).map(lambda value: [value])


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_any_settings_are_a_config_or_one_sentence(data):
    chosen = data.draw(
        st.lists(st.sampled_from(dataclasses.fields(Config)), min_size=1, max_size=3, unique=True)
    )
    words = []
    for field in chosen:
        values = [str(value) for value in data.draw(any_value(field))]
        flag = f"--{field.name.replace('_', '-')}"
        words += [f"{flag}={values[0]}"] if len(values) == 1 else [flag, *values]
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            config = parse(words, "")
    except ConfigError as error:
        message.write(str(error))
        assert error.status == 2  # noqa: PT017 - or it is a Config
    except SystemExit as end:
        assert end.code == 2  # noqa: PT017
    else:
        assert Config(**config.as_dict()) == config
        return
    assert len(message.getvalue().strip().splitlines()) == 1
    names = [field.name for field in dataclasses.fields(Config)] + ["unrecognized"]
    assert any(name in message.getvalue().replace("-", "_") for name in names)
