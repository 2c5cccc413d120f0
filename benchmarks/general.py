"""The row "general": readers that come trained read the captchas of other systems, without any training.

All get the same images and are told the alphabet. Each is counted with the setting that reads most:

    ddddocr            its answer; with `set_ranges`, which drops what is in neither case in the alphabet;
                       with `probability=True`, where at each place only the alphabet is compared
    captcha-whisperer  its answer
    this program       the general weights, with the alphabet and the lengths

An answer also counts with the help of pretrained.to_alphabet(), where that reads more. Choosing the best on
the test images favours the others: this program has one setting.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import pretrained
from benchmarks.common import load_package
from benchmarks.measure import in_subprocess
from benchmarks.other_systems import (
    draw_all,
    has_current_weights,
    in_order,
    label_of,
    read_untrained,
    weights_digest,
)
from benchmarks.systems import SYSTEMS, System
from captcha_cnn import VERSION
from captcha_cnn.images import decode_image, to_rgb
from config import CaptchaError

READINGS = "readings"  # the key of what was read in the record
IMAGES = 500  # of the test images of each system; each takes the other readers about 0.1 s on shared cores
OURS = "this program"
LENGTHS_GIVEN = "alphabet and lengths"  # the setting of this program

Reader = Callable[[bytes], dict[str, str]]  # a PNG file to the answer by each setting


def ddddocr(beta: bool, system: System) -> Reader:
    """ddddocr's newer network or its default one, with each of its settings.

    The network runs once: what `set_ranges` does to its answer in version 1.6 is done here.
    """
    reader = load_package("ddddocr").DdddOcr(show_ad=False, beta=beta)
    allowed = {*system.alphabet, *system.alphabet.swapcase()}  # to_alphabet() puts the case right

    def read(png: bytes) -> dict[str, str]:
        found = reader.classification(png, probability=True)
        return {
            "as answered": found["text"],
            "set_ranges": "".join(each for each in found["text"] if each in allowed),
            "probabilities": best_path(found["probabilities"], found["charset"], allowed),
        }

    return read


def best_path(probabilities: Sequence[Any], charset: Sequence[str], allowed: set[str]) -> str:
    """The text of the best characters at each place among those that are allowed (CTC, without search).

    Args:
        probabilities: [T, 1, K] or [1, T, K].
        charset: K characters, the first of which is the blank.
    """
    table = np.asarray(probabilities, np.float32).reshape(-1, len(charset))
    columns = [0, *(k for k, character in enumerate(charset) if k and character in allowed)]
    best = table[:, columns].argmax(axis=1)
    return "".join(charset[columns[k]] for k, _ in itertools.groupby(best.tolist()) if k)


def captcha_whisperer(system: System) -> Reader:
    """captcha-whisperer, which has no settings."""
    reader = pretrained.captcha_whisperer()
    return lambda png: {"as answered": reader(png)}


OTHERS: dict[str, Callable[[System], Reader]] = {
    "ddddocr": lambda system: ddddocr(False, system),
    "ddddocr beta": lambda system: ddddocr(True, system),
    "captcha-whisperer": captcha_whisperer,
}
READERS = (*OTHERS, OURS)


def measure(options: argparse.Namespace, earlier: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Read what the record lacks, and yield the values of the row after each reader of a system.

    Raises:
        CaptchaError: in the end, where a system could not be drawn or a reader is missing.
    """
    known = [each for each in earlier.get(READINGS, ()) if each["version"] == VERSION]
    found = {(each["system"], each["reader"]): each for each in known}
    wanted = [(system, reader) for system in options.systems for reader in READERS]
    done = {key for key, each in found.items() if key[1] != OURS or has_current_weights(each)}
    missing = [each for each in wanted if options.again or each not in done]
    folders, problems = draw_all({system: None for system, _ in missing})
    for system, reader in missing:
        if system not in folders:
            continue
        try:
            result = in_subprocess(read_test_images, system, reader, folders[system] / "test")
            found[system, reader] = result | ({"weights": weights_digest()} if reader == OURS else {})
        except CaptchaError as error:
            problems.append(str(error))
            continue
        print(f"  {system}, {reader}: {found[system, reader]['captchas right']} of {IMAGES}", flush=True)
        yield {"test images": IMAGES, READINGS: [found[each] for each in sorted(found)]}
    if problems:
        raise CaptchaError("; ".join(dict.fromkeys(problems)))


def read_test_images(system: str, reader: str, folder: Path) -> dict[str, Any]:
    """What one reader gets right in the first images of a folder, by setting."""
    paths = in_order(folder)[:IMAGES]
    if reader == OURS:
        settings = {LENGTHS_GIVEN: read_untrained(system, paths).correct}
    else:
        settings = count_right(system, OTHERS[reader](SYSTEMS[system]), paths)
    return {
        "system": system,
        "reader": reader,
        "version": VERSION,
        "day": date.today().isoformat(),
        "settings": settings,
        "captchas right": max(settings.values()),
    }


def count_right(system: str, read: Reader, paths: Sequence[Path]) -> dict[str, int]:
    """Captchas that a reader gets right with each of its settings, with and without to_alphabet()."""
    counts: dict[str, int] = {}
    as_counted = SYSTEMS[system].as_counted
    for path in paths:
        label = as_counted(label_of(path))
        image = Image.fromarray(decode_image(path, convert=to_rgb))  # on white, the first frame
        for setting, text in read(pretrained.png_bytes(image)).items():
            helped = pretrained.to_alphabet(text, SYSTEMS[system].alphabet)
            for name, answer in ((setting, text), (f"{setting}, helped", helped)):
                counts[name] = counts.get(name, 0) + (as_counted(answer) == label)
    return counts
