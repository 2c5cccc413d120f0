import os

import pytest
from conftest import PROJECT, assert_refused, script

from captcha_cnn.summaries import clear_events
from config import ConfigError


def test_clearing_removes_event_files_of_this_program_and_nothing_else(tmp_path):
    ours = [tmp_path / part / "events.out.tfevents.1.host.captcha" for part in ("train", "validation")]
    canaries = [
        tmp_path / "events.out.tfevents.1.host.captcha",
        tmp_path / "train" / "events.out.tfevents.1.host",
        tmp_path / "train" / "notes.captcha",
        tmp_path / "other" / "events.out.tfevents.1.host.captcha",
        tmp_path / "train" / "deep" / "events.out.tfevents.1.host.captcha",
    ]
    for path in ours + canaries:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    clear_events(str(tmp_path))
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in canaries)
    clear_events(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    "folder", ["/", ".", "..", os.path.expanduser("~"), str(PROJECT), str(PROJECT.parent)]
)
def test_folders_that_nothing_may_be_cleared_from_are_refused(folder, tmp_path):
    done = script("driver.py", "--tensorboard-folder", folder, cwd=tmp_path)
    assert_refused(
        done, 2, f"must be a folder for curves alone, since earlier ones are cleared from it, but {folder}"
    )
    assert not os.listdir(tmp_path), "something was done before it was refused"


@pytest.mark.parametrize("link", ["curves", "curves/train"])
def test_links_are_not_cleared(link, tmp_path):
    target = tmp_path / "target" / "train"
    target.mkdir(parents=True)
    events = target / "events.out.tfevents.1.host.captcha"
    events.write_text("x")
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(target.parent if link == "curves" else target)
    with pytest.raises(ConfigError, match=r"must be a folder for curves alone, .* is a link"):
        clear_events(str(tmp_path / "curves"))
    assert events.exists()
