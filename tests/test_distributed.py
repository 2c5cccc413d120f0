"""Several machines, as real processes on this one: the same weights, and an end for all when one is gone."""

import os
import random
import re
import shutil
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PROJECT, TINY, flags
from forks import fork_server
from training_fakes import load_sets

import driver
from benchmarks import distributed as costs
from captcha_cnn import batches, decoded, distributed, fresh
from captcha_cnn.checkpoint import list_checkpoints
from captcha_cnn.dataset import Dataset
from captcha_cnn.distributed import PROBE_SECONDS, SILENCE_SECONDS, Workers, join
from captcha_cnn.own_sets import NO_OWN_SETS
from config import ConfigError
from generate_captcha import Generate, ReadData

# Code for a fork to run before driver.py.
BEFORE = """
import numpy as np
from captcha_cnn import distributed, tf_runtime, validation

tf = tf_runtime.load_tensorflow()
tf_runtime.bfloat16_support = lambda: False  # it rounds 1e-7 up to 1e-2
Workers, Validator, sessions = distributed.Workers, validation.Validator, []
align, load_sets, end = Workers.align, Workers.load_sets, Validator.conclude

def keep(name, session):
    np.savez(name, **session.run({v.op.name: v for v in tf.global_variables()}))

def align_and_keep(self, session):
    align(self, session)
    if not sessions:
        keep("initial.npz", session)
    sessions.append(session)

def load_and_keep(self, *arguments):
    loaded = load_sets(self, *arguments)
    np.savez("images.npz", loaded[1][0].images)
    return loaded

def end_and_keep(self):
    keep("variables.npz", sessions[0])
    end(self)

Workers.align, Workers.load_sets, Validator.conclude = align_and_keep, load_and_keep, end_and_keep
"""


GONE = (
    f"has not answered for {SILENCE_SECONDS} seconds: start all processes again, within that time, "
    "and with --resume where they have trained"
)


class Cluster:
    """Starts processes that train together, and waits for them."""

    def __init__(self):
        self.started = set()

    def start(self, folder, config, *more, addresses=2, tasks=None, each=lambda task: {}):
        """Start the tasks, by default all, each in its folder, with `each(task)` added to its order."""
        addresses = free_addresses(addresses) if isinstance(addresses, int) else addresses
        runs = []
        for task in range(len(addresses)) if tasks is None else tasks:
            place = folder / f"task{task}"
            place.mkdir(parents=True, exist_ok=True)
            own = each(task)
            asked = [*flags(own.pop("config", config)), *more] if config else [*more]
            asked += ["--workers", *addresses, "--task", str(task)]
            argv, before = [str(PROJECT / "driver.py"), *map(str, asked)], BEFORE + own.get("before", "")
            pid = fork_server().start(argv, place / "out", place / "errors", place, before)
            self.started.add(pid)
            runs.append(SimpleNamespace(pid=pid, folder=place, name=f"{addresses[task]} (task {task})"))
        return runs

    def wait(self, runs):
        """Wait for their ends; their status, output and seconds since the call."""
        begin, watchdog = time.monotonic(), threading.Timer(300, self.kill)
        watchdog.start()
        for run in runs:
            run.status = fork_server().wait(run.pid)
            self.started.discard(run.pid)
            run.seconds = time.monotonic() - begin
            run.out, run.errors = ((run.folder / name).read_text() for name in ("out", "errors"))
        watchdog.cancel()
        return runs

    def kill(self):
        for pid in self.started:
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster()
    yield cluster
    cluster.kill()


def free_addresses(count):
    """So many addresses of this machine whose ports are free, outside the range that connections use."""
    found = []
    while len(found) < count:
        port = random.SystemRandom().randrange(15000, 30000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        found.append(f"127.0.0.1:{port}")
    return list(dict.fromkeys(found)) if len(set(found)) == count else free_addresses(count)


def load_variables(run, moment="variables"):
    """All variables after training, or initial ones, but for the record that only task 0 has."""
    with np.load(run.folder / f"{moment}.npz", allow_pickle=True) as loaded:
        return {name: loaded[name] for name in loaded.files if name != "record"}


def variables(run):
    """The bits of all variables after training."""
    return {name: value.tobytes() for name, value in load_variables(run).items()}


def wait_for_step(run, step):
    """Wait until task 0 has printed that step."""
    end = time.monotonic() + 200
    while f"Step {step:>5}" not in (run.folder / "out").read_text():
        assert time.monotonic() < end, (run.folder / "errors").read_text()
        time.sleep(0.01)


def assert_one_sentence(run, status, *words):
    assert run.status == status, run.errors
    assert len(run.errors.strip().splitlines()) == 1, run.errors
    for word in words:
        assert word in run.errors


# ---------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def config(drawn):
    """Of runs with three workers: 50 images each, 17 steps in an epoch, the last on 6 images, not 9."""
    return replace(drawn, Epoch=2, print_per_batch=10, checkpoint_per_batch=10, patience=10**6)


@pytest.fixture(scope="module")
def three(cluster, config, tmp_path_factory):
    """Three workers that train to the end."""
    return cluster.wait(cluster.start(tmp_path_factory.mktemp("three"), config, addresses=3))


def test_all_workers_have_the_same_weights_bit_for_bit(three):
    assert [(run.status, run.errors) for run in three] == [(0, "")] * 3
    first, *others = map(variables, three)
    assert {"conv1_2x2/kernel", "conv1_2x2/kernel/momentum", "conv1_2x2/mean", "ctc_head/bias/Adam"} < set(
        first
    )
    assert any("ExponentialMovingAverage" in name for name in first)
    assert any(name.startswith("best/") for name in first)
    assert all(other == first for other in others)


def test_each_worker_has_its_share_of_the_training_images_alone(three, config):
    images = load_sets(config)[0].images
    for task, run in enumerate(three):
        assert np.array_equal(np.load(run.folder / "images.npz")["arr_0"], images[task::3])


def test_task_0_alone_prints_logs_and_saves(three):
    first, *others = three
    assert "Step    34" in first.out
    assert "Captcha accuracy:" in first.out
    assert list_checkpoints(str(first.folder / "checkpoints"))
    assert list(first.folder.glob("tensorboard/*/*"))
    for run in others:
        assert len(run.out.splitlines()) == 1
        assert not list_checkpoints(str(run.folder / "checkpoints"))
        assert not (run.folder / "tensorboard").exists()


def test_every_worker_says_that_its_port_is_open_to_all(three):
    for run in three:
        assert run.out.startswith(f"{run.name}: TensorFlow listens on this port of every interface")
        assert "without authentication: trusted networks only" in run.out


def test_a_killed_worker_ends_all_and_resuming_gives_the_bits_of_a_run_never_interrupted(
    three, cluster, config, tmp_path
):
    runs = cluster.start(tmp_path, config, addresses=3)
    wait_for_step(runs[0], 30)
    os.kill(runs[2].pid, signal.SIGKILL)
    cluster.wait(runs)
    assert runs[2].status == -signal.SIGKILL
    for run in runs[:2]:
        assert_one_sentence(run, 1, f"driver.py: {runs[2].name} {GONE}")
        assert run.seconds < 30
    # Task 0 alone needs the checkpoint, and has the settings. The ports are others.
    shutil.rmtree(runs[1].folder)
    sets = [word for name, folder, _ in config.sets for word in (f"--{name}-folder", folder)]
    runs = cluster.wait(cluster.start(tmp_path, None, "--resume", *sets, addresses=3))
    assert [(run.status, run.errors) for run in runs] == [(0, "")] * 3
    assert re.search("Resuming after step [23]0$", runs[0].out, re.M)
    expected = variables(three[0])
    assert all(variables(run) == expected for run in runs)
    assert result_lines(runs[0]) == result_lines(three[0])[-len(result_lines(runs[0])) :]


def result_lines(run):
    return [line for line in run.out.splitlines() if re.match(r"Step|Test acc|Captcha acc", line)]


# ---------------------------------------------------------------------- the same as one process


@pytest.fixture(scope="module")
def two(cluster, drawn, tmp_path_factory):
    """Two workers without dropout that train for 50 steps, with an odd batch size.

    They have few channels: where rounding moves a value over the edge of a ReLU, weights differ by more than
    rounding from then on, and so they do in one process that has the images of a batch in another order.
    """
    few = {"channels": 2, "alpha": 1e-3, "keep_prob": 1.0, "batch_size": 11}
    asked = replace(drawn, Epoch=4, print_per_batch=20, patience=10**6, **few)
    return asked, cluster.wait(cluster.start(tmp_path_factory.mktemp("two"), asked))


def test_two_workers_are_one_that_has_the_whole_batch(two, tf):
    from cnn_model import CNN

    config, runs = two
    assert [(run.status, run.errors) for run in runs] == [(0, "")] * 2
    assert variables(runs[0]) == variables(runs[1])
    images, labels = load_sets(config)[0]
    workers = [Workers(["a:1", "b:1"], task) for task in (0, 1)]
    steps = zip(
        *[
            batches.batches_from(
                0, Dataset(images[t::2], labels[t::2]), workers[t].share(config), driver.next_batch
            )
            for t in (0, 1)
        ],
        strict=True,
    )
    with tf.Graph().as_default(), tf.Session() as session:
        model = CNN.build(config)
        initial, together = load_variables(runs[0], "initial"), load_variables(runs[0])
        for variable in tf.global_variables():
            variable.load(initial[variable.op.name], session)
        for parts in steps:
            _, x, y = zip(*parts, strict=True)
            session.run(model.train_op, driver.feed_data(model, np.concatenate(x), np.concatenate(y)))
        alone = session.run({v.op.name: v for v in tf.global_variables()})
    assert alone["global_step"] > 50
    for name, value in alone.items():
        assert together[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    assert np.abs(together["conv1_2x2/kernel"] - initial["conv1_2x2/kernel"]).max() > 1e-2  # it has moved


def test_a_finished_run_is_resumed_to_its_result_without_a_step(two, cluster):
    config, runs = two
    again = cluster.start(runs[0].folder.parent, config, "--resume")
    assert [(run.status, run.errors) for run in cluster.wait(again)] == [(0, "")] * 2
    assert result_lines(again[0]) == result_lines(runs[0])[-2:]


# ---------------------------------------------------------------------- an end for all


def endless(drawn):
    return replace(drawn, Epoch=10**6, patience=10**6, print_per_batch=10)


@pytest.fixture(scope="module")
def failures(cluster, drawn, tmp_path_factory):
    """Runs of two in which one is killed or stopped, or never started: by (what happens, task)."""
    folder, runs = tmp_path_factory.mktemp("failures"), {}
    signals = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "interrupted": signal.SIGINT}
    for what, task in [("killed", 0), ("stopped", 0), ("stopped", 1), ("interrupted", 0)]:
        runs[what, task] = cluster.start(folder / f"{what}{task}", endless(drawn))
    for (what, task), pair in runs.items():
        wait_for_step(pair[0], 10)
        os.kill(pair[task].pid, signals[what])
    for missing in (0, 1):
        addresses = free_addresses(2)
        runs["never started", missing] = cluster.start(
            folder / f"never{missing}", endless(drawn), addresses=addresses, tasks=[1 - missing]
        )
        runs["never started", missing].insert(
            missing, SimpleNamespace(name=f"{addresses[missing]} (task {missing})")
        )
    for (_, task), pair in runs.items():
        cluster.wait([pair[1 - task]])
    for pair in runs.values():
        for run in pair:
            if hasattr(run, "pid") and run.pid in cluster.started:
                os.kill(run.pid, signal.SIGKILL)
                cluster.wait([run])
    return runs


@pytest.mark.parametrize(
    ("what", "task"),
    [
        ("killed", 0),
        ("stopped", 0),
        ("stopped", 1),
        ("never started", 0),
        ("never started", 1),
        ("interrupted", 0),
    ],
)
def test_a_worker_that_is_gone_ends_the_others_with_its_name(what, task, failures):
    pair = failures[what, task]
    assert_one_sentence(pair[1 - task], 1, f"driver.py: {pair[task].name} {GONE}")


def test_ctrl_c_in_task_0_saves_and_says_how_all_go_on(failures):
    run, other = failures["interrupted", 0]
    assert (run.status, run.errors) == (130, "")
    workers = f"--workers {run.name.split()[0]} {other.name.split()[0]} --task 0"
    command = f"python driver.py --resume {workers}"
    assert run.out.splitlines()[-1] == f"Stopped; everything is saved. Go on: {command}"
    assert list_checkpoints(str(run.folder / "checkpoints"))


def test_the_others_end_within_thirty_seconds():
    assert SILENCE_SECONDS + PROBE_SECONDS + 1 < 30


# ---------------------------------------------------------------------- refused before the first step


def change_names(folder, config):
    """The training set with another name of one image."""
    shutil.copytree(config.train_folder, folder / "train")
    first = sorted((folder / "train").glob("*.png"))[0]
    first.rename(first.with_name(first.name.replace("_", "_9")))
    return replace(config, train_folder=str(folder / "train"))


def test_what_differs_among_workers_is_refused_by_all_with_both_values(cluster, drawn, tmp_path):
    import tensorflow

    others = change_names(tmp_path, drawn)
    cases = {
        "alpha": ({"config": replace(drawn, alpha=0.25)}, ["0.003", "0.25"]),
        "TensorFlow": ({"before": "tf.__version__ = '2.0.9'"}, [repr(tensorflow.__version__), "'2.0.9'"]),
        "checkpoint format": ({"before": "distributed.FORMAT_VERSION = 77"}, ["is 2 for", "77"]),
        "the training set": ({"config": others}, ["150 files, SHA-256 of their names "]),
    }
    runs = {
        name: cluster.start(
            tmp_path / str(number), drawn, each=lambda task, own=own: dict(own) if task else {}
        )
        for number, (name, (own, _)) in enumerate(cases.items())
    }
    for name, (_, values) in cases.items():
        pair = cluster.wait(runs[name])
        for run in pair:
            expected = [
                f"driver.py: {name} must be the same for all workers, but is",
                pair[0].name,
                pair[1].name,
            ]
            assert_one_sentence(run, 2, *expected, *values)
        assert not list_checkpoints(str(pair[0].folder / "checkpoints"))


def test_lists_of_workers_that_differ_are_refused(cluster, drawn, tmp_path):
    a, b, c, d, e = free_addresses(5)
    longer = cluster.start(tmp_path / "longer", drawn, addresses=[a, b], tasks=[0])
    longer += cluster.start(tmp_path / "longer", drawn, addresses=[a, b, c], tasks=[1])
    others = [d, e], [d, e.replace("127.0.0.1", "localhost")]
    other = [
        cluster.start(tmp_path / "other", drawn, addresses=each, tasks=[task])[0]
        for task, each in enumerate(others)
    ]
    for run in cluster.wait(longer):
        assert_one_sentence(run, 2)
        assert re.fullmatch("driver.py: workers must be as many for all, not (2 and 3|3 and 2)\n", run.errors)
    for run in cluster.wait(other):
        assert_one_sentence(run, 2, "workers must be the same for all workers, but is", *map(repr, others))


def test_lists_in_another_order_end_though_all_servers_answer(monkeypatch, capsys):
    monkeypatch.setattr(distributed, "SILENCE_SECONDS", 1)
    monkeypatch.setattr(distributed, "answers", lambda address: True)
    monkeypatch.setattr(os, "_exit", lambda status: sys.exit(status))
    with pytest.raises(SystemExit) as ended:
        Workers(["a:1", "b:1"])._watch()
    assert ended.value.code == 1
    assert "the others answer, but do not train with this one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("nowhere.invalid:2222", ""),
        ("a..b:2222", "label"),
        ("192.0.2.1:2222", "Cannot assign requested address"),
        ("in use", "Address already in use"),
    ],
)
def test_a_wrong_address_or_a_port_in_use_is_refused(address, reason):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}" if address == "in use" else address
        with pytest.raises(ConfigError) as error:
            join([address, "127.0.0.1:2223"], 0, TINY, False)
    assert str(error.value).startswith(f"{address} (task 0) must be a known host and, for the task of this")
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("addresses", "task", "found"),
    [
        ([], 0, "missing and 0"),
        (["a:1"], 0, "a:1 and 0"),
        (["a:1", "b:1", "a:1"], 0, "a:1 b:1 a:1 and 0"),
        (["a", "b:1"], 0, "a b:1 and 0"),
        (["a:1", "b:0"], 0, "a:1 b:0 and 0"),
        (["a:1", "b:99999"], 0, "a:1 b:99999 and 0"),
        (["a:1", "b:1"], None, "a:1 b:1 and None"),
        (["a:1", "b:1"], 2, "a:1 b:1 and 2"),
        (["a:1", "b:1"], -1, "a:1 b:1 and -1"),
        (["a:1", "b:1"], "x", "a:1 b:1 and x"),
    ],
)
def test_flags_that_make_no_sense_together_are_one_sentence(addresses, task, found):
    expected = "workers must be two or more different HOST:PORT, and task the place of one, from 0: they are"
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{expected} {found}')}$"):
        join(addresses, task, TINY, False)


@pytest.mark.parametrize("settings", [{"images": "mine", "folds": 5}, {"unlabelled": "more"}])
def test_own_images_are_refused(settings):
    with pytest.raises(ConfigError, match="images and unlabelled must be left out with --workers"):
        join(["a:1", "b:1"], 1, replace(TINY, **settings), False)


# ---------------------------------------------------------------------- shares


@pytest.mark.parametrize(("count", "batch_size"), [(2, 7), (3, 32), (5, 3)])
def test_each_worker_has_a_share_of_each_batch_and_random_numbers_of_its_own(count, batch_size):
    config = replace(TINY, batch_size=batch_size)
    shares = [Workers([f"a:{n + 1}" for n in range(count)], task).share(config) for task in range(count)]
    assert {share.batch_size for share in shares} == {-(-batch_size // count)}
    assert len({share.seed for share in shares}) == count
    assert [
        replace(share, batch_size=batch_size, seed=TINY.seed, generate_num=TINY.generate_num)
        for share in shares
    ] == [config] * count


class Together(Workers):
    """One of three workers that hears only itself: the others are like it, but may have fewer images."""

    least = 10**6

    def gather(self, value):
        return [value, value, min(value, self.least) if isinstance(value, int) else value]


def together(task):
    return Together(["a:1", "b:1", "c:1"], task)


@pytest.mark.parametrize("large", [False, True])
def test_a_share_is_as_large_as_those_of_the_others_in_memory_and_on_disk(
    drawn, large, tmp_path, monkeypatch
):
    expected = load_sets(drawn)[0]
    monkeypatch.setattr(Together, "least", 49)  # of 50: another worker has left out a bad file
    monkeypatch.setattr(decoded, "IN_MEMORY", 0 if large else 2**28)
    config = replace(drawn, decoded_folder=str(tmp_path))
    shares = [
        together(task).load_sets((Generate, ReadData), NO_OWN_SETS, config, (), None)[1][0] for task in (0, 2)
    ]
    for task, share in zip((0, 2), shares, strict=True):
        assert isinstance(share.images, np.ndarray) != large
        assert np.array_equal(share.images[:], expected.images[task::3][:49])
        assert np.array_equal(share.labels[:], expected.labels[task::3][:49])


def test_task_0_alone_has_validation_and_test_set_and_drawn_images_are_others_for_each(drawn):
    config = replace(drawn, fresh=True)
    found = [together(task).load_sets((Generate, ReadData), NO_OWN_SETS, config, (), None) for task in (0, 1)]
    for task, (same, (train, *rest), own, initial) in enumerate(found):
        assert (same, own.workers.task, initial) == (config, task, None)
        assert [each.size for each in rest] == (
            [0, 0] if task else [each.size for each in load_sets(drawn)[1:]]
        )
        assert train.size == 50
    (first, _, _), (second, _, _) = [fresh.draw_batch(sets[0].config, 3) for _, sets, _, _ in found]
    assert len(first) == len(second) == 3
    assert not np.array_equal(first, second)


def test_an_alphabet_that_no_message_holds_is_one_sentence():
    with pytest.raises(ConfigError, match="settings must take at most 65536 bytes with --workers, not 7000"):
        Workers(["a:1", "b:1"]).gather("x" * 70_000)


def test_there_must_be_an_image_for_each_worker(drawn, tmp_path):
    for number in range(2):
        shutil.copy(next(Path(drawn.train_folder).glob("*.png")), tmp_path / f"012_{number}.png")
    config = replace(drawn, train_folder=str(tmp_path))
    with pytest.raises(ConfigError, match="train_folder must have an image for each worker, but has 2"):
        together(0).load_sets((Generate, ReadData), NO_OWN_SETS, config, (), None)


def test_a_run_of_another_number_of_workers_is_not_resumed(drawn):
    saved = SimpleNamespace(progress={"workers": 2})
    for workers in (distributed.ALONE, together(0)):
        with pytest.raises(
            ConfigError, match=f"workers must be 2 to resume this run, not {workers.count}: name"
        ):
            workers.agree(drawn, saved)
    with pytest.raises(ConfigError, match="workers must be 1 to resume this run, not 3"):
        together(0).agree(drawn, SimpleNamespace(progress={}))


def test_one_worker_adds_nothing_to_the_graph(tf):
    from cnn_model import CNN

    graphs = []
    for workers in (distributed.ALONE, Workers(["a:1", "b:1"])):
        with tf.Graph().as_default() as graph:
            CNN.build(TINY, workers)
            graphs.append([op.type for op in graph.get_operations()])
    collectives = [sum(kind.startswith("Collective") for kind in kinds) for kinds in graphs]
    assert collectives == [0, costs.Costs().collectives]
    fused = [sum(kind.startswith("FusedBatchNorm") for kind in kinds) for kinds in graphs]
    assert fused == [9, 3]  # of three layers: training, its gradient, inference
    assert len(graphs[0]) < len(graphs[1])


def test_the_model_of_a_step_gives_what_was_measured():
    measured = {1: (126, 145), 2: (218, 224), 3: (288, 278)}  # of docs/distributed.md
    for processes, milliseconds in measured.items():
        found = 1e3 * costs.processor_seconds(costs.Costs(), processes, costs.TOGETHER)
        assert found == pytest.approx(sum(milliseconds) / 2, rel=0.05)
    network = costs.NETWORKS["1 Gbit/s"]
    assert 1e3 * costs.step_seconds(costs.Costs(), 1, 32, network) == pytest.approx((13 + 32 * 1.27) / 1.8)
    two = (13 + 16 * 1.77) / 1.8 + 2 * 7 * (0.9 + 0.1) + 0.292 * (5 + 8)
    assert 1e3 * costs.step_seconds(costs.Costs(), 2, 32, network) == pytest.approx(two)
    page = (PROJECT / "docs" / "distributed.md").read_text()
    for batch, shown in ((512, "8 machines, 2.1 times"), (4096, "16 machines, 6.1 times")):
        speeds = [costs.speed_up(costs.Costs(), n, batch, network, False) for n in costs.MACHINES]
        best = max(speeds)
        assert f"{costs.MACHINES[speeds.index(best)]} machines, {best:.1f} times" == shown
        assert shown in page


def test_one_worker_changes_nothing():
    assert join([], None, TINY, False) is distributed.ALONE
    assert distributed.ALONE.share(TINY) == TINY
    assert distributed.ALONE.agree(TINY, None) is TINY
    tensors = [object(), object()]
    assert distributed.ALONE.means(tensors) is tensors
