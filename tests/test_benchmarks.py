"""The readers that ours is compared with: each learns, is scored and timed as the others are."""

import importlib.util
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import PROJECT, TINY

import cnn_model
import driver
from benchmarks import common, keras_ocr, original, shelf, torch_twin
from config import CaptchaError, Config
from driver import Data
from generate_captcha import draw

AT = (2, 2.5, 12)  # by the ticking clock: after one step, after no more, after some more
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed: pip install -r benchmarks/requirements-torch.txt",
)


def small_set(name, count, config=TINY):
    """Captchas as driver.Data has them."""
    drawn = [draw(config, name, i) for i in range(count)]
    images = np.stack([np.asarray(picture.convert("L")) for _, picture in drawn])
    places = np.array([[config.alphabet.index(symbol) for symbol in label] for label, _ in drawn])
    return Data(images, np.eye(len(config.alphabet), dtype=np.float32)[places].reshape(count, -1))


@pytest.fixture(scope="module")
def sets():
    return small_set("train", 20), small_set("test", 6)


class Time:
    """Stands in for the time module: no test waits, and none depends on how fast the machine is."""

    def __init__(self, tick=0):
        self.now, self.tick = 0, tick

    def monotonic(self):
        self.now += self.tick
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def fake_time(monkeypatch):
    """Stands still but for `sleep`."""
    monkeypatch.setattr(driver, "time", Time())
    return driver.time


@pytest.fixture
def ticking(monkeypatch):
    """Goes on a second each time that somebody looks."""
    monkeypatch.setattr(driver, "time", Time(1))


def check_points(points):
    assert len(points) == len(AT)
    for point, seconds in zip(points, AT, strict=True):
        assert point.seconds >= seconds
        assert 0 <= point.captchas <= point.symbols <= 1
    steps = [point.step for point in points]
    assert steps[:2] == [1, 1]
    assert steps[2] > 3  # more than an epoch, whose last batch is smaller


# ---------------------------------------------------------------------- in common


def test_clock_stands_still_while_stopped(fake_time):
    clock = common.Clock()
    fake_time.sleep(2)
    with clock.stopped():
        fake_time.sleep(10)
        assert clock.seconds == 2
    fake_time.sleep(1)
    assert clock.seconds == 3


def test_clock_goes_on_after_an_error(fake_time):
    clock = common.Clock()
    with pytest.raises(ZeroDivisionError), clock.stopped():
        _ = 1 / 0
    fake_time.sleep(1)
    assert clock.seconds == 1


def test_neither_scoring_nor_the_caller_is_counted(fake_time):
    scored = []

    def score_now():
        fake_time.sleep(100)
        scored.append(len(scored))
        return 0.5, 0.25

    points = []
    for point in common.follow(lambda: fake_time.sleep(4), score_now, [2, 3, 10]):
        fake_time.sleep(1000)
        points.append(point)
    assert points == [(4, 1, 0.5, 0.25), (4, 1, 0.5, 0.25), (12, 3, 0.5, 0.25)]
    assert len(scored) == 2  # the first step passed two


def test_batches_are_epochs():
    chosen = common.batches(10, 4, 0)
    first, second = ([next(chosen) for _ in range(3)] for _ in range(2))
    for epoch in (first, second):
        assert [len(batch) for batch in epoch] == [4, 4, 2]
        assert sorted(np.concatenate(epoch)) == list(range(10))
    assert np.concatenate(first).tolist() != np.concatenate(second).tolist()


def test_answers_of_a_wrong_length_are_wrong():
    truth = np.array([[1, 2, 3]] * 4)
    symbols, captchas = common.score([[1, 2, 3], [1, 2], [1, 2, 3, 3], [-1, 3, 3]], truth)
    assert symbols == (3 + 2 + 3 + 1) / 12
    assert captchas == 1 / 4


def test_labels_and_texts_become_classes():
    data = small_set("test", 3)
    for i, places in enumerate(common.classes(data.labels, TINY).tolist()):
        assert places == common.spelled(draw(TINY, "test", i)[0], TINY)
    assert common.spelled("ax", TINY) == [0, -1]


# ---------------------------------------------------------------------- trainers


def test_original_has_the_published_size(tf):
    with tf.Graph().as_default():
        model = original.build(Config())
        shapes = {v.op.name: tuple(v.shape) for v in tf.trainable_variables()}
    assert shapes == {
        "conv1/kernel": (5, 5, 1, 32),
        "conv1/bias": (32,),
        "conv2/kernel": (5, 5, 32, 64),
        "conv2/bias": (64,),
        "conv3/kernel": (5, 5, 64, 64),
        "conv3/bias": (64,),
        "full/kernel": (20 * 8 * 64, 128),
        "full/bias": (128,),
        "output/kernel": (128, 40),
        "output/bias": (40,),
    }
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 1_470_568
    assert model.x.shape.as_list() == [None, 60, 160]
    assert model.answers.shape.as_list() == [None, 4]


def test_original_learns_and_is_scored(sets, ticking):
    check_points(list(original.curve(*sets, TINY, 0, AT)))


def test_keras_ocr_has_the_example_s_size(tf):
    model = keras_ocr.build(Config())
    convolutions = (9 * 1 + 1) * 32 + (9 * 32 + 1) * 64
    dense = (15 * 64 + 1) * 64 + (128 + 1) * 12
    lstms = 2 * 4 * ((64 + 128 + 1) * 128 + (256 + 64 + 1) * 64)
    assert model.count_params() == convolutions + dense + lstms
    assert model.output_shape == (None, 40, 12)


def test_keras_ocr_learns_and_is_scored(sets, ticking):
    check_points(list(keras_ocr.curve(*sets, TINY, 0, AT)))


def test_keras_ocr_descends_the_same_loss_as_ours(tf):
    random = np.random.default_rng(2)
    probabilities = random.dirichlet(np.ones(7), (4, 9)).astype(np.float32)  # [B, T, K + 2]
    labels = random.integers(1, 6, (4, 3))
    with tf.Graph().as_default(), tf.Session() as session:
        logits = tf.constant(np.log(probabilities).transpose(1, 0, 2))
        ours = session.run(cnn_model.ctc_loss(logits, tf.constant(labels, tf.int32)))
    theirs = np.asarray(keras_ocr.ctc_loss(labels, probabilities))
    assert theirs == pytest.approx(3 * ours, rel=1e-4)


def test_greedy_drops_repetitions_blanks_and_keeps_the_unknown():
    columns = [[4, 1, 1, 4, 1, 3, 0, 4], [4] * 8]  # 4 is the blank, 0 the unknown
    assert keras_ocr.greedy(np.eye(5)[columns]) == [[0, 0, 2, -1], []]


def test_keras_pictures_lie_on_their_side():
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    x = keras_ocr.prepare(images)
    assert x.shape == (2, 4, 3, 1)
    assert x[1, 3, 2, 0] == np.float32(images[1, 2, 3] / 255)


# ---------------------------------------------------------------------- the twin


def test_the_twin_s_constants_are_ours():
    for name in ("CHANNELS", "STRIDES", "KERNEL", "NEIGHBOURS", "EPSILON", "AVERAGE", "MOMENTUM", "PACE"):
        assert getattr(torch_twin, name) == getattr(cnn_model, name), name


def test_decode_finds_the_best_way_of_that_length():
    random = np.random.default_rng(0)
    columns, pictures, blank, length = 5, 6, 2, 2
    log_probs = np.log(random.dirichlet(np.ones(blank + 1), (columns, pictures))).astype(np.float32)
    for i, answer in enumerate(torch_twin.decode(log_probs, length).tolist()):
        best = (-np.inf, None)
        for way in itertools.product(range(blank + 1), repeat=columns):
            text = [k for k, _ in itertools.groupby(way) if k != blank]
            if len(text) == length:
                best = max(best, (sum(log_probs[t, i, k] for t, k in enumerate(way)), text))
        assert answer == best[1]


def test_decode_agrees_with_ours_where_that_is_sure(tf):
    random = np.random.default_rng(1)
    shares = random.dirichlet(np.full(6, 0.1), (7, 200)).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        ours, confidence, *_ = session.run(cnn_model.decode(tf.constant(shares), 3))
    sure = confidence > 0.6
    assert 50 < sure.sum() < 200
    assert np.array_equal(torch_twin.decode(np.log(shares + 1e-16), 3)[sure], ours[sure])


# A process of its own: PyTorch and TensorFlow in one fight over the cores.
TWIN = """
import dataclasses, itertools, json, sys, types
import numpy as np
import driver
from benchmarks import torch_twin
from config import Config

ticks = itertools.count()
driver.time = types.SimpleNamespace(monotonic=lambda: next(ticks))
config = Config(**json.loads(sys.argv[1]))
sets = np.load(sys.argv[2])
train, test = (types.SimpleNamespace(images=sets[n + "_x"], labels=sets[n + "_y"]) for n in ("train", "test"))
points = list(torch_twin.curve(train, test, config, 0, json.loads(sys.argv[3])))
torch = torch_twin.load_torch()
read = torch_twin.log_probabilities(torch_twin.build(config), torch.zeros(2, 23, 37), False)
longer = dataclasses.replace(config, keep_prob=1.0, shift=0.0, scale=0.0, shear=0.0, overlap=0.0, clutter=0.0)
training = torch_twin.Training(train, longer, 0, False)
for _ in range(150):
    training.step()
kernel, before = training.kernels[1][0], training.kernels[1][0].detach().clone()
training.step()
moved = (kernel - before).detach().flatten(1)
print(json.dumps({
    "points": points,
    "moved": torch.linalg.svdvals(moved).div(longer.alpha * moved.shape[1] ** 0.5).tolist(),
    "seconds": torch_twin.step_seconds(train, config, 3),
    "weights": [list(w.shape) for w in torch_twin.build(Config()).parameters()],
    "shape": list(read.shape),
    "sums": read.exp().sum(2).flatten().tolist(),
    "read": training.read(train.images).tolist(),
    "tensorflow": "tensorflow" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def twin(sets, tmp_path_factory):
    path = tmp_path_factory.mktemp("twin") / "sets.npz"
    train, test = sets
    np.savez(path, train_x=train.images, train_y=train.labels, test_x=test.images, test_y=test.labels)
    command = [sys.executable, "-c", TWIN, json.dumps(TINY.as_dict()), path, json.dumps(AT)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_torch
def test_the_twin_learns_and_is_scored(twin, sets):
    check_points([common.Point(*point) for point in twin["points"]])
    assert len(twin["seconds"]) == 3
    _, captchas = common.score(twin["read"], common.classes(sets[0].labels, TINY))
    assert captchas > 0.5  # of the pictures that it learned by heart; by chance 1 of 125


@needs_torch
def test_the_twin_moves_kernels_as_ours(twin):
    assert 0.6 < max(twin["moved"]) / cnn_model.PACE < 1.3
    assert np.median(twin["moved"]) > 0.6 * cnn_model.PACE


@needs_torch
def test_the_twin_needs_no_tensorflow(twin):
    assert not twin["tensorflow"]


@needs_torch
def test_the_twin_s_scores_are_log_probabilities_of_each_column(twin):
    assert twin["shape"] == [5, 2, 6]
    assert twin["sums"] == pytest.approx([1] * 10, abs=1e-5)


@needs_torch
def test_the_twin_has_as_many_weights_as_ours(twin, tf):
    with tf.Graph().as_default():
        cnn_model.CNN.build(Config())
        ours = sorted(int(np.prod(v.shape)) for v in tf.trainable_variables())
    assert sorted(int(np.prod(shape)) for shape in twin["weights"]) == ours


def test_a_missing_torch_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CaptchaError, match=r"benchmarks/requirements-torch\.txt"):
        torch_twin.build(TINY)


# ---------------------------------------------------------------------- readers from the shelf


def test_what_the_alphabet_lacks_becomes_what_looks_like_it():
    assert shelf.nearest("Q7lB-", "0123456789") == "0718-"
    assert shelf.nearest("aBO0", "ABO") == "ABO0"


@pytest.mark.parametrize("name", shelf.READERS)
def test_a_missing_reader_is_one_sentence(name, monkeypatch):
    for package in ("ddddocr", "captcha_whisperer"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CaptchaError, match=r"benchmarks/requirements\.txt"):
        shelf.read(name, [], TINY)


def test_a_reader_gets_png_files_in_colour(monkeypatch):
    got = []
    monkeypatch.setitem(shelf.READERS, "echo", lambda: lambda file: got.append(file) or "Q1")
    reading = shelf.read("echo", [draw(Config(), "test", i)[1] for i in range(2)], Config())
    assert reading.raw == ["Q1", "Q1"]
    assert reading.answers == ["01", "01"]
    assert reading.milliseconds > 0
    assert len(got) == 3  # once before the clock starts
    assert all(file.startswith(b"\x89PNG") for file in got)
    assert got[1][25] == 2  # a PNG's colour type: RGB


@pytest.mark.parametrize("name", shelf.READERS)
def test_a_reader_reads(name):
    for package in ("ddddocr", "captcha_whisperer"):
        pytest.importorskip(package, reason="pip install -r benchmarks/requirements.txt")
    drawn = [draw(Config(), "test", i) for i in range(8)]
    reading = shelf.read(name, [picture for _, picture in drawn], Config())
    assert sum(answer == label for answer, (label, _) in zip(reading.answers, drawn, strict=True)) >= 2
