"""Captchas of many styles: repeatable, of the size and alphabet asked for, with all of their text visible."""

import re
import string
from pathlib import Path

import captcha
import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image, ImageFont

from captcha_cnn.styles import (
    STYLE_CHARACTERS,
    background,
    choices,
    distractors,
    draw,
    draw_styled,
    draw_styles,
    fonts,
    text,
)
from captcha_cnn.styles.choices import EFFECTS, INCOMPATIBLE, Style
from config import CaptchaError

SIZE = (97, 41)


@pytest.fixture
def droid_only(tmp_path, monkeypatch):
    """Only one font is found, the one that the `captcha` package always brings; a function to add others."""
    folder = tmp_path / "font_test" / "files"
    folder.mkdir(parents=True)
    droid = Path(captcha.__file__).parent / "data" / "DroidSansMono.ttf"
    (folder / droid.name).write_bytes(droid.read_bytes())
    monkeypatch.setattr(fonts.sys, "path", [str(tmp_path)])
    fonts.font_families.cache_clear()
    yield folder
    fonts.font_families.cache_clear()


def generator(seed):
    return np.random.default_rng(seed)


def mean_difference(first, second):
    return np.abs(first.astype(int) - second).mean()


# ---------------------------------------------------------------------- what is drawn


def test_repeatable_and_independent_of_processes_and_neighbours(monkeypatch):
    monkeypatch.setattr("captcha_cnn.parallel.CHUNK_SIZE", 3)
    monkeypatch.setattr("captcha_cnn.parallel.available_cores", lambda: 2)
    images, labels = draw_styles(7, 5, STYLE_CHARACTERS, (2, 4), SIZE)
    more, more_labels = draw_styles(9, 5, STYLE_CHARACTERS, (2, 4), SIZE)
    assert np.array_equal(images, more[:7])
    assert labels == more_labels[:7]
    assert len({image.tobytes() for image in more}) == len(set(more_labels)) == 9
    others, other_labels = draw_styles(7, 6, STYLE_CHARACTERS, (2, 4), SIZE)
    assert all(mean_difference(image, other) > 0 for image, other in zip(images, others, strict=True))
    assert labels != other_labels


def test_two_processes_draw_the_same_as_one(monkeypatch):
    expected, labels = draw._draw_chunk(3, STYLE_CHARACTERS, (2, 4), SIZE, range(120))
    monkeypatch.setattr("captcha_cnn.parallel.available_cores", lambda: 2)
    images, drawn_labels = draw_styles(120, 3, STYLE_CHARACTERS, (2, 4), SIZE)
    assert np.array_equal(images, expected)
    assert drawn_labels == labels


def test_an_image_depends_on_its_generator_alone():
    first, label = draw_styled(generator(8), STYLE_CHARACTERS, (3, 5), SIZE)
    np.random.seed(1)
    draw_styled(generator(9), STYLE_CHARACTERS, (3, 5), SIZE)
    again, same_label = draw_styled(generator(8), STYLE_CHARACTERS, (3, 5), SIZE)
    assert np.array_equal(first, again)
    assert label == same_label


@pytest.mark.parametrize("size", [(37, 23), (160, 60), (61, 90), (23, 5), (301, 17)])
def test_size_is_honoured(size):
    random = generator(1)
    for _ in range(12):
        image, _ = draw_styled(random, STYLE_CHARACTERS, (1, 7), size)
        assert (image.dtype, image.shape) == (np.uint8, (size[1], size[0]))


@pytest.mark.parametrize("alphabet", [STYLE_CHARACTERS, "7", "abc", "XYZ19", "q0Z+?"])
def test_labels_are_within_alphabet_and_lengths(alphabet):
    random = generator(2)
    labels = [choices.random_label(random, alphabet, (2, 5)) for _ in range(300)]
    assert set("".join(labels)) == set(alphabet) or alphabet == STYLE_CHARACTERS
    assert {len(label) for label in labels} == {2, 3, 4, 5}
    _, label = draw_styled(random, alphabet, (2, 5), SIZE)
    assert set(label) <= set(alphabet)
    assert 2 <= len(label) <= 5


def test_every_character_occurs_and_every_kind_of_label():
    random = generator(3)
    labels = [choices.random_label(random, STYLE_CHARACTERS, (4, 6)) for _ in range(600)]
    assert set("".join(labels)) == set(STYLE_CHARACTERS)
    for kind in (string.digits, string.ascii_uppercase, string.ascii_lowercase):
        assert 0.1 < np.mean([set(label) <= set(kind) for label in labels]) < 0.3
    cases = [{"upper" if c.isupper() else "lower" for c in label if c.isalpha()} for label in labels]
    assert 0.1 < np.mean([len(case) == 2 for case in cases]) < 0.25


def test_the_text_is_visible_and_inside_the_image(monkeypatch):
    """Drawn again without its text, each image differs where the text is."""
    paint = draw._paint_text
    places = []

    def paint_elsewhere(random, style, image, text, place):
        paint(random, style, image.copy(), text, place)  # takes the same random numbers

    def paint_and_note(random, style, image, text, place):
        places.append((image.size, text.mask.size, place))
        paint(random, style, image, text, place)

    changed = []
    for seed in range(150):
        lengths = (3, 5) if seed % 3 else (7, 9)
        monkeypatch.setattr(draw, "_paint_text", paint_and_note)
        image, label = draw_styled(generator(seed), STYLE_CHARACTERS, lengths, SIZE)
        monkeypatch.setattr(draw, "_paint_text", paint_elsewhere)
        empty, _ = draw_styled(generator(seed), STYLE_CHARACTERS, lengths, SIZE)
        changed.append((np.abs(image.astype(int) - empty) > 25).sum() / len(label))  # pixels a character
    for size, mask, (left, top) in places:
        assert 0 <= left <= size[0] - mask[0], "text is cut off"
        assert 0 <= top <= size[1] - mask[1], "text is cut off"
        assert 1.6 < size[0] / size[1] < 6.5
    assert len(places) == 150
    assert min(changed) > 4
    assert np.quantile(changed, 0.05) > 12
    assert np.median(changed) > 40


# ---------------------------------------------------------------------- styles


def styled(*effects, seed=1):
    """The style of a random captcha, with these effects and no other."""
    style = choices.random_style(generator(seed), "A1b", SIZE)
    return Style(**{**vars(style), "effects": frozenset(effects), "behind": frozenset(), "strength": 1.0})


def draw_with(monkeypatch, *effects, seed=1):
    """An image with these effects and no other, the rest of it the same for the same seed."""
    style = styled(*effects, seed=seed)
    monkeypatch.setattr(draw, "random_style", lambda random, label, size: style)
    monkeypatch.setattr(draw, "random_label", lambda random, alphabet, lengths: "A1b")
    image, _ = draw_styled(generator(seed), STYLE_CHARACTERS, (3, 3), SIZE)
    return image


@pytest.mark.parametrize("effect", sorted(EFFECTS))
def test_each_effect_changes_the_image(effect, monkeypatch):
    """What only the style says (colours, contrast, size of an outline) is left out."""
    if effect in ("colours", "low contrast", "stroke"):
        pytest.skip("set by random_style")
    differences = []
    for seed in range(6):
        plain = draw_with(monkeypatch, seed=seed)
        differences.append(mean_difference(plain, draw_with(monkeypatch, effect, seed=seed)))
    assert max(differences) > 0.5


@pytest.mark.parametrize("other", ["colours", "ink gradient", "shadow"])
def test_text_stays_when_an_image_becomes_black_and_white(other, monkeypatch):
    for seed in range(10):
        image = draw_with(monkeypatch, "black and white", other, seed=seed)
        background = np.median(np.concatenate([image[:2].ravel(), image[-2:].ravel()]))
        assert (np.abs(image - background) > 200).mean() > 0.01


@pytest.mark.parametrize("effect", ["black and white", "posterise", "palette"])
def test_every_ink_differs_from_the_background_after_encoding(effect):
    for seed in range(40):
        style = Style(**{**vars(styled(effect)), "ground": 240, "inks": (10, 40, 148)})
        image = Image.fromarray(np.repeat(np.array([style.ground, *style.inks], np.uint8), 30)[None])
        ground, *inks = np.asarray(draw._encode(generator(seed), style, image)).reshape(4, 30).mean(axis=1)
        assert all(ground - ink > 40 for ink in inks)


def test_styles_use_every_effect_and_a_quarter_are_nearly_plain():
    random = generator(4)
    found = [choices.random_style(random, "A1b", SIZE) for _ in range(800)]
    assert set().union(*(style.effects for style in found)) == set(EFFECTS)
    assert 0.2 < np.mean([len(style.effects) <= 2 for style in found]) < 0.33
    assert max(len(style.effects) for style in found) >= 8
    for style in found:
        for effect in style.effects:
            assert not style.effects & set(INCOMPATIBLE.get(effect, ()))
    families = {fonts.family_name(style.font) for style in found}
    assert len(families) > 0.9 * len(fonts.font_families())


def test_names_of_effects_are_those_that_the_drawing_knows():
    assert set(EFFECTS) >= background.BACKGROUNDS
    assert set(distractors.STROKES) | {"dots"} == choices.DISTRACTORS <= set(EFFECTS)
    assert set(distractors.STROKE_LENGTHS) == set(distractors.STROKES)
    assert {*INCOMPATIBLE}.union(*INCOMPATIBLE.values()) <= set(EFFECTS)


def test_ink_and_background_differ():
    random = generator(5)
    different = 0
    for _ in range(400):
        style = choices.random_style(random, "A1b", SIZE)
        contrast = [ink - style.ground for ink in style.inks]
        assert min(map(abs, contrast)) >= (44 if "low contrast" in style.effects else 89)
        assert "low contrast" not in style.effects or max(map(abs, contrast)) <= 86
        assert "colours" in style.effects or len(set(contrast)) == 1
        assert len({value > 0 for value in contrast}) == 1
        assert all(0 <= value <= 255 for value in (style.ground, *style.inks))
        assert (style.stroke > 0) == bool(style.effects & {"stroke", "hollow"})
        different += len(set(contrast)) > 1
    assert different > 20


# ---------------------------------------------------------------------- fonts


def test_fonts_are_sorted_files_and_the_captcha_package_has_one():
    paths = fonts.style_fonts()
    names = [Path(path).name for path in paths]
    assert names == sorted(set(names))
    assert "DroidSansMono.ttf" in names
    assert all(Path(path).is_file() for path in paths)


def test_one_font_is_enough(droid_only):
    assert fonts.style_fonts() == [str(droid_only / "DroidSansMono.ttf")]
    image, _ = draw_styled(generator(1), STYLE_CHARACTERS, (3, 3), SIZE)
    assert image.std() > 1


def test_no_fonts_is_an_error_that_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(fonts.sys, "path", [str(tmp_path)])
    with pytest.raises(CaptchaError, match=r"pip install -r requirements-styles\.txt"):
        fonts.style_fonts()


def test_a_character_without_a_font_is_an_error(droid_only):
    with pytest.raises(CaptchaError, match="not '\N{HIRAGANA LETTER A}'"):
        draw_styled(generator(1), "\N{HIRAGANA LETTER A}", (3, 3), SIZE)


def test_a_font_without_a_glyph_is_not_used_for_it(droid_only, monkeypatch):
    other = droid_only / "Other.ttf"
    other.write_bytes((droid_only / "DroidSansMono.ttf").read_bytes())
    fonts.font_families.cache_clear()
    has_glyph = fonts.has_glyph
    monkeypatch.setattr(fonts, "has_glyph", lambda path, c: "Other" not in path or c != "A")
    fonts.is_usable.cache_clear()
    random = generator(1)
    assert {Path(choices.random_font(random, "B")).stem for _ in range(40)} == {
        "DroidSansMono",
        "Other",
    }
    assert {Path(choices.random_font(random, "BA")).stem for _ in range(40)} == {"DroidSansMono"}
    fonts.is_usable.cache_clear()
    assert has_glyph(str(other), "A")
    assert not has_glyph(str(other), "\N{HIRAGANA LETTER A}")


def test_an_image_draws_no_glyph_that_its_font_lacks(monkeypatch):
    """Per character: the main font may lack one of the label."""
    if len(fonts.style_fonts()) < 2:
        pytest.skip("needs a second font: pip install -r requirements-styles.txt")
    used = []
    load = ImageFont.FreeTypeFont.getbbox

    def note(font, text, *arguments, **options):
        used.append((font.path, text))
        return load(font, text, *arguments, **options)

    style = styled()
    lacking = style.font
    usable = fonts.is_usable
    monkeypatch.setattr(
        "captcha_cnn.styles.text.is_usable", lambda path, c: (path, c) != (lacking, "A") and usable(path, c)
    )
    monkeypatch.setattr(
        "captcha_cnn.styles.text.font_with",
        lambda random, c: next(p for p in fonts.style_fonts() if p != lacking),
    )
    monkeypatch.setattr(ImageFont.FreeTypeFont, "getbbox", note)
    text.draw_text(generator(1), style, "A1b")
    drawn = [(path, text) for path, text in used if text in ("A", "1")]
    assert {path == lacking for path, text in drawn if text == "A"} == {False}
    assert {path == lacking for path, text in drawn if text == "1"} == {True}


@pytest.mark.parametrize(
    ("name", "expected"), [("BebasNeue", True), ("AmaticSC", True), ("DroidSansMono", False)]
)
def test_capitals_are_not_used_for_lower_case(name, expected):
    if name not in fonts.font_families():
        pytest.skip("a font of requirements-styles.txt")
    path = fonts.font_families()[name][0]
    assert fonts.draws_capitals_only(path) == expected
    assert fonts.is_usable(path, "a") != expected
    assert fonts.is_usable(path, "A")


def test_a_font_of_capitals_is_found_by_its_shapes(monkeypatch):
    path = next(path for path in fonts.style_fonts() if "DroidSansMono" in path)
    shape = fonts._glyph_shape
    monkeypatch.setattr(fonts, "_glyph_shape", lambda path, character: shape(path, character.upper()))
    assert fonts.draws_capitals_only.__wrapped__(path)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("PT_Sans-Web-Bold.ttf", "PT_Sans"),
        ("Roboto[wdth,wght].ttf", "Roboto"),
        ("STIXGeneralBolIta.ttf", "STIX"),
        ("DejaVuSansMono-Bold.ttf", "DejaVuSansMono"),
        ("Zeyada.ttf", "Zeyada"),
    ],
)
def test_family_names(name, family):
    assert fonts.family_name(f"/fonts/{name}") == family


def test_the_page_on_fonts_counts_what_it_lists():
    page = (PROJECT / "docs" / "fonts.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")][1:]
    files = sum(int(row[2]) for row in rows)
    assert f"{files} font files of {len(rows)}\nfamilies" in page
    needed = (PROJECT / "requirements-styles.txt").read_text(encoding="utf-8")
    packages = {row[3].strip(" `") for row in rows}
    assert packages == {*re.findall(r"^[\w-]+", needed, re.MULTILINE), "captcha"}
