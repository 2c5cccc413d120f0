"""Train a captcha reader on the CPU: `python driver.py`.

Draws the captchas that are missing, loads them, trains until the validation result stops
getting better, keeps the best weights, and reads the test set once with them.

TensorFlow is imported where it is used and not above: the processes that draw and load
would each import it again, and `--help` or a wrong flag would wait for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from augment import OFTEN, augment
from config import CaptchaError, Config, ConfigError, printable, run, settings_parser
from curves import WORST, Curves, check_curves_folder, clear_events, confusions, read_worst
from generate_captcha import Generate, ReadData
from judge import accuracy_line
from session import (
    Checkpoint,
    Saved,
    Stop,
    Stopped,
    alone,
    has_bfloat16,
    keep_earlier,
    load,
    load_tensorflow,
    parts,
    saves,
    session_config,
    tensorflow_reason,
    tidy,
)

CLEARLY = 1.1  # times as good as those of the best one must the odds of a better result be
PRIOR = 2.0  # nats that a temperature of e or 1/e costs
PLATEAU_STEPS = 500  # every run measured had left the base rate by step 300, most by step 100


Item = TypeVar("Item")


class Data(NamedTuple):
    """A captcha set in memory."""

    images: np.ndarray  # uint8 [N, H, W]
    labels: np.ndarray  # float32 [N, L * K]


class Answered(NamedTuple):
    """What reading a set gave, picture by picture."""

    loss: np.ndarray  # float32 [N], nats per symbol
    symbols: np.ndarray  # int32 [N, L], the answers
    right: np.ndarray  # bool [N, L]


class Metrics(NamedTuple):
    """What reading a set gave, averaged over its pictures."""

    loss: float  # nats per symbol
    accuracy: float  # share of symbols right
    right: int  # captchas with all symbols right
    pictures: int  # captchas read
    likelihood: float  # probability of the whole label

    @property
    def captcha_accuracy(self) -> float:
        """Share of captchas with all symbols right."""
        return self.right / self.pictures

    @staticmethod
    def of(answered: Answered) -> Metrics:
        """Every picture counts the same."""
        captchas, length = np.all(answered.right, axis=1), answered.right.shape[1]
        loss = answered.loss.astype(np.float64)
        return Metrics(
            float(loss.mean()),
            float(answered.right.mean()),
            int(captchas.sum()),
            len(captchas),
            float(np.exp(-length * loss).mean()),
        )

    def points(self) -> dict[str, float]:
        """What TensorBoard's curves show, by tag."""
        return {
            "loss": self.loss,
            "accuracy/digits": self.accuracy,
            "accuracy/captchas": self.captcha_accuracy,
        }

    def improves_on(self, best: Metrics | None) -> bool:
        """Whether the labels are clearly likelier: the odds for them against all else.

        The number of captchas right cannot tell apart two networks that read nearly all, and the loss is
        ruled by the one that cannot be read; their mean probability does not have either fault. It goes
        on rising a little long after no more captchas are read.
        """
        if best is None:
            return not math.isnan(self.likelihood)
        now, then = self.likelihood, best.likelihood
        return now > then and now * (1.0 - then) >= CLEARLY * then * (1.0 - now)  # NaN never is


@dataclass
class Progress:
    """Where a training is, but for its variables: what it needs to go on as if never interrupted."""

    pictures: str  # SHA-256 of those trained and validated on
    step: int = 0  # steps done
    measured: int = -1  # the step of the last validation
    best: Metrics | None = None  # of the validation pictures with their copies
    best_step: int = 0  # steps after which the best weights were kept
    epoch: int = -1  # the last one said to have begun
    warned: bool = False  # that the loss sits at its base rate
    trained: bool = False  # all is done but calibrating
    finished: bool = False
    seconds: float = 0.0  # of all that
    training_seconds: float = 0.0  # of it, without validation and saving

    @staticmethod
    def of(values: dict[str, Any]) -> Progress:
        """From what dataclasses.asdict() made of one, and JSON of that.

        Raises:
            CaptchaError: another version of this program made it.
        """
        try:
            return Progress(**values | {"best": values["best"] and Metrics(*values["best"])})
        except (KeyError, TypeError) as error:
            raise of_another_version(str(error)) from None


def of_another_version(difference: str) -> CaptchaError:
    """What to raise for a run that this version of the program cannot go on with."""
    return CaptchaError(
        f"a run must be of this version of the program to be resumed, but is of another ({difference}): "
        "resume it with that, or train anew without --resume"
    )


class Clock:
    """Counts seconds from its birth on, less those spent in `with clock.stopped():`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._since: float | None = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds counted so far."""
        return self._before + (0.0 if self._since is None else time.monotonic() - self._since)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stand still inside the block."""
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.monotonic()


# ---------------------------------------------------------------------- batches


def next_batch(
    data: Data, config: Config, epoch: int, first: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches of one epoch: x uint8 [B, H, W], changed at random, and y float32 [B, L * K].

    Order and changes depend on (seed, epoch, batch) alone.

    Args:
        first: the batch to begin with.
    """
    order = np.random.default_rng((config.seed, epoch)).permutation(len(data.images))
    for start in range(first * config.batch_size, len(order), config.batch_size):
        chosen = order[start : start + config.batch_size]
        random = np.random.default_rng((config.seed, epoch, start))
        yield augment(data.images[chosen], config, random, epoch), data.labels[chosen]


def ahead(batches: Iterator[Item]) -> Generator[Item, None, None]:
    """The same batches, each made by a thread while the one before is trained on."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


def with_copies(data: Data, config: Config) -> Data:
    """The pictures, and a copy of each changed as training changes those seen often; always the same.

    Of a few hundred pictures, nearly all are soon read: by them alone, chance would say which network
    is the best and when to stop. The changed ones are harder, and go on telling networks apart.
    """
    random = np.random.default_rng(config.seed)
    copies = [augment(data.images[part], config, random, OFTEN) for part in parts(len(data.images))]
    return Data(np.concatenate([data.images, *copies]), np.concatenate([data.labels] * 2))


def feed_data(model: Any, x: np.ndarray, y: np.ndarray, keep_prob: float = 1.0) -> dict[Any, Any]:
    """The feed_dict for a batch."""
    return {model.x: x, model.y: y, model.keep_prob: keep_prob}


def evaluate(session: Any, model: Any, data: Data) -> Answered:
    """Read all pictures, with dropout off and the averaged weights."""
    found = []
    for part in parts(len(data.images)):
        feed = feed_data(model, data.images[part], data.labels[part])
        found.append(session.run([model.loss, model.answers.symbols, model.right], feed))
    return Answered(*(np.concatenate(each) for each in zip(*found, strict=True)))


def calibrate(session: Any, model: Any, data: Data) -> None:
    """Set the temperature with which the labels of these pictures are likeliest (Guo et al. 2017).

    It is looked for between 1/4 and 4 by golden section. Where all pictures are read right, the
    lowest would win: that the best is rarely far from 1 counts as much as a few pictures do.
    """
    every = [
        (session.run(model.scores, {model.x: data.images[part]}), data.labels[part])
        for part in parts(len(data.images))
    ]

    def badness(log_temperature: float) -> float:
        session.run(model.set_temperature, {model.new_temperature: math.exp(log_temperature)})
        found = [session.run(model.likelihood, {model.scores: each, model.y: y}) for each, y in every]
        return PRIOR * log_temperature**2 - float(np.log(np.concatenate(found) + 1e-30).sum())

    golden = (math.sqrt(5) - 1) / 2
    low, high = -math.log(4), math.log(4)
    first, second = high - golden * (high - low), low + golden * (high - low)
    at_first, at_second = badness(first), badness(second)
    while high - low > 0.01:
        if at_first < at_second:
            high, second, at_second = second, first, at_first
            first = high - golden * (high - low)
            at_first = badness(first)
        else:
            low, first, at_first = first, second, at_second
            second = low + golden * (high - low)
            at_second = badness(second)
    session.run(model.set_temperature, {model.new_temperature: math.exp((low + high) / 2)})


# ---------------------------------------------------------------------- what people see


def say(text: str) -> None:
    """Print a line at once, above the progress bar where there is one."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03; hours only where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def due(step: int, every: int) -> bool:
    """Whether something done every so many steps is done at this one, step 0 included."""
    return step % every == 0


def status_line(step: int, train: Metrics, validation: Metrics, improved: bool) -> str:
    """The classic line, with the whole captchas of validation added."""
    return (
        f"Step {step:>5}, train_acc: {train.accuracy:>7.2%}, train_loss: {train.loss:>5.2f}, "
        f"val_acc: {validation.accuracy:>7.2%}, val_loss: {validation.loss:>5.2f}, "
        f"improved:{'*' if improved else ' '}, val_captcha_acc: {validation.captcha_accuracy:>7.2%}"
    )


def test_report(test: Metrics) -> str:
    """The classic line, and the whole captchas read right with their 95% interval."""
    return (
        f"Test accuracy: {test.accuracy:>7.2%}, loss: {test.loss:>5.2f}\n"
        f"{accuracy_line('Captcha', test.right, test.pictures)}"
    )


def pictures_of(answered: Answered, data: Data, config: Config) -> dict[str, Image.Image]:
    """What TensorBoard shows of a set that was read: what is confused, and the captchas read worst."""
    alphabet = np.array(list(config.alphabet))
    classes = data.labels.reshape(-1, config.char_num, len(alphabet)).argmax(axis=2)
    labels, texts = (["".join(each) for each in alphabet[k]] for k in (classes, answered.symbols))
    worst = (-answered.loss).argsort(kind="stable")[:WORST]
    picked = data.images[worst], [labels[i] for i in worst], [texts[i] for i in worst]
    return {"confusions": confusions(labels, texts), "read_worst": read_worst(*picked)}


def at_base_rate(metrics: Metrics, config: Config) -> bool:
    """Whether the loss is no better than that of a network that has learned nothing."""
    return metrics.loss > 0.9 * math.log(len(config.alphabet))


def base_rate_warning(metrics: Metrics, config: Config) -> str:
    """What a loss at its base rate means, and what to try."""
    symbols = len(config.alphabet)
    return (
        f"The validation loss still sits at its base rate ({metrics.loss:.2f}; guessing gives ln {symbols} = "
        f"{math.log(symbols):.2f}): so far the network has learned nothing that helps with new pictures. "
        "Look at a few pictures: do their names say what they show? Then try more pictures, a smaller "
        "--alpha, or a --keep-prob nearer 1."
    )


# ---------------------------------------------------------------------- the loop


def run_model(
    config: Config, train: Data, validation: Data, test: Data, saved: Saved | None = None
) -> tuple[Progress, Metrics]:
    """Train, keep the best weights, and read the test set once with them.

    Args:
        saved: the checkpoint to go on from.
    Raises:
        CaptchaError: a folder that cannot be used, pictures other than those of the run to go on with,
            or no weights worth keeping.
        Stopped: by Ctrl-C or SIGTERM; all is saved.
    """
    tf = load_tensorflow()
    from cnn_model import CNN

    pictures = fingerprint(train, validation)
    progress = Progress.of(saved.progress) if saved else Progress(pictures)
    if progress.pictures != pictures:
        raise CaptchaError(
            f"the pictures must be those that the run in {printable(config.checkpoint_folder)} began with, "
            "but are others: bring those back, or train anew without --resume"
        )
    check_curves_folder(config.tensorboard_folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone(config.checkpoint_folder, "--checkpoint-folder"))
        stack.enter_context(alone(config.tensorboard_folder, "--tensorboard-folder"))
        tidy(config.checkpoint_folder)
        if not saved:
            clear_events(config.tensorboard_folder)
            earlier = keep_earlier(config.checkpoint_folder)
            if earlier:
                say(f"The run before is kept in {printable(earlier)}")
        bfloat16 = has_bfloat16()
        say(f"Arithmetic: {'bfloat16' if bfloat16 else 'float32 (this CPU does not multiply bfloat16)'}")
        stop = stack.enter_context(Stop())
        stack.enter_context(tf.Graph().as_default())
        model = CNN.build(config)
        checkpoint = Checkpoint(config, model.weights, model.deployed)
        if saved and (others := saved.variables ^ {v.op.name for v in tf.global_variables()}):
            raise of_another_version(min(others))
        initialize = tf.global_variables_initializer()
        try:
            with tf.Session(config=session_config(bfloat16)) as session:
                session.run(initialize)
                if saved:
                    checkpoint.restore(session, saved.path)
                    say(f"Going on after step {progress.step}")
                with contextlib.closing(
                    Curves(config.tensorboard_folder, session, progress.measured + 1)
                ) as curves:
                    fit(config, session, model, checkpoint, curves, train, validation, progress, stop)
            with tf.Session() as session:  # in float32, as predict.py reads
                checkpoint.restore(session, checkpoint.path)
                checkpoint.use_best(session)
                if not progress.finished:
                    with stop.at_once():
                        calibrate(session, model, validation)
                    checkpoint.keep_best(session)  # with its temperature
                    progress.finished = True
                    checkpoint.save(session, asdict(progress))
                with stop.at_once():
                    return progress, Metrics.of(evaluate(session, model, test))
        except tf.errors.OpError as error:  # a full disk, most likely
            raise CaptchaError(
                f"training could not go on ({tensorflow_reason(error)}): what was saved before is kept in "
                f"{printable(config.checkpoint_folder)}, and --resume goes on from it"
            ) from error


def fingerprint(*sets: Data) -> str:
    """SHA-256 of pictures and labels."""
    digest = hashlib.sha256()
    for data in sets:
        digest.update(data.images.data)
        digest.update(data.labels.data)
    return digest.hexdigest()


def fit(
    config: Config,
    session: Any,
    model: Any,
    checkpoint: Checkpoint,
    curves: Curves,
    train: Data,
    validation: Data,
    progress: Progress,
    stop: Stop,
) -> None:
    """The training loop, from where the progress is, which it carries on, to the end.

    Raises:
        Stopped: by a signal; the run is saved as it is.
        CaptchaError: the loss was never finite.
    """
    p = progress
    if p.trained:
        return
    saved_step = p.step if p.measured >= 0 else -1
    clock, training = Clock(p.seconds), Clock(p.training_seconds)
    copied = with_copies(validation, config)

    def save() -> None:
        nonlocal saved_step
        with training.stopped():
            p.seconds, p.training_seconds = clock.seconds, training.seconds
            checkpoint.save(session, asdict(p))
        saved_step = p.step

    def measure(x: np.ndarray, y: np.ndarray, printed: bool, on_curves: bool) -> Metrics:
        with training.stopped():
            with stop.at_once():
                answered = evaluate(session, model, copied)
                of_batch, of_all = Metrics.of(evaluate(session, model, Data(x, y))), Metrics.of(answered)
            answered = Answered(*(each[: len(validation.images)] for each in answered))
            held_out = Metrics.of(answered)
            improved = of_all.improves_on(p.best)
            if improved:
                p.best, p.best_step = of_all, p.step
                checkpoint.keep_best(session)
            p.measured = p.step
            if on_curves:
                pace = {"learning_rate": config.alpha}
                if p.step > done:
                    speed = (p.step - done) * config.batch_size / (training.seconds - trained)
                    pace["pictures_per_second"] = speed
                curves.write(p.step, of_batch.points() | pace, held_out.points())
                if due(p.step, config.checkpoint_per_batch):
                    curves.show(p.step, pictures_of(answered, validation, config))
            if printed:
                say(status_line(p.step, of_batch, held_out, improved))
        return held_out

    begun, trained, done = clock.seconds, training.seconds, p.step
    try:
        with (
            contextlib.closing(ahead(batches_from(p.step, train, config))) as prepared,
            tqdm(bar_format="{desc}", disable=None, leave=False, dynamic_ncols=True) as bar,
        ):
            for epoch, x, y in prepared:
                printed, on_curves = due(p.step, config.print_per_batch), due(p.step, config.save_per_batch)
                if (printed or on_curves) and p.measured < p.step:
                    if printed and epoch > p.epoch:  # epochs of a few steps go by in silence
                        p.epoch = epoch
                        say(f"Epoch : {epoch + 1}")
                    held_out = measure(x, y, printed, on_curves)
                    if p.step >= PLATEAU_STEPS and not p.warned and at_base_rate(held_out, config):
                        say(base_rate_warning(held_out, config))
                        p.warned = True
                if p.measured == p.step and p.step - p.best_step >= config.patience:
                    say(f"No improvement for over {config.patience} steps, auto-stopping....")
                    break
                if due(p.step, config.checkpoint_per_batch) and p.step != saved_step:
                    save()
                stop.check()
                feed = feed_data(model, x, y, config.keep_prob)
                _, loss = session.run([model.train_op, model.training_loss], feed)
                p.step += 1
                if not math.isfinite(loss):
                    say(
                        f"The training loss is not finite at step {p.step}: training stops, the best "
                        f"weights, of step {p.best_step}, are kept. Try a smaller --alpha."
                    )
                    break
                per_step = (clock.seconds - begun) / (p.step - done)
                left = (config.patience - (p.step - p.best_step)) * per_step
                bar.set_description_str(
                    f"step {p.step}, {len(x) / per_step:.0f} pictures/s, {duration(left)} left unless it "
                    "improves",
                    refresh=False,
                )
                bar.update()
            else:
                (_, x, y), *_ = batches_from(p.step - 1, train, config)
                measure(x, y, printed=True, on_curves=True)
    except Stopped:
        if p.step != saved_step:
            save()
        raise
    if p.best is None:
        raise CaptchaError("no weights are worth keeping, the loss was never finite: try a smaller --alpha")
    if at_base_rate(p.best, config) and not p.warned:
        say(base_rate_warning(p.best, config))
    p.trained = True
    save()


def batches_from(step: int, data: Data, config: Config) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Epoch and batch of each step from that one on, to the last epoch's end."""
    first, done = divmod(step, math.ceil(len(data.images) / config.batch_size))
    for epoch in range(first, config.Epoch):
        for x, y in next_batch(data, config, epoch, done if epoch == first else 0):
            yield epoch, x, y


def main(arguments: Sequence[str]) -> int:
    """Draw what is missing, load, train, test."""
    parser = settings_parser("Train a captcha reader.")
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run that the checkpoint folder holds"
    )
    given = vars(parser.parse_args(arguments))
    resume = given.pop("resume")
    config = Config(**given)
    check_curves_folder(config.tensorboard_folder)
    saved = None
    if resume and saves(config.checkpoint_folder):
        load_tensorflow()
        saved = load(config.checkpoint_folder)
        config = settings_to_go_on_with(saved.config, config, given)
    elif resume:
        say(f"Nothing to resume in {printable(config.checkpoint_folder)}: a new run begins")
    Generate(config).gen_captcha(keep=True)
    reader = ReadData(config)
    train, validation, test = (Data(*reader.load_data(folder)[:2]) for _, folder, _ in config.sets)
    sizes = [len(data.images) for data in (train, validation, test)]
    say("Images for train :{}, for validation : {}, for test : {}".format(*sizes))
    folder = config.checkpoint_folder
    elsewhere = "" if folder == Config.checkpoint_folder else f"--checkpoint-folder {folder} "
    try:
        progress, result = run_model(config, train, validation, test, saved)
    except Stopped as stopped:
        say(f"Stopped; all is saved. Go on: python driver.py {printable(elsewhere)}--resume")
        return stopped.status
    say(test_report(result))
    say(
        f"{progress.step} steps in {duration(progress.seconds)}, {duration(progress.training_seconds)} of it "
        f"training; the best weights, of step {progress.best_step}, are in {printable(folder)}"
    )
    say(f"Read a captcha:   python predict.py {printable(elsewhere)}captcha.png")
    say(f"See its mistakes: python predict.py {printable(elsewhere + '--labelled ' + config.test_folder)}")
    say(f"Watch the curves: tensorboard --logdir {printable(config.tensorboard_folder)}")
    return 0


def settings_to_go_on_with(saved: Config, asked: Config, given: Iterable[str]) -> Config:
    """The settings of a saved run, its folders where this command line names others.

    Raises:
        ConfigError: another setting is asked for than the run has.
    """
    folders = {name: getattr(asked, name) for name in given if name.endswith("_folder")}
    for name in given:
        old, new = getattr(saved, name), getattr(asked, name)
        if name not in folders and old != new:
            raise ConfigError(
                f"{name} must be {old!r} to resume the run in {printable(asked.checkpoint_folder)}, not "
                f"{new!r}: leave it out, or train anew without --resume"
            )
    return replace(saved, **folders | {"checkpoint_folder": asked.checkpoint_folder})


if __name__ == "__main__":
    run(main)
