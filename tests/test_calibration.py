"""Calibration: the temperature by which the logits are divided."""

import numpy as np
from conftest import TINY
from graph_helpers import drawn_batch, new_model


def test_calibration_makes_the_labels_more_probable(tf):
    from captcha_cnn import calibration

    images, labels = drawn_batch(20)
    with new_model(tf, TINY) as (model, session):
        overconfident = session.run(model.logits, {model.x: images}) * 40

        class OverconfidentSession:
            def run(self, fetches, feed):
                if fetches is model.logits:
                    return overconfident
                return session.run(fetches, feed)

            def __getattr__(self, name):
                return getattr(session, name)

        def log_posterior(temperature):
            model.weights["inverse_temperature"].load(1 / temperature, session)
            probs = session.run(model.label_prob, {model.logits: overconfident, model.y: labels})
            prior = calibration.TEMPERATURE_PRIOR * np.log(temperature) ** 2
            return np.log(np.maximum(probs, 1e-30)).sum() - prior

        calibration.fit_temperature(OverconfidentSession(), model, images, labels)
        chosen = 1 / float(session.run(model.weights["inverse_temperature"]))
        assert 1 < chosen <= 4.01
        best = max(log_posterior(t) for t in np.exp(np.linspace(-1.38, 1.38, 60)))
        assert log_posterior(chosen) >= best - 0.01 * abs(best)


def test_golden_section_finds_the_minimum():
    from captcha_cnn.calibration import golden_section

    for lowest in (-1.3, -0.2, 0.0, 0.7):
        found = golden_section(lambda x, at=lowest: (x - at) ** 2, -1.4, 1.4, 0.01)
        assert abs(found - lowest) <= 0.01
