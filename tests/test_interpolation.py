"""Means of the weights before and after a training, and which of them is kept."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY
from training_fakes import numbered_images

from captcha_cnn.interpolation import interpolated, keep_best_mean
from captcha_cnn.metrics import EvalResult

CONFIG = replace(TINY, images="mine")
INITIAL = {"a": np.float32([0, 8])}


class Model:
    """A session and a model with two weights."""

    def __init__(self):
        self.values = {"a": np.float32([2, 4]), "temperature": np.float32(1)}
        self.weights = {name: SimpleNamespace(load=self.loader(name)) for name in self.values}

    def loader(self, name):
        return lambda new, _: self.values.__setitem__(name, new)

    def run(self, names):
        return {name: self.values[name] for name in names}


class Kept:
    """A checkpoint that notes which weights are kept."""

    def __init__(self, model, has_start=True):
        self.model, self.best = model, []
        self.initial = INITIAL if has_start else {}

    def start(self, session):
        return self.initial

    def use_best_of_training(self, session):
        self.model.values["a"] = np.float32([2, 4])

    def keep_best(self, session):
        self.best.append(self.model.values["a"].tolist())

    def use_best(self, session):
        self.model.values["a"] = np.float32(self.best[-1])


def test_inference_uses_a_mean_of_the_weights_inside_the_block_alone():
    model = Model()
    for share, expected in ((0.75, [1.5, 5]), (1.0, [2, 4])):
        with contextlib.suppress(KeyError), interpolated(model, model, INITIAL, share):
            assert model.values["a"].tolist() == expected
            raise KeyError
        assert model.values["a"].tolist() == [2, 4], "after an error, too"
    with interpolated(model, model, {}, 0.5):
        assert model.values["a"].tolist() == [2, 4]


def keep(best_first_value, checkpoint_of=Kept, config=CONFIG):
    """What is kept where the labels are the more probable, the nearer the first weight is to that value."""
    model = Model()
    checkpoint, seen = checkpoint_of(model), []

    def evaluate(session, _, data):
        seen.append(len(data.images))
        count = len(data.images)
        likelihood = np.full(count, 0.9 - 0.3 * abs(session.values["a"][0] - best_first_value))
        return EvalResult(np.zeros(count), likelihood, np.zeros((count, 3)), np.zeros((count, 3)))

    keep_best_mean(model, model, checkpoint, numbered_images(3), config, evaluate)
    return model.values["a"].tolist(), checkpoint.best, seen


@pytest.mark.parametrize(("best", "kept"), [(2, [2, 4]), (1.5, [1.5, 5]), (0, [1, 6])])
def test_the_mean_that_reads_validation_images_best_is_kept(best, kept, capsys):
    values, best_ones, seen = keep(best)
    assert values == best_ones[-1] == kept
    assert seen == [6] * 3, "each share once, with a copy of each image"
    share = kept[0] / 2
    line = f"{share:.0%} of the trained weights and {1 - share:.0%} of the initial ones"
    assert (line in capsys.readouterr().out) == (best < 2)


def test_a_mean_that_is_hardly_better_is_not_kept():
    values, _, _ = keep(1.26)  # nearer to 1.5, by 0.02
    assert values == [1, 6]


@pytest.mark.parametrize("changes", [{"folds": 5}, {"images": ""}, {}])
def test_nothing_is_chosen_after_cross_validation_for_drawn_captchas_or_without_initial_weights(changes):
    values, kept, seen = keep(0, lambda model: Kept(model, bool(changes)), replace(CONFIG, **changes))
    assert (values, kept, seen) == ([2, 4], [], [])
