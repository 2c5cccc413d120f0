"""How well a labelled set was read: what is right, what is confused, whether the confidence is honest.

Everything is computed from labels and answers; nothing here reads a picture or needs TensorFlow.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from config import printable
from generate_captcha import whole

BINS = 10  # of the reliability table
SHARES = (1.0, 0.99, 0.95, 0.9)  # of the pictures, the surest, that are read; the others are refused
SHOWN = 10  # confusions and mistakes that are printed
ON_PAGE = 200  # mistakes on the page, with their pictures


class Mistake(NamedTuple):
    """A captcha read wrong."""

    place: int  # of the picture in its set
    label: str
    text: str  # what was read
    confidence: float


class Judgement(NamedTuple):
    """What reading a labelled set gave."""

    alphabet: str
    right: int  # captchas with all symbols right
    pictures: int
    symbols_right: int
    symbols: int
    loss: float | None  # nats per symbol, where it is known
    confusions: list[tuple[str, str, int]]  # (symbol, what was read, how often), the most frequent first
    refusals: np.ndarray  # float64 [N]: share right of the n + 1 surest pictures
    bins: list[tuple[int, float, float]]  # (pictures, mean confidence, share right) by confidence
    calibration_error: float
    mistakes: list[Mistake]  # the surest first


def judge(
    labels: Sequence[str],
    texts: Sequence[str],
    confidences: Sequence[float],
    loss: float | None,
    alphabet: str,
) -> Judgement:
    """Compare what was read with the labels, N of each."""
    pairs = list(zip(labels, texts, strict=True))
    right = np.array([label == text for label, text in pairs])
    confidence = np.array(confidences, np.float64)
    both = [pair for label, text in pairs for pair in zip(label, text, strict=True)]
    surest = np.argsort(-confidence, kind="stable")
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    inside = [place == i for i in range(BINS)]
    bins = [(int(w.sum()), float(confidence[w].mean()), float(right[w].mean())) for w in inside if w.any()]
    return Judgement(
        alphabet=alphabet,
        right=int(right.sum()),
        pictures=len(pairs),
        symbols_right=sum(a == b for a, b in both),
        symbols=len(both),
        loss=loss,
        confusions=[(a, b, count) for (a, b), count in confused(labels, texts).most_common()],
        refusals=right[surest].cumsum() / np.arange(1, len(pairs) + 1),
        bins=bins,
        calibration_error=sum(n * abs(sure - share) for n, sure, share in bins) / len(pairs),
        mistakes=[
            Mistake(i, labels[i], texts[i], float(confidence[i])) for i in surest.tolist() if not right[i]
        ],
    )


def confused(labels: Sequence[str], texts: Sequence[str]) -> Counter[tuple[str, str]]:
    """How often each symbol was read for which other: (symbol, what was read)."""
    both = (
        (a, b) for label, text in zip(labels, texts, strict=True) for a, b in zip(label, text, strict=True)
    )
    return Counter((a, b) for a, b in both if a != b)


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share of which `right` of `count` were seen (Wilson 1927)."""
    z = 1.959963984540054
    share, weight = right / count, 1 + z * z / count
    centre = (share + z * z / (2 * count)) / weight
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / weight
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy_line(what: str, right: int, count: int) -> str:
    """`Captcha accuracy:  99.67% (9967 of 10000, 95% interval 99.54 to 99.77)`."""
    low, high = wilson(right, count)
    share = f"{right / count:>7.2%} ({right} of {count}, 95% interval {100 * low:.2f} to {100 * high:.2f})"
    return f"{what} accuracy: {share}"


def figures(judged: Judgement) -> list[str]:
    """The lines of accuracy and loss."""
    lines = [
        accuracy_line("Captcha", judged.right, judged.pictures),
        accuracy_line("Symbol", judged.symbols_right, judged.symbols),
    ]
    return lines if judged.loss is None else [*lines, f"Loss: {judged.loss:.4f} nats a symbol"]


# ---------------------------------------------------------------------- in the terminal


def report(judged: Judgement, names: Sequence[str]) -> str:
    """What a terminal of 80 columns shows; `names` are those of the pictures."""
    j = judged
    lines = [
        *figures(j),
        "",
        "Refusing the least sure:",
        *(f"  {100 * share:>3.0f}% read, {text}" for share, text in refusal_lines(j)),
        "",
        f"Expected calibration error: {j.calibration_error:.2%}",
        "  pictures   mean confidence   right",
        *(f"  {count:>8}   {sure:>15.2%} {share:>7.2%}" for count, sure, share in j.bins),
    ]
    if j.mistakes:
        lines += ["", f"Confused{most(len(j.confusions))}:"]
        lines += [f"  {a} read as {b}: {count}" for a, b, count in j.confusions[:SHOWN]]
        lines += ["", f"Read wrong, the surest first{most(len(j.mistakes))}:"]
        lines += [
            f"  {m.label} read as {m.text}, {m.confidence:.4f}: {printable(names[m.place])}"
            for m in j.mistakes[:SHOWN]
        ]
    return "\n".join(lines)


def most(count: int) -> str:
    """Says how many of them are shown, where not all are."""
    return f" ({SHOWN} of {count})" if count > SHOWN else ""


def refusal_lines(judged: Judgement) -> Iterable[tuple[float, str]]:
    """(share read, what of it is right) for each of SHARES."""
    for share in SHARES:
        read = max(1, round(share * judged.pictures))
        right = round(judged.refusals[read - 1] * read)
        yield share, f"{right / read:>7.2%} right ({right} of {read})"


# ---------------------------------------------------------------------- as a page

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222 }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
table { border-collapse: collapse } td, th { padding: .2rem .6rem; text-align: right }
.matrix td { min-width: 1.6rem; text-align: center; border: 1px solid #eee; padding: .2rem }
.wrong { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1rem }
figure { margin: 0 } figure img { max-width: 100%; border: 1px solid #ddd }
figcaption { font-size: .85rem; overflow-wrap: anywhere } del { color: #b00020 } small { color: #666 }
svg { max-width: 100% } svg text { font-size: 12px; fill: #444 }
"""


def write_page(
    folder: str, judged: Judgement, images: Sequence[np.ndarray], names: Sequence[str], title: str
) -> Path:
    """Write the judgement as one page, `index.html`, that needs no other file; its path.

    Args:
        images: uint8 [H, W] of the first ON_PAGE mistakes, in their order.
        names: those of all pictures.
    """
    j = judged
    numbers = [*figures(j), f"Expected calibration error: {j.calibration_error:.2%}"]
    refusals = "".join(f"<tr><td>{100 * s:.0f}%</td><td>{text}</td></tr>" for s, text in refusal_lines(j))
    bins = "".join(f"<tr><td>{n}</td><td>{c:.2%}</td><td>{r:.2%}</td></tr>" for n, c, r in j.bins)
    more = f" The {ON_PAGE} surest of {len(j.mistakes)} are shown." if len(j.mistakes) > ON_PAGE else ""
    pictures = "".join(
        f'<figure><img src="{data_url(image)}" alt="{escaped(m.label)}"><figcaption>{escaped(m.label)}, read '
        f"<del>{escaped(m.text)}</del>, {m.confidence:.2%} sure<br><small>{escaped(names[m.place])}</small>"
        "</figcaption></figure>"
        for m, image in zip(j.mistakes[:ON_PAGE], images, strict=True)
    )
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escaped(title)}</title><style>{STYLE}</style></head><body>
<h1>{escaped(title)}</h1>
<p>{"<br>".join(numbers)}</p>
<h2>Refusing the least sure</h2>
<p>Of the pictures that are still read when the least sure are refused, how many are right.</p>
{refusal_curve(j)}
<table><tr><th>read</th><th>right</th></tr>{refusals}</table>
<h2>Is the confidence honest?</h2>
<p>Where it is, as many pictures are right as the confidence says: the dots lie on the line. Their size shows
how many pictures there are.</p>
{reliability_curve(j)}
<table><tr><th>pictures</th><th>mean confidence</th><th>right</th></tr>{bins}</table>
<h2>Which symbols are confused</h2>
<p>Rows: what the picture says. Columns: what was read.</p>
{matrix(j)}
<h2>Read wrong</h2>
<p>{len(j.mistakes)} of {j.pictures}, the surest first.{more}</p>
<div class="wrong">{pictures}</div>
</body></html>
"""
    path = Path(folder, "index.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def escaped(text: str) -> str:
    """For a page: what a terminal could not show is escaped too."""
    return html.escape(printable(text))


def data_url(image: np.ndarray) -> str:
    """A picture, uint8 [H, W], inside a page."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def matrix(judged: Judgement) -> str:
    """The confusion matrix, of the symbols that were confused."""
    confused = {symbol for a, b, _ in judged.confusions for symbol in (a, b)}
    symbols = [escaped(symbol) for symbol in judged.alphabet if symbol in confused]
    counts = {(escaped(a), escaped(b)): count for a, b, count in judged.confusions}
    most_often = max(counts.values(), default=1)
    rows = ["<tr><th></th>" + "".join(f"<th>{symbol}</th>" for symbol in symbols) + "</tr>"]
    for a in symbols:
        cells = "".join(
            f'<td style="background:rgba(31,119,180,{counts.get((a, b), 0) / most_often:.2f})">'
            f"{counts.get((a, b), '')}</td>"
            for b in symbols
        )
        rows.append(f"<tr><th>{a}</th>{cells}</tr>")
    return f'<table class="matrix">{"".join(rows)}</table>' if confused else "<p>None.</p>"


def refusal_curve(judged: Judgement) -> str:
    """Share right against share read."""
    n = judged.pictures
    places = np.unique(np.linspace(max(1, n // 2), n, 200).round().astype(int))
    points = [(count / n, float(judged.refusals[count - 1])) for count in places]
    low = min(min(y for _, y in points), 0.999)
    return plot(points, "share read", "share right", (points[0][0], 1.0), (low, 1.0), line=True)


def reliability_curve(judged: Judgement) -> str:
    """Share right against confidence."""
    points = [(sure, share) for _, sure, share in judged.bins]
    sizes = [3 + 3 * math.log10(count) for count, _, _ in judged.bins]
    return plot(points, "confidence", "share right", (0.0, 1.0), (0.0, 1.0), sizes=sizes)


def plot(
    points: Sequence[tuple[float, float]],
    across: str,
    up: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    line: bool = False,
    sizes: Sequence[float] = (),
) -> str:
    """A small chart as SVG: a line through the points, or dots beside the diagonal."""
    left, top, width, height = 60, 20, 400, 240

    def at(x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = x_range, y_range
        return left + width * (x - x0) / ((x1 - x0) or 1), top + height * (y1 - y) / ((y1 - y0) or 1)

    parts = [f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#bbb"/>']
    placed = [at(*point) for point in points]
    if line:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="#1f77b4" stroke-width="2"/>')
    else:
        (x0, y0), (x1, y1) = at(0, 0), at(1, 1)
        parts.append(f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="#bbb"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="#1f77b4" fill-opacity=".7"/>'
            for (x, y), r in zip(placed, sizes, strict=True)
        ]
    bottom = top + height
    for value, anchor, x in ((x_range[0], "start", left), (x_range[1], "end", left + width)):
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="{anchor}">{value:.0%}</text>')
    for value, y in ((y_range[0], bottom), (y_range[1], top + 10)):
        parts.append(f'<text x="{left - 6}" y="{y}" text-anchor="end">{value:.2%}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{bottom + 18}" text-anchor="middle">{across}</text>')
    parts.append(f'<text x="{left - 6}" y="{top + height / 2}" text-anchor="end">{up.split()[0]}</text>')
    parts.append(f'<text x="{left - 6}" y="{top + height / 2 + 14}" text-anchor="end">{up.split()[1]}</text>')
    return f'<svg viewBox="0 0 480 300" width="480" role="img">{"".join(parts)}</svg>'
