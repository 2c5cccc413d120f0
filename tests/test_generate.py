"""Drawing captchas, and the three sets as files: complete, interrupted, damaged, shared, somebody's own."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import captcha.image
import numpy as np
import pytest
from conftest import PROJECT, TINY, assert_refused, flags, script
from forks import default_sigint
from PIL import Image, ImageFilter

import generate_captcha
from captcha_cnn import drawing, parallel
from captcha_cnn.drawing import draw_captcha
from captcha_cnn.files import folder_lock
from config import CaptchaError
from generate_captcha import Generate, ReadData


def contents(folder):
    """The bytes of every file in a folder, hidden files included."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def image_names(folder):
    return sorted(path.name for path in Path(folder).glob("*.png"))


# ---------------------------------------------------------------------- drawing


class PythonSecrets(random.Random):
    """Python's own random integers for the library: the images have always come from them."""

    randbelow = random.Random.randrange
    randbits = random.Random.getrandbits


@pytest.mark.parametrize(
    ("width", "height", "length", "characters"),
    [
        (160, 60, 4, "0123456789"),
        (37, 23, 3, "abcde"),
        (160, 60, 8, "8Wij'-,"),  # too wide for the image: drawn wider and squeezed
        (321, 61, 1, "WéÅß8"),
        (64, 200, 2, "Qgy;ñ"),  # taller than wide
        (57, 8, 4, "il1!"),
        (113, 37, 5, "wŵ\u1e4cǗ"),  # cut off at the left, and at the top
        (90, 45, 3, "a\u0300\u0323"),  # combining characters: few pixels, or none
        (203, 97, 7, "漢A"),  # a box for the character that the font lacks
    ],
)
def test_images_equal_the_librarys_for_the_same_random_numbers(width, height, length, characters):
    config = replace(TINY, width=width, height=height, char_num=length, characters=characters)
    sizes = tuple(max(1, round(size * height / 60)) for size in (42, 50, 56))
    library = captcha.image.ImageCaptcha(width, height, font_sizes=sizes)
    seen = set()
    for index in range(60):
        secrets = PythonSecrets(f"0/train/{index}")
        expected_label = "".join(secrets.choice(characters) for _ in range(length))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(captcha.image, "secrets", secrets)
            expected = library.generate_image(expected_label)
        label, image = draw_captcha(config, "train", index)
        assert label == expected_label
        assert (image.mode, image.size) == ("RGB", (width, height))
        assert image.tobytes() == expected.tobytes(), (label, index)
        seen |= set(label)
    assert seen == set(characters)


class MissingFunctions:
    """Pillow's compiled part of a version that has renamed all its functions."""


class ChangedFunctions:
    """The same of a version that fills images with something else."""

    new = Image.core.new

    @staticmethod
    def fill(mode, size, _):
        return Image.core.fill(mode, size, (90, 90, 90, 90))


@pytest.mark.parametrize("core", [MissingFunctions, ChangedFunctions])
def test_with_another_version_of_pillow_the_library_itself_draws(core, monkeypatch):
    expected = draw_captcha(TINY, "train", 0)[1].tobytes()
    monkeypatch.setattr(drawing, "core", core)
    drawing.image_captcha.cache_clear()
    try:
        assert draw_captcha(TINY, "train", 0)[1].tobytes() == expected
        assert type(drawing.image_captcha(TINY.width, TINY.height)) is drawing.PixelCaptcha
    finally:
        drawing.image_captcha.cache_clear()


def test_this_version_of_pillow_draws_fast():
    assert isinstance(drawing.image_captcha(160, 60), drawing.FastImageCaptcha)


@pytest.mark.parametrize("shape", [(3, 3, 3), (4, 3, 3), (23, 37, 3)])
def test_smoothing_is_that_of_pillow(shape):
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, shape, np.uint8) for _ in range(300)]
    images += [np.full(shape, 255, np.uint8), generator.integers(0, 2, shape, np.uint8)]
    for image in images:
        expected = np.asarray(Image.fromarray(image).filter(ImageFilter.SMOOTH))
        assert np.array_equal(drawing.smooth(image), expected)


@pytest.mark.parametrize("size", [(19, 31), (20, 31), (24, 40)])
def test_characters_are_turned_resized_and_warped_as_pillows_methods_do_it(size):
    generator = np.random.default_rng(1)
    for _ in range(50):
        image = Image.fromarray(generator.integers(0, 256, (31, 20, 4), np.uint8))
        degrees, quad = generator.uniform(-30, 30), tuple(generator.integers(-4, 40, 8).tolist())
        rotated = image.rotate(degrees, Image.Resampling.BILINEAR, expand=True)
        resized = rotated.resize(size)
        same_size = image.resize((20, 31))
        warped = resized.transform((17, 33), Image.Transform.QUAD, quad)
        for found, expected in (
            (drawing._rotate(image.im, degrees), rotated),
            (drawing._resize(rotated.im, size), resized),
            (drawing._resize(image.im, image.size), same_size),
            (drawing._warp(resized.im, (17, 33), quad), warped),
        ):
            assert found.size == expected.size
            whole = Image.new("RGBA", found.size)
            whole.im.paste(found, (0, 0, *found.size))
            assert whole.tobytes() == expected.tobytes()


def test_seeded_secrets_give_the_same_integers_as_python():
    ours, pythons = drawing.SeededSecrets("x"), random.Random("x")
    for n in [*range(1, 300), 2**32, 10**12]:
        assert [ours.randbelow(n) for _ in range(9)] == [pythons.randrange(n) for _ in range(9)]


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (160, 60), (37, 230)])
def test_the_png_file_has_exactly_the_pixels_of_the_image(size, tmp_path):
    pixels = random.Random(1).randbytes(3 * size[0] * size[1])
    image = Image.frombytes("RGB", size, pixels)
    (tmp_path / "abc.png").write_bytes(drawing.encode_png(image))
    with Image.open(tmp_path / "abc.png") as found:
        found.verify()  # the checksums
    with Image.open(tmp_path / "abc.png") as found:
        assert (found.format, found.mode, found.size, found.tobytes()) == ("PNG", "RGB", size, pixels)


def test_the_library_has_its_own_random_numbers_back_after_drawing():
    before = captcha.image.secrets
    draw_captcha(TINY, "train", 0)
    assert captcha.image.secrets is before


def test_font_sizes_are_the_librarys_own_at_its_own_size():
    assert drawing.image_captcha(160, 60)._font_sizes == (42, 50, 56)


def test_sets_seeds_and_indices_share_no_random_stream():
    images = [
        draw_captcha(config, name, index)[1].tobytes()
        for config in (TINY, replace(TINY, seed=1))
        for name in ("train", "validation", "test")
        for index in (0, 1)
    ]
    assert len(set(images)) == 12


def test_characters_that_the_font_lacks_are_named_and_nothing_is_drawn(tiny):
    with pytest.raises(CaptchaError, match="must be characters that the captcha library's font has"):
        Generate(replace(tiny, characters="ab字")).gen_captcha()
    assert contents("train") == {}
    drawing.check_drawable(replace(tiny, characters="0123456789abcxyzABCXYZ"))


# ---------------------------------------------------------------------- sets


def test_sets_are_complete_with_labels_in_file_names_and_a_manifest(drawn):
    for name, folder, count in drawn.sets:
        files = image_names(folder)
        assert len(files) == count
        assert sorted(int(f[4:10]) for f in files) == list(range(count))
        assert all(set(f[:3]) <= set("abcde") and f[3] == "_" for f in files)
        manifest = json.loads(Path(folder, "captchas.json").read_text())
        expected = {"set": name, "seed": 0, "count": count, "width": 37, "height": 23, "char_num": 3}
        assert manifest.items() >= (expected | {"characters": "abcde", "complete": True}).items()
        assert {"captcha", "pillow"} <= set(manifest)
        assert len(list(Path(folder).iterdir())) == count + 1, "a lock or a temporary file was left"
        assert any(len(set(f[:3])) < 3 for f in files), "no label has a character twice"


@pytest.mark.parametrize("cores", [1, 3])
def test_pixels_do_not_depend_on_the_number_of_processes(cores, tiny, drawn, monkeypatch):
    monkeypatch.setattr(parallel, "available_cores", lambda: cores)
    monkeypatch.setattr(parallel, "CHUNK_SIZE", 40)
    Generate(tiny).gen_captcha()
    for (_, folder, _), (_, other, _) in zip(tiny.sets, drawn.sets, strict=True):
        assert contents(folder) == contents(other)


def test_drawing_again_does_nothing_and_says_so(drawn, capsys):
    before = {p: p.stat().st_mtime_ns for p in Path(drawn.train_folder).iterdir()}
    Generate(drawn).gen_captcha()
    assert {p: p.stat().st_mtime_ns for p in Path(drawn.train_folder).iterdir()} == before
    assert f"{drawn.train_folder}: 150 captchas are there already" in capsys.readouterr().out


def test_other_settings_are_named_and_nothing_is_drawn(drawn):
    before = contents(drawn.train_folder)
    done = script("generate_captcha.py", *flags(replace(drawn, seed=3, generate_num=(151, 20, 30))))
    assert_refused(done, 1, "count 150 (asked for: 151)", "seed 0 (asked for: 3)", "--train-folder")
    assert contents(drawn.train_folder) == before


def test_training_uses_sets_as_they_are_and_says_what_differs(drawn, capsys):
    Generate(replace(drawn, seed=3)).gen_captcha(keep=True)
    out = capsys.readouterr().out
    assert "used as it is, drawn with seed 0 (asked for: 3)" in out
    assert "are left" not in out
    with pytest.raises(CaptchaError, match=r"characters abcde \(asked for: abcdf\)"):
        Generate(replace(drawn, characters="abcdf")).gen_captcha(keep=True)


@pytest.fixture
def three_of_five_deleted(tiny):
    """A Config whose training set of five images has lost three; and what was in the folder before."""
    config = replace(tiny, generate_num=(5, 2, 2))
    Generate(config).gen_captcha()
    before = contents("train")
    for name in image_names("train")[1:4]:
        Path("train", name).unlink()
    return config, before


@pytest.mark.parametrize("keep", [False, True])
def test_a_set_is_completed_after_images_were_deleted(keep, three_of_five_deleted, capsys):
    config, before = three_of_five_deleted
    kept = {path: path.stat().st_mtime_ns for path in Path("train").glob("*.png")}
    capsys.readouterr()
    Generate(config).gen_captcha(keep)
    assert contents("train") == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "an image that was there was drawn again"
    assert capsys.readouterr().out.splitlines() == [
        "validation: 2 captchas are there already",
        "test: 2 captchas are there already",
        "train: 5 captchas drawn",
    ]


def test_other_images_do_not_count_for_those_that_were_deleted(three_of_five_deleted):
    config, before = three_of_five_deleted
    own = {f"own_{i}.png": b"own" for i in range(3)}
    for name, content in own.items():
        Path("train", name).write_bytes(content)
    Generate(config).gen_captcha()
    assert contents("train") == before | own


def test_the_images_that_are_left_are_counted_where_a_set_is_used_as_it_is(three_of_five_deleted, capsys):
    config, _ = three_of_five_deleted
    left = contents("train")
    Generate(replace(config, seed=1)).gen_captcha(keep=True)
    out = capsys.readouterr().out
    assert "train: used as it is, drawn with seed 0 (asked for: 1); 2 of its images are left" in out
    assert out.count("are left") == 1, "the other two sets have lost nothing"
    assert contents("train") == left


def test_nothing_is_drawn_among_somebodys_own_images(tiny, tmp_path):
    for name in ("train", "validation", "test"):
        (tmp_path / name).mkdir()
    own = tmp_path / "validation" / "abc.png"
    own.write_bytes(b"own")
    with pytest.raises(
        CaptchaError, match="validation must be empty to draw captchas into, but holds 1 files"
    ):
        Generate(tiny).gen_captcha()
    assert contents("validation") == {"abc.png": b"own"}
    assert contents("train") == {}, "something was drawn before all folders were checked"


def test_own_images_are_not_used_together_with_drawn_ones(tiny, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "abc.png").write_bytes(b"own")
    with pytest.raises(CaptchaError, match="validation must hold images of yours, as train does"):
        Generate(tiny).gen_captcha(keep=True)
    assert contents("validation") == contents("test") == {}
    for name in ("validation", "test"):
        (tmp_path / name / "abc.png").write_bytes(b"own")
    Generate(tiny).gen_captcha(keep=True)
    assert contents("validation") == {"abc.png": b"own"}


def test_a_file_in_place_of_a_folder_is_named(tiny, tmp_path):
    (tmp_path / "test").write_text("own")
    with pytest.raises(CaptchaError, match="test must be a folder for captchas, but is a file"):
        Generate(tiny).gen_captcha()
    assert (tmp_path / "test").read_text() == "own"


def test_a_damaged_manifest_is_named(tiny, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "captchas.json").write_text("{")
    with pytest.raises(CaptchaError, match="must be the manifest of a drawn set, but cannot be read"):
        Generate(tiny).gen_captcha()


def test_a_full_disk_leaves_only_complete_images(tiny, monkeypatch):
    monkeypatch.setattr(parallel, "available_cores", lambda: 1)
    write, left = Path.write_bytes, [40]

    def write_until_full(path, data):
        left[0] -= 1
        if left[0] < 0:
            write(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    with pytest.raises(
        CaptchaError, match=r"train could not be drawn to the end \(No space left on device\)"
    ):
        Generate(tiny).gen_captcha()
    assert len(image_names("train")) == 40
    assert len(os.listdir("train")) == 41, "a half-written image was left"


# ---------------------------------------------------------------------- processes


def start_drawing(config, folder, **options):
    """generate_captcha.py in a process group of its own, once it draws the training set."""
    command = [sys.executable, str(PROJECT / "generate_captcha.py"), *flags(config)]
    process = subprocess.Popen(
        command, cwd=folder, start_new_session=True, stdout=subprocess.PIPE, text=True, **options
    )
    deadline = time.monotonic() + 60
    while len(list(folder.glob("train/*.png"))) < 50 and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


def test_a_killed_generator_leaves_an_incomplete_set_which_is_completed(tiny, drawn, tmp_path):
    config = replace(tiny, generate_num=(4000, 20, 30))
    process = start_drawing(config, tmp_path, stderr=subprocess.DEVNULL)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        pytest.fail("worker processes outlived the process that started them")
    assert 50 <= len(image_names("train")) < 4000
    with pytest.raises(CaptchaError, match="its drawing was interrupted"):
        ReadData(config).load_data("train")
    survivor = next(tmp_path.glob("train/*.png"))
    before = survivor.stat().st_mtime_ns
    Generate(config).gen_captcha()
    assert survivor.stat().st_mtime_ns == before
    assert ReadData(config).load_data("train")[2] == 4000
    complete = contents("train")
    assert {name: complete[name] for name in image_names(drawn.train_folder)}.items() <= (
        contents(drawn.train_folder).items()
    )
    assert ".lock" not in complete, "the lock of the killed process was left"


def test_ctrl_c_while_drawing_leaves_no_traceback_and_no_lock(tmp_path):
    config = replace(TINY, generate_num=(20000, 20, 30))
    process = start_drawing(config, tmp_path, preexec_fn=default_sigint, stderr=subprocess.PIPE)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "generate_captcha.py: interrupted"
    assert not list(tmp_path.glob("*/.*"))


def test_a_second_generator_in_the_same_folders_is_refused(tmp_path):
    config = replace(TINY, generate_num=(20000, 20, 30))
    process = start_drawing(config, tmp_path, preexec_fn=default_sigint, stderr=subprocess.DEVNULL)
    os.killpg(process.pid, signal.SIGSTOP)  # so that it is there for as long as it takes
    try:
        before = contents(tmp_path / "train")
        second = script("generate_captcha.py", *flags(config), cwd=tmp_path)
        after = contents(tmp_path / "train")
    finally:
        os.killpg(process.pid, signal.SIGCONT)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    words = f"train must be used by one process at a time, but process {process.pid} draws captchas there"
    assert_refused(second, 1, words, "name another folder with --train-folder")
    assert after == before


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_a_folder_that_another_process_draws_into_is_refused(name, tiny, tmp_path):
    code = (
        "import os, time; from captcha_cnn.files import folder_lock\n"
        f"with folder_lock({str(tmp_path / name)!r}, '', 'draws captchas', hidden=True):\n"
        "    print(os.getpid(), flush=True); time.sleep(99)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    process = holder.stdout.readline().strip()
    try:
        with pytest.raises(CaptchaError) as refusal:
            Generate(tiny).gen_captcha()
    finally:
        holder.kill()
        holder.communicate()
    assert str(refusal.value) == (
        f"{name} must be used by one process at a time, but process {process} draws captchas there: "
        f"wait for it, or name another folder with --{name}-folder"
    )
    assert [image_names(folder) for _, folder, _ in tiny.sets] == [[], [], []], "a part was drawn"
    Generate(tiny).gen_captcha()  # the lock ends with the process, though it was killed
    assert tuple(len(image_names(folder)) for _, folder, _ in tiny.sets) == tiny.generate_num
    assert not list(tmp_path.glob("*/.*")), "a lock file was left"


@pytest.mark.parametrize("content", ["", "no number"])
def test_a_lock_file_that_names_no_process_is_a_lock_too(content, tiny):
    with folder_lock("train", "", "draws captchas", hidden=True):
        Path("train/.lock").write_text(content)
        with pytest.raises(CaptchaError, match="at a time, but another process draws captchas there"):
            Generate(tiny).gen_captcha()
    assert contents("train") == {}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_set_that_another_process_draws_before_the_lock_is_left_as_it_is(seed, tiny, monkeypatch, capsys):
    config = replace(tiny, generate_num=(5, 2, 2))
    meanwhile = []

    def lock_late(*arguments, **options):
        if not meanwhile:
            meanwhile.append("another process draws")
            Generate(replace(config, seed=seed)).gen_captcha()
            meanwhile.append(contents("train"))
            capsys.readouterr()
        return folder_lock(*arguments, **options)

    monkeypatch.setattr(generate_captcha, "folder_lock", lock_late)
    if seed == config.seed:
        Generate(config).gen_captcha()
    else:
        with pytest.raises(CaptchaError, match=r"train holds captchas drawn with seed 1 \(asked for: 0\)"):
            Generate(config).gen_captcha()
    assert contents("train") == meanwhile[1], "two sets are mixed"
    assert "captchas drawn\n" not in capsys.readouterr().out


UNGUARDED = """
from config import Config
from generate_captcha import Generate
import captcha_cnn.parallel

with open("runs.txt", "a") as runs:
    runs.write("run\\n")
captcha_cnn.parallel.available_cores = lambda: 3
captcha_cnn.parallel.CHUNK_SIZE = 40
Generate(Config(width=37, height=23, char_num=3, generate_num=(150, 2, 2))).gen_captcha()
"""


def test_drawing_works_in_a_script_without_a_main_guard(tmp_path):
    (tmp_path / "program.py").write_text(UNGUARDED)
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "train: 150 captchas drawn",
        "validation: 2 captchas drawn",
        "test: 2 captchas drawn",
    ]
    assert (tmp_path / "runs.txt").read_text() == "run\n", "a worker process ran the script again"
    assert len(image_names(tmp_path / "train")) == 150
