"""Captchas of many styles, to train initial weights that know no single captcha system.

draw          a whole image, and many of them
choices       its label, colours and effects
fonts         the fonts that pip brings
text          the characters, one by one, then distorted as a whole
warp          how they are distorted
background    what is behind them
distractors   lines, shapes and dots
"""

from captcha_cnn.styles.choices import STYLE_CHARACTERS
from captcha_cnn.styles.draw import draw_styled, draw_styles
from captcha_cnn.styles.fonts import style_fonts

__all__ = ["STYLE_CHARACTERS", "draw_styled", "draw_styles", "style_fonts"]
