"""The state of a labelling: labels.csv, which image is next, the honest figure, the review."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PROJECT
from label_server import make_images
from own_folder import random_image, snapshot
from PIL import Image

from benchmarks.labelling import Person, Point, summary
from captcha_cnn import labelling as module
from captcha_cnn.background_training import (
    BUSY,
    FIRST_LABELS,
    BackgroundTraining,
    error_in,
    training_command,
)
from captcha_cnn.general_model import general_weights
from captcha_cnn.images import ImageError
from captcha_cnn.label_file import LabelFile, can_be_listed
from captcha_cnn.labelling import Labelling, Settings
from captcha_cnn.labels import labelled_files
from captcha_cnn.numpy_model import Reading, general_model
from captcha_cnn.styles import draw_styles
from config import CaptchaError
from predict import Predictor


@pytest.fixture
def folder(tmp_path):
    return make_images(tmp_path / "mine", 7)


# ---------------------------------------------------------------------- labels.csv


def test_a_label_is_a_line_that_training_reads(folder):
    images = snapshot(folder)
    file = LabelFile(str(folder))
    file.record("03.png", "8,1")
    file.record("01.png", 'a"b')
    assert (folder / "labels.csv").read_text() == 'file,label\n03.png,"8,1"\n01.png,"a""b"\n'
    found = labelled_files(str(folder))
    assert (found.labels, found.unlabelled) == ({"01.png": 'a"b', "03.png": "8,1"}, 5)
    after = snapshot(folder)
    assert all(after[path] == images[path] for path in images if path != folder)


def test_an_unreadable_image_is_remembered_and_left_out_by_training(folder):
    LabelFile(str(folder)).record("02.png", "")
    LabelFile(str(folder)).record("03.png", "abc")
    assert LabelFile(str(folder)).labels == {"02.png": "", "03.png": "abc"}
    found = labelled_files(str(folder))
    assert found.labels == {"03.png": "abc"}
    assert [(each.name, each.category) for each in found.bad] == [("02.png", "no label")]


def test_a_correction_takes_the_place_of_the_label_and_of_no_other_line(folder):
    before = "file,label,who\n00.png,abc,me\ngone.png,old,me\n01.png,def,me\n01.png,deg,you\n"
    (folder / "labels.csv").write_text(before)
    file = LabelFile(str(folder))
    assert file.labels == {"00.png": "abc"}, "two labels contradict each other"
    for _ in range(2):
        file.record("00.png", "abd")
        file.record("01.png", "def")
    text = (folder / "labels.csv").read_text()
    assert text == "file,label,who\ngone.png,old,me\n00.png,abd\n01.png,def\n"
    assert labelled_files(str(folder)).labels == {"00.png": "abd", "01.png": "def"}


def test_a_label_that_is_recorded_twice_is_written_once(folder):
    file = LabelFile(str(folder))
    file.record("00.png", "abc")
    file.record("00.png", "abc")
    assert (folder / "labels.csv").read_text() == "file,label\n00.png,abc\n"


def test_a_new_list_appears_with_its_first_label_on_the_disk(folder, monkeypatch):
    path, fsync, seen = folder / "labels.csv", os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append(path.exists()), fsync(file)))
    LabelFile(str(folder)).record("00.png", "abc")
    assert seen == [False], "who reads it meanwhile must not find it empty"
    assert path.read_text() == "file,label\n00.png,abc\n"


def test_a_list_of_ones_own_is_continued(tmp_path):
    folder = make_images(tmp_path / "mine" / "sub", 3).parent
    (folder / "labels.csv").write_bytes("\ufeff00.png, abc\r\nsub/01.png,def".encode())
    file = LabelFile(str(folder))
    assert file.labels == {"sub/00.png": "abc", "sub/01.png": "def"}
    file.record("sub/02.png", "ghi")
    file.record("sub/00.png", "xyz")
    assert labelled_files(str(folder)).labels == {
        "sub/00.png": "xyz",
        "sub/01.png": "def",
        "sub/02.png": "ghi",
    }


def test_a_name_in_decomposed_characters_is_corrected(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    name = unicodedata.normalize("NFD", "é.png")
    random_image(1).save(folder / name)
    (folder / "labels.csv").write_text("é.png,abc\n", encoding="utf-8")
    LabelFile(str(folder)).record(name, "def")
    assert LabelFile(str(folder)).labels == {name: "def"}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("labels.csv", "00.png;abc\n", "the columns file and label"),
        ("labels.csv", "label,file\nabc,00.png\n", "the columns file and label"),
        ("labels.csv", "00.png\tabc,d\n", "the columns file and label"),
        ("labels.txt", "00.png abc\n", "but has labels.txt"),
    ],
)
def test_a_list_that_cannot_be_added_to_is_refused(folder, name, text, words):
    (folder / name).write_text(text)
    with pytest.raises(CaptchaError, match=words):
        LabelFile(str(folder))
    assert (folder / name).read_text() == text


def test_only_names_that_a_line_can_hold_are_labelled():
    assert all(map(can_be_listed, ("a b.png", "sub/a,b.png", "é.png")))
    assert not any(map(can_be_listed, (" a.png", "a\nb.png", "a\\b.png", "a\udc80.png", "a.png ")))


RECORD = """
import sys
sys.path.insert(0, sys.argv[1])
from captcha_cnn.label_file import LabelFile
folder, begin, step, rounds = sys.argv[2], *map(int, sys.argv[3:])
file = LabelFile(folder)
for label in range(rounds):
    for path in sorted(file.images)[begin::step]:
        file.record(path, f"{path[:2]}x{label}")
        print(path, label, flush=True)
"""


def record(folder, begin, step, rounds):
    """A process that labels every step-th image, again and again with other labels."""
    command = [sys.executable, "-c", RECORD, str(PROJECT), str(folder), *map(str, (begin, step, rounds))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_lose_no_label(tmp_path):
    folder = make_images(tmp_path / "mine", 24)
    processes = [record(folder, begin, 2, 2) for begin in range(2)]
    assert [process.wait() for process in processes if process.communicate()] == [0, 0]
    labels = labelled_files(str(folder)).labels
    assert labels == {f"{i:02d}.png": f"{i:02d}x1" for i in range(24)}
    lines = (folder / "labels.csv").read_text().splitlines()
    assert len(lines) == 1 + 24, "a correction replaces the line"


@pytest.mark.parametrize("confirmed", [1, 5, 31])
def test_a_killed_process_has_kept_what_it_confirmed(tmp_path, confirmed):
    folder = make_images(tmp_path / "mine", 12)
    process = record(folder, 0, 1, 100)
    seen = dict(process.stdout.readline().split() for _ in range(confirmed))
    time.sleep(random.Random(confirmed).random() / 50)  # anywhere in the writing of another label
    process.send_signal(signal.SIGKILL)
    seen |= dict(line.split() for line in process.communicate()[0].splitlines() if line.count(" ") == 1)
    file = LabelFile(str(folder))
    for path, label in seen.items():
        assert int(file.labels[path][3:]) >= int(label), "at most a later label that was not confirmed yet"
    file.record("11.png", "last")  # and the lock is free
    assert labelled_files(str(folder)).labels["11.png"] == "last"


FILL = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from captcha_cnn.label_file import LabelFile
file = LabelFile(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (file.path.stat().st_size + 9,) * 2)
try:
    file.record("01.png", "123456")
except OSError as error:
    print(error.strerror, file.labels)
"""


def test_where_a_line_does_not_fit_on_the_disk_no_part_of_it_is_left(folder):
    LabelFile(str(folder)).record("00.png", "abc")
    before = (folder / "labels.csv").read_bytes()
    command = [sys.executable, "-c", FILL, str(PROJECT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("No space left on device {'00.png': 'abc'}\n", "")
    assert (folder / "labels.csv").read_bytes() == before


# ---------------------------------------------------------------------- which image is next


class FakeModel:
    """Reads the number in an image's name as its text, the surer the larger it is."""

    def __init__(self, labels=0, text="{}"):
        self.labels, self.text = labels, text

    def decode_image(self, path):
        if not Path(path).stem.isdigit():
            raise ImageError("not an image")
        return np.array(int(Path(path).stem))

    def read(self, images):
        return [Reading(self.text.format(n), (n + 1) / 100, [0.5]) for n in images.tolist()]

    def compare(self, images, labels):
        return [(reading, float(n)) for reading, n in zip(self.read(images), images.tolist(), strict=True)]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function that makes a Labelling of so many images with FakeModel."""
    monkeypatch.setattr(module, "general_model", lambda *_: FakeModel())

    def made(count=9, trained=0, **settings):
        folder = tmp_path / "mine"
        folder.mkdir(exist_ok=True)
        for number in range(count):
            (folder / f"{number:02d}.png").touch()
        labelling = Labelling(Settings(str(folder), str(tmp_path / "work"), **settings))
        if trained:
            labelling.guesses.use(FakeModel(trained))
        return labelling

    return made


def read_all(labelling):
    """As the thread in the background does."""
    for path in labelling.order:
        labelling.guesses.of(path)


def choose(labelling, count):
    return [labelling.next().file for _ in range(count)]


def test_random_images_come_in_an_order_that_says_nothing_of_names_and_does_not_change(make):
    order = choose(make(random_share=1.0), 9)
    assert sorted(order) != order
    assert choose(make(random_share=1.0), 9) == order
    assert sorted(order) == [f"{i:02d}.png" for i in range(9)]


def test_otherwise_the_image_comes_that_the_model_is_least_sure_of(make):
    labelling = make(random_share=0.0, trained=20)
    read_all(labelling)
    labelling.record("00.png", "abc")
    assert choose(labelling, 3) == ["01.png", "02.png", "03.png"]


def test_the_mixture_has_both(make):
    labelling = make(60, random_share=0.5, trained=20)
    read_all(labelling)
    chosen = choose(labelling, 30)
    first, least_sure = labelling.order[:30], sorted(labelling.order)[:30]
    assert 5 < len(set(chosen) & (set(first) - set(least_sure))) < 25
    assert 5 < len(set(chosen) & (set(least_sure) - set(first))) < 25


def test_before_the_first_training_all_are_random(make):
    labelling = make(random_share=0.0)
    read_all(labelling)
    assert choose(labelling, 9) == labelling.order
    labelling.guesses.use(FakeModel(20))
    labelling._claims.clear()
    assert choose(labelling, 9) == sorted(labelling.order)


def test_a_page_gets_no_image_that_it_or_another_page_has(make):
    labelling = make(3, random_share=1.0)
    first = labelling.next().file
    other = labelling.next().file
    assert first != other
    third = labelling.next([first]).file
    assert len({first, other, third}) == 3
    assert labelling.next([first, third]).file == other, "at last, what another page has left"
    assert labelling.next([first, other, third]) is None


def test_files_that_are_no_images_are_passed_over(make, tmp_path):
    labelling = make(2)
    (tmp_path / "mine" / "notes.doc").touch()
    labelling = make(2)
    held = []
    while item := labelling.next(held):
        held.append(item.file)
    assert sorted(held) == ["00.png", "01.png"]
    assert labelling.status()["images"] == 2
    assert labelling.status()["broken"] == 1


# ---------------------------------------------------------------------- the honest figure


def test_a_label_is_compared_with_what_the_model_had_answered_before(make):
    labelling = make(9, random_share=1.0)
    for path in labelling.order[:4]:
        labelling.record(path, str(int(path[:2])))
    labelling.record(labelling.order[4], "wrong")
    labelling.guesses.use(FakeModel(labels=5, text="always wrong {}"))
    assert tuple(labelling.accuracy()) == (4, 5), "what a later model reads there does not count"
    labelling.record(labelling.order[5], str(int(labelling.order[5][:2])))
    assert tuple(labelling.accuracy()) == (4, 6)
    assert str(labelling.accuracy()) == "67% of the last 6 random images, 30 to 90"


def test_the_figure_is_that_of_a_random_sample_however_images_were_chosen(make):
    labelling = make(9)
    first, second, third, *_ = labelling.order
    labelling.record(third, "hard")
    assert labelling.accuracy() is None, "an image that was chosen for being hard says nothing alone"
    labelling.record(first, str(int(first[:2])))
    assert tuple(labelling.accuracy()) == (1, 1)
    labelling.record(second, str(int(second[:2])))
    assert tuple(labelling.accuracy()) == (2, 3), "all that a random order begins with"


def test_corrected_and_unreadable_images_count_as_they_are_now(make):
    labelling = make(9)
    first, second, *_ = labelling.order
    labelling.record(first, "typo")
    labelling.record(second, "")
    assert tuple(labelling.accuracy()) == (0, 1)
    labelling.record(first, str(int(first[:2])))
    assert tuple(labelling.accuracy()) == (1, 1)
    assert labelling.status()["labelled"] == labelling.status()["unreadable"] == 1


def test_the_figure_goes_on_after_a_restart(make):
    labelling = make(9)
    for path in labelling.order[:3]:
        labelling.record(path, "wrong")
    again = make(9)
    assert tuple(again.accuracy()) == (0, 3)
    assert again.recent(2) == labelling.order[1:3]
    assert again.next().file not in labelling.order[:3]


def test_labels_that_were_there_before_do_not_count(make, tmp_path):
    order = make(9).order
    (tmp_path / "mine" / "labels.csv").write_text(f"{order[0]},abc\n")
    labelling = make(9)
    labelling.record(order[1], "wrong")
    assert tuple(labelling.accuracy()) == (0, 1)


def test_the_last_hundred_count_and_say_when_the_target_is_reached(make, monkeypatch):
    monkeypatch.setattr(module, "FIGURE_IMAGES", 5)
    labelling = make(12, until=0.8)
    for path in labelling.order[:4]:
        labelling.record(path, "wrong")
    for path in labelling.order[4:7]:
        labelling.record(path, str(int(path[:2])))
    assert tuple(labelling.accuracy()) == (3, 5)
    assert not labelling.status()["reached"]
    labelling.record(labelling.order[7], str(int(labelling.order[7][:2])))
    assert tuple(labelling.accuracy()) == (4, 5)
    assert labelling.status()["reached"]


def test_few_images_never_reach_the_target(make):
    labelling = make(9)
    for path in labelling.order:
        labelling.record(path, str(int(path[:2])))
    assert str(labelling.accuracy()) == "100% of the last 9 random images, 70 to 100"
    assert not labelling.status()["reached"]


@pytest.mark.parametrize("label", ["a b", "a\x07", "abcde", "abx"])
def test_a_label_that_cannot_be_is_refused(make, label):
    labelling = make(characters="abcde", char_num="2-4")
    with pytest.raises(ImageError):
        labelling.record("00.png", label)
    labelling.record("00.png", " abc ")
    assert labelling.labels == {"00.png": "abc"}


def test_a_break_does_not_count_as_time(make, monkeypatch):
    clock = iter([0, 100, 103, 1000, 1001.5, 1010])
    labelling = make()
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    next(clock)
    for path in labelling.order[:5]:
        labelling.record(path, "abc")
    assert labelling.status()["seconds"] == 3.0, "the median of 3, 1.5 and 8.5"


# ---------------------------------------------------------------------- models


def test_labels_narrow_what_the_general_weights_guess(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(module, "general_model", lambda *names: made.append(names) or FakeModel())
    folder = make_images(tmp_path / "mine", 14)
    labelling = Labelling(Settings(str(folder), str(tmp_path / "work")))
    for path, label in zip(labelling.order, ["123", "4567"] * 6, strict=False):
        labelling.record(path, label)
    assert made == [("", ""), ("0123456789", "3-4")]
    Labelling(Settings(str(folder), str(tmp_path / "work"), "12345ü", "4"))
    assert made[-1] == ("12345", "4"), "what the command line says counts, less what they have not learned"


def test_a_newly_trained_model_takes_over(make, tmp_path):
    labelling = make()
    old = labelling.guesses.of("03.png").reading.text
    write_model(tmp_path / "work" / "model.npz", 7)
    for number in range(9):
        random_image(number).save(tmp_path / "mine" / f"{number:02d}.png")
    labelling.update_model()
    assert labelling.status()["model_labels"] == 7
    assert labelling.item("03.png").guess != old
    assert len(labelling.item("03.png").guess) == 3


def write_model(path, labels):
    """A file as a training leaves it, with the general weights."""
    config, weights = general_weights("0123456789", "3")
    info = json.dumps({"config": config.as_dict(), "labels": labels})
    np.savez(path, **weights, info=np.array(info))


def test_an_image_is_shown_as_read_by_the_earlier_model_until_the_newer_one_has_read_it(make):
    labelling = make(random_share=0.0)
    read_all(labelling)
    labelling.guesses.use(FakeModel(labels=5, text="new {}"))
    assert labelling.next().file == "00.png", "the least sure one by the earlier model"
    assert labelling.item("00.png").guess == "new 0", "and read by the newer one when it is shown"


def test_the_background_reads_everything_that_waits(make):
    labelling = make(20)
    labelling.record("05.png", "abc")
    labelling.start()
    end = time.monotonic() + 30
    while len(labelling.guesses._found) < 20 and time.monotonic() < end:
        time.sleep(0.01)
    labelling.close()
    assert len(labelling.guesses._found) == 20


def test_a_damaged_model_is_an_error_that_says_what_to_do(make, tmp_path):
    make()
    (tmp_path / "work" / "model.npz").write_bytes(b"nothing")
    with pytest.raises(CaptchaError, match="delete it"):
        make()


def test_the_folder_of_the_trainings_must_lie_outside(folder):
    with pytest.raises(CaptchaError, match="must lie outside"):
        Labelling(Settings(str(folder), str(folder / "work")))


# ---------------------------------------------------------------------- review


def test_review_goes_through_the_labels_that_the_model_disagrees_with_surest_first(make):
    labelling = make(9)
    for path in labelling.order[:6]:
        labelling.record(path, "typo" if path in ("02.png", "05.png", "07.png") else str(int(path[:2])))
    typed = [path for path in ("07.png", "05.png", "02.png") if path in labelling.labels]
    labelling.review(list)
    items = []
    for _ in typed:
        items.append(labelling.next())
        labelling.record(items[-1].file, "typo")
    assert [(item.file, item.label, item.guess) for item in items] == [
        (path, "typo", str(int(path[:2]))) for path in typed
    ]
    assert labelling.next() is None
    assert labelling.status()["to_review"] == len(typed)


def test_odds_are_those_between_text_and_label():
    model = general_model("0123456789", "2-4")
    images = np.stack([np.asarray(random_image(n, (200, 60))) for n in range(5)])
    (first, *_), others = model.read(images), ["12", "123", "1234", "1x"]
    found = model.compare(images, [first.text, *others])
    assert found[0][1] == 0
    assert all(odds >= 0 for _, odds in found)
    assert found[-1][1] == np.inf, "no such character"
    runner_up = Predictor(None, "0123456789", "2-4").read_arrays(images[:1])[0]
    (reading, odds), *_ = model.compare(images[:1], [runner_up.runner_up])
    assert odds == pytest.approx(np.log(runner_up.confidence / runner_up.runner_up_confidence), rel=1e-6)
    assert reading.text == runner_up.text


# ---------------------------------------------------------------------- training


class Recorder:
    """Takes the place of the process of a training, which ends with that status at once."""

    def __init__(self, monkeypatch, status=0):
        self.status, self.counts = status, []
        monkeypatch.setattr(
            "captcha_cnn.background_training.training_command", lambda _, count, unlabelled: self.note(count)
        )

    def note(self, count):
        self.counts.append(count)
        return [sys.executable, "-c", f"raise SystemExit({self.status})"]


def label_one_by_one(labelling, training, count):
    for path in [path for path in labelling.order if path not in labelling.labels][:count]:
        labelling.record(path, "abc")
        training.start_if_due()
        if training._thread:
            training._thread.join()


def test_trainings_come_after_twenty_labels_and_then_at_growing_steps(make, monkeypatch):
    labelling, recorder = make(70), Recorder(monkeypatch)
    training = BackgroundTraining(labelling)
    label_one_by_one(labelling, training, 70)
    assert recorder.counts == [20, 30, 45, 68]
    assert training.due_at == 102


def test_a_failed_training_says_so_and_the_next_one_comes_at_the_next_step(make, monkeypatch, tmp_path):
    labelling, recorder = make(50), Recorder(monkeypatch, status=1)
    training = BackgroundTraining(labelling)
    (tmp_path / "work" / "training.log").write_text("much\ndriver.py: no room on the disk\n")
    label_one_by_one(labelling, training, 44)
    assert recorder.counts == [20, 30]
    assert training.status()["training_failed"] == "no room on the disk"
    recorder.status = 0
    label_one_by_one(labelling, training, 1)
    assert recorder.counts == [20, 30, 45]
    assert training.status()["training_failed"] == ""


def test_where_another_process_trains_there_is_neither_a_failure_nor_a_second_training(make, monkeypatch):
    labelling, recorder = make(25), Recorder(monkeypatch, status=BUSY)
    training = BackgroundTraining(labelling)
    label_one_by_one(labelling, training, 21)
    assert training.status()["training_failed"] == ""
    assert training.due_at == FIRST_LABELS
    assert recorder.counts == [20, 21], "it is tried again"


def test_after_a_restart_the_model_says_when_the_next_training_is_due(make, tmp_path):
    make()
    write_model(tmp_path / "work" / "model.npz", 30)
    assert BackgroundTraining(make()).due_at == 45


def test_the_command_of_a_training(tmp_path):
    settings = Settings("mine", str(tmp_path), "abc", "3-4")
    command = training_command(settings, 40, 25)
    flags = command[command.index(str(PROJECT / "driver.py")) + 1 :]
    values = dict(zip(flags[::2], flags[1::2], strict=True))
    assert values["--images"] == values["--unlabelled"] == os.path.abspath("mine")
    assert values["--labels"] == os.path.abspath("mine/labels.csv")
    assert (values["--characters"], values["--char-num"], values["--folds"]) == ("abc", "3-4", "1")
    assert int(values["--epoch"]) == 300 + 4 * 40, "32 of 40 images are trained on: a step is an epoch"
    assert "--unlabelled" not in training_command(settings, 40, 3)


def test_the_real_training_makes_a_model_that_reads(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    images, labels = draw_styles(24, 7, "0123456789", (3, 3), (80, 40))
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    labelling = Labelling(Settings(str(folder), str(tmp_path / "work")))
    for number, label in enumerate(labels[:22]):
        labelling.record(f"{number:02d}.png", label)
    before = snapshot(folder)
    monkeypatch.setattr("captcha_cnn.background_training.FEW_IMAGES_STEPS", 1 - 4 * 22)
    training = BackgroundTraining(labelling)
    training.start_if_due()
    assert training.status()["training"] == 22
    training._thread.join()
    assert training.status()["training_failed"] == ""
    assert labelling.status()["model_labels"] == 22
    assert snapshot(folder) == before
    expected = Predictor(tmp_path / "work" / "checkpoints").read(sorted(folder.glob("*.png")))
    for path, prediction in zip(sorted(labelling.order), expected, strict=True):
        item = labelling.item(path)
        assert item.guess == prediction.text, "NumPy reads what TensorFlow does"
        assert item.confidence == pytest.approx(prediction.confidence, abs=1e-3)
        assert item.char_probs == pytest.approx(prediction.char_probs, abs=1e-3)
    assert sorted(os.listdir(tmp_path / "work")) == [
        "answers.csv",
        "checkpoints",
        "model.npz",
        "tensorboard",
        "training.lock",
        "training.log",
    ]


def test_the_real_driver_says_why_it_cannot_train(tmp_path):
    folder = make_images(tmp_path / "mine", 22)
    labelling = Labelling(Settings(str(folder), str(tmp_path / "work"), characters="ab"))
    for path in labelling.order:
        labelling.record(path, "ab")
    for path in folder.glob("*.png"):
        path.write_bytes((folder / "00.png").read_bytes())
    training = BackgroundTraining(labelling)
    training.start_if_due()
    training._thread.join()
    assert "at least 10 different labelled images" in training.status()["training_failed"]


def test_the_sentence_that_a_training_ended_with(tmp_path):
    log = tmp_path / "log"
    assert error_in(log) == ""
    log.write_text("driver.py: one\nTraceback\n")
    assert error_in(log) == ""
    log.write_text("one\ndriver.py: two\n")
    assert error_in(log) == "two"


def test_a_training_ends_with_the_process_that_began_it(tmp_path):
    program = tmp_path / "driver.py"
    program.write_text("import time\nprint('begun', flush=True)\ntime.sleep(600)\n")
    command = [sys.executable, "-m", "captcha_cnn.background_training", str(tmp_path), "20", str(program)]
    process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE)
    log = tmp_path / "training.log"
    while not log.exists() or not log.read_text():
        time.sleep(0.05)
    second = subprocess.run(command, cwd=PROJECT, stdin=subprocess.DEVNULL, check=False)
    assert second.returncode == BUSY, "one at a time"
    process.stdin.close()  # as the system does where the parent is killed
    assert process.wait(60) != 0


# ---------------------------------------------------------------------- the benchmark


@pytest.fixture
def person(tmp_path, monkeypatch):
    """A simulated person with 40 images, the first half of which the model reads, and the trainings."""
    monkeypatch.setattr(module, "general_model", lambda *_: FakeModel())
    truth = {f"{n:02d}.png": str(n) if n < 20 else "typed" for n in range(40)}
    (tmp_path / "mine").mkdir()
    for number, name in enumerate(truth):
        random_image(number).save(tmp_path / "mine" / name)
    trained = []

    def train(settings, labels, unlabelled):
        trained.append((labels, unlabelled))
        write_model(tmp_path / "trained.npz", labels)
        return tmp_path / "trained.npz"

    settings = Settings(str(tmp_path / "mine"), str(tmp_path / "work"), random_share=1.0)
    return SimpleNamespace(person=Person(settings, truth, train), trained=trained)


def test_the_simulated_person_confirms_in_two_seconds_and_types_in_four(person):
    for _ in range(19):
        assert person.person.label() is None
    labels = person.person.labelling.labels
    assert person.person.seconds == sum(2 if label != "typed" else 4 for label in labels.values())
    assert all(person.person.truth[path] == label for path, label in labels.items())


def label_twenty(person, monkeypatch):
    """As many labels as begin the first training, which takes 7 seconds."""
    clock = iter([100.0, 107.0])
    person.person.labelling.guesses.read_all()
    for _ in range(19):
        person.person.label()
    with monkeypatch.context() as patched:
        patched.setattr("benchmarks.labelling.time", SimpleNamespace(monotonic=lambda: next(clock)))
        person.person.label()


def test_a_model_takes_over_once_the_person_has_typed_for_as_long_as_its_training_takes(person, monkeypatch):
    label_twenty(person, monkeypatch)
    assert person.trained == [(20, 20)]
    begun = person.person.seconds
    points = []
    while not points:
        before = person.person.seconds
        points = [point for point in [person.person.label()] if point]
    assert before >= begun + 7 > before - 4, "as soon as it is there"
    assert (points[0].labels, points[0].typing_seconds, points[0].ready_seconds) == (20, begun, before)


def test_a_person_who_waits_types_nothing_while_a_model_is_trained(person, monkeypatch):
    person.person.waits = True
    label_twenty(person, monkeypatch)
    begun = person.person.seconds
    point = person.person.label()
    assert (point.labels, point.typing_seconds, point.ready_seconds) == (20, begun, begun + 7)
    assert (len(person.person.labelling.labels), person.person.seconds) == (20, begun)


def test_labels_and_seconds_are_those_of_the_first_model_that_is_good_enough():
    points = [Point(20, 50, 60, 0.9), Point(30, 70, 90, 0.98), Point(45, 95, 120, 0.99)]
    found = summary(points)
    assert found["labels until 99%"] == 45
    assert found["seconds until 97%"] == 70
    assert found["seconds until the reader of 97% is there"] == 90
    assert summary(points[:1])["labels until 99%"] is None
