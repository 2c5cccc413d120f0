"""Initial weights from an earlier model, of another size, length or alphabet.

Convolutions do not depend on any of these and are taken as they are. The last layer has a row of
weights for each character, and the rows of characters that both models know are taken. Gray and colour
differ in the kernel of the first convolution alone, and each can begin the other.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from captcha_cnn.checkpoint import CheckpointData, load_latest
from captcha_cnn.restrict import OUTPUT_LAYERS
from captcha_cnn.tf_runtime import load_tensorflow
from config import CaptchaError, Config, ConfigError, escape_unprintable

SHIPPED = Path(__file__).with_name("weights") / "styles.npz"  # of captchas of many styles
HEAD = OUTPUT_LAYERS["ctc"]
FIRST_LAYER = "conv1"  # what the names of its weights begin with
TEMPERATURE = "inverse_temperature"  # is fitted at the end of a training, which begins with 1
CONFIG = "config"  # the entry of the file that holds the settings, as JSON
SIZES = ("height", "channels", "dense")  # settings that the shapes of weights depend on, the alphabet aside


# What differs from the defaults for own images (`--images`), which may be few and look like anything.
OWN_IMAGES: dict[str, Any] = {
    "channels": 32,
    "dense": 192,
    "squeeze": 0.0,  # it takes characters to be evenly spaced over the whole width
    "shift": 0.12,  # these three are twice as much as for drawn captchas
    "scale": 0.3,
    "shear": 0.5,
    "lines": 0.5,
}


class InitialWeights(NamedTuple):
    """Weights to begin with, by the name of their variable, and the settings of their model."""

    source: str  # for the user
    weights: dict[str, np.ndarray]
    characters: str
    sizes: dict[str, int]  # the settings named in SIZES


def are_used(config: Config) -> bool:
    """Whether training begins with the weights of an earlier model."""
    if config.start_from == "auto":
        return config.own_images and config.network != "classic"
    return config.start_from != "none"


def find_initial_weights(config: Config, saved: CheckpointData | None = None) -> InitialWeights | None:
    """What `config.start_from` names; None for fresh weights.

    Args:
        saved: of the run to resume, which has what it began with: the named folder may hold another now.
    Raises:
        CaptchaError: there is no such model, or it cannot be begun with.
    """
    if not are_used(config):
        return None
    if saved:
        return InitialWeights(config.start_from, saved.start, config.alphabet, sizes_of(config))
    if config.start_from == "auto":
        return read_weights(SHIPPED)
    if config.network == "classic":
        raise ConfigError(
            "start_from must be left out with network classic, which begins with random weights"
        )
    load_tensorflow()
    saved = load_latest(config.start_from)
    if saved.config.network != "ctc" or not saved.initial:
        raise CaptchaError(
            f"{escape_unprintable(config.start_from)} must hold a model of network ctc and of this version, "
            "but holds another: name another folder with --start-from"
        )
    return of_checkpoint(saved, escape_unprintable(config.start_from))


def own_image_settings(config: Config, initial: InitialWeights | None, given: Collection[str]) -> Config:
    """The settings for own images, with the sizes of the initial weights, but for those given."""
    found = OWN_IMAGES | (initial.sizes if initial else {})
    return replace(config, **{name: value for name, value in found.items() if name not in given})


def of_checkpoint(saved: CheckpointData, source: str) -> InitialWeights:
    """The best weights of a checkpoint, as training has them."""
    return InitialWeights(source, saved.initial, saved.config.alphabet, sizes_of(saved.config))


def sizes_of(config: Config) -> dict[str, int]:
    """The settings named in SIZES."""
    return {name: getattr(config, name) for name in SIZES}


def write_weights(path: Path, initial: InitialWeights) -> None:
    """Write weights as a compressed file, in float16."""
    settings = {"characters": initial.characters, "sizes": initial.sizes}
    arrays = {name: values.astype(np.float16) for name, values in initial.weights.items()}
    np.savez_compressed(path, **arrays, **{CONFIG: np.array(json.dumps(settings))})  # type: ignore[arg-type]


def read_weights(path: Path) -> InitialWeights:
    """Read what write_weights() wrote.

    Raises:
        CaptchaError: the file is missing or damaged.
    """
    try:
        with np.load(path) as archive:
            arrays = dict(archive)
        settings: dict[str, Any] = json.loads(str(arrays.pop(CONFIG)))
        weights = {name: values.astype(np.float32) for name, values in arrays.items()}
        return InitialWeights("captchas of many styles", weights, **settings)
    except Exception as error:  # zipfile and NumPy raise nearly anything on damaged data
        raise CaptchaError(
            f"{escape_unprintable(path)} must hold the initial weights of this program, but cannot be read "
            f"({error}): get the file again, or use --start-from none"
        ) from None


def adapt(initial: InitialWeights, config: Config, fresh: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those weights for another alphabet, and for gray or colour.

    Args:
        fresh: random weights of the new model, by name; the rows of new characters stay as they are there.
    Raises:
        CaptchaError: the models differ in more than size, length and alphabet.
    """
    sizes = sizes_of(config)
    rows = replace(config, height=initial.sizes["height"]).feature_map_height
    if sizes | {"height": rows} != initial.sizes | {"height": config.feature_map_height}:
        raise CaptchaError(
            f"initial weights must be of a model with {_names(sizes)}, but those of {initial.source} are of "
            f"{_names(initial.sizes)}: leave out --height, --channels and --dense, or use --start-from none"
        )
    found = {name: fit_colours(name, values, fresh) for name, values in initial.weights.items()}
    classes = len(initial.characters) + 1
    expected = {
        name: (*values.shape[:-1], classes) if name.startswith(HEAD) else values.shape
        for name, values in fresh.items()
    }
    if expected != {name: values.shape for name, values in found.items()}:
        raise CaptchaError(
            f"initial weights must be of this version of the program, but those of {initial.source} are of "
            "another: use --start-from none"
        )
    old_rows = {character: i for i, character in enumerate(initial.characters)}
    known = [(i, old_rows[c]) for i, c in enumerate(config.alphabet) if c in old_rows]
    new, old = np.array([*known, (len(config.alphabet), len(initial.characters))]).T  # the blank is last
    adapted = {}
    for name, values in found.items():
        adapted[name] = fresh[name] if name == TEMPERATURE else values
        if name.startswith(HEAD):
            adapted[name] = fresh[name].copy()
            adapted[name][..., new] = values[..., old]
    return adapted


def fit_colours(name: str, values: np.ndarray, fresh: dict[str, np.ndarray]) -> np.ndarray:
    """A kernel of the first convolution, float32 [5, 5, 1 or 3, C], for as many colours as in `fresh`.

    A third of a gray kernel for each colour: a gray image in RGB gives the same features as in gray. The
    sum of a colour kernel: so does a gray image of the gray model that it becomes. All else stays.
    """
    expected = fresh[name].shape if name in fresh else ()
    if not name.startswith(FIRST_LAYER) or values.ndim != 4 or len(expected) != 4:
        return values
    if (values.shape[2], expected[2]) == (1, 3):
        return np.repeat(values / 3, 3, axis=2)
    if (values.shape[2], expected[2]) == (3, 1):
        total: np.ndarray = values.sum(axis=2, keepdims=True)
        return total
    return values


def _names(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sizes.items())


def load_initial_weights(
    session: Any, averages: dict[str, Any], initial: InitialWeights, config: Config
) -> str:
    """Give the variables of the graph those weights, the moving averages too; a line says which they are.

    Args:
        averages: the averaged variables, by the name of the trained ones.
    """
    import tensorflow.compat.v1 as tf

    trained = {v.op.name: v for v in tf.global_variables() if v.op.name in averages}
    weights = adapt(initial, config, session.run(trained))
    for name, values in weights.items():
        for variable in {trained[name], averages[name]}:
            variable.load(values, session)
    known = len(set(initial.characters) & set(config.alphabet))
    return f"Initial weights: {initial.source}, which have {known} of the {len(config.alphabet)} characters"
