"""The designs that ours is compared with: each learns, is scored and timed as the others are."""

import importlib.util
import itertools
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import PROJECT, TINY

import cnn_model
from benchmarks import common, initial_weights, keras_ocr, measure, ours, pretrained, torch_port
from captcha_cnn import ctc, float16, layers, muon, progress
from captcha_cnn.checkpoint import list_checkpoints
from captcha_cnn.dataset import Dataset
from captcha_cnn.drawing import draw_captcha
from captcha_cnn.initial_weights import find_initial_weights
from captcha_cnn.styles import draw_styles
from captcha_cnn.tf_runtime import TrainingInterrupted
from config import CLASSIC, CaptchaError, Config

AT = (2, 2.5, 12)  # by the ticking clock: after one step, after no more, after some more
UNCHANGED = {"shift": 0.0, "scale": 0.0, "shear": 0.0, "squeeze": 0.0, "noise": 0.0}
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed: pip install -r benchmarks/requirements-torch.txt",
)


def small_set(name, count, config=TINY):
    """Captchas as captcha_cnn.dataset.Dataset has them."""
    drawn = [draw_captcha(config, name, i) for i in range(count)]
    images = np.stack([np.asarray(image.convert("L")) for _, image in drawn])
    classes = np.array([[config.alphabet.index(character) for character in label] for label, _ in drawn])
    return Dataset(images, np.eye(len(config.alphabet), dtype=np.float32)[classes].reshape(count, -1))


@pytest.fixture(scope="module")
def sets():
    return small_set("train", 20), small_set("test", 6)


class FakeTime:
    """Replaces the time module: no test waits, and none depends on how fast the machine is."""

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
    monkeypatch.setattr(progress, "time", FakeTime())
    return progress.time


@pytest.fixture
def ticking(monkeypatch):
    """Goes on by a second each time that it is looked at."""
    monkeypatch.setattr(progress, "time", FakeTime(1))


def check_points(points):
    assert len(points) == len(AT)
    for point, seconds in zip(points, AT, strict=True):
        assert point.seconds >= seconds
        assert 0 <= point.captcha_accuracy <= point.character_accuracy <= 1
    steps = [point.step for point in points]
    assert steps[:2] == [1, 1]
    assert steps[2] > 3  # more than an epoch, whose last batch is smaller


# ---------------------------------------------------------------------- in common


def test_stopwatch_stands_still_while_paused(fake_time):
    stopwatch = common.Stopwatch()
    fake_time.sleep(2)
    with stopwatch.paused():
        fake_time.sleep(10)
        assert stopwatch.seconds == 2
    fake_time.sleep(1)
    assert stopwatch.seconds == 3


def test_stopwatch_goes_on_after_an_error(fake_time):
    stopwatch = common.Stopwatch()
    with pytest.raises(ZeroDivisionError), stopwatch.paused():
        _ = 1 / 0
    fake_time.sleep(1)
    assert stopwatch.seconds == 1


def test_neither_scoring_nor_the_caller_is_counted(fake_time):
    scored = []

    def score_now():
        fake_time.sleep(100)
        scored.append(len(scored))
        return 0.5, 0.25

    points = []
    for point in common.timed_curve(lambda: fake_time.sleep(4), score_now, [2, 3, 10]):
        fake_time.sleep(1000)
        points.append(point)
    assert points == [(4, 1, 0.5, 0.25), (4, 1, 0.5, 0.25), (12, 3, 0.5, 0.25)]
    assert len(scored) == 2  # the first step passed two


def test_batches_are_epochs():
    images = np.zeros((10, 23, 37), np.uint8) + np.arange(10, dtype=np.uint8)[:, None, None]
    data = Dataset(images, np.zeros((10, 15), np.float32))
    batches = common.endless_batches(data, replace(TINY, batch_size=4, **UNCHANGED))
    (epochs, first), (others, second) = (
        zip(*[(epoch, x[:, 0, 0]) for epoch, x, _ in itertools.islice(batches, 3)], strict=True)
        for _ in range(2)
    )
    batches.close()
    assert (epochs, others) == ((0, 0, 0), (1, 1, 1))
    for epoch in (first, second):
        assert [len(batch) for batch in epoch] == [4, 4, 2]
        assert sorted(np.concatenate(epoch)) == list(range(10))
    assert np.concatenate(first).tolist() != np.concatenate(second).tolist()


def test_answers_of_a_wrong_length_are_wrong():
    truth = np.array([[1, 2, 3]] * 4)
    characters, captchas = common.score([[1, 2, 3], [1, 2], [1, 2, 3, 3], [-1, 3, 3]], truth)
    assert characters == (3 + 2 + 3 + 1) / 12
    assert captchas == 1 / 4


def test_labels_and_texts_become_classes():
    data = small_set("test", 3)
    for i, classes in enumerate(common.label_classes(data.labels, TINY).tolist()):
        assert classes == common.text_classes(draw_captcha(TINY, "test", i)[0], TINY)
    assert common.text_classes("ax", TINY) == [0, -1]


# ---------------------------------------------------------------------- the original, Keras' OCR


def test_the_original_has_the_published_size(tf):
    module, config = measure.DESIGNS["the original"]
    assert module is ours
    assert config == Config.classic()
    with tf.Graph().as_default():
        model = cnn_model.CNN.build(config)
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
    assert model.predictions.chars.shape.as_list() == [None, 4]


def test_the_original_learns_and_is_scored(sets, ticking, tf):
    classic = replace(TINY, **CLASSIC | {"batch_size": TINY.batch_size})
    check_points(list(ours.curve(*sets, classic, AT)))


def test_keras_ocr_has_the_size_of_the_example(tf):
    model = keras_ocr.build(Config())
    convolutions = (9 * 1 + 1) * 32 + (9 * 32 + 1) * 64
    dense = (15 * 64 + 1) * 64 + (128 + 1) * 12
    lstms = 2 * 4 * ((64 + 128 + 1) * 128 + (256 + 64 + 1) * 64)
    assert model.count_params() == convolutions + dense + lstms
    assert model.output_shape == (None, 40, 12)


def test_keras_ocr_learns_and_is_scored(sets, ticking, tf, monkeypatch):
    monkeypatch.setattr(keras_ocr, "BATCH_SIZE", 7)
    check_points(list(keras_ocr.curve(*sets, TINY, AT)))


def test_keras_ocr_minimises_the_same_loss_as_ours(tf):
    random = np.random.default_rng(2)
    probabilities = random.dirichlet(np.ones(7), (4, 9)).astype(np.float32)  # [B, T, K + 2]
    labels = random.integers(1, 6, (4, 3))
    with tf.Graph().as_default(), tf.Session() as session:
        logits = tf.constant(np.log(probabilities).transpose(1, 0, 2))
        loss = session.run(ctc.ctc_loss(logits, tf.constant(labels, tf.int32)))
    assert np.asarray(keras_ocr.ctc_loss(labels, probabilities)) == pytest.approx(3 * loss, rel=1e-4)


def test_greedy_drops_repetitions_and_blanks_and_keeps_the_unknown():
    time_steps = [[4, 1, 1, 4, 1, 3, 0, 4], [4] * 8]  # 4 is the blank, 0 the unknown
    assert keras_ocr.greedy(np.eye(5)[time_steps]) == [[0, 0, 2, -1], []]


def test_images_for_keras_are_transposed():
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    x = keras_ocr.prepare(images)
    assert x.shape == (2, 4, 3, 1)
    assert x[1, 3, 2, 0] == np.float32(images[1, 2, 3] / 255)


# ---------------------------------------------------------------------- our network in PyTorch


def test_the_constants_of_the_port_are_ours():
    assert torch_port.BN_EPSILON == float16.BN_EPSILON
    assert torch_port.HEAD_WIDTH == layers.HEAD_WIDTH
    for name in ("CHANNELS", "STRIDES", "KERNEL_SIZE", "EMA_DECAY"):
        assert getattr(torch_port, name) == getattr(cnn_model, name), name
    for name in ("MOMENTUM", "MUON_UPDATE_RMS"):
        assert getattr(torch_port, name) == getattr(muon, name), name


def test_decode_finds_the_best_alignment_of_that_length():
    random = np.random.default_rng(0)
    time_steps, images, blank, length = 5, 6, 2, 2
    log_probs = np.log(random.dirichlet(np.ones(blank + 1), (time_steps, images))).astype(np.float32)
    for i, answer in enumerate(torch_port.decode(log_probs, length).tolist()):
        best = (-np.inf, None)
        for alignment in itertools.product(range(blank + 1), repeat=time_steps):
            text = [k for k, _ in itertools.groupby(alignment) if k != blank]
            if len(text) == length:
                best = max(best, (sum(log_probs[t, i, k] for t, k in enumerate(alignment)), text))
        assert answer == best[1]


def test_decode_agrees_with_ours_where_the_confidence_is_high(tf):
    random = np.random.default_rng(1)
    log_probs = np.log(random.dirichlet(np.full(6, 0.1), (7, 200)).astype(np.float32) + 1e-16)
    with tf.Graph().as_default(), tf.Session() as session:
        chars, confidence, *_ = session.run(ctc.decode(tf.constant(log_probs), 3))
    confident = confidence > 0.6
    assert 50 < confident.sum() < 200
    assert np.array_equal(torch_port.decode(log_probs, 3)[confident], chars[confident])


# A process of its own: PyTorch and TensorFlow in one fight over the cores.
TORCH_SCRIPT = """
import dataclasses, itertools, json, sys, types
import numpy as np
from benchmarks import torch_port
from captcha_cnn import progress
from captcha_cnn.dataset import Dataset
from config import Config

ticks = itertools.count()
progress.time = types.SimpleNamespace(monotonic=lambda: next(ticks))
config = Config(**json.loads(sys.argv[1]))
sets = np.load(sys.argv[2])
train, test = (Dataset(sets[n + "_x"], sets[n + "_y"]) for n in ("train", "test"))
points = list(torch_port.curve(train, test, config, json.loads(sys.argv[3])))
torch = torch_port.load_torch()
log_probs = torch_port.log_probs_of(torch_port.build(config), torch.zeros(2, 23, 37), 0.9, False)
unchanged = json.loads(sys.argv[4])
training = torch_port.Training(train, dataclasses.replace(config, keep_prob=1.0, **unchanged), False)
for _ in range(150):
    training.step()
kernel, before = training.kernels[1][0], training.kernels[1][0].detach().clone()
training.step()
update = (kernel - before).detach().flatten(1)
training.close()

network = torch_port.build(config)
maps = []  # after each dropout: what the second and third convolution and the head get
for layer in (network[2], network[4], network[6]):
    layer.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0].detach() == 0))
for norm in (network[1], network[3], network[5]):
    torch.nn.init.constant_(norm.bias, 100.0)  # ReLU keeps every value: only dropout makes zeros
images = torch.rand(5, 23, 37) * 255
torch_port.log_probs_of(network, images, 0.5, False)
torch_port.log_probs_of(network.eval(), images, 0.5, False)
matrix = torch.randn(8, 30)
orthogonal = {name: torch_port.newton_schulz(matrix, name == "bfloat16") for name in ("bfloat16", "float32")}
print(json.dumps({
    "points": points,
    "update": torch.linalg.svdvals(update).div(config.alpha * update.shape[1] ** 0.5).tolist(),
    "seconds": torch_port.step_seconds(train, config, 3),
    "weights": [list(w.shape) for w in torch_port.build(Config()).parameters()],
    "shape": list(log_probs.shape),
    "sums": log_probs.exp().sum(2).flatten().tolist(),
    "chars": training.read(train.images).tolist(),
    "zeros": [each.float().mean((0, 2, 3)).tolist() for each in maps],
    "singular": {name: torch.linalg.svdvals(each).tolist() for name, each in orthogonal.items()},
    "rounded": {name: bool((each.bfloat16().float() == each).all()) for name, each in orthogonal.items()},
    "tensorflow": "tensorflow" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def port(sets, tmp_path_factory):
    """What TORCH_SCRIPT found."""
    path = tmp_path_factory.mktemp("port") / "sets.npz"
    train, test = sets
    np.savez(path, train_x=train.images, train_y=train.labels, test_x=test.images, test_y=test.labels)
    values = [json.dumps(TINY.as_dict()), path, json.dumps(AT), json.dumps(UNCHANGED)]
    command = [sys.executable, "-c", TORCH_SCRIPT, *values]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_torch
def test_the_port_learns_and_is_scored(port, sets):
    check_points([common.Point(*point) for point in port["points"]])
    assert len(port["seconds"]) == 3
    _, captchas = common.score(port["chars"], common.label_classes(sets[0].labels, TINY))
    assert captchas > 0.5  # of the images that it learned by heart; by chance 1 of 125


@needs_torch
def test_the_port_updates_kernels_as_ours(port):
    assert 0.6 < max(port["update"]) / muon.MUON_UPDATE_RMS < 1.3
    assert np.median(port["update"]) > 0.6 * muon.MUON_UPDATE_RMS


@needs_torch
def test_the_port_drops_whole_channels_and_then_single_values(port):
    first, second, third, *inference = (np.array(each) for each in port["zeros"])
    for layer in (first, second):
        assert set(layer) == {0.0, 1.0}  # shares of a channel's values in all images
    assert ((third > 0.05) & (third < 0.95)).all()
    assert 0.4 < third.mean() < 0.6
    assert not np.concatenate(inference).any()


@needs_torch
@pytest.mark.parametrize("arithmetic", ["bfloat16", "float32"])
def test_the_port_makes_a_matrix_orthogonal_in_the_arithmetic_asked_for(port, arithmetic):
    assert min(port["singular"][arithmetic]) > 0.6
    assert max(port["singular"][arithmetic]) < 1.3
    assert port["rounded"][arithmetic] == (arithmetic == "bfloat16")


@needs_torch
def test_the_port_needs_no_tensorflow(port):
    assert not port["tensorflow"]


@needs_torch
def test_the_scores_of_the_port_are_log_probabilities_of_each_time_step(port):
    assert port["shape"] == [5, 2, 6]
    assert port["sums"] == pytest.approx([1] * 10, abs=1e-5)


@needs_torch
def test_the_port_has_as_many_weights_as_ours(port, tf):
    with tf.Graph().as_default():
        cnn_model.CNN.build(Config())
        sizes = sorted(int(np.prod(v.shape)) for v in tf.trainable_variables())
    assert sorted(int(np.prod(shape)) for shape in port["weights"]) == sizes


def test_a_missing_torch_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CaptchaError, match=r"benchmarks/requirements-torch\.txt"):
        torch_port.build(TINY)


# ---------------------------------------------------------------------- pretrained readers


def test_what_the_alphabet_lacks_becomes_what_looks_like_it():
    assert pretrained.to_alphabet("Q7lB-", "0123456789") == "0718-"
    assert pretrained.to_alphabet("aBO0", "ABO") == "ABO0"


@pytest.mark.parametrize("name", pretrained.READERS)
def test_a_missing_reader_is_one_sentence(name, monkeypatch):
    for package in ("ddddocr", "captcha_whisperer"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CaptchaError, match=r"benchmarks/requirements\.txt"):
        pretrained.read(name, [], TINY)


def test_a_reader_gets_png_files_in_colour(monkeypatch):
    got = []
    monkeypatch.setitem(pretrained.READERS, "echo", lambda: lambda file: got.append(file) or "Q1")
    answers = pretrained.read("echo", [draw_captcha(Config(), "test", i)[1] for i in range(2)], Config())
    assert answers.raw == ["Q1", "Q1"]
    assert answers.texts == ["01", "01"]
    assert answers.milliseconds > 0
    assert len(got) == 3  # once before the clock starts
    assert all(file.startswith(b"\x89PNG") for file in got)
    assert got[1][25] == 2  # a PNG's colour type: RGB


@pytest.mark.parametrize("name", pretrained.READERS)
def test_a_reader_reads(name):
    for package in ("ddddocr", "captcha_whisperer"):
        pytest.importorskip(package, reason="pip install -r benchmarks/requirements.txt")
    drawn = [draw_captcha(Config(), "test", i) for i in range(8)]
    answers = pretrained.read(name, [image for _, image in drawn], Config())
    assert sum(text == label for text, (label, _) in zip(answers.texts, drawn, strict=True)) >= 2


# ---------------------------------------------------------------------- the initial weights


TINY_STYLES = initial_weights.SETTINGS | {
    "width": 37,
    "height": 23,
    "char_num": "1-2",
    "channels": 3,
    "dense": 5,
}


def small_training(monkeypatch, images):
    phases = (initial_weights.Phase(images, 2, 0.01, 1), initial_weights.Phase(images, 1, 0.002, 4))
    monkeypatch.setattr(initial_weights, "PHASES", phases)
    monkeypatch.setattr(initial_weights, "SETTINGS", TINY_STYLES)
    monkeypatch.setattr(initial_weights, "OTHER_IMAGES", 5)
    monkeypatch.setattr(initial_weights, "check_fonts", lambda: None)


def test_the_initial_weights_are_written_as_the_program_finds_them(
    tmp_path, monkeypatch, capsys, tf, short_start
):
    runs, run_model = [], initial_weights.driver.run_model

    def note(config, train, validation, test, begun):
        sizes = len(train.images), len(validation.images), len(test.images)
        runs.append((config.Epoch, config.alpha, *sizes, begun is None, train.images[0].tobytes()))
        return run_model(config, train, validation, test, begun)

    path = tmp_path / "weights.npz"
    small_training(monkeypatch, 9)
    monkeypatch.setattr(initial_weights.driver, "run_model", note)
    monkeypatch.setattr("captcha_cnn.initial_weights.SHIPPED", path)
    monkeypatch.chdir(tmp_path)
    assert initial_weights.main(["--to", str(path)]) == 0
    assert [run[:-1] for run in runs] == [(2, 0.01, 9, 5, 5, True), (1, 0.002, 9, 5, 5, False)]
    assert runs[0][-1] != runs[1][-1], "each phase has captchas of its own"
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name], "nothing else is left"
    found = find_initial_weights(replace(TINY, images="mine"))
    assert (found.sizes, len(found.characters)) == ({"height": 23, "channels": 3, "dense": 5}, 62)
    assert all(np.isfinite(values).all() for values in found.weights.values())
    assert found.weights["inverse_temperature"] != 1, "it is calibrated"
    printed = capsys.readouterr().out
    assert "Initial weights: captchas of many styles, which have 62 of the 62 characters" in printed
    assert printed.count("Test: ") == 2
    assert f"{path}: 0.0" in printed


def test_an_interrupted_training_of_initial_weights_goes_on(tmp_path, monkeypatch, capsys, tf, short_start):
    small_training(monkeypatch, 70)
    paths = [tmp_path / name for name in ("whole.npz", "resumed.npz")]

    def train(path, *more):
        return initial_weights.main(["--to", str(path), *more])

    def interrupted(self):
        if list_checkpoints(str(tmp_path / "run" / "phase-2" / "checkpoint")):
            raise TrainingInterrupted(signal.SIGINT)

    assert train(paths[0]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(initial_weights.driver.tf_runtime.GracefulStop, "check", interrupted)
        with pytest.raises(TrainingInterrupted):
            train(paths[1], "--folder", str(tmp_path / "run"))
    assert not paths[1].exists()
    assert train(paths[1], "--folder", str(tmp_path / "run")) == 0
    out = capsys.readouterr().out.rpartition("Phase 1\n")[2]
    assert re.search("Resuming after step [01]\n", out)
    whole, resumed = (dict(np.load(path)) for path in paths)
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def test_the_sets_of_the_initial_weights_differ_and_are_repeatable():
    config = Config(**TINY_STYLES)
    seeds = [*initial_weights.SEEDS.values(), *(phase.seed for phase in initial_weights.PHASES)]
    sets = {seed: initial_weights.draw_set(config, 3, seed) for seed in seeds}
    assert len({data.images.tobytes() for data in sets.values()}) == len(seeds) == 5
    seed = initial_weights.SEEDS["validation"]
    again = initial_weights.draw_set(config, 3, seed)
    assert np.array_equal(again.images, sets[seed].images)
    _, labels = draw_styles(3, seed, config.alphabet, (1, 2), (37, 23))
    assert np.array_equal(again.labels[0], initial_weights.ReadData(config).label2vec(labels[0]))


def test_the_shipped_initial_weights_know_all_letters_and_digits_of_two_to_eight():
    config = Config(**initial_weights.SETTINGS)
    assert len(config.alphabet) == 62
    assert (config.min_length, config.max_length) == (2, 8)


def test_missing_fonts_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(initial_weights, "train", None)
    needed = tmp_path / "requirements-styles.txt"
    needed.write_text("# fonts\nnumpy>=1\nfont-no-such>=1\nfont-nor-this\n", encoding="utf-8")
    monkeypatch.setattr(initial_weights, "REQUIREMENTS", needed)
    with pytest.raises(
        CaptchaError, match="but font-no-such and 1 other packages are missing: pip install -r"
    ):
        initial_weights.main([])
    needed.write_text("numpy>=1\n", encoding="utf-8")
    initial_weights.check_fonts()
