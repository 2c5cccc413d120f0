"""The folders that a training writes to: reserved, and cleared of what earlier runs left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from captcha_cnn import checkpoint, progress
from captcha_cnn.files import folder_lock
from captcha_cnn.summaries import check_events_folder, clear_events
from config import Config, escape_unprintable


@contextlib.contextmanager
def reserve_folders(config: Config, resumed: bool, split: dict[str, Any] | None) -> Iterator[None]:
    """Reserve the checkpoint and the TensorBoard folder; a new run finds them empty.

    Args:
        split: which of the user's own images is in which set, to be recorded.
    Raises:
        CaptchaError: another process uses one of them, or curves must not be written there.
    """
    check_events_folder(config.tensorboard_folder)
    with contextlib.ExitStack() as stack:
        for name in ("checkpoint", "tensorboard"):
            stack.enter_context(folder_lock(getattr(config, f"{name}_folder"), f"--{name}-folder"))
        checkpoint.remove_stale_files(config.checkpoint_folder)
        if not resumed:
            for folder in (
                config.tensorboard_folder,
                *map(str, checkpoint.fold_folders(config.tensorboard_folder)),
            ):
                clear_events(folder)
            if archived := checkpoint.archive_previous_run(config.checkpoint_folder):
                progress.log(f"The earlier run is kept in {escape_unprintable(archived)}")
            checkpoint.record_split(config.checkpoint_folder, split)
        yield
