"""Fixtures and helpers. The sizes are tiny and odd, so that no number is right by luck."""

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from forks import PROJECT, fork_server, leave_graphs_unoptimised

from captcha_cnn.tf_runtime import load_tensorflow
from config import Config

FORKED = ("driver.py", "predict.py")

TINY = Config(
    width=37,
    height=23,
    char_num=3,
    characters="abcde",
    generate_num=(150, 20, 30),
    batch_size=7,
    alpha=3e-3,
    keep_prob=0.9,
    Epoch=2,
    print_per_batch=5,
    save_per_batch=10,
)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """TINY, with a temporary folder as the current folder."""
    monkeypatch.chdir(tmp_path)
    return TINY


@pytest.fixture
def short_start(monkeypatch):
    """Trainings begin sooner, for tests in which a training's numbers are compared with none but its own."""
    leave_graphs_unoptimised(monkeypatch.setattr)


@pytest.fixture(scope="session")
def tf():
    return load_tensorflow()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A Config whose three sets are drawn. Do not write into its folders."""
    from generate_captcha import Generate

    folder = tmp_path_factory.mktemp("drawn")
    config = replace(
        TINY, **{f"{name}_folder": str(folder / name) for name in ("train", "validation", "test")}
    )
    Generate(config).gen_captcha()
    return config


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder in which generate_captcha.py and driver.py ran, and their output. Do not write into it."""
    folder = tmp_path_factory.mktemp("trained")
    config = replace(TINY, generate_num=(600, 40, 50), Epoch=4, print_per_batch=20, save_per_batch=40)
    generated = script("generate_captcha.py", *flags(config), cwd=folder)
    done = script("driver.py", *flags(config), cwd=folder, fork=False)  # as a user does
    assert (generated.returncode, generated.stderr) == (0, "")
    assert (done.returncode, done.stderr) == (0, "")
    return SimpleNamespace(folder=folder, config=config, generated=generated.stdout, out=done.stdout)


@pytest.fixture(scope="session")
def model(tf, tmp_path_factory):
    """An exported model that is untrained: its answers are of no use, and always the same."""
    from server import write_model

    return write_model(tf, tmp_path_factory.mktemp("model"))


def flags(config):
    """The command-line arguments that give this Config."""
    words = []
    for name, value in config.as_dict().items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
            continue
        words.append(f"--{flag}")
        words += [str(v) for v in value] if isinstance(value, list) else [str(value)]
    return words


def script(name, *arguments, cwd=None, fork=True):
    """Run one of the project's scripts, with its output as text.

    Args:
        fork: where the script may import TensorFlow, spare it that: see forks.py.
    """
    if fork and name in FORKED and hasattr(os, "fork"):
        return fork_server().run(name, *arguments, cwd=cwd)
    command = [sys.executable, str(PROJECT / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def assert_refused(done, status, *words):
    """The script ended with that status and one sentence on standard error that has those words."""
    assert done.returncode == status, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
