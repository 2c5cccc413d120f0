"""docs/network.svg and network.png: our network, drawn from the sizes that its graph has."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.figures import load_matplotlib
from captcha_cnn.drawing import draw_captcha
from captcha_cnn.tf_runtime import load_tensorflow
from config import Config

TIMES = "\N{MULTIPLICATION SIGN}"
INK, MUTED, FILL, ARROW = "#1f2933", "#52606d", "#9ecae8", "#d64545"
WIDTH, ROW, FIRST_ROW = 800, 136, 60  # pixels: of the drawing, and from one feature map to the next
MIDDLE, TEXT = 140, 285  # pixels from the left: middle of the feature maps, beginning of the text
SCALE = 1.4  # pixels of the drawing for a pixel of the image
CELL = 6  # pixels of a time step and class
CHANNEL = 0.8  # pixels that each channel goes to the side and up


class Layer(NamedTuple):
    """A convolution of the graph, or the last linear layer, which is one too."""

    name: str
    kernel: tuple[int, int]  # rows, columns
    stride: tuple[int, int]
    output: tuple[int, int, int]  # height, width, channels
    parameters: int  # trained: the kernel, and what is trained of batch normalisation or the bias


def read_layers(config: Config) -> list[Layer]:
    """The layers of our network, with the sizes of the graph that cnn_model builds."""
    tf = load_tensorflow()
    from cnn_model import ctc_network

    with tf.Graph().as_default() as graph:
        ctc_network(tf.placeholder(tf.uint8, [1, config.height, config.width]), config)
        counts: dict[str, int] = {}
        for variable in tf.trainable_variables():
            scope = variable.op.name.split("/")[0]
            counts[scope] = counts.get(scope, 0) + int(variable.shape.num_elements())
        layers = []
        for op in graph.get_operations():
            if op.type == "Conv2D":
                name = op.name.split("/")[0]
                rows, columns, *_ = op.inputs[1].shape.as_list()
                _, down, across, _ = op.get_attr("strides")
                _, height, width, channels = op.outputs[0].shape.as_list()
                output = (height, width, channels)
                layers.append(Layer(name, (rows, columns), (down, across), output, counts[name]))
    return layers


def describe(layer: Layer, last: bool) -> list[str]:
    """What the diagram says between two feature maps."""
    rows, columns = layer.kernel
    if last:
        return [
            f"one linear layer for every time step: it sees {columns} columns of {rows} rows",
            f"{layer.parameters:,} parameters",
        ]
    down, across = layer.stride
    return [
        f"convolution {rows} {TIMES} {columns}, stride {down} down and {across} across",
        f"then batch normalisation, ReLU, dropout · {layer.parameters:,} parameters",
    ]


def titles(layers: list[Layer], config: Config) -> list[tuple[str, str]]:
    """Size and meaning of the image and of each layer's output."""
    found = [
        (
            f"{config.height} {TIMES} {config.width}",
            f"the image: rows {TIMES} columns, grayscale, standardised",
        )
    ]
    for layer in layers[:-1]:
        height, width, channels = layer.output
        found.append(
            (
                f"{height} {TIMES} {width} {TIMES} {channels}",
                f"feature map: rows {TIMES} columns {TIMES} channels",
            )
        )
    _, time_steps, classes = layers[-1].output
    meaning = f"time steps {TIMES} classes: {classes - 1} characters, and the blank of CTC"
    return [*found, (f"{time_steps} {TIMES} {classes}", meaning)]


def draw_network(path: Path, config: Config) -> list[Layer]:
    """Draw the network into an SVG file (or what the path's ending says); its layers."""
    load_matplotlib()
    import matplotlib
    from matplotlib import pyplot as plt

    layers = read_layers(config)
    height = FIRST_ROW + len(layers) * ROW + 140
    style = {"svg.fonttype": "none", "svg.hashsalt": "network", "font.size": 13}  # the same file each time
    with matplotlib.rc_context(style):
        figure = plt.figure(figsize=(WIDTH / 72, height / 72), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0), aspect="equal")
        axes.axis("off")
        for i, (size, meaning) in enumerate(titles(layers, config)):
            y = FIRST_ROW + i * ROW
            draw_map(axes, layers[i - 1] if i else None, y, config)
            axes.text(TEXT, y - 8, size, size=17, weight="bold", color=INK)
            axes.text(TEXT, y + 12, meaning, color=MUTED)
            if i < len(layers):
                draw_arrow(axes, y + 66, describe(layers[i], last=i == len(layers) - 1))
        y = FIRST_ROW + len(layers) * ROW
        label, _ = draw_captcha(config, "test", 0)
        total = sum(layer.parameters for layer in layers)
        draw_arrow(
            axes, y + 60, [f"CTC decoder: adds up all alignments with exactly {config.char_num} characters"]
        )
        axes.text(MIDDLE, y + 118, label, size=20, weight="bold", color=INK, ha="center")
        axes.text(TEXT, y + 118, f"the text and its probability · {total:,} parameters in all", color=MUTED)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=72)
        plt.close(figure)
    return layers


def draw_arrow(axes: Any, y: float, lines: list[str]) -> None:
    """An arrow downwards, and beside it what is done."""
    style = {"arrowstyle": "-|>", "color": ARROW, "linewidth": 1.6}
    axes.annotate("", (MIDDLE, y + 16), (MIDDLE, y - 14), arrowprops=style)
    for i, line in enumerate(lines):
        axes.text(TEXT, y - 9 * (len(lines) - 1) + 18 * i + 4, line, color=INK)


def draw_map(axes: Any, layer: Layer | None, y: float, config: Config) -> None:
    """The image, or a feature map as a block: all to one scale, each channel a step behind the one before."""
    from matplotlib.patches import Polygon, Rectangle

    if layer is None:
        _, image = draw_captcha(config, "test", 0)
        wide, high = SCALE * config.width, SCALE * config.height
        box = (MIDDLE - wide / 2, MIDDLE + wide / 2, y + high / 2, y - high / 2)
        axes.imshow(image.convert("L"), cmap="gray", vmin=0, vmax=255, extent=box, aspect="auto")
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
        return
    rows, columns, channels = layer.output
    line: dict[str, Any] = {"edgecolor": INK, "linewidth": 0.9}
    if rows == 1:  # the scores: a column for each time step, a row for each class
        left, top = MIDDLE - CELL * columns / 2, y - CELL * channels / 2
        right, bottom = left + CELL * columns, top + CELL * channels
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, facecolor=FILL, **line))
        axes.vlines([left + CELL * i for i in range(columns)], top, bottom, INK, linewidth=0.5)
        axes.hlines([top + CELL * i for i in range(channels)], left, right, INK, linewidth=0.5)
        return
    wide, high = SCALE * columns * config.width / 160, SCALE * rows
    deep = CHANNEL * channels
    left, top = MIDDLE - (wide + deep) / 2, y - (high - deep) / 2
    right, back = left + wide, top - deep
    upper = [(left, top), (left + deep, back), (right + deep, back), (right, top)]
    side = [(right, top), (right + deep, back), (right + deep, back + high), (right, top + high)]
    axes.add_patch(Polygon(upper, facecolor="#d6e9f7", **line))
    axes.add_patch(Polygon(side, facecolor="#6baed6", **line))
    axes.add_patch(Rectangle((left, top), wide, high, facecolor=FILL, **line))
