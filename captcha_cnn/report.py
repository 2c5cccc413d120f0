"""The evaluation of a labelled set, as text for a terminal and as an HTML page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from captcha_cnn.files import atomic_write
from captcha_cnn.metrics import EvaluationReport, accuracy_line, count_confusions, coverage_lines
from captcha_cnn.summaries import draw_confusion_matrix
from config import CaptchaError, escape_unprintable

MAX_IN_TEXT = 10  # confusions and mistakes that are printed
MAX_ON_PAGE = 200  # mistakes on the page, with their images
MIN_SHARE_ON_PAGE = 0.999  # the axis of selective accuracy begins here at the latest
AREA = (60, 20, 400, 240)  # left, top, width and height of a chart's area, as templates/report.html has it


def summary_lines(report: EvaluationReport) -> list[str]:
    """The lines of accuracy and loss."""
    errors, chars = report.char_errors, report.chars
    lines = [
        accuracy_line("Captcha", report.correct, report.images),
        accuracy_line("Character", report.chars_correct, chars),
        f"Character error rate: {errors / chars:.2%} (edit distance {errors}, {chars} characters)",
    ]
    return lines if report.loss is None else [*lines, f"Loss: {report.loss:.4f} nats per character"]


def text_report(report: EvaluationReport, names: Sequence[str]) -> str:
    """What a terminal of 80 columns shows.

    Args:
        names: the file names of all images.
    """
    lines = [
        *summary_lines(report),
        "",
        "Selective accuracy, without the images of least confidence:",
        *(f"  coverage {100 * coverage:>3.0f}%, {text}" for coverage, text in coverage_lines(report)),
        "",
        f"Expected calibration error: {report.calibration_error:.2%}",
        "    images   mean confidence   right",
        *(f"  {count:>8}   {mean:>15.2%} {share:>7.2%}" for count, mean, share in report.bins),
    ]
    if report.mistakes:
        confusions = count_confusions(report.labels, report.texts).most_common()
        lines += ["", f"Confusions{shown_of(len(confusions))}:"]
        lines += [f"  {a} read as {b}: {count}" for (a, b), count in confusions[:MAX_IN_TEXT]]
        lines += ["", f"Mistakes, the most confident first{shown_of(len(report.mistakes))}:"]
        lines += [
            f"  {m.label} read as {m.text}, {m.confidence:.4f}: {escape_unprintable(names[m.position])}"
            for m in report.mistakes[:MAX_IN_TEXT]
        ]
    return "\n".join(lines)


def shown_of(count: int) -> str:
    """Says how many of them are shown, where not all are."""
    return f" ({MAX_IN_TEXT} of {count})" if count > MAX_IN_TEXT else ""


# ---------------------------------------------------------------------- as a page


class Plot(NamedTuple):
    """A chart of shares against shares."""

    points: list[tuple[float, float, float]]  # x, y and radius of each point, in the units of the SVG
    x_name: str
    y_name: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]


def write_html_report(
    folder: str, report: EvaluationReport, images: Sequence[np.ndarray], names: Sequence[str], title: str
) -> Path:
    """Write the report as one page, `index.html`, that needs no other file; its path.

    Args:
        images: uint8 [H, W] or [H, W, 3] of the first MAX_ON_PAGE mistakes, in their order.
        names: the file names of all images.
    Raises:
        CaptchaError: the template engine is not installed.
    """
    confusions = count_confusions(report.labels, report.texts)
    page = load_template().render(
        title=escape_unprintable(title),
        summary=[*summary_lines(report), f"Expected calibration error: {report.calibration_error:.2%}"],
        selective=selective_plot(report),
        coverages=list(coverage_lines(report)),
        calibration=calibration_plot(report),
        bins=report.bins,
        confusions=confusions.most_common(),
        confusion_matrix=data_url(draw_confusion_matrix(confusions)),
        mistakes_total=len(report.mistakes),
        images_total=report.images,
        mistakes=[
            {
                "label": escape_unprintable(m.label),
                "text": escape_unprintable(m.text),
                "confidence": m.confidence,
                "name": escape_unprintable(names[m.position]),
                "image": data_url(Image.fromarray(image)),
            }
            for m, image in zip(report.mistakes[:MAX_ON_PAGE], images, strict=True)
        ],
    )
    path = Path(folder, "index.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def load_template(name: str = "report.html") -> Any:
    """The template of a page, which escapes all that it is given."""
    try:
        import jinja2
    except ImportError:
        raise CaptchaError(
            "a page needs jinja2, which is not installed: pip install -r requirements.txt"
        ) from None
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(name)


def data_url(image: Image.Image) -> str:
    """An image inside a page."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def selective_plot(report: EvaluationReport) -> Plot:
    """Selective accuracy by coverage, from half of the images on."""
    n = report.images
    counts = np.unique(np.linspace(max(1, n // 2), n, 200).round().astype(int)).tolist()
    shares = [float(report.selective_accuracy[count - 1]) for count in counts]
    x_range, y_range = (counts[0] / n, 1.0), (min(*shares, MIN_SHARE_ON_PAGE), 1.0)
    points = [place(count / n, share, x_range, y_range) for count, share in zip(counts, shares, strict=True)]
    return Plot([(x, y, 0.0) for x, y in points], "coverage", "right", x_range, y_range)


def calibration_plot(report: EvaluationReport) -> Plot:
    """Share read right by confidence."""
    unit = (0.0, 1.0)
    points = [
        (*place(mean, share, unit, unit), 3 + 3 * math.log10(count)) for count, mean, share in report.bins
    ]
    return Plot(points, "confidence", "right", unit, unit)


def place(
    x: float, y: float, x_range: tuple[float, float], y_range: tuple[float, float]
) -> tuple[float, float]:
    """Where a point of the data lies in the chart."""
    left, top, width, height = AREA
    (x0, x1), (y0, y1) = x_range, y_range
    return left + width * (x - x0) / ((x1 - x0) or 1), top + height * (y1 - y) / ((y1 - y0) or 1)
