import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import captcha.image
import numpy as np
import pytest
from conftest import PROJECT, TINY, assert_refused, flags, heed_ctrl_c, script
from PIL import Image

import generate_captcha
from config import CaptchaError
from generate_captcha import Generate, PictureError, ReadData, draw

# ---------------------------------------------------------------------- drawing


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_sets_are_drawn_whole_with_labels_in_names_and_a_record(drawn):
    for name, folder, count in drawn.sets:
        files = sorted(p.name for p in Path(folder).glob("*.png"))
        assert len(files) == count
        assert sorted(int(f[4:10]) for f in files) == list(range(count))
        assert all(set(f[:3]) <= set("abcde") and f[3] == "_" for f in files)
        record = json.loads(Path(folder, "captchas.json").read_text())
        wanted = {"set": name, "seed": 0, "count": count, "width": 37, "height": 23, "char_num": 3}
        assert record.items() >= (wanted | {"characters": "abcde", "complete": True}).items()
        assert {"captcha", "pillow"} <= set(record)
        assert len(list(Path(folder).iterdir())) == count + 1  # nothing left over
        assert any(len(set(f[:3])) < 3 for f in files), "symbols never repeat"


class SlowDice(random.Random):
    """Python's own whole numbers for the library: what the pictures have always come from."""

    randbelow = random.Random.randrange
    randbits = random.Random.getrandbits


@pytest.mark.parametrize(
    ("width", "height", "length", "characters"),
    [
        (160, 60, 4, "0123456789"),
        (37, 23, 3, "abcde"),
        (160, 60, 8, "8Wij'-,"),  # overfull: drawn wider and squeezed
        (321, 61, 1, "WéÅß8"),
        (64, 200, 2, "Qgy;ñ"),  # taller than wide
        (57, 8, 4, "il1!"),
        (113, 37, 5, "wŵ\u1e4cǗ"),  # cut off at the left, and at the top
        (90, 45, 3, "a\u0300\u0323"),  # hardly there, or not at all
        (203, 97, 7, "漢A"),  # the box for what the font lacks
    ],
)
def test_pictures_are_what_the_library_draws_for_the_same_random_numbers(width, height, length, characters):
    config = replace(TINY, width=width, height=height, char_num=length, characters=characters)
    sizes = tuple(max(1, round(size * height / 60)) for size in (42, 50, 56))
    painter = captcha.image.ImageCaptcha(width, height, font_sizes=sizes)
    seen = set()
    for index in range(60):
        dice = SlowDice(f"0/train/{index}")
        expected_label = "".join(dice.choice(characters) for _ in range(length))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(captcha.image, "secrets", dice)
            expected = painter.generate_image(expected_label)
        label, picture = draw(config, "train", index)
        assert label == expected_label
        assert (picture.mode, picture.size) == ("RGB", (width, height))
        assert picture.tobytes() == expected.tobytes(), (label, index)
        seen |= set(label)
    assert seen == set(characters)


def test_the_dice_fall_as_pythons_own():
    ours, pythons = generate_captcha.Dice("x"), random.Random("x")
    for n in [*range(1, 300), 2**32, 10**12]:
        assert [ours.randbelow(n) for _ in range(9)] == [pythons.randrange(n) for _ in range(9)]


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (160, 60), (37, 230)])
def test_the_file_holds_the_picture_to_the_pixel(size, tmp_path):
    noise = random.Random(1).randbytes(3 * size[0] * size[1])
    picture = Image.frombytes("RGB", size, noise)
    (tmp_path / "abc.png").write_bytes(generate_captcha._png(picture))
    with Image.open(tmp_path / "abc.png") as found:
        found.verify()  # the checksums
    with Image.open(tmp_path / "abc.png") as found:
        assert (found.format, found.mode, found.size, found.tobytes()) == ("PNG", "RGB", size, noise)


def test_the_library_has_its_own_randomness_back_after_drawing():
    before = captcha.image.secrets
    draw(TINY, "train", 0)
    assert captcha.image.secrets is before


def test_default_letters_are_the_librarys_own_at_its_own_size():
    assert generate_captcha._painter(160, 60)._font_sizes == (42, 50, 56)


def test_sets_seeds_and_numbers_share_no_random_stream():
    pictures = [
        draw(config, name, index)[1].tobytes()
        for config in (TINY, replace(TINY, seed=1))
        for name in ("train", "validation", "test")
        for index in (0, 1)
    ]
    assert len(set(pictures)) == 12


@pytest.mark.parametrize("cores", [1, 3])
def test_pixels_do_not_depend_on_the_number_of_processes(cores, tiny, drawn, monkeypatch):
    monkeypatch.setattr(generate_captcha, "available_cores", lambda: cores)
    monkeypatch.setattr(generate_captcha, "CHUNK", 40)
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


def test_the_trainer_takes_sets_as_they_are_and_says_what_differs(drawn, capsys):
    Generate(replace(drawn, seed=3)).gen_captcha(keep=True)
    assert "used as it is, drawn with seed 0 (asked for: 3)" in capsys.readouterr().out
    with pytest.raises(CaptchaError, match=r"characters abcde \(asked for: abcdf\)"):
        Generate(replace(drawn, characters="abcdf")).gen_captcha(keep=True)


def test_a_killed_generation_is_not_taken_for_a_set_and_is_completed(tiny, drawn, tmp_path):
    config = replace(tiny, generate_num=(4000, 20, 30))
    command = [sys.executable, str(PROJECT / "generate_captcha.py"), *flags(config)]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("train/*.png"))) < 50 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.01)
    else:
        pytest.fail("processes that draw outlived the one that started them")
    count = len(list(tmp_path.glob("train/*.png")))
    assert 50 <= count < 4000
    with pytest.raises(CaptchaError, match="its drawing was interrupted"):
        ReadData(config).load_data("train")
    survivor = next(tmp_path.glob("train/*.png"))
    before = survivor.stat().st_mtime_ns
    Generate(config).gen_captcha()
    assert survivor.stat().st_mtime_ns == before
    assert ReadData(config).load_data("train")[2] == 4000
    whole = contents("train")
    assert all(
        whole[name] == data for name, data in contents(drawn.train_folder).items() if name.endswith("png")
    )


def test_ctrl_c_while_drawing_leaves_no_traceback(tmp_path):
    config = replace(TINY, generate_num=(20000, 20, 30))
    command = [sys.executable, str(PROJECT / "generate_captcha.py"), *flags(config)]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("train/*.png"))) < 50 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "generate_captcha.py: interrupted"


def test_other_peoples_pictures_are_never_drawn_among(tiny, tmp_path):
    for name in ("train", "validation", "test"):
        (tmp_path / name).mkdir()
    mine = tmp_path / "validation" / "abc.png"
    mine.write_bytes(b"mine")
    with pytest.raises(
        CaptchaError, match="validation must be empty to draw captchas into, but holds 1 files"
    ):
        Generate(tiny).gen_captcha()
    assert contents("validation") == {"abc.png": b"mine"}
    assert contents("train") == {}, "something was drawn before all folders were checked"


def test_own_pictures_are_not_mixed_with_drawn_ones(tiny, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "abc.png").write_bytes(b"mine")
    with pytest.raises(CaptchaError, match="validation must hold pictures of yours, as train does"):
        Generate(tiny).gen_captcha(keep=True)
    assert contents("validation") == contents("test") == {}
    for name in ("validation", "test"):
        (tmp_path / name / "abc.png").write_bytes(b"mine")
    Generate(tiny).gen_captcha(keep=True)
    assert contents("validation") == {"abc.png": b"mine"}


def test_a_file_in_place_of_a_folder_is_named(tiny, tmp_path):
    (tmp_path / "test").write_text("mine")
    with pytest.raises(CaptchaError, match="test must be a folder for captchas, but is a file"):
        Generate(tiny).gen_captcha()
    assert (tmp_path / "test").read_text() == "mine"


def test_symbols_that_the_font_lacks_are_named_and_nothing_is_drawn(tiny):
    with pytest.raises(CaptchaError, match="characters must be symbols that the captcha library's font has"):
        Generate(replace(tiny, characters="ab字")).gen_captcha()
    assert contents("train") == {}
    generate_captcha.check_drawable(replace(tiny, characters="0123456789abcxyzABCXYZ"))


def test_a_damaged_record_is_named(tiny, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "captchas.json").write_text("{")
    with pytest.raises(CaptchaError, match="must be the record of a drawn set, but cannot be read"):
        Generate(tiny).gen_captcha()


def test_a_full_disk_leaves_whole_pictures_only(tiny, monkeypatch):
    monkeypatch.setattr(generate_captcha, "available_cores", lambda: 1)
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
    assert len(list(Path("train").glob("*.png"))) == 40
    assert len(os.listdir("train")) == 41, "a half-written picture was left"


# ---------------------------------------------------------------------- labels


def test_label2vec_is_one_hot_and_vec2label_its_inverse():
    reader = ReadData(replace(TINY, width=160, height=60, char_num=4, characters=range(10)))
    vector = reader.label2vec("1327")
    assert vector.shape == (40,)
    assert vector.dtype == np.float32
    assert np.flatnonzero(vector).tolist() == [1, 13, 22, 37]
    assert vector.sum() == 4
    dice = random.Random(1)
    for _ in range(50):
        label = "".join(dice.choices("0123456789", k=4))
        assert reader.vec2label(reader.label2vec(label)) == label
    with pytest.raises(CaptchaError, match="a label must be 4 symbols of 0123456789, not '12'"):
        reader.label2vec("12")
    with pytest.raises(CaptchaError, match="a label's vector must have 40 values, not 39"):
        reader.vec2label(np.zeros(39))


@pytest.mark.parametrize("name", ["bad_000042.png", "bad.jpg", "bad_1_2_3.webp", "bad"])
def test_the_label_stands_before_the_first_underscore_or_the_extension(name):
    assert ReadData(TINY).label(name) == "bad"


# ---------------------------------------------------------------------- pictures of every kind

RAMP = np.tile(np.linspace(0, 255, 37).round().astype(np.uint8), (23, 1))


def written(tmp_path, picture, extension="png", **options):
    path = tmp_path / f"abc.{extension}"
    picture.save(path, **options)
    return ReadData(TINY).read_data(path)


@pytest.mark.parametrize(
    ("extension", "options", "tolerance"),
    [
        ("png", {}, 0),
        ("bmp", {}, 0),
        ("gif", {}, 0),
        ("webp", {"lossless": True}, 0),
        ("jpg", {"quality": 95}, 6),
    ],
)
def test_formats(extension, options, tolerance, tmp_path):
    image, label = written(tmp_path, Image.fromarray(RAMP), extension, **options)
    assert label == "abc"
    assert image.dtype == np.uint8
    assert image.shape == (23, 37)
    assert np.abs(image.astype(int) - RAMP).max() <= tolerance


def test_16_bits_are_scaled_and_not_cut_off(tmp_path):
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    image, _ = written(tmp_path, deep)
    assert np.array_equal(image, RAMP)


@pytest.mark.parametrize("mode", ["RGB", "1", "P", "CMYK"])
def test_modes_without_transparency_are_what_pillow_makes_of_them(mode, tmp_path):
    picture = Image.fromarray(RAMP).convert(mode)
    image, _ = written(tmp_path, picture, "jpg" if mode == "CMYK" else "png")
    expected = np.asarray(picture.convert("L"), int)
    assert np.abs(image - expected).max() <= (8 if mode == "CMYK" else 0)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_transparency_becomes_white(mode, tmp_path):
    picture = Image.new("RGBA", (37, 23), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 10, 23))
    picture.paste((0, 0, 0, 128), (10, 0, 20, 23))
    if mode == "PA":  # a palette with a transparent entry, as GIF and PNG have
        picture = Image.new("P", (37, 23), 1)
        picture.putpalette([0, 0, 0, 9, 9, 9])
        picture.paste(0, (0, 0, 10, 23))
        image, _ = written(tmp_path, picture, transparency=1)
    else:
        image, _ = written(tmp_path, picture.convert(mode))
        assert abs(int(image[3, 15]) - 127) <= 1
    assert (image[3, 5], image[3, 30]) == (0, 255)


# ---------------------------------------------------------------------- bad files


def png(array=RAMP):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def claiming(width, height):
    """A small PNG that claims that size."""
    data = bytearray(png())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def jpeg():
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (23, 37), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


NOISE = png(np.random.default_rng(0).integers(0, 255, (23, 37), dtype=np.uint8))
BAD_FILES = {
    "empty": (b"", "an empty file"),
    "text": (b"not a picture", "not a picture: no PNG, JPEG, BMP, GIF or WEBP"),
    "cut_png": (NOISE[: len(NOISE) // 2], "damaged PNG: "),
    "cut_jpeg": (jpeg()[:-200], "damaged JPEG: "),
    "flipped": (NOISE[:60] + bytes(b ^ 0xFF for b in NOISE[60:70]) + NOISE[70:], "damaged PNG: "),
    "small": (png(RAMP[:, :36]), "another size: 36x23 px, not 37x23"),
    "huge": (claiming(5000, 5000), "another size: 5000x5000 px, not 37x23"),
    "bomb": (claiming(2**31 - 1, 2**31 - 1), "a huge size: far more pixels than 37x23"),
    "folder": (None, "a folder"),
    "link": (None, "a link to nothing"),
}
BAD_NAMES = {
    "ab_1.png": "label of another length: 'ab' is not 3 symbols",
    "abz_1.png": "label outside the alphabet: 'z' in 'abz' is not in abcde",
    "_1.png": "label of another length: '' is not 3 symbols",
    "ab\n_1.png": r"label outside the alphabet: '\n' in 'ab\n' is not in abcde",
}


def put(path, kind):
    data, _ = BAD_FILES[kind]
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("nowhere")
    else:
        path.write_bytes(data)


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_says_what_is_wrong(kind, tmp_path):
    put(tmp_path / "abc_1.png", kind)
    with pytest.raises(PictureError) as caught:
        ReadData(TINY).read_data(tmp_path / "abc_1.png")
    assert str(caught.value).startswith(BAD_FILES[kind][1])


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_label_says_what_is_wrong(name, tmp_path):
    (tmp_path / name).write_bytes(png())
    with pytest.raises(PictureError) as caught:
        ReadData(TINY).read_data(tmp_path / name)
    assert str(caught.value).replace("\\\\", "\\") == BAD_NAMES[name]


def pictures(tmp_path, extension):
    """A picture of that format as bytes, what it shows, and a function that reads others in its place."""
    path = tmp_path / f"abc.{extension}"
    draw(TINY, "train", 0)[1].save(path)
    reader = ReadData(TINY)

    def read(content):
        path.write_bytes(content)
        try:
            return reader.read_picture(path)
        except PictureError as error:
            assert str(error).isprintable()  # noqa: PT017 - or it is a picture
            return None

    return path.read_bytes(), reader.read_picture(path), read


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_a_picture_cut_off_anywhere_is_refused_or_whole(extension, tmp_path):
    content, picture, read = pictures(tmp_path, extension)
    found = [read(content[:length]) for length in range(len(content))]
    whole = [each for each in found if each is not None]
    assert all(np.array_equal(each, picture) for each in whole)
    assert len(whole) < 8, "only what comes after the last row may be missing"


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_a_thousand_pictures_with_random_bytes_changed(extension, tmp_path):
    content, picture, read = pictures(tmp_path, extension)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(1000):
        changed = np.frombuffer(content, np.uint8).copy()
        places = random.integers(0, len(content), random.integers(1, 5))
        changed[places] ^= random.integers(1, 256, len(places), np.uint8)
        found = read(changed.tobytes())
        refused += found is None
        if found is not None and extension == "png":
            assert np.array_equal(found, picture), "PNG has checksums: nothing may be wrong in silence"
        assert found is None or (found.shape, found.dtype) == ((23, 37), np.uint8)
    assert refused > (950 if extension == "png" else 100)


def test_names_of_every_kind_are_no_crash(tmp_path, capsys):
    content, _, _ = pictures(tmp_path / "..", "png")
    good = [f"{'abcde'[i % 5]}{'abcde'[i // 5 % 5]}{'abcde'[i // 25]}_{i}.png" for i in range(120)]
    good += [
        "abc_" + "x" * 247 + ".png",
        "abc_\u0627\u0644\u0639\u0631\u0628\u064a\u0629.png",
        "abc_\u6f22\u5b57.png",
    ]
    bad = [
        "ab\ncd.png",
        "ab\\c.png",
        "\u0430bc.png",
        "\U0001f600.png",
        "\u202eabc.png",
        "abc\u0301.png",
        "a c.png",
    ]
    for name in good + bad:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "abd.png").mkdir()
    (tmp_path / "abe.png").symlink_to("abe.png")
    os.mkfifo(tmp_path / "aba.png")
    images, labels, count = ReadData(TINY).load_data(str(tmp_path))
    assert (len(images), len(labels), count) == (len(good),) * 3
    told = capsys.readouterr().err
    assert f"{len(bad) + 3} of {len(good) + len(bad) + 3} files left out" in told
    assert all(line.isprintable() for line in told.splitlines())


def test_a_picture_that_claims_a_huge_size_is_not_decoded(tmp_path, monkeypatch):
    (tmp_path / "abc.png").write_bytes(claiming(5000, 5000))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(PictureError, match="another size"):
        ReadData(TINY).read_data(tmp_path / "abc.png")


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def bombs(folder):
    """Small files, and one that is small on disk, that ask for gigabytes; the paths."""
    zeros = zlib.compressobj()
    gigabyte = b"".join(zeros.compress(bytes(2**20)) for _ in range(2**10)) + zeros.flush()
    head, pixels = b"\x89PNG\r\n\x1a\n" + png()[8:33], chunk(b"IDAT", zlib.compress(bytes(38 * 23)))
    end = chunk(b"IEND", b"")
    half = zlib.compress(bytes(2**19))
    stream = io.BytesIO()
    Image.fromarray(RAMP).save(stream, "GIF")
    gif = stream.getvalue()
    frame = gif.index(b",\0\0\0\0") + 5
    contents = {
        "pixels": head + chunk(b"IDAT", gigabyte) + end,
        "text": head + chunk(b"zTXt", b"a\0\0" + gigabyte) + pixels + end,
        "texts": head + b"".join(chunk(b"zTXt", b"%d\0\0" % i + half) for i in range(2000)) + pixels + end,
        "international": head + chunk(b"iTXt", b"a\0\1\0\0\0" + gigabyte) + pixels + end,
        "profile": head + chunk(b"iCCP", b"a\0\0" + gigabyte) + pixels + end,
        "later": head + pixels + chunk(b"zTXt", b"a\0\0" + gigabyte) + end,
        "frame": gif[:frame] + b"\xff" * 4 + gif[frame + 4 :],
        "claiming": claiming(30000, 30000),
        "long": head + (2**31 - 1).to_bytes(4, "big") + b"tEXt",
    }
    for name, content in contents.items():
        Path(folder, f"abc_{name}.png").write_bytes(content)
    os.truncate(Path(folder, "abc_long.png"), 3 * 2**30)  # a hole: takes no room on disk
    return [str(Path(folder, f"abc_{name}.png")) for name in contents]


MEASURED = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from conftest import TINY
from generate_captcha import PictureError, ReadData

def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

def read(path):
    try:
        ReadData(TINY).read_picture(path)
    except PictureError:
        pass

for path in sys.argv[2:4] * 10:
    read(path)
before = megabytes()
for path in sys.argv[4:]:
    read(path)
bombed = megabytes()
for path in sys.argv[2:4] * 5000:
    read(path)
print(bombed - before, megabytes() - bombed)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_memory_stays_bounded_with_bad_pictures(tmp_path):
    for kind in ("cut_png", "cut_jpeg"):
        put(tmp_path / f"abc_{kind}.png", kind)
    often = [str(tmp_path / f"abc_{kind}.png") for kind in ("cut_png", "cut_jpeg")]
    tests = str(PROJECT / "tests")
    command = [sys.executable, "-c", MEASURED, tests, *often, *bombs(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=300)
    by_bombs, by_ten_thousand = map(int, done.stdout.split())
    assert by_bombs < 128, "MB; nine files ask for a gigabyte each or more"
    assert by_ten_thousand < 8


@pytest.fixture
def folder(tmp_path, drawn):
    """A folder of 150 good pictures, drawn."""
    for name, data in contents(drawn.train_folder).items():
        if name.endswith(".png"):
            (tmp_path / name).write_bytes(data)
    return tmp_path


def test_load_data_gives_pictures_labels_and_their_number(folder, drawn):
    reader = ReadData(TINY)
    images, labels, count = reader.load_data(str(folder))
    assert (images.shape, images.dtype) == ((150, 23, 37), np.uint8)
    assert (labels.shape, labels.dtype, count) == ((150, 15), np.float32, 150)
    names = sorted(p.name for p in folder.iterdir())
    assert [reader.vec2label(vector) for vector in labels] == [name[:3] for name in names]
    for i in (0, 77, 149):
        assert np.array_equal(images[i], reader.read_data(folder / names[i])[0])


def test_pictures_are_loaded_alike_by_one_process_and_by_several(folder, monkeypatch, capsys):
    put(folder / "aaa_text.png", "text")
    images, labels, count = ReadData(TINY).load_data(str(folder))
    told = capsys.readouterr().err
    monkeypatch.setattr(generate_captcha, "LOADED_ALONE", 0)
    monkeypatch.setattr(generate_captcha, "CHUNK", 40)
    monkeypatch.setattr(generate_captcha, "available_cores", lambda: 3)
    started, executor = [], generate_captcha.ProcessPoolExecutor
    monkeypatch.setattr(
        generate_captcha,
        "ProcessPoolExecutor",
        lambda workers, *rest: started.append(workers) or executor(workers, *rest),
    )
    others, other_labels, other_count = ReadData(TINY).load_data(str(folder))
    assert count == other_count == 150
    assert np.array_equal(images, others)
    assert np.array_equal(labels, other_labels)
    assert capsys.readouterr().err == told
    assert started == [3]


def test_bad_files_are_left_out_named_and_counted(folder, capsys):
    for kind in BAD_FILES:
        put(folder / f"aaa_{kind}.png", kind)
    for name in BAD_NAMES:
        (folder / name).write_bytes(png())
    for name in (".DS_Store", "Thumbs.db", ".hidden.png", "desktop.ini"):
        (folder / name).write_bytes(b"x")
    images, labels, count = ReadData(TINY).load_data(str(folder))
    assert len(images) == len(labels) == count == 150
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{folder}: 14 of 164 files left out"
    assert len(lines) == 12
    named = {line.split(": ")[1] for line in lines[1:11]}
    counts = {"2 damaged PNG", "1 damaged JPEG", "2 another size", "1 a huge size", "1 an empty file"}
    counts |= {"1 not a picture", "1 a folder", "1 a link to nothing"}
    counts |= {"2 label of another length", "2 label outside the alphabet"}
    assert named == {count[2:] for count in counts}, "one of each kind comes first"
    assert lines[11].startswith("  and 4 more; in all: 2 ")
    assert set(lines[11][22:].split(", ")) == counts
    assert "hidden" not in "".join(lines)


def test_more_than_a_tenth_of_bad_files_stops(folder, capsys):
    for i in range(16):
        (folder / f"abc_bad{i}.png").write_bytes(b"")
    assert ReadData(TINY).load_data(str(folder))[2] == 150
    (folder / "abc_more.png").write_bytes(b"")
    with pytest.raises(CaptchaError, match="must hold at most a tenth of bad files, but 17 of 167 are"):
        ReadData(TINY).load_data(str(folder))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (False, "must be a folder of pictures, but there is none"),
        (True, "but holds none that can be used"),
    ],
)
def test_a_missing_or_empty_folder_is_named(make, words, tmp_path):
    if make:
        (tmp_path / "own").mkdir()
    with pytest.raises(CaptchaError, match=words):
        ReadData(TINY).load_data(str(tmp_path / "own"))
