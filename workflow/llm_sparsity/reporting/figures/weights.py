"""Weights of dense models: their distribution, and the cumulative distribution of each layer."""

from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.drawing import WEIGHTS, Drawn, Study
from llm_sparsity.reporting.wording import percent

OUTSIDE = "#D55E00"  # of weights outside layers


def draw(study: Study) -> Iterable[Drawn]:
    """Two figures for each model."""
    rows = study.tables["weights"]
    rows = rows[rows.method == "dense"]
    for model in study.present(rows):
        mine = rows[rows.model == model]
        yield _histogram(study, model, mine[mine.level == "overall"])
        yield _layers(model, mine[(mine.level == "layer") & (mine.statistic == "cumulative")])


def _histogram(study: Study, model: str, rows: pd.DataFrame) -> Drawn:
    bins = rows[rows.statistic == "histogram"]
    x, count = bins.x.to_numpy(), bins.value.to_numpy()
    width = x[1] - x[0]
    figure, (ax,) = style.panels([model], width=6.4)
    colour = study.colour(model)
    ax.fill_between(x + width / 2, count, step="mid", color=colour, alpha=0.35, linewidth=0)
    ax.step(x + width / 2, count, where="mid", color=colour, linewidth=1)
    ax.set_yscale("log")
    ax.set_ylim(0.8, 40 * count.max())  # room for the text
    ax.set_xlabel("Weight")
    ax.set_ylabel("Weights in the bin (log scale)")
    below = rows[rows.statistic == "share_below"]
    shares = "\n".join(f"|w| < {at:g}:  {value:.1%}" for at, value in zip(below.x, below.value, strict=True))
    numbers = rows.drop_duplicates("statistic").set_index("statistic").value
    ax.text(
        0.985, 0.97, f"{style.weights(int(numbers['count']))}\n{shares}", transform=ax.transAxes, ha="right",
        va="top", fontsize=8.5, linespacing=1.5,
    )  # fmt: skip
    caption = (
        f"Weights of dense {model} that can be pruned: standard deviation {numbers['std']:.3g}, minimum "
        f"{numbers['min']:.3g}, maximum {numbers['max']:.3g}. The axis spans 99.9 % of them; the end bins hold the "
        "rest. The more weights lie near zero, the more can be removed at little cost."
    )
    nearest: Any = below.loc[(below.value - 0.5).abs().idxmin()]
    title = f"{percent(round(float(nearest.value), 3))} of the weights of {model} lie within ±{nearest.x:g}"
    return Drawn(f"weights-{model}", WEIGHTS, title, caption, figure)


def _layers(model: str, curves: pd.DataFrame) -> Drawn:
    stacks = list(dict.fromkeys(curves["stack"]))
    figure, axes = style.panels(
        [f"{model}: {stack}" if len(stacks) > 1 else model for stack in stacks], width=6.4, sharey=True
    )
    largest = [
        f"{stack} layer {_panel(ax, curves[curves['stack'] == stack])}" for ax, stack in zip(axes, stacks, strict=True)
    ]
    axes[0].set_ylabel("Share of the layer's weights below")
    caption = (
        f"Cumulative distribution of |w| in each layer of dense {model}. A curve further right has larger weights and "
        f"loses fewer of them under global magnitude pruning; the largest by the median: {', '.join(largest)}."
    )
    title = f"The weights of {model} are largest in {' and in '.join(largest)}, by their median"
    return Drawn(f"layers-{model}", WEIGHTS, title, caption, figure)


def _panel(ax: Axes, layers: pd.DataFrame) -> int:
    """The curves of one stack; returns the layer with the largest median."""
    highest = max(int(layers.layer.max()), 1)
    medians = {}
    for layer, curve in layers.groupby("layer"):
        x, y, number = curve.x.to_numpy(), curve.value.to_numpy(), int(layer)
        inside = number >= 0
        colour = mpl.colormaps["viridis"](0.9 * number / highest) if inside else OUTSIDE
        ax.plot(x, y, color=colour, linewidth=1.2, linestyle="-" if inside else "--")
        medians[number] = float(np.exp(np.interp(0.5, y, np.log(x))))
    inner = {number: median for number, median in medians.items() if number >= 0} or medians
    largest, smallest = max(inner, key=lambda n: inner[n]), min(inner, key=lambda n: inner[n])
    arrow = {"arrowstyle": "-", "color": style.INK, "lw": 0.8}
    for number, side in ((largest, 1), (smallest, -1)):
        ax.annotate(
            f"layer {number}", (inner[number], 0.5), (26 * side, -22 * side), textcoords="offset points", fontsize=8.5,
            ha="left" if side > 0 else "right", va="center", arrowprops=arrow,
        )  # fmt: skip
    if -1 in medians:
        ax.plot([], [], color=OUTSIDE, linestyle="--", label="embeddings")
    ax.plot([], [], color=mpl.colormaps["viridis"](0.0), label="layer 0")
    ax.plot([], [], color=mpl.colormaps["viridis"](0.9), label=f"layer {highest}")
    ax.legend(loc="upper left", fontsize=8)
    ax.set_xscale("log")
    spread = layers.x[(layers.value > 0.005) & (layers.value < 0.9995)]
    if spread.nunique() < 2:  # weights of one magnitude, such as binary ones
        spread = layers.x
    ax.set_xlim(spread.min(), spread.max())
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set_xlabel("|weight| (log scale)")
    return largest
