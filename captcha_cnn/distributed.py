"""Several machines train as one: each process has its share of every batch. See docs/distributed.md.

TensorFlow's collectives average gradients and the moments of batch normalisation, and carry messages. Task 0
decides on what is best, on stopping and on saving; the others follow.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from captcha_cnn.batches import WORKERS, random_stream
from captcha_cnn.checkpoint import FORMAT_VERSION, CheckpointData, TrainState
from captcha_cnn.cli import parse_number
from captcha_cnn.dataset import Dataset, list_image_files, no_images
from captcha_cnn.fresh import FreshCaptchas
from captcha_cnn.initial_weights import find_initial_weights
from captcha_cnn.metrics import Metrics
from captcha_cnn.numpy_network import BN_EPSILON
from captcha_cnn.progress import log
from captcha_cnn.tf_runtime import is_disk_or_memory_error, load_tensorflow, session_config
from config import Config, ConfigError

SILENCE_SECONDS = 20  # after which a process that does not answer counts as gone, or as never started
PROBE_SECONDS = 3  # that it has for an answer
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"  # TensorFlow's server greets back
MESSAGE_BYTES = 2**16
DANGER = "listens on this port of every interface, without authentication: trusted networks only"


class Workers:
    """The processes that train together. Without addresses it is this one alone, and nothing is added."""

    def __init__(self, addresses: Sequence[str] = (), task: int = 0) -> None:
        self.addresses, self.task, self.count = list(addresses), task, max(1, len(addresses))
        self.names = [f"{address} (task {number})" for number, address in enumerate(addresses)]
        self.flags = ["--workers", *addresses, "--task", str(task)] if addresses else []
        self._keys, self._met, self._left = itertools.count(1), False, threading.Event()
        self._target, self._alignment = "", None  # of sessions

    def start(self) -> None:
        """Start TensorFlow's server; from here on, this process ends where another does not answer.

        Raises:
            ConfigError: an address that cannot be used.
        """
        tf, config = load_tensorflow(), session_config()
        for task, address in enumerate(self.addresses):
            host, port = address.split(":")
            try:
                socket.getaddrinfo(host, int(port))
                if task == self.task:
                    socket.create_server((host, int(port))).close()
            except (OSError, UnicodeError) as error:
                expected = "a known host and, for the task of this machine, its own address and a free port"
                raise ConfigError(
                    f"{self.names[task]} must be {expected}: {getattr(error, 'strerror', error)}"
                ) from None
        config.experimental.collective_group_leader = "/job:worker/replica:0/task:0"
        server = tf.train.Server({"worker": self.addresses}, "worker", self.task, config=config)
        self._target = server.target
        print(f"{self.names[self.task]}: TensorFlow {DANGER}", flush=True)
        watching = threading.Thread(target=self._watch, daemon=True)
        watching.start()
        atexit.register(watching.join)  # Python would end it in the middle, and TensorFlow with it
        atexit.register(self._left.set)  # before, since the last one registered is called first
        with tf.Graph().as_default():
            self._message = tf.placeholder(tf.int32, [MESSAGE_BYTES // 4])
            shape = [self.count * MESSAGE_BYTES // 4]
            self._messages = tf.raw_ops.CollectiveGather(input=self._message, shape=shape, **self._group())
            self._session = self.session(session_config())

    def _watch(self) -> None:
        silent = {task: 0.0 for task in range(self.count) if task != self.task}  # seconds without an answer
        alone = 0.0
        while not self._left.wait(1):
            for task, address in ((task, self.addresses[task]) for task in silent):
                begin = time.monotonic()  # this machine may sleep: then only one question counts
                answered, seconds = answers(address), 1 + min(time.monotonic() - begin, PROBE_SECONDS)
                silent[task] = 0 if answered else silent[task] + seconds
                if silent[task] >= SILENCE_SECONDS and not self._left.is_set():
                    self._end(f"{self.names[task]} has not answered for {SILENCE_SECONDS} seconds")
            alone = 0 if self._met or any(silent.values()) else alone + 1
            if alone >= SILENCE_SECONDS:
                self._end("the others answer, but do not train with this one: are --workers the same for all")

    def _end(self, what: str) -> NoReturn:
        advice = "start all processes again, within that time, and with --resume where they have trained"
        tqdm.write(f"{os.path.basename(sys.argv[0])}: {what}: {advice}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # the main thread may wait for a collective that never ends

    def _exchange(self, value: Any) -> list[Any]:
        text = json.dumps(value).encode()
        if len(text) > MESSAGE_BYTES:
            found = f"settings must take at most {MESSAGE_BYTES} bytes with --workers, not {len(text)}"
            raise ConfigError(f"{found}: use fewer characters")
        message = np.frombuffer(text.ljust(MESSAGE_BYTES), np.int32)
        received = self._session.run(self._messages, {self._message: message})
        return [json.loads(part.tobytes()) for part in received.reshape(self.count, -1)]

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, by its task, as JSON keeps it. All must call this."""
        with self.collectives():
            return self._exchange(value)

    @contextlib.contextmanager
    def collectives(self) -> Iterator[None]:
        """Inside, an error of a collective waits: _watch() says which process is gone, and ends this one.

        Raises:
            ConfigError: another number of workers is named elsewhere.
        """
        try:
            yield
        except load_tensorflow().errors.OpError as error:
            if found := re.search("joining a group with size *([0-9]+).* has size ([0-9]+)", error.message):
                counts = " and ".join(found.groups())
                raise ConfigError(f"workers must be as many for all, not {counts}") from None
            if self.count > 1 and not self._left.is_set() and not is_disk_or_memory_error(error):
                time.sleep(2 * SILENCE_SECONDS)
            raise

    def leave(self) -> None:
        """From here on, no process ends with another. All must call this."""
        if self.count > 1:
            with contextlib.suppress(load_tensorflow().errors.OpError):  # another has left while it answered
                self._exchange(None)
            self._left.set()

    def session(self, config: Any) -> Any:
        """A session on TensorFlow's server; a plain one where there are no others."""
        if self.count > 1:
            config.device_filters.append(f"/job:worker/task:{self.task}")
        return load_tensorflow().Session(self._target, config=config)

    def first_only(self, make: Callable[..., Any], *arguments: Any) -> Any:
        """The context manager make(*arguments) in task 0, and one that does nothing in the others."""
        return contextlib.nullcontext() if self.task else make(*arguments)

    # ------------------------------------------------------------------ what all must have alike

    def require_same(self, values: dict[str, Any]) -> None:
        """Raise the same ConfigError in all processes where they differ in a value, by its name."""
        first, *others = self.gather(values)
        self._met = True
        for task, theirs in enumerate(others, 1):
            for name in (name for name in first if first[name] != theirs[name]):
                found = f"{first[name]!r} for {self.names[0]} and {theirs[name]!r} for {self.names[task]}"
                self.leave()
                raise ConfigError(f"{name} must be the same for all workers, but is {found}")

    def agree(self, config: Config, saved: CheckpointData | None) -> Config:
        """The settings of task 0, with this process's folders.

        Args:
            saved: the run to resume, which only task 0 needs to have.
        Raises:
            ConfigError: it had another number of workers.
        """
        before = saved.progress.get("workers", 1) if saved else self.count
        if before != self.count:
            advice = "name as many as before with --workers, or train anew without --resume"
            raise ConfigError(f"workers must be {before} to resume this run, not {self.count}: {advice}")
        if self.count == 1:
            return config
        own = {name: value for name, value in config.as_dict().items() if name.endswith("_folder")}
        return Config(**self.gather(config.as_dict())[0] | own)

    def decided(self, state: TrainState, metrics: Metrics | None = None) -> Any:
        """The metrics of task 0; `state` becomes that of task 0."""
        if self.count == 1:
            return metrics
        progress, metrics = self.gather([asdict(state), metrics])[0]
        vars(state).update(vars(TrainState.from_dict(progress)), workers=self.count)
        return metrics and Metrics(*metrics)

    def digest(self, own: str) -> str:
        """One hash of the sets of all processes, from that of this one's."""
        return sha256("".join(self.gather(own)).encode()).hexdigest() if self.count > 1 else own

    # ------------------------------------------------------------------ shares

    def share(self, config: Config) -> Config:
        """The Config of this process's share of each batch; batches are a multiple of the processes."""
        if self.count == 1:
            return config
        other_seed = int(random_stream(config.seed, WORKERS, self.task).integers(2**31))
        size, images = (-(-n // self.count) for n in (config.batch_size, config.generate_num[0]))
        drawn = (images, *config.generate_num[1:])
        seed = other_seed if self.task else config.seed
        return replace(config, batch_size=size, generate_num=drawn, seed=seed)

    def load_sets(self, classes: Any, own: Any, config: Config, _: Any, saved: Any) -> tuple[Any, ...]:
        """What driver.load_sets() gives: a share of the training set; the two others for task 0 alone.

        Args:
            classes: generate_captcha.Generate and ReadData. own: captcha_cnn.own_sets.NO_OWN_SETS.
        """
        generate, read_data = classes
        if self.task:
            self.gather(None)  # task 0 draws first: the folders may be the same
        files = {} if self.task and config.fresh else generate(config).gen_captcha(keep=True)
        if not self.task:
            self.gather(None)
        log(f"{self.count} machines train together; the training images below are those of one")
        if config.fresh:
            train: Dataset = FreshCaptchas(self.share(config))
        else:
            names = files.get(config.train_folder) or list_image_files(config.train_folder)
            train = self._load_share(config, names, read_data)
        load, folders = read_data(config).load_set, [folder for _, folder, _ in config.sets[-2:]]
        rest = [no_images(config) if self.task else load(each, files.get(each)) for each in folders]
        initial = None if saved else find_initial_weights(config, saved)
        return config, [train, *rest], own._replace(workers=self), initial

    def _load_share(self, config: Config, names: Sequence[str], read_data: Any) -> Dataset:
        digest = sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
        self.require_same({"the training set": f"{len(names)} files, SHA-256 of their names {digest[:12]}"})
        if len(names) < self.count:
            raise ConfigError(f"train_folder must have an image for each worker, but has {len(names)}")
        own = os.path.join(config.decoded_folder, f"share-{self.task + 1}-of-{self.count}")
        load = read_data(replace(config, decoded_folder=own)).load_set
        images, labels = load(config.train_folder, names[self.task :: self.count])
        equal = np.arange(len(images)) < min(self.gather(len(images)))  # a mean of their means is the mean
        return Dataset(images[equal], labels[equal])

    # ------------------------------------------------------------------ the graph

    def _group(self) -> dict[str, int]:
        return {"group_size": self.count, "group_key": 1, "instance_key": next(self._keys)}

    def means(self, tensors: Sequence[Any]) -> Sequence[Any]:
        """Means over this process's share of a batch to means over the whole; one collective for all."""
        if self.count == 1:
            return tensors
        tf = load_tensorflow()

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def reduced(*values: Any) -> Any:
            packed = tf.concat([tf.reshape(each, [-1]) for each in values], 0)
            mean = {"merge_op": "Add", "final_op": "Div", "subdiv_offsets": [0]}
            whole = tf.raw_ops.CollectiveReduce(input=packed, **mean, **self._group())
            parts = tf.split(whole, [each.shape.num_elements() for each in values])
            shaped = [tf.reshape(part, each.shape) for part, each in zip(parts, values, strict=True)]
            return shaped, lambda *upstream: self.means(upstream)

        return list(reduced(*tensors))

    def batch_norm(self, h: Any, scale: Any, offset: Any) -> Sequence[Any]:
        """What tf.nn.fused_batch_norm() gives in training, by the statistics of the whole batch."""
        tf = load_tensorflow()
        if self.count == 1:
            return tf.nn.fused_batch_norm(h, scale, offset, epsilon=BN_EPSILON)  # type: ignore[no-any-return]
        mean, square = self.means([tf.reduce_mean(h, [0, 1, 2]), tf.reduce_mean(tf.square(h), [0, 1, 2])])
        variance = square - tf.square(mean)
        values = tf.cast(self.count * tf.size(h) // h.shape[-1], tf.float32)  # of each channel
        normalised = tf.nn.batch_normalization(h, mean, variance, offset, scale, BN_EPSILON)
        return normalised, mean, variance * values / tf.maximum(values - 1, 1)

    def align(self, session: Any) -> None:
        """Give all processes the variables of task 0: other processors round differently."""
        if self.count > 1:
            self._alignment = self._alignment or self._add_alignment()
            session.run(self._alignment)

    def _add_alignment(self) -> Any:
        tf = load_tensorflow()
        assigned = []
        for v in tf.global_variables():
            if v.dtype.base_dtype != tf.string:
                group = {"shape": v.shape, **self._group()}
                if self.task:
                    sent = tf.raw_ops.CollectiveBcastRecv(T=v.dtype.base_dtype, **group)
                else:
                    sent = tf.raw_ops.CollectiveBcastSend(input=v, **group)
                assigned.append(tf.assign(v, sent))
        return tf.group(*assigned)


ALONE = Workers()


def answers(address: str) -> bool:
    """Whether TensorFlow's server there answers: that of a stopped process does not."""
    host, port = address.split(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), PROBE_SECONDS) as server:
        server.sendall(HTTP2_GREETING)
        return bool(server.recv(1))
    return False


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that join() takes."""
    text = "machines that train together; each runs the same command with its own --task"
    parser.add_argument("--workers", nargs="+", default=[], metavar="HOST:PORT", help=text)
    text = "the place of this machine in --workers, from 0"
    parser.add_argument("--task", type=parse_number(int), metavar="N", help=text)


def join(addresses: Sequence[str], task: Any, config: Config, resume: bool) -> Workers:
    """The processes that the flags name, once they have met; ALONE where they name none.

    Raises:
        ConfigError: they cannot be used, or differ in the settings of the command line or in versions.
    """
    if not addresses and task is None:
        return ALONE
    found = [re.fullmatch("[^:]+:([0-9]{1,5})", each) for each in addresses]
    usable = all(each and 0 < int(each[1]) < 2**16 for each in found)
    if not usable or not 1 < len(addresses) == len(set(addresses)) or task not in range(len(addresses)):
        expected = "workers must be two or more different HOST:PORT, and task the place of one, from 0"
        raise ConfigError(f"{expected}: they are {' '.join(addresses) or 'missing'} and {task}")
    if config.own_images:
        raise ConfigError("images and unlabelled must be left out with --workers: fill the three folders")
    workers = Workers(addresses, task)
    workers.start()
    settings = {name: value for name, value in config.as_dict().items() if not name.endswith("_folder")}
    versions = {"TensorFlow": load_tensorflow().__version__, "checkpoint format": FORMAT_VERSION}
    workers.require_same({"workers": workers.addresses, "resume": resume, **versions, **settings})
    if task:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - task 0 prints
    return workers
