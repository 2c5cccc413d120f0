"""Draws captchas with a generator from PyPI, in its default look: python draw.py SYSTEM FOLDER COUNT SEED.

It runs under the Python of that generator's own environment, hence it imports nothing of the project,
and each generator only where it is used. The files are LABEL_000001.png and so on, or .jpg where the
generator makes JPEG. Where a generator has no default for something (a font, an alphabet), its function
below says what it is given.
"""

import base64
import importlib.resources
import io
import random
import secrets
import string
import sys
import types
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

Drawn = tuple[str, bytes]  # label, image file


def seed_everything(seed: int) -> None:
    """All random numbers, those of `secrets` too, follow from the seed."""
    random.seed(seed)
    secrets.randbelow = random.randrange  # type: ignore[assignment]
    secrets.choice = random.choice


def encode(image: Any, format: str = "PNG") -> bytes:
    """A Pillow image as a file in memory."""
    file = io.BytesIO()
    image.save(file, format=format)
    return file.getvalue()


def font_path(package: str, name: str) -> str:
    """The path of a font file in a package of fonts."""
    return str(importlib.resources.files(package) / "files" / name)


def wheezy() -> Callable[[], Drawn]:
    """wheezy.captcha, as in its example and with its handler's defaults: 4 different ones of 32 characters.

    Its example names two fonts that it does not bring; these are the bold ones of Caladea and Source
    Sans Pro instead.
    """
    parts, http = import_module("wheezy.captcha.image"), import_module("wheezy.captcha.http")
    fonts = [
        font_path("font_caladea", "Caladea-Bold.ttf"),
        font_path("font_source_sans_pro", "SourceSansPro-Bold.ttf"),
    ]
    text = parts.text(fonts=fonts, drawings=[parts.warp(), parts.rotate(), parts.offset()])
    render = parts.captcha([parts.background(), text, parts.curve(), parts.noise(), parts.smooth()])
    defaults = http.CaptchaContext(render, None)

    def draw() -> Drawn:
        label = "".join(random.sample(defaults.chars, defaults.max_chars))
        return label, encode(render(label), "JPEG")

    return draw


def django_simple_captcha() -> Callable[[], Drawn]:
    """django-simple-captcha with its default settings: 4 letters, drawn as capitals; the width varies."""
    import_module("django.conf").settings.configure(INSTALLED_APPS=["captcha"])
    import_module("django").setup()
    helpers, views = import_module("captcha.helpers"), import_module("captcha.views")

    def draw() -> Drawn:
        label, _ = helpers.random_char_challenge()
        return label, views._captcha_image(types.SimpleNamespace(challenge=label), 1).content

    return draw


def multicolorcaptcha() -> Callable[[], Drawn]:
    """multicolorcaptcha with its defaults: 4 digits, size 2 of 0 to 12, difficulty 2 of 0 to 5."""
    generator = import_module("multicolorcaptcha").CaptchaGenerator()
    generator.l_fonts.sort()  # found in the order of the disk

    def draw() -> Drawn:
        captcha = generator.gen_captcha_image()
        return captcha.characters, encode(captcha.image)

    return draw


def claptcha() -> Callable[[], Drawn]:
    """claptcha with its defaults. It has no font and no text of its own.

    It is given Source Serif Pro and 4 to 6 capital letters. It asks Pillow for the size of a text in a
    way that Pillow 10 removed; that is put back.
    """

    def getsize(font: Any, text: str) -> tuple[int, int]:
        left, _, right, bottom = font.getbbox(text)
        return right - left, bottom

    import_module("PIL.ImageFont").FreeTypeFont.getsize = getsize
    captcha = import_module("claptcha").Claptcha(
        lambda: "".join(random.choices(string.ascii_uppercase, k=random.randint(4, 6))),
        font_path("font_source_serif_pro", "SourceSerifPro-Regular.ttf"),
    )

    def draw() -> Drawn:
        label, file = captcha.bytes
        return label, file.getvalue()

    return draw


def flask_simple_captcha() -> Callable[[], Drawn]:
    """flask-simple-captcha with its defaults: 6 capital letters without I and O, white on black."""
    package = import_module("flask_simple_captcha")
    package.captcha_generation.jwtencrypt = lambda *_, **__: ""  # slow, and not needed for the image
    captcha = package.CAPTCHA(config={})
    captcha.characters = tuple(sorted(captcha.characters))  # they come from sets
    captcha.fonts = sorted(captcha.fonts, key=lambda each: each.filename)

    def draw() -> Drawn:
        drawn = captcha.create()
        return drawn["text"], base64.b64decode(drawn["img"])

    return draw


def easy_captcha() -> Callable[[], Drawn]:
    """easy-captcha-python's SpecCaptcha with its defaults: 5 of 54 letters of both cases and digits."""
    package = import_module("easy_captcha")

    def draw() -> Drawn:
        captcha, file = package.SpecCaptcha(), io.BytesIO()
        captcha.out(file)
        return captcha.text(), file.getvalue()

    return draw


def light_captcha() -> Callable[[], Drawn]:
    """light-captcha with its defaults: 6 digits, the first not 0.

    It seeds Python's random numbers with the time of day in milliseconds, modulo a million, before each
    image; the time comes from our seed here.
    """
    package = import_module("light_captcha")
    clock = random.Random(random.getrandbits(32))  # apart from those that are seeded anew
    package.generator.time = types.SimpleNamespace(time=lambda: clock.randrange(1_000_000) / 1000)
    captchas = package.CaptchaGenerator()

    def draw() -> Drawn:
        captcha = captchas.generate()
        return captcha.code, base64.b64decode(captcha.base64)

    return draw


GENERATORS: dict[str, Callable[[], Callable[[], Drawn]]] = {
    "wheezy.captcha": wheezy,
    "django-simple-captcha": django_simple_captcha,
    "multicolorcaptcha": multicolorcaptcha,
    "claptcha": claptcha,
    "flask-simple-captcha": flask_simple_captcha,
    "easy-captcha-python": easy_captcha,
    "light-captcha": light_captcha,
}


def extension(file: bytes) -> str:
    """How the name of that image file ends."""
    return ".jpg" if file.startswith(b"\xff\xd8") else ".png"


def main(system: str, folder: str, count: str, seed: str) -> None:
    """Draw `count` captchas into an existing folder."""
    seed_everything(int(seed))
    draw = GENERATORS[system]()
    for i in range(1, int(count) + 1):
        label, file = draw()
        (Path(folder) / f"{label}_{i:06}{extension(file)}").write_bytes(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
