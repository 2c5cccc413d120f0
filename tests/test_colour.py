"""`--colour`: images stay red, green and blue, from the file to the exported model."""

import base64
import io
import json
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY, script
from graph_helpers import drawn_batch, new_model, run
from own_folder import make_labels
from PIL import Image

import driver
import export
from captcha_cnn import augment, plateau
from captcha_cnn.check_page import make_sample
from captcha_cnn.checkpoint import load_latest
from captcha_cnn.drawing import draw_captcha
from captcha_cnn.exported_model import INPUT, OUTPUTS, load_exported
from captcha_cnn.images import fit_image, image_for, to_rgb
from captcha_cnn.initial_weights import adapt, find_initial_weights, load_initial_weights, of_checkpoint
from captcha_cnn.own_images import find_images
from captcha_cnn.own_sets import load_own_sets
from captcha_cnn.summaries import draw_worst_predictions
from config import Config, ConfigError
from generate_captcha import ReadData
from predict import Predictor

COLOUR = replace(TINY, colour=True)
SHAPE = (TINY.height, TINY.width, 3)
GROUND, RED, GREEN = (250, 240, 200), (200, 30, 20), (20, 150, 60)


def colour_image(number, size=(37, 23)):
    """Random pixels; the same for the same number."""
    random = np.random.default_rng(number)
    return Image.fromarray(random.integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


def write_folder(folder, count, first=0, labelled=True):
    """Images of random colours, with labels in their names or without."""
    folder.mkdir()
    for number, label in enumerate(make_labels(count), first):
        colour_image(number).save(folder / (f"{label}_{number}.png" if labelled else f"{number}.png"))


def bars(*colours):
    """An image of the tiny size with a bar of each colour beside the other."""
    image = np.full(SHAPE, GROUND, np.uint8)
    for left, colour in zip((1, 13, 25), colours, strict=False):
        image[5:15, left : left + 10] = colour
    return image


def in_rgb(images):
    return np.repeat(images[..., None], 3, axis=-1)


# ---------------------------------------------------------------------- images


def test_the_setting_is_yes_or_no_and_gray_is_the_default():
    assert Config().image_shape == (60, 160)
    assert COLOUR.image_shape == SHAPE
    with pytest.raises(ConfigError, match="colour must be True or False, not 'red'"):
        Config(colour="red")


def test_drawn_and_own_images_keep_their_colours():
    _, drawn = draw_captcha(TINY, "test", 0)
    assert np.array_equal(image_for(drawn, COLOUR), to_rgb(drawn))
    own = replace(COLOUR, images="mine", skip_top=0.25, skip_bottom=0.175)
    image = colour_image(1, (37, 40))
    assert np.array_equal(image_for(image, own), np.asarray(image)[10:-7])
    with pytest.raises(Exception, match="another size"):
        image_for(image, COLOUR)


def test_an_image_is_padded_with_the_median_of_each_colour_at_its_border():
    image = np.full((10, 10, 3), GROUND, np.uint8)
    image[3:7, 3:7] = RED
    image[0, :3] = GREEN
    fitted = fit_image(image, (30, 10))
    assert np.array_equal(fitted[:, 10:20], image)
    assert (fitted[:, :10] == GROUND).all()
    assert fit_image(image, (15, 15)).shape == (15, 15, 3)


def test_a_drawn_set_is_loaded_in_colour(drawn):
    config = replace(drawn, colour=True)
    images, _, count = ReadData(config).load_data(drawn.test_folder)
    assert images.shape == (count, *SHAPE)
    first, _ = ReadData(drawn).load_data(drawn.test_folder)[:2]
    assert np.abs(images[0] @ (0.299, 0.587, 0.114) - first[0]).max() <= 1


def test_the_sets_of_own_images_and_those_without_labels_are_in_colour(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "mine", 20)
    write_folder(tmp_path / "more", 5, first=50, labelled=False)
    given = {"images": "mine", "unlabelled": "more", "colour": True, "char_num": 3, "width": 37, "height": 23}
    found = find_images(Config(**given), given)
    sets, own = load_own_sets(found, given, ReadData(found.config))
    assert {data.images.shape[1:] for data in sets} == {SHAPE}
    assert own.unlabelled.shape == (5, *SHAPE)
    assert np.array_equal(own.unlabelled[0], np.asarray(colour_image(50)))


def test_captchas_drawn_to_help_have_three_equal_colours(monkeypatch):
    monkeypatch.setattr(plateau, "DRAWN_IMAGES", 3)
    gray, colour = (plateau.draw_for(each) for each in (TINY, COLOUR))
    assert np.array_equal(colour.images, in_rgb(gray.images))


def test_the_pages_and_tensorboard_show_what_the_network_sees(tmp_path):
    write_folder(tmp_path / "mine", 20)
    config = replace(COLOUR, images=str(tmp_path / "mine"))
    image = find_images(config, {"colour"}).images[0]
    sample = make_sample(image, config)
    seen = Image.open(io.BytesIO(base64.b64decode(sample.seen.partition(",")[2])))
    assert np.array_equal(np.asarray(seen), image_for(tmp_path / "mine" / image.path, config))
    page = np.asarray(draw_worst_predictions(bars(RED, GREEN)[None], ["abc"], ["abd"]))
    assert np.array_equal(page[5:28, 5:42], bars(RED, GREEN))


# ---------------------------------------------------------------------- augmentation


def seeded():
    return np.random.default_rng(3)


@pytest.mark.parametrize("settings", [{"lines": 0.0, "noise": 0.0}, {"lines": 1.0, "noise": 1.0}])
def test_a_gray_image_changes_in_colour_as_it_does_in_gray(settings):
    gray = np.full((9, 23, 37), 230, np.uint8)
    gray[:, 5:15, 3:9] = 20
    gray[:, 8:12, 20:30] = 20
    config = replace(TINY, **settings)
    expected = augment.augment(gray, config, seeded(), 9)
    assert np.array_equal(
        augment.augment(in_rgb(gray), replace(config, colour=True), seeded(), 9), in_rgb(expected)
    )
    assert not np.array_equal(expected, gray)


def test_the_background_colour_fills_what_becomes_free():
    images = np.repeat(bars(RED, GREEN)[None], 50, axis=0)
    before = images.copy()
    for each in augment.random_warp(images, replace(COLOUR, shift=0.1, scale=0, shear=0), seeded(), 100):
        assert (each[0, 0] == GROUND).all()
    assert np.array_equal(images, before)


def test_characters_over_each_other_keep_their_colours():
    images = np.repeat(bars(RED, GREEN, RED)[None], 100, axis=0)
    result = augment.squeeze_characters(images, COLOUR, seeded())
    found = {tuple(each) for each in result.reshape(-1, 3).tolist()}
    assert found == {GROUND, RED, GREEN}
    covered = (result[:, 9] != GROUND).any(axis=2).sum(axis=1)
    assert covered.min() < 28 < 30 == covered.max(), "some lie over others, and no bar is cut"


@pytest.mark.parametrize("draw", [augment.add_lines, augment.add_noise])
def test_what_is_drawn_over_an_image_is_gray_for_a_hue_may_be_the_answer(draw):
    images = np.repeat(bars(RED, GREEN)[None], 50, axis=0)
    result = draw(images.copy(), replace(COLOUR, lines=1.0, noise=1.0), seeded())
    drawn = result[(result != images).any(axis=3)]
    assert len(drawn) > 1000
    assert (drawn == drawn[:, :1]).all()
    assert drawn.mean() < 160, "near the characters, not the background"


# ---------------------------------------------------------------------- the network


def test_one_standard_deviation_keeps_the_hue(tf):
    from captcha_cnn.layers import standardize

    images = np.stack([bars(RED, GREEN), bars(GREEN, RED)])
    found = run(tf, standardize, images, "uint8")
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=(1, 2, 3), keepdims=True) + 1)
    np.testing.assert_allclose(found, centred / deviation, atol=1e-4)


def test_gray_weights_give_a_gray_image_in_rgb_the_same_logits_and_back(tf):
    images, labels = drawn_batch(6)

    def logits(config, images, weights=None):
        with new_model(tf, config) as (model, session):
            fresh = {name: session.run(v) for name, v in model.weights.items()}
            for name, values in (weights(fresh) if weights else {}).items():
                model.weights[name].load(values, session)
            result = session.run(model.logits, driver.feed_data(model, images, labels))
            return result, {name: session.run(v) for name, v in model.weights.items()}

    def taken(weights, of, config):
        from captcha_cnn.initial_weights import InitialWeights, sizes_of

        initial = InitialWeights("a test", weights, of.alphabet, sizes_of(of))
        return lambda fresh: adapt(initial, config, fresh)

    gray, gray_weights = logits(TINY, images)
    colour, _ = logits(COLOUR, in_rgb(images), taken(gray_weights, TINY, COLOUR))
    np.testing.assert_allclose(colour, gray, atol=1e-4)
    colour, colour_weights = logits(replace(COLOUR, seed=5), in_rgb(images))
    gray, _ = logits(TINY, images, taken(colour_weights, COLOUR, TINY))
    np.testing.assert_allclose(gray, colour, atol=1e-4)
    assert np.ptp(gray) > 0.1


def test_the_classic_network_reads_colour(tf):
    images, labels = drawn_batch(2)
    with new_model(tf, replace(COLOUR, network="classic", keep_prob=1.0)) as (model, session):
        feed = driver.feed_data(model, np.stack([in_rgb(images[0]), bars(RED, GREEN)]), labels)
        assert session.run(model.logits, feed).shape == (2, 3, 5)
        session.run(model.train_op, feed)


# ---------------------------------------------------------------------- whole runs


RUN = ("--images", "mine", "--width", "37", "--height", "23", "--char-num", "3", "--epoch", "1")
RUN += ("--channels", "4", "--dense", "0")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which driver.py was trained in colour on the folder `mine`."""
    place = tmp_path_factory.mktemp("colour")
    write_folder(place / "mine", 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert driver.main([*RUN, "--colour", "--start-from", "none"]) == 0
    return place


@pytest.fixture
def inside(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def test_a_model_that_reads_colour_says_so_and_sees_it(inside):
    predictor = Predictor("checkpoints")
    assert predictor.config.colour
    probabilities = [
        predictor.read(Image.fromarray(bars(*each))).confidence for each in ((RED, GREEN), (GREEN, RED))
    ]
    assert probabilities[0] != probabilities[1]


def test_a_resumed_run_stays_in_colour_and_cannot_become_gray(inside):
    assert driver.main(["--resume"]) == 0
    with pytest.raises(ConfigError, match="colour must be True to resume the run"):
        driver.main(["--resume", "--no-colour"])


def test_the_test_images_are_read_in_colour_and_shown_so_on_the_page(inside):
    done = script("predict.py", "--labelled", "mine", "--report", "report", cwd=inside)
    assert (done.returncode, done.stderr) == (0, "")
    assert "mine: the 4 test images of 40 are read" in done.stdout
    page = (inside / "report" / "index.html").read_text(encoding="utf-8")
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(each))))
        for each in re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    ]
    originals = {np.asarray(colour_image(number)).tobytes() for number in range(40)}
    assert any(each.tobytes() in originals for each in shown)


def test_weights_of_gray_begin_colour_and_the_other_way_round(inside, tf, short_start):
    gray = ("--checkpoint-folder", "gray", "--tensorboard-folder", "gray_curves")
    assert driver.main([*RUN, *gray, "--start-from", "checkpoints"]) == 0
    assert not load_latest("gray").config.colour
    config = replace(load_latest("checkpoints").config, start_from="gray")
    initial = find_initial_weights(config)
    kernel = initial.weights["conv1_2x2/kernel"]
    assert kernel.shape == (5, 5, 1, 4)
    with new_model(tf, config) as (model, session):
        load_initial_weights(session, model.weights, initial, config)
        found = session.run(model.weights["conv1_2x2/kernel"])
    np.testing.assert_allclose(found, np.repeat(kernel / 3, 3, axis=2))


def test_the_sum_over_the_colours_is_taken_for_gray(inside):
    saved = load_latest("checkpoints")
    config = replace(saved.config, colour=False)
    fresh = {name: values + 1 for name, values in saved.initial.items()}
    fresh["conv1_2x2/kernel"] = np.zeros((5, 5, 1, 4), np.float32)
    found = adapt(of_checkpoint(saved, "a test"), config, fresh)["conv1_2x2/kernel"]
    np.testing.assert_allclose(found, saved.initial["conv1_2x2/kernel"].sum(axis=2, keepdims=True))


@pytest.mark.parametrize("format", ["onnx", "litert", "saved_model"])
def test_exported_files_take_colour_and_answer_as_the_checkpoint_does(format, inside, tf):
    pytest.importorskip("tf2onnx", reason="pip install -r requirements-export.txt")
    assert export.main([format]) == 0
    images = np.stack([np.asarray(colour_image(number)) for number in range(100, 105)])
    expected = Predictor("checkpoints")._model.predict(images)
    path = inside / "exported" / export.FORMATS[format]
    if format == "saved_model":
        settings = json.loads((path / "assets.extra" / "config.json").read_text(encoding="utf-8"))
        model = tf.compat.v2.saved_model.load(str(path)).signatures["serving_default"]
        outputs = model(**{INPUT: tf.constant(images)})
        assert settings["colour"] is True
        np.testing.assert_allclose(outputs["confidence"].numpy(), expected[1], atol=1e-5)
        return
    config, predict = load_exported(str(path))
    assert config.image_shape == SHAPE
    # The bias of this model is still 0: the writer of LiteRT files leaves it out, multiplies the temperature
    # into the kernel, and rounds that to float16 once more.
    for name, one, other in zip(OUTPUTS, predict(images), expected, strict=True):
        if not name.startswith("runner_up"):
            np.testing.assert_allclose(one, other, atol=1e-3, err_msg=name)
    if format == "litert":
        assert json.loads(zipfile.ZipFile(path).read("config.json"))["colour"] is True
    assert len(Predictor(path).read([Image.fromarray(each) for each in images])) == 5


def test_drawn_captchas_train_in_colour_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ("--colour", "--generate-num", "20", "4", "4", "--epoch", "1", "--width", "60", "--channels", "2")
    assert driver.main(flags) == 0
    assert load_latest("checkpoints").config.image_shape == (60, 60, 3)
