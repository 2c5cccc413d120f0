"""Several machines: what a step costs here, a model of it, and docs/distributed.png.

python -m benchmarks.distributed --measure      # step and collective times with 1, 2 and 3 processes here
python -m benchmarks.distributed                # draws the picture
"""

from __future__ import annotations

import argparse
import functools
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.figures import load_matplotlib
from captcha_cnn import distributed
from captcha_cnn.tf_runtime import load_tensorflow, session_config
from config import Config

BATCHES = (16, 32, 64, 96)  # measured with one process
TOGETHER = 96  # images of a whole batch, measured with 1, 2 and 3 processes
STEPS = 40  # measured of each; the first ones, which TensorFlow plans, are left out
MACHINES = (1, 2, 4, 8, 16, 32, 64)
NETWORKS = {"1 Gbit/s": (1e-4, 1e9 / 8), "10 Gbit/s": (3e-5, 1e10 / 8)}  # seconds to another machine; bytes/s


class Costs(NamedTuple):
    """What a step of our network is made of, in seconds; docs/distributed.md says how it was measured."""

    fixed: float = 13e-3  # whatever the batch, on one core
    image: float = 1.27e-3  # of each image of the process's share, on one core
    shared: float = 0.5e-3  # more of each image where its batch normalisation is shared
    hop: float = 0.9e-3  # of each time that a collective passes data on, without the network
    byte: float = 5e-9  # of each byte that a process passes on, without the network
    cores: float = 1.8  # times as fast as one core: a machine of two
    collectives: int = 7  # one after another: two for each batch normalisation, one for the gradients
    values: int = 73_000  # of the gradients, 4 bytes each


def step_seconds(costs: Costs, machines: int, batch: float, network: tuple[float, float]) -> float:
    """Seconds of a step: a ring passes on 2 (n - 1) times, and each process 2 (n - 1) / n of the data.

    Args:
        batch: images of all machines. network: seconds to another machine, bytes a second.
    """
    latency, bandwidth = network
    image = costs.image + costs.shared * (machines > 1)
    hops = 2 * (machines - 1) * costs.collectives
    passed_on = 2 * (machines - 1) / machines * 4 * costs.values
    compute = (costs.fixed + image * batch / machines) / costs.cores
    return compute + hops * (costs.hop + latency) + passed_on * (costs.byte + 1 / bandwidth)


def processor_seconds(costs: Costs, processes: int, batch: int) -> float:
    """Processor time of a step in all processes on one machine, where waiting costs nothing."""
    image = costs.image + costs.shared * (processes > 1)
    hops = 2 * (processes - 1) * costs.collectives
    return processes * (costs.fixed + hops * costs.hop) + image * batch


def speed_up(costs: Costs, machines: int, batch: int, network: tuple[float, float], grows: bool) -> float:
    """Images a second, divided by those of one machine with that batch.

    Args:
        grows: each machine has a batch as large as that; else they share it.
    """
    whole = batch * machines if grows else batch
    alone = batch / step_seconds(costs, 1, batch, network)
    return whole / step_seconds(costs, machines, whole, network) / alone


# ---------------------------------------------------------------------- measuring


def measure() -> None:
    """Print the times of each number of processes, one after another."""
    for count in (1, 2, 3, 1, 2, 3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        addresses = [f"127.0.0.1:{port + n}" for n in range(count)] if count > 1 else []
        command = [sys.executable, "-m", "benchmarks.distributed", "--measure", "--task"]
        others = [subprocess.Popen([*command, str(task), *addresses]) for task in range(1, count)]
        subprocess.run([*command, "0", *addresses], check=True)
        for other in others:
            other.wait()


def measure_process(task: int, addresses: Sequence[str]) -> None:
    """One of the processes; task 0 prints."""
    config, tf = Config(), load_tensorflow()
    workers = distributed.join(addresses, task if addresses else None, config, False)
    from cnn_model import CNN

    tf.disable_eager_execution()
    model = CNN.build(workers.share(config), workers)
    collectives = {size: workers.means([tf.zeros([size])])[0] for size in (1, Costs().values)}
    with workers.session(session_config()) as session:
        session.run(tf.global_variables_initializer())
        workers.align(session)
        for batch in (TOGETHER,) if addresses else BATCHES:
            x = np.random.default_rng(task).integers(0, 256, (batch // workers.count, 60, 160), np.uint8)
            y = np.tile(np.eye(10, dtype=np.float32)[:4].reshape(1, -1), (len(x), 1))
            feed = {model.x: x, model.y: y, model.keep_prob: config.keep_prob}
            report(workers, f"step on {batch} images", functools.partial(session.run, model.train_op, feed))
        for size, collective in collectives.items() if addresses else ():
            report(workers, f"collective of {size} values", functools.partial(session.run, collective))
    workers.leave()


def report(workers: distributed.Workers, what: str, work: Callable[[], Any]) -> None:
    """Print the median, and the processor time of this process."""
    seconds, begin_processor = [], time.process_time()
    for number in range(2 * STEPS):
        begin = time.perf_counter()
        work()
        if number >= STEPS:
            seconds.append(time.perf_counter() - begin)
    processor = (time.process_time() - begin_processor) / (2 * STEPS)
    low, middle, _ = statistics.quantiles(seconds)
    print(
        f"{workers.count} processes, {what}: {1e3 * middle:.1f} ms (lower quartile {1e3 * low:.1f}), "
        f"{1e3 * processor:.1f} ms of processor; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


# ---------------------------------------------------------------------- the picture


def draw(path: Path) -> None:
    """How many times as fast so many machines are, on both networks."""
    load_matplotlib()
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", sharey=True)
    titles = "the machines share one batch", "each machine has such a batch"
    for axis, title, grows in zip(axes, titles, (False, True), strict=True):
        for batch, colour in ((32, "#d64545"), (512, "#1f77b4"), (4096, "#2f9e44")):
            for (name, network), style in zip(NETWORKS.items(), ("--", "-"), strict=True):
                speeds = [speed_up(Costs(), n, batch, network, grows) for n in MACHINES]
                axis.plot(MACHINES, speeds, style, color=colour, label=f"batch of {batch}, {name}")
        axis.plot(MACHINES, MACHINES, ":", color="gray", label="as many times as machines")
        axis.axhline(1, color="gray", linewidth=0.8)
        axis.set(title=title, xlabel="machines", xscale="log", yscale="log", ylim=(0.05, 64))
        axis.set_xticks(MACHINES, MACHINES, minor=False)
        axis.set_yticks([0.1, 0.5, 1, 2, 4, 8, 16, 32, 64], ["0.1", 0.5, 1, 2, 4, 8, 16, 32, 64])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("images a second, one machine = 1")
    axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Measure, or draw."""
    parser = argparse.ArgumentParser(
        description="Measure several processes here, or draw docs/distributed.png."
    )
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--task", type=int)
    parser.add_argument("addresses", nargs="*")
    options = parser.parse_args()
    if not options.measure:
        draw(Path("docs/distributed.png"))
    elif options.task is None:
        measure()
    else:
        measure_process(options.task, options.addresses)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    main()
