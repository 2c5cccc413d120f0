"""What the tests of the graph share: drawn images, a new model, and running one function of the graph."""

import contextlib

import numpy as np
from conftest import TINY


def drawn_batch(count, config=TINY):
    """Images, uint8 [B, H, W], and one-hot labels, float32 [B, L * K], of the first drawn captchas."""
    from captcha_cnn.drawing import draw_captcha
    from captcha_cnn.images import to_grayscale
    from generate_captcha import ReadData

    drawn = [draw_captcha(config, "train", i) for i in range(count)]
    images = np.stack([to_grayscale(image) for _, image in drawn])
    return images, np.stack([ReadData(config).label2vec(label) for label, _ in drawn])


@contextlib.contextmanager
def new_model(tf, config=TINY):
    """A model and a session in which its variables have their initial values."""
    from cnn_model import CNN

    with tf.Graph().as_default():
        model = CNN.build(config)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            yield model, session


def run(tf, function, value, dtype="float32"):
    """What a function from one tensor to others makes of an array; its second dimension may be any size."""
    with tf.Graph().as_default(), tf.Session() as session:
        placeholder = tf.placeholder(dtype, [value.shape[0], None, *value.shape[2:]])
        return session.run(function(placeholder), {placeholder: value})
