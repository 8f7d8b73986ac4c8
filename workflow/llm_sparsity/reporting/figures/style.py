"""The common look of figures.

A model has one colour and one marker in every figure (palettes of Okabe & Ito and of Tol, distinct without colour
too). A kept mask has filled markers and solid lines, a released one hollow markers and dashed lines, other recipes
dash-dotted lines. Every seed is a point, lines join the means, bands are 95 % t-intervals over seeds, and lines carry
their names. A pattern N of M is as sparse as a fraction but no point of its line: it is a hollow point with its name.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator, PercentFormatter

from llm_sparsity.reporting.figures.labels import Point
from llm_sparsity.reporting.intervals import margin, sampled_margin
from llm_sparsity.reporting.tables import are_patterns, fractions
from llm_sparsity.reporting.wording import scope_name
from llm_sparsity.study.sparsity import Sparsity

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933", "#882255", "#44AA99")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "h")
GREY, INK = "#777777", "#555555"  # of reference lines, of their names
HOLLOW = {"markerfacecolor": "white"}
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.edgecolor": "#555555",
    "lines.linewidth": 1.6, "lines.markersize": 5, "legend.frameon": False, "figure.dpi": 100, "savefig.dpi": 160,
    "svg.hashsalt": "llm-sparsity", "figure.constrained_layout.use": True,
}  # fmt: skip


def panels(names: Sequence[str], width: float = 4.4, height: float = 3.4, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """Small multiples, at most four in a row, each with its name."""
    columns = min(len(names), 4) if len(names) != 4 else 2
    rows = math.ceil(len(names) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(width * columns, 6.0), height * rows), squeeze=False, **kwargs
    )
    for ax, name in itertools.zip_longest(axes.flat, names):
        if name is None:
            ax.remove()
        else:
            ax.set_title(name)
    return figure, list(axes.flat)[: len(names)]


def height(names: int) -> float:
    """The height of a panel, in inches, in which so many lines are named."""
    return max(3.4, 1 + 0.15 * names)


def look(names: Sequence[Any], name: Any) -> dict[str, Any]:
    """The colour and marker of a model among models, or of a method among methods."""
    number = names.index(name)
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def stroke(recipe: str, mask: str) -> dict[str, Any]:
    """The line of a recipe: solid for `kept`, dashed and hollow if the mask is released, dash-dotted for others."""
    if mask == "released":
        return {"linestyle": "--", **HOLLOW}
    return {"linestyle": "-" if recipe in ("kept", "") else "-."}


def short(sparsity: Sparsity) -> str:
    """A sparsity beside a point: "50%", or "2of4"."""
    return sparsity.label.replace(" ", "")


def groups(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """The pairs (method, scope) with pruned rows; ("dense", "") if there are none.

    Parts that were pruned at one fraction only, beside scopes with several, are left to the figure of parts.
    """
    pruned = rows[rows.method != "dense"]
    counts = pruned[~are_patterns(pruned)].groupby("scope")["sparsity"].nunique()
    if pruned.scope.nunique() > 2 and (counts > 1).any():
        pruned = pruned[pruned.scope.isin(counts.index[counts > 1])]
    return list(dict.fromkeys(zip(pruned.method, pruned.scope, strict=True))) or [("dense", "")]


def group_name(method: str, scope: str) -> str:
    """The name of a panel."""
    return f"{method}, {scope_name(scope)}" if scope else method


def with_dense(rows: pd.DataFrame, method: str, scope: str) -> pd.DataFrame:
    """The rows of one method and scope, and those of dense models, where every line starts."""
    return rows[((rows.method == method) & (rows.scope == scope)) | (rows.method == "dense")]


def sparsity_axis(ax: Axes, rows: pd.DataFrame) -> None:
    """Sparsity in percent. Ticks are the fractions that were computed, unless they would touch."""
    ticks: list[float] = []
    for fraction in sorted(set(fractions(rows)), reverse=True):
        if not ticks or ticks[-1] - fraction > 0.07:
            ticks.append(fraction)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=None if any(t * 100 % 1 > 1e-9 for t in ticks) else 0))
    ax.set_xlabel("Sparsity of the scope (% of weights removed)")


def log_perplexity(axis: Any, subs: tuple[int, ...] = (1, 3)) -> None:
    """Plain numbers on a logarithmic axis. `subs`: the ticks of a decade."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:.6g}"))
    axis.set_minor_locator(NullLocator())


def reference_line(ax: Axes, value: float, name: str, where: tuple[float, float], **kwargs: Any) -> None:
    """A horizontal line with its name at the left edge, or at the right one (`ha="right"`).

    Args:
        ax: the axes.
        value: y of the line.
        name: its text.
        where: offset of the text from the line's end, in points.
        kwargs: `ha`, and the `linestyle` of the line.
    """
    align = kwargs.pop("ha", "left")
    ax.axhline(value, color=GREY, linewidth=1, **kwargs)
    ax.annotate(
        name, (int(align == "right"), value), where, xycoords=("axes fraction", "data"), textcoords="offset points",
        fontsize=8, color=INK, ha=align,
    )  # fmt: skip


def line(
    ax: Axes, rows: pd.DataFrame, name: str, stroke: Mapping[str, Any], detail: str = "", **look: Any
) -> tuple[list[Point], list[Point]]:
    """Draw values by sparsity: seeds as points, their mean as a line, its 95 % interval as a band.

    Args:
        ax: the axes.
        rows: with the columns sparsity and value, those of a dense model among them, and stderr if the standard errors
            of values are known. A pattern is drawn apart.
        name: of the line.
        stroke: linestyle, and markers where they differ.
        detail: what the names of patterns say besides, such as the recipe.
        look: colour and marker.

    Returns:
        The points to be named: the last one of the line, and the patterns.
    """
    spots = patterns(ax, rows, detail=detail, **look)
    swept = rows[~are_patterns(rows)]
    at, means, low, high = [], [], [], []
    for sparsity, group in swept.groupby("sparsity"):
        values = group["value"].astype(float)
        about = _margin(group)
        at.append(sparsity.fraction)
        if len(values) > 1:
            ax.plot(at[-1:] * len(values), values, linestyle="", alpha=0.45, **{**look, "markersize": 3})
        means.append(float(values.mean()))
        low.append(means[-1] - about)
        high.append(means[-1] + about)
    ax.plot(at, means, **look, **stroke)
    if any(top > bottom for top, bottom in zip(high, low, strict=True)):  # NaN where there is one seed
        ax.fill_between(at, low, high, color=look["color"], alpha=0.12, linewidth=0)
    if at[-1] == 0 and spots:  # nothing but dense and patterns: the name belongs to them
        return [(x, y, f"{name}, {pattern}", colour) for x, y, pattern, colour in spots], []
    return [(at[-1], means[-1], name, look["color"])], spots


def _margin(rows: pd.DataFrame) -> float:
    """Half the width of the 95 % interval of the mean of rows; NaN if there is none."""
    values = rows["value"].astype(float)
    return sampled_margin(values, rows["stderr"]) if "stderr" in rows else margin(values)


def patterns(ax: Axes, rows: pd.DataFrame, detail: str = "", **look: Any) -> list[Point]:
    """Draw patterns as hollow points, with their 95 % intervals over rows; returns the points to be named."""
    spots = []
    for sparsity, group in rows[are_patterns(rows)].groupby("sparsity"):
        values = group["value"].astype(float)
        at, mean, about = sparsity.fraction, float(values.mean()), _margin(group)
        if about > 0:
            ax.errorbar(at, mean, about, capsize=2, elinewidth=1, color=look["color"])
        ax.plot(at, mean, linestyle="", **{**look, **HOLLOW})
        spots.append((at, mean, ", ".join(filter(None, [str(sparsity), detail])), look["color"]))
    return spots


def crosses(ax: Axes, rows: pd.DataFrame, colour: str, *, faint: bool = False) -> list[Point]:
    """Draw numbers of others as crosses; returns the patterns among them, to be named."""
    size = {"alpha": 0.45, "markersize": 7} if faint else {"markersize": 9}
    ax.plot(fractions(rows), rows.value, "x", color=colour, **size)
    return [
        (row.sparsity.fraction, row.value, str(row.sparsity), colour) for row in rows[are_patterns(rows)].itertuples()
    ]
