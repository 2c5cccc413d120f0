"""What is found in a large folder is kept until a file changes."""

import os
from pathlib import Path

import numpy as np
import pytest
from own_folder import make_labels, write_images

from captcha_cnn import decoded, image_facts
from captcha_cnn.labels import BadFile
from captcha_cnn.own_images import find_images
from config import Config

GIVEN = {"images": "mine", "folds": 1}


@pytest.fixture
def looked_at(tmp_path, monkeypatch):
    """A folder mine with 40 images and a bad file, too large for memory; the paths that are decoded."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "mine", make_labels(40))
    (tmp_path / "mine" / "aaa_bad.png").write_text("no image")
    monkeypatch.setattr(decoded, "IN_MEMORY", 0)
    paths, decode = [], image_facts.decode_image
    monkeypatch.setattr(
        image_facts, "decode_image", lambda path, **others: paths.append(path) or decode(path, **others)
    )
    return paths


def find():
    return find_images(Config(**GIVEN), GIVEN)


def kept():
    (path,) = Path("decoded").iterdir()
    return path


def test_a_second_look_decodes_nothing_and_finds_the_same(looked_at, monkeypatch):
    first = find()
    assert len(looked_at) == 41
    assert [each.name for each in first.left_out] == ["aaa_bad.png"]
    second = find()
    assert len(looked_at) == 41
    assert second == first
    assert [list(map(type, each)) for each in second.images] == [
        list(map(type, each)) for each in first.images
    ]
    monkeypatch.setattr(decoded, "IN_MEMORY", 2**28)
    assert find() == first


def test_what_is_kept_is_what_a_look_finds(looked_at):
    paths = sorted(os.listdir("mine"))
    config = Config(**GIVEN)
    first, second = (image_facts.look_through("mine", paths, config) for _ in range(2))
    assert second == first == image_facts._look("mine", paths)
    assert sum(isinstance(each, BadFile) for each in second) == 1
    assert len(looked_at) == 82


@pytest.mark.parametrize("change", ["new", "gone", "touched", "size"])
def test_a_changed_folder_is_looked_through_again(change, looked_at):
    find()
    first = min(Path("mine").glob("b*.png"))
    if change == "new":
        write_images(Path("mine"), ["abc"], first=77)
    elif change == "gone":
        first.unlink()
    elif change == "touched":
        os.utime(first, (1, 1))
    else:
        times = first.stat()
        first.write_bytes(first.read_bytes() + b"0")
        os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    looked_at.clear()
    found = find()
    assert len(looked_at) == len(os.listdir("mine"))
    looked_at.clear()
    assert find() == found
    assert not looked_at


@pytest.mark.parametrize("damage", ["cut", "text", "flipped", "empty"])
def test_a_damaged_file_is_made_again(damage, looked_at):
    found, content = find(), bytearray(kept().read_bytes())
    if damage == "flipped":
        content[content.index(b"\x93NUMPY", len(content) // 2) + 140] ^= 255
    kept().write_bytes({"cut": content[:300], "text": b"text", "flipped": content, "empty": b""}[damage])
    looked_at.clear()
    assert find() == found
    assert len(looked_at) == 41
    looked_at.clear()
    assert find() == found
    assert not looked_at


def test_a_full_disk_costs_only_the_time_of_another_look(looked_at, monkeypatch):
    def full(*_, **others):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        found = find()
    assert not list(Path("decoded").iterdir())
    looked_at.clear()
    assert find() == found
    assert len(looked_at) == 41


def test_a_small_folder_leaves_no_file(looked_at, monkeypatch):
    monkeypatch.setattr(decoded, "IN_MEMORY", 2**28)
    find()
    assert not Path("decoded").exists()
