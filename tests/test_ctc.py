"""The decoder and the CTC loss, compared with independent computations in float64."""

import itertools

import numpy as np
import pytest

# T time steps, K characters, L characters of a text: small enough to list every alignment.
TINY_SIZES = [(5, 3, 3), (4, 2, 2), (3, 2, 2), (6, 3, 1), (5, 2, 3), (1, 2, 1)]

# T, K, L: from the smallest number of time steps on, 2 L - 1; 20 is that of the default settings.
SIZES = [
    (1, 2, 1),
    (2, 36, 1),
    (9, 10, 1),
    (7, 2, 4),
    (7, 10, 4),
    (8, 3, 4),
    (20, 36, 4),
    (31, 2, 16),
    (33, 36, 16),
    (40, 10, 16),
    (63, 10, 32),
    (70, 2, 32),
    (127, 2, 64),
    (130, 10, 64),
]
STANDARD_DEVIATIONS = (1, 10, 30, 100)  # of the logits: from soft to far sharper than any network


# ---------------------------------------------------------------------- independent computations


def random_probs(time_steps, characters, images=6):
    """Probabilities, float32 [T, B, K + 1], some time steps sharp and some soft."""
    random = np.random.default_rng(time_steps * 10 + characters)
    probs = random.dirichlet(np.full(characters + 1, 0.5), size=(time_steps, images)) + 1e-6
    return (probs / probs.sum(-1, keepdims=True)).astype(np.float32)


def random_logits(time_steps, characters):
    """Logits, float32 [T, B, K + 1], of each standard deviation; two images of each where they are short."""
    random = np.random.default_rng(time_steps * 100 + characters)
    deviations = np.repeat(STANDARD_DEVIATIONS, 2 if time_steps <= 20 else 1)
    logits = random.normal(size=(time_steps, len(deviations), characters + 1)) * deviations[:, None]
    return logits.astype(np.float32)


def list_texts(probs, length):
    """For one image, [T, K + 1]: {text: probability of all its alignments}, by listing them."""
    time_steps, classes = probs.shape
    totals = {}
    for alignment in itertools.product(range(classes), repeat=time_steps):
        text = tuple(k for k, _ in itertools.groupby(alignment) if k != classes - 1)
        if len(text) == length:
            prob = probs[np.arange(time_steps), alignment].prod(dtype=np.float64)
            totals[text] = totals.get(text, 0) + prob
    return totals


def log_softmax(logits):
    """In float64."""
    logits = logits.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def log_total(log_probs, length, places=(0,), chars=(None,)):
    """The log probability of all texts of that length with a given character at a given place.

    A plain dynamic programme over (characters so far, last class), in float64.

    Args:
        log_probs: float64 [T, K + 1], of one image.
        places, chars: C places and the class that each must have; None for any.
    Returns:
        float64 [C].
    """
    classes = log_probs.shape[1]
    allowed = np.zeros([len(places), length, classes - 1])
    for i, (place, char) in enumerate(zip(places, chars, strict=True)):
        if char is not None:
            allowed[i, place] = -np.inf
            allowed[i, place, char] = 0
    state = np.full([len(places), length + 1, classes], -np.inf)
    state[:, 0, -1] = 0
    for emission in log_probs:
        new = np.full_like(state, -np.inf)
        new[:, 1:, :-1] = log_sum_of_others(state)[:, :-1, :-1] + allowed  # another character begins
        new[:, :, :-1] = np.logaddexp(new[:, :, :-1], state[:, :, :-1])  # the same one goes on
        new[:, :, -1] = np.logaddexp.reduce(state, axis=-1)  # a blank
        state = new + emission
    return np.logaddexp.reduce(state[:, -1], axis=-1)


def log_sum_of_others(x):
    """For each entry of the last axis, the log of the sum of the others' exponentials."""
    before, after = np.full_like(x, -np.inf), np.full_like(x, -np.inf)
    before[..., 1:] = np.logaddexp.accumulate(x, axis=-1)[..., :-1]
    after[..., :-1] = np.logaddexp.accumulate(x[..., ::-1], axis=-1)[..., ::-1][..., 1:]
    return np.logaddexp(before, after)


def text_log_prob(log_probs, text):
    """The log probability of all alignments of one text, float64 [T, K + 1] (Graves et al. 2006)."""
    blank = log_probs.shape[1] - 1
    states = np.array([blank, *itertools.chain.from_iterable((char, blank) for char in text)])
    may_skip = np.concatenate([[False, False], states[2:] != states[:-2]])
    values = np.full(len(states), -np.inf)
    values[0] = 0
    for emission in log_probs:
        new = values.copy()
        new[1:] = np.logaddexp(new[1:], values[:-1])
        new[2:] = np.where(may_skip[2:], np.logaddexp(new[2:], values[:-2]), new[2:])
        values = new + emission[states]
    return np.logaddexp(values[-1], values[-2])


def assert_close(found, log_expected, magnitude, time_steps):
    """Probabilities, against the logs of the expected ones, within what float32 allows.

    The decoder adds up logarithms of up to that magnitude. Near it, float32 numbers are
    magnitude * 2**-23 apart; each of the T time steps rounds, and T errors of either sign add up to
    about sqrt(T) of one. An error of a logarithm is a relative error of the probability. Twice
    that is allowed. What is less than the smallest normal float32 may be 0.
    """
    tolerance = 2 * 2**-23 * (10 + magnitude) * np.sqrt(time_steps)
    np.testing.assert_allclose(found, np.exp(log_expected), rtol=tolerance, atol=1.2e-38)


# ---------------------------------------------------------------------- running the graph


def run(tf, build, value, dtype="float32"):
    with tf.Graph().as_default(), tf.Session() as session:
        placeholder = tf.placeholder(dtype, [value.shape[0], None, *value.shape[2:]])
        return session.run(build(placeholder), {placeholder: value})


def quick_session(tf):
    """A session that does not optimise the graph, which would take longer than running it once."""
    config = tf.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = -1
    return tf.Session(config=config)


# ---------------------------------------------------------------------- every alignment listed


@pytest.mark.parametrize(("time_steps", "characters", "length"), TINY_SIZES)
def test_decoding_and_confidence_equal_listing_every_alignment(time_steps, characters, length, tf):
    from captcha_cnn.ctc import decode

    probs = random_probs(time_steps, characters)
    found = run(tf, lambda each: decode(tf.math.log(each), length), probs)
    assert found.chars.shape == (6, length)
    for image, (text, confidence, char_probs, runner_up, runner_up_confidence) in enumerate(
        zip(*found, strict=True)
    ):
        totals = list_texts(probs[:, image], length)
        places = np.zeros([length, characters])
        for each, prob in totals.items():
            places[np.arange(length), each] += prob
        assert text.tolist() == places.argmax(axis=1).tolist()
        total = sum(totals.values())
        assert confidence == pytest.approx(totals[tuple(text)] / total, rel=1e-5)
        assert char_probs == pytest.approx(places.max(axis=1) / total, rel=1e-5)
        ranked = np.sort(places, axis=1)
        (place,) = np.flatnonzero(text != runner_up)
        assert place == (ranked[:, -2] / ranked[:, -1]).argmax()
        assert places[place, runner_up[place]] == ranked[place, -2]
        expected = totals.get(tuple(runner_up), 0) / total
        assert runner_up_confidence == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("time_steps", "characters", "length"), TINY_SIZES)
def test_the_probability_of_a_label_equals_listing_every_alignment(time_steps, characters, length, tf):
    from captcha_cnn.ctc import label_prob

    probs = random_probs(time_steps, characters)
    texts = sorted(list_texts(probs[:, 0], length))
    labels = np.array([texts[i % len(texts)] for i in range(6)], np.int32)
    found = run(tf, lambda each: label_prob(tf.math.log(each), tf.constant(labels)), probs)
    for image, prob in enumerate(found):
        totals = list_texts(probs[:, image], length)
        assert prob == pytest.approx(totals[tuple(labels[image])] / sum(totals.values()), rel=1e-5)


@pytest.mark.parametrize(("time_steps", "characters", "length"), TINY_SIZES)
def test_the_loss_equals_listing_every_alignment(time_steps, characters, length, tf):
    from captcha_cnn.ctc import ctc_loss

    probs = random_probs(time_steps, characters)
    texts = sorted(list_texts(probs[:, 0], length))
    labels = np.array([texts[i % len(texts)] for i in range(6)], np.int32)
    losses = run(tf, lambda logits: ctc_loss(logits, tf.constant(labels)), np.log(probs))
    for image, loss in enumerate(losses):
        totals = list_texts(probs[:, image], length)
        assert loss == pytest.approx(-np.log(totals[tuple(labels[image])]) / length, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("time_steps", "characters", "length"), TINY_SIZES)
def test_the_dynamic_programmes_of_this_file_equal_listing_every_alignment(time_steps, characters, length):
    probs = random_probs(time_steps, characters)[:, 0].astype(np.float64)
    totals = list_texts(probs, length)
    assert np.exp(log_total(np.log(probs), length)) == pytest.approx(sum(totals.values()), rel=1e-12)
    for text, prob in totals.items():
        assert np.exp(text_log_prob(np.log(probs), text)) == pytest.approx(prob, rel=1e-12)
    for place, char in itertools.product(range(length), range(characters)):
        prob = sum(prob for text, prob in totals.items() if text[place] == char)
        found = log_total(np.log(probs), length, [place], [char])
        assert np.exp(found) == pytest.approx(prob, rel=1e-12)


# ---------------------------------------------------------------------- lengths that differ

# T, K, fewest and most characters; in some, not every text has an alignment.
RANGES = [(5, 3, 1, 3), (5, 3, 2, 3), (4, 2, 1, 2), (6, 2, 1, 4), (7, 2, 2, 4), (4, 3, 2, 3), (2, 4, 1, 2)]


def list_all_texts(probs, shortest, longest):
    """{text: probability} of all texts of these lengths that have an alignment."""
    return {text: prob for n in range(shortest, longest + 1) for text, prob in list_texts(probs, n).items()}


def best_of_length(totals, length, characters):
    """The most probable class of each place of texts of that length, and the text with one replaced."""
    places = np.zeros([length, characters])
    for text, prob in totals.items():
        if len(text) == length:
            places[np.arange(length), text] += prob
    ranked = np.sort(places, axis=1)
    place = (ranked[:, -2] / ranked[:, -1]).argmax()
    winner, replaced = places.argmax(axis=1), places.argmax(axis=1)
    replaced[place] = places[place].argsort()[-2]
    return [tuple(winner.tolist()), tuple(replaced.tolist())]


def pad(texts, length):
    return np.array([[*text, *[-1] * (length - len(text))] for text in texts], np.int32)


@pytest.mark.parametrize(("time_steps", "characters", "shortest", "longest"), RANGES)
def test_decoding_among_several_lengths_equals_listing_every_alignment(
    time_steps, characters, shortest, longest, tf
):
    from captcha_cnn.ctc import decode

    probs = random_probs(time_steps, characters, images=24)
    found = run(tf, lambda each: decode(tf.math.log(each), longest, shortest), probs)
    assert found.chars.shape == found.char_probs.shape == found.runner_up.shape == (24, longest)
    for image, (chars, confidence, char_probs, runner_up, runner_up_confidence) in enumerate(
        zip(*found, strict=True)
    ):
        totals = list_all_texts(probs[:, image], shortest, longest)
        total = sum(totals.values())
        candidates = [
            text for n in range(shortest, longest + 1) for text in best_of_length(totals, n, characters)
        ]
        best, second, *_ = sorted(candidates, key=lambda text: -totals.get(text, 0))
        assert [chars.tolist(), runner_up.tolist()] == pad([best, second], longest).tolist()
        assert confidence == pytest.approx(totals[best] / total, rel=1e-5)
        assert runner_up_confidence == pytest.approx(totals.get(second, 0) / total, rel=1e-5, abs=1e-7)
        for place, char in enumerate(best):
            expected = sum(p for text, p in totals.items() if len(text) > place and text[place] == char)
            assert char_probs[place] == pytest.approx(expected / total, rel=1e-5)
        assert not char_probs[len(best) :].any()
    lengths = {int((each >= 0).sum()) for each in found.chars}
    assert len(lengths) > 1 or time_steps == 2, "the answers must differ in length for this test to say much"


@pytest.mark.parametrize(("time_steps", "characters", "shortest", "longest"), RANGES)
def test_loss_and_probability_of_labels_that_differ_in_length_equal_listing_every_alignment(
    time_steps, characters, shortest, longest, tf
):
    from captcha_cnn.ctc import ctc_loss, label_prob

    probs = random_probs(time_steps, characters, images=1)
    totals = list_all_texts(probs[:, 0], shortest, longest)
    labels = pad(totals, longest)
    probs = np.repeat(probs, len(totals), axis=1)
    found = run(tf, lambda each: label_prob(tf.math.log(each), tf.constant(labels), shortest), probs)
    losses = run(tf, lambda logits: ctc_loss(logits, tf.constant(labels), shortest), np.log(probs))
    assert found.sum() == pytest.approx(1, rel=1e-5)
    total = sum(totals.values())
    for (text, expected), prob, loss in zip(totals.items(), found, losses, strict=True):
        assert prob == pytest.approx(expected / total, rel=1e-5)
        assert loss == pytest.approx(-np.log(expected) / len(text), rel=1e-5, abs=1e-6)


# ---------------------------------------------------------------------- every length


@pytest.mark.parametrize(("time_steps", "characters", "length"), SIZES)
def test_everything_is_exact_for_every_length(time_steps, characters, length, tf):
    from captcha_cnn.ctc import ctc_loss, decode, label_prob

    logits = random_logits(time_steps, characters)
    random = np.random.default_rng(0)
    with tf.Graph().as_default(), quick_session(tf) as session:
        x = tf.placeholder(tf.float32, [time_steps, None, characters + 1])
        labels = tf.placeholder(tf.int32, [None, length])
        log_probs = tf.nn.log_softmax(x)
        predictions = session.run(decode(log_probs, length), {x: logits})
        feed = {x: logits, labels: predictions.runner_up}  # as labels: what is nearly as probable
        label_probs, losses = session.run([label_prob(log_probs, labels), ctc_loss(x, labels)], feed)
    for image in range(logits.shape[1]):
        p = type(predictions)(*(each[image] for each in predictions))
        assert (p.chars != p.runner_up).sum() == 1
        expected = log_softmax(logits[:, image])
        total = log_total(expected, length)[0]
        text, runner_up = text_log_prob(expected, p.chars), text_log_prob(expected, p.runner_up)
        assert_close(p.confidence, text - total, -text, time_steps)
        assert_close(p.runner_up_confidence, runner_up - total, -runner_up, time_steps)
        assert_close(label_probs[image], runner_up - total, -runner_up, time_steps)
        compare_loss(losses[image], -runner_up / length, logits[:, image])
        places = np.sort(random.permutation(length)[:4])
        chosen = log_total(expected, length, places, p.chars[places]) - total
        assert_close(p.char_probs[places], chosen, -total, time_steps)
        # It is the most probable character of that place.
        (place,) = np.flatnonzero(p.chars != p.runner_up)
        at_place = log_total(expected, length, [place] * characters, range(characters)) - total
        ranked = np.argsort(-at_place)
        assert_close(np.exp(at_place[ranked[:1]]), at_place[p.chars[place]], -total, time_steps)
        assert_close(np.exp(at_place[ranked[1:2]]), at_place[p.runner_up[place]], -total, time_steps)


# T, K, fewest and most characters.
LARGER_RANGES = [(20, 36, 1, 4), (20, 10, 4, 6), (31, 2, 13, 16), (70, 10, 31, 32)]


@pytest.mark.parametrize(("time_steps", "characters", "shortest", "longest"), LARGER_RANGES)
def test_everything_is_exact_among_several_lengths(time_steps, characters, shortest, longest, tf):
    from captcha_cnn.ctc import ctc_loss, decode, label_prob

    logits = random_logits(time_steps, characters)
    with tf.Graph().as_default(), quick_session(tf) as session:
        x = tf.placeholder(tf.float32, [time_steps, None, characters + 1])
        labels = tf.placeholder(tf.int32, [None, longest])
        log_probs = tf.nn.log_softmax(x)
        predictions = session.run(decode(log_probs, longest, shortest), {x: logits})
        outputs = label_prob(log_probs, labels, shortest), ctc_loss(x, labels, shortest)
        label_probs, losses = session.run(outputs, {x: logits, labels: predictions.runner_up})
    for image in range(logits.shape[1]):
        p = type(predictions)(*(each[image] for each in predictions))
        assert p.confidence >= p.runner_up_confidence
        assert (p.chars != p.runner_up).any()
        texts = [each[each >= 0] for each in (p.chars, p.runner_up)]
        assert all(shortest <= len(text) for text in texts)
        assert np.array_equal(pad(texts, longest), [p.chars, p.runner_up]), "it ends where it is padded"
        expected = log_softmax(logits[:, image])
        total = np.logaddexp.reduce([log_total(expected, n)[0] for n in range(shortest, longest + 1)])
        text, runner_up = (text_log_prob(expected, each) for each in texts)
        assert_close(p.confidence, text - total, -text, time_steps)
        assert_close(p.runner_up_confidence, runner_up - total, -runner_up, time_steps)
        assert_close(label_probs[image], runner_up - total, -runner_up, time_steps)
        compare_loss(losses[image], -runner_up / len(texts[1]), logits[:, image])
        for place in {0, len(texts[0]) - 1}:
            lengths = range(max(shortest, place + 1), longest + 1)
            chosen = [log_total(expected, n, [place], [p.chars[place]])[0] for n in lengths]
            assert_close(p.char_probs[place], np.logaddexp.reduce(chosen) - total, -total, time_steps)
        assert not p.char_probs[len(texts[0]) :].any()


def compare_loss(found, expected, logits):
    """The loss is TensorFlow's: it holds probabilities in float32, so those below exp(-87) are 0.

    Where there are some that matter, it is too large, or infinite.
    """
    if log_softmax(logits).min() > -87:
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    else:
        assert found >= expected * (1 - 1e-5) - 1e-5


def test_a_character_twice_needs_a_blank_between_however_sharp_the_network_is(tf):
    """The time steps are a, a, a, b, b: every text of three characters needs other classes in between."""
    from captcha_cnn.ctc import decode, label_prob

    logits = np.zeros([5, 1, 3], np.float32)
    logits[range(5), 0, [0, 0, 0, 1, 1]] = 400
    expected = log_softmax(logits[:, 0])
    with tf.Graph().as_default(), tf.Session() as session:
        log_probs = tf.nn.log_softmax(tf.constant(logits))
        predictions = session.run(decode(log_probs, 3))
        texts = list(itertools.product(range(2), repeat=3))
        found = session.run([label_prob(log_probs, tf.constant([text])) for text in texts])
    total = log_total(expected, 3)[0]
    for text, prob in zip(texts, found, strict=True):
        of_text = text_log_prob(expected, text)
        assert_close(prob[0], of_text - total, -total, 5)
        if text == tuple(predictions.chars[0]):
            assert_close(predictions.confidence[0], of_text - total, -total, 5)
    for place in range(3):
        at_place = log_total(expected, 3, [place], [predictions.chars[0, place]]) - total
        assert_close(predictions.char_probs[0, place], at_place[0], -total, 5)


# ---------------------------------------------------------------------- special cases


def test_too_few_or_too_many_characters_still_give_a_text(tf):
    from captcha_cnn.ctc import decode

    def certain(classes):  # of the 20 time steps, each of its class and of no other
        return np.eye(11, dtype=np.float32)[list(classes)]

    probs = [
        np.full((20, 11), 1 / 11, np.float32),
        certain([10] * 20),
        certain([7] * 20),
        certain(range(10)),
    ]
    probs = np.stack([np.resize(each, (20, 11)) for each in probs], axis=1)
    texts, confidences, *_ = run(tf, lambda each: decode(tf.math.log(each), 4), probs)
    assert ((texts >= 0) & (texts < 10)).all()
    assert ((confidences >= 0) & (confidences < 0.1)).all()


def test_a_barely_visible_character_is_read_by_its_small_probabilities(tf):
    from captcha_cnn.ctc import decode

    probs = np.tile(np.eye(4, dtype=np.float32)[3], (9, 1, 1))  # blanks
    for time_step, char in ((1, 2), (3, 2), (7, 0)):
        probs[time_step, 0] = np.eye(4)[char]
    probs[5, 0] = 1e-12, 3e-12, 0, 1
    (text,), (confidence,), *_ = run(tf, lambda each: decode(tf.math.log(each), 4), probs)
    assert text.tolist() == [2, 2, 1, 0]
    assert confidence == pytest.approx(0.75, rel=1e-3)


def test_decoding_does_not_round_where_convolutions_do(tf):
    """In the session of training with bfloat16, everything after the convolution stays float32."""
    from captcha_cnn.ctc import ctc_loss, decode, label_prob
    from captcha_cnn.tf_runtime import bfloat16_support, session_config

    random = np.random.default_rng(0)
    images = random.normal(size=(1, 4, 9, 16)).astype(np.float32)  # one row, nine time steps
    kernel = random.normal(size=(1, 3, 16, 5)).astype(np.float32)
    labels = np.array([[0, 1, 2], [3, 3, 0], [2, 1, 0], [1, 1, 1]], np.int32)

    with tf.Graph().as_default():
        x = tf.placeholder(tf.float32, [4, 1, 9, 16])
        h = tf.nn.conv2d(x, tf.constant(kernel), strides=1, padding="SAME") + 0.1
        logits = tf.transpose(tf.squeeze(h, 1), [1, 0, 2])
        log_probs = tf.nn.log_softmax(logits)
        outputs = [*decode(log_probs, 3), label_prob(log_probs, labels), ctc_loss(logits, labels)]
        with tf.Session(config=session_config(bfloat16=True)) as session:
            rounded, *found = session.run([logits, *outputs], {x: images.reshape(4, 1, 9, 16)})
            alone = session.run(outputs, {x: images.reshape(4, 1, 9, 16)})
        with tf.Session(config=session_config()) as session:
            exact = session.run(logits, {x: images.reshape(4, 1, 9, 16)})
            expected = session.run(outputs, {logits: rounded})
    if bfloat16_support():
        assert not np.array_equal(rounded, exact), "the session must round in convolutions"
    for one, other, wanted in zip(found, alone, expected, strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-5)
        np.testing.assert_allclose(other, wanted, rtol=1e-5)


def test_texts_are_spelled_with_the_alphabet(tf):
    from captcha_cnn.ctc import Predictions, to_text
    from config import Config

    config = Config(characters="aé7", char_num=2)
    with tf.Graph().as_default(), tf.Session() as session:
        chars = tf.constant([[0, 1], [2, 2]])
        predictions = Predictions(chars, None, None, chars[::-1], None)
        strings = to_text(predictions, config, strings=True)
        codes = to_text(predictions, config, strings=False)
        strings, codes = session.run([[strings.chars, strings.runner_up], [codes.chars, codes.runner_up]])
    assert [[text.decode() for text in each] for each in strings] == [["aé", "77"], ["77", "aé"]]
    assert codes[0].tolist() == [[ord("a"), ord("é")], [ord("7"), ord("7")]]
    assert codes[1].tolist() == codes[0][::-1].tolist()


def test_texts_that_differ_in_length_are_padded_with_the_code_point_0(tf):
    from captcha_cnn.ctc import Predictions, to_text
    from config import Config

    config = Config(characters="aé7", char_num="1-3")
    with tf.Graph().as_default(), tf.Session() as session:
        chars = tf.constant([[0, 1, -1], [2, -1, -1], [0, 0, 0]])
        predictions = Predictions(chars, None, None, chars[::-1], None)
        strings = to_text(predictions, config, strings=True)
        codes = to_text(predictions, config, strings=False)
        strings, codes = session.run([[strings.chars, strings.runner_up], [codes.chars, codes.runner_up]])
    texts = ["aé", "7", "aaa"]
    assert [[text.decode() for text in each] for each in strings] == [texts, texts[::-1]]
    assert codes[0].tolist() == [[ord("a"), ord("é"), 0], [ord("7"), 0, 0], [ord("a")] * 3]
    assert codes[1].tolist() == codes[0][::-1].tolist()


def test_classes_of_one_hot_labels_end_where_there_is_no_one(tf):
    from captcha_cnn.ctc import PAST_END, label_classes
    from config import Config

    for char_num, expected in (("1-3", [[1, PAST_END, PAST_END], [0, 2, 1]]), (3, [[1, 0, 0], [0, 2, 1]])):
        config = Config(characters="abc", char_num=char_num)
        y = np.zeros([2, 3, 3], np.float32)
        y[0, 0, 1] = y[1, 0, 0] = y[1, 1, 2] = y[1, 2, 1] = 1
        with tf.Graph().as_default(), tf.Session() as session:
            found = session.run(label_classes(tf.constant(y.reshape(2, 9)), config))
        assert found.tolist() == expected


def test_a_range_of_one_length_adds_nothing_to_the_graph(tf):
    from captcha_cnn.ctc import ctc_loss, decode, label_prob

    def operations(*min_length):
        with tf.Graph().as_default() as graph:
            x, labels = tf.placeholder(tf.float32, [7, None, 4]), tf.placeholder(tf.int32, [None, 3])
            decode(x, 3, *min_length), label_prob(x, labels, *min_length), ctc_loss(x, labels, *min_length)
            return [(each.name, each.op, tuple(each.input)) for each in graph.as_graph_def().node]

    assert operations() == operations(3) != operations(2)
    looks_for_padding = "GreaterEqual"  # of labels and texts
    assert looks_for_padding in {op for _, op, _ in operations(2)}
    assert looks_for_padding not in {op for _, op, _ in operations(3)}
