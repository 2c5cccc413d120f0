"""Captcha sets with the font sizes that the captcha library has by itself, whatever the height of the image.

Our program makes its characters as much larger as the image is higher. Others train on 170x80 px with the
library's own sizes, in which characters are smaller and stand apart: row `170x80`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

from captcha_cnn import drawing
from captcha_cnn.parallel import parallel_map
from config import Config


def draw_sets(folder: str, config: Config, frequent: str = "") -> None:
    """Draw the three sets of a Config into that folder, as sets of the user's own: without manifests.

    Args:
        frequent: characters that training captchas have more often, as with --frequent.
    """
    for name, place, count in config.sets:
        path = os.path.join(folder, place)
        os.makedirs(path)
        more = frequent if name == "train" else ""
        work = functools.partial(draw_part, config, name, path, more)
        for _ in parallel_map(work, range(count), f"Drawing {name}"):
            pass


def draw_part(config: Config, name: str, folder: str, frequent: str, indices: Sequence[int]) -> None:
    """Draw these images of a set, as captcha_cnn.drawing.draw_files() does but for the font sizes."""
    before, drawing.FONTS_HEIGHT = drawing.FONTS_HEIGHT, config.height
    drawing.image_captcha.cache_clear()
    try:
        drawing.draw_files(config, name, folder, indices, frequent)
    finally:
        drawing.FONTS_HEIGHT = before
        drawing.image_captcha.cache_clear()
