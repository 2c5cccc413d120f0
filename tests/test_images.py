"""Decoding images of every format and mode; damaged files and files that ask for too much memory."""

import io
import os
import re
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bad_files import BAD_FILES, RAMP, png, png_with_claimed_size, write_bad_file
from conftest import PROJECT, TINY
from PIL import Image

from captcha_cnn import images
from captcha_cnn.drawing import draw_captcha
from captcha_cnn.images import ImageError, contrast_grayscale, decode_image, fit_image, image_for
from generate_captcha import ReadData

SIZE = (TINY.width, TINY.height)


def saved_and_read(tmp_path, image, extension="png", **options):
    path = tmp_path / f"abc.{extension}"
    image.save(path, **options)
    return ReadData(TINY).read_data(path)


# ---------------------------------------------------------------------- formats and modes


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
    image, label = saved_and_read(tmp_path, Image.fromarray(RAMP), extension, **options)
    assert label == "abc"
    assert image.dtype == np.uint8
    assert image.shape == (23, 37)
    assert np.abs(image.astype(int) - RAMP).max() <= tolerance


def test_16_bit_files_are_scaled_to_8_bits(tmp_path):
    image, _ = saved_and_read(tmp_path, Image.fromarray(RAMP.astype(np.uint16) * 257))
    assert np.array_equal(image, RAMP)


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_modes_i_and_f_with_8_bit_values_are_read_as_they_are(mode, dtype):
    image = Image.fromarray(RAMP.astype(dtype))
    assert image.mode == mode
    assert np.array_equal(decode_image(image, SIZE), RAMP)
    assert np.array_equal(decode_image(Image.fromarray(RAMP).convert(mode), SIZE), RAMP)


def test_mode_f_is_rounded_and_limited_to_8_bits():
    values = np.full((23, 37), 7.4, np.float32)
    values[0, :4] = (7.6, -3, 254.8, 255)
    image = decode_image(Image.fromarray(values), SIZE)
    assert image[0, :5].tolist() == [8, 0, 255, 255, 7]


@pytest.mark.parametrize(
    ("mode", "dtype"), [("I", np.int32), ("F", np.float32), ("I;16", np.uint16), ("I;16B", ">u2")]
)
def test_16_bit_values_are_scaled_in_every_mode(mode, dtype):
    image = Image.frombytes(mode, SIZE, (RAMP.astype(np.uint16) * 257).astype(dtype).tobytes())
    assert np.array_equal(decode_image(image, SIZE), RAMP)


def test_mode_i_16_with_small_values_is_nearly_black():
    image = Image.fromarray(RAMP.astype(np.uint16))
    assert image.mode == "I;16"
    assert decode_image(image, SIZE).max() == 1, "255 of 65,535"


@pytest.mark.parametrize("mode", ["RGB", "1", "P", "CMYK"])
def test_modes_without_transparency_become_what_pillow_makes_of_them(mode, tmp_path):
    image = Image.fromarray(RAMP).convert(mode)
    found, _ = saved_and_read(tmp_path, image, "jpg" if mode == "CMYK" else "png")
    expected = np.asarray(image.convert("L"), int)
    assert np.abs(found - expected).max() <= (8 if mode == "CMYK" else 0)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_transparency_becomes_white(mode, tmp_path):
    image = Image.new("RGBA", (37, 23), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 10, 23))
    image.paste((0, 0, 0, 128), (10, 0, 20, 23))
    if mode == "PA":  # a palette with a transparent entry, as GIF and PNG have
        image = Image.new("P", (37, 23), 1)
        image.putpalette([0, 0, 0, 9, 9, 9])
        image.paste(0, (0, 0, 10, 23))
        found, _ = saved_and_read(tmp_path, image, transparency=1)
    else:
        found, _ = saved_and_read(tmp_path, image.convert(mode))
        assert abs(int(found[3, 15]) - 127) <= 1
    assert (found[3, 5], found[3, 30]) == (0, 255)


# ---------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_refused_with_the_reason(kind, tmp_path):
    write_bad_file(tmp_path / "abc_1.png", kind)
    with pytest.raises(ImageError) as caught:
        ReadData(TINY).read_data(tmp_path / "abc_1.png")
    assert str(caught.value).startswith(BAD_FILES[kind][1])


def file_and_reader(tmp_path, extension):
    """A file of that format as bytes, its image, and a function that reads other bytes in its place."""
    path = tmp_path / f"abc.{extension}"
    draw_captcha(TINY, "train", 0)[1].save(path)

    def read(content):
        path.write_bytes(content)
        try:
            return decode_image(path, SIZE)
        except ImageError as error:
            assert str(error).isprintable()  # noqa: PT017 - or it is an image
            return None

    return path.read_bytes(), decode_image(path, SIZE), read


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_a_file_cut_off_anywhere_is_refused_or_read_completely(extension, tmp_path):
    content, image, read = file_and_reader(tmp_path, extension)
    found = [read(content[:length]) for length in range(len(content))]
    complete = [each for each in found if each is not None]
    assert all(np.array_equal(each, image) for each in complete)
    assert len(complete) < 8, "only what comes after the last row may be missing"


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_a_thousand_files_with_random_bytes_changed(extension, tmp_path):
    content, image, read = file_and_reader(tmp_path, extension)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(1000):
        changed = np.frombuffer(content, np.uint8).copy()
        places = random.integers(0, len(content), random.integers(1, 5))
        changed[places] ^= random.integers(1, 256, len(places), np.uint8)
        found = read(changed.tobytes())
        refused += found is None
        if found is not None and extension == "png":
            assert np.array_equal(found, image), "PNG has checksums: no error may go unnoticed"
        assert found is None or (found.shape, found.dtype) == ((23, 37), np.uint8)
    assert refused > (950 if extension == "png" else 100)


# ---------------------------------------------------------------------- memory


def test_an_image_that_claims_a_huge_size_is_not_decoded(tmp_path, monkeypatch):
    (tmp_path / "abc.png").write_bytes(png_with_claimed_size(5000, 5000))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="another size"):
        ReadData(TINY).read_data(tmp_path / "abc.png")


def png_chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def write_bombs(folder):
    """Small files, and one that is small on disk, that ask for gigabytes; their paths."""
    zeros = zlib.compressobj()
    gigabyte = b"".join(zeros.compress(bytes(2**20)) for _ in range(2**10)) + zeros.flush()
    head, pixels = b"\x89PNG\r\n\x1a\n" + png()[8:33], png_chunk(b"IDAT", zlib.compress(bytes(38 * 23)))
    end = png_chunk(b"IEND", b"")
    half = zlib.compress(bytes(2**19))
    texts = b"".join(png_chunk(b"zTXt", b"%d\0\0" % i + half) for i in range(2000))
    stream = io.BytesIO()
    Image.fromarray(RAMP).save(stream, "GIF")
    gif = stream.getvalue()
    frame = gif.index(b",\0\0\0\0") + 5
    contents = {
        "pixels": head + png_chunk(b"IDAT", gigabyte) + end,
        "text": head + png_chunk(b"zTXt", b"a\0\0" + gigabyte) + pixels + end,
        "texts": head + texts + pixels + end,
        "international": head + png_chunk(b"iTXt", b"a\0\1\0\0\0" + gigabyte) + pixels + end,
        "profile": head + png_chunk(b"iCCP", b"a\0\0" + gigabyte) + pixels + end,
        "later": head + pixels + png_chunk(b"zTXt", b"a\0\0" + gigabyte) + end,
        "frame": gif[:frame] + b"\xff" * 4 + gif[frame + 4 :],
        "claiming": png_with_claimed_size(30000, 30000),
        "long": head + (2**31 - 1).to_bytes(4, "big") + b"tEXt",
    }
    for name, content in contents.items():
        Path(folder, f"abc_{name}.png").write_bytes(content)
    os.truncate(Path(folder, "abc_long.png"), 3 * 2**30)  # a sparse file: takes no room on disk
    return [str(Path(folder, f"abc_{name}.png")) for name in contents]


MEASURE_MEMORY = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from conftest import TINY
from captcha_cnn.images import ImageError, decode_image

def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

def read(path):
    try:
        decode_image(path, (TINY.width, TINY.height))
    except ImageError:
        pass

for path in sys.argv[2:4] * 10:
    read(path)
before = megabytes()
for path in sys.argv[4:]:
    read(path)
after_bombs = megabytes()
for path in sys.argv[2:4] * 5000:
    read(path)
print(after_bombs - before, megabytes() - after_bombs)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_memory_stays_bounded_with_bad_files(tmp_path):
    damaged = [str(tmp_path / f"abc_{kind}.png") for kind in ("cut_png", "cut_jpeg")]
    for path, kind in zip(damaged, ("cut_png", "cut_jpeg"), strict=True):
        write_bad_file(Path(path), kind)
    tests = str(PROJECT / "tests")
    command = [sys.executable, "-c", MEASURE_MEMORY, tests, *damaged, *write_bombs(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=300)
    from_bombs, from_ten_thousand = map(int, done.stdout.split())
    assert from_bombs < 128, "MB; nine files ask for a gigabyte each or more"
    assert from_ten_thousand < 8


# ---------------------------------------------------------------------- images of any size


SIZES = [(37, 23), (40, 20), (20, 40), (1, 1), (100, 3), (3, 100), (74, 46), (36, 23), (37, 22)]


def documented_fit():
    """The function that docs/export.md shows, for those who read exported files without this project."""
    page = (PROJECT / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "def fit(" in code]
    names = {}
    exec(code, names)
    return names["fit"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("skipped", [(0, 0), (0.3, 0.29), (0.9, 0), (0.02, 0.97)])
@pytest.mark.parametrize("stretch", [1.0, 1.37, 0.5, 10.0])
def test_the_documented_scaling_gives_the_very_same_pixels(size, skipped, stretch):
    random = np.random.default_rng(0)
    colours = random.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    gray = np.repeat(colours[..., :1], 3, axis=2)
    for rgb, colour in ((colours, False), (gray, False), (colours, True)):
        for width, height in ((37, 23), (160, 60)):
            scaling = dict(zip(("skip_top", "skip_bottom"), skipped, strict=True), stretch=stretch)
            scaling["colour"] = colour
            config = replace(TINY, images="mine", width=width, height=height, **scaling)
            expected = image_for(rgb, config)
            assert (expected.shape, expected.dtype) == (config.image_shape, np.uint8)
            assert np.array_equal(documented_fit()(rgb, width, height, **scaling), expected)


def test_an_image_of_the_models_size_stays_as_it_is():
    assert fit_image(RAMP, (37, 23)) is RAMP
    config = replace(TINY, images="mine")
    assert np.array_equal(image_for(Image.fromarray(RAMP), config), RAMP)


def test_an_image_is_centred_and_padded_with_the_median_of_its_border():
    image = np.full((10, 10), 90, np.uint8)
    image[4:6, 4:6] = 200
    image[0, :3] = 0  # a few pixels of something else
    fitted = fit_image(image, (30, 10))
    assert np.array_equal(fitted[:, 10:20], image)
    assert (fitted[:, :10] == 90).all()
    assert (fitted[:, 20:] == 90).all()


def test_the_stretch_is_horizontal():
    image = np.tile(np.arange(0, 200, 10, dtype=np.uint8), (20, 1))
    fitted = fit_image(image, (60, 20), 2.0)
    assert (fitted[:, :10] == fitted[0, 0]).all()
    assert fitted[0, 10] < 10 < 180 < fitted[0, 49], "40 px wide"


def test_drawn_captchas_must_have_the_size_and_own_images_need_not():
    image = Image.fromarray(RAMP).resize((50, 30))
    with pytest.raises(ImageError, match="another size: 50x30 px, not 37x23"):
        image_for(image, TINY)
    assert image_for(image, replace(TINY, images="mine")).shape == (23, 37)


def test_an_image_without_pixels_or_with_too_many_is_refused(monkeypatch):
    config = replace(TINY, images="mine")
    with pytest.raises(ImageError, match="not an image"):
        image_for(np.zeros((0, 5), np.uint8), config)
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"a huge size: 50x30 px, not at most 1,000 in all"):
        image_for(Image.new("L", (50, 30)), config)


def test_only_the_rows_named_are_read():
    image = np.zeros((20, 10, 3), np.uint8)
    image[5:15] = 200
    config = replace(TINY, images="mine", skip_top=0.25, skip_bottom=0.25)
    assert (image_for(image, config) == 200).all()
    assert (image_for(image, replace(config, skip_top=0.0)) == 0).any()


# ---------------------------------------------------------------------- gray from colour


def test_text_of_the_grounds_luminance_stays_visible():
    rgb = np.full((20, 30, 3), (200, 60, 60), np.uint8)
    rgb[5:15, 5:10] = (60, 131, 60)  # both have a luminance of 102
    luminance = decode_image(rgb)
    assert int(np.ptp(luminance)) <= 1
    gray = contrast_grayscale(rgb)
    assert abs(int(gray[6, 6]) - int(gray[0, 0])) > 100
    assert len(np.unique(gray)) == 2


def test_no_colour_is_lost_for_another_that_covers_more():
    rgb = np.full((20, 60, 3), (128, 128, 128), np.uint8)
    rgb[5:15, 5:30] = (228, 128, 128)  # red alone would make the most of this one
    rgb[5:15, 40:45] = (128, 228, 128)
    gray = contrast_grayscale(rgb).astype(int)
    assert min(abs(gray[6, 6] - gray[0, 0]), abs(gray[6, 42] - gray[0, 0])) >= 10


@pytest.mark.parametrize("value", [0, 77, 255])
def test_gray_images_stay_gray(value):
    random = np.random.default_rng(1)
    gray = random.integers(0, 255, (20, 30), dtype=np.uint8)
    assert np.array_equal(contrast_grayscale(np.repeat(gray[..., None], 3, axis=2)), gray)
    one_colour = np.full((5, 7, 3), (value, 20, 30), np.uint8)
    assert len(np.unique(contrast_grayscale(one_colour))) == 1
