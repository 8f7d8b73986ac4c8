"""The common look of figures.

A model has one colour in every figure, a method one marker (palettes of Okabe & Ito and of Tol); the methods of one
model are tints of its colour. A kept mask has filled markers and solid lines, a released one hollow markers and dashed
lines, other recipes dash-dotted lines. Every seed is a small point, lines join the means, bands are 95 % t-intervals
over seeds, and lines carry their names. Points are joined where there are three or more. A pattern N of M is as sparse
as a fraction but no point of its line: it is a hollow point with its name.
"""

import itertools
import math
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter
from matplotlib.transforms import ScaledTranslation

from llm_sparsity.reporting.figures.labels import Point
from llm_sparsity.reporting.intervals import margin, sampled_margin
from llm_sparsity.reporting.tables import are_patterns, by_seed, fractions
from llm_sparsity.study.methods import METHODS, STEPS

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933", "#882255", "#44AA99")
MARKERS = ("s", "^", "D", "p", "v", "P", "X", "*", "<", "h", ">", "d")
GREY, INK = "#777777", "#555555"  # of reference lines, of their names
HOLLOW = {"markerfacecolor": "white"}
ROOM = 0.06  # of an axis, beyond the points
JOINED = 3  # points, from which on they are joined by a line
LETTERS = 10.7  # of a panel's name, in an inch
NARROWEST = 20  # letters in a line of a panel's name, however wide its labels are
LABELS = 1.2  # inches beside a panel, for the labels of its y axis
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 10.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.edgecolor": "#555555",
    "lines.linewidth": 1.6, "lines.markersize": 6, "legend.frameon": False, "figure.dpi": 100, "savefig.dpi": 160,
    "svg.hashsalt": "llm-sparsity", "figure.constrained_layout.use": True,
}  # fmt: skip


def panels(
    names: Sequence[str], width: float = 6.4, height: float = 3.6, labels: float = LABELS, **kwargs: Any
) -> tuple[Figure, list[Axes]]:
    """Small multiples, at most two in a row, so that they stay legible; each with its name, in lines as wide as it.

    Args:
        names: of the panels.
        width, height: of a panel, in inches; it is higher where a name takes several lines.
        labels: inches of the width that the labels of the y axis take.
        kwargs: of `plt.subplots`.
    """
    columns = min(len(names), 2)
    rows = math.ceil(len(names) / columns)
    titles = [textwrap.wrap(name, max(round(LETTERS * (width - labels)), NARROWEST)) for name in names]
    height += 0.18 * max(0, *(len(lines) - 1 for lines in titles))
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, **kwargs)
    for ax, lines in itertools.zip_longest(axes.flat, titles):
        if lines is None:
            ax.remove()
        else:
            ax.set_title("\n".join(lines))
    return figure, list(axes.flat)[: len(names)]


def height(names: int) -> float:
    """The height of a panel, in inches, in which so many lines are named."""
    return max(3.6, 1 + 0.17 * names)


def colour_of(models: Sequence[str], model: str) -> str:
    """The colour of a model among those of the study."""
    return COLOURS[list(models).index(model) % len(COLOURS)]


def marker_of(method: str) -> str:
    """The marker of a method, the same in every study; of a chain such as `wanda+int8`, that of its first part."""
    first = method.split("+", maxsplit=1)[0]
    known = [*METHODS, *STEPS]
    return "o" if first not in known else MARKERS[known.index(first) % len(MARKERS)]


def tint(colour: str, number: int, of: int) -> str:
    """One of several tints of a colour, from darker to lighter."""
    share = 0.5 - 0.8 * number / (of - 1) if of > 1 else 0.0  # light ones stay dark enough to read a name in
    towards = 0.0 if share > 0 else 1.0
    mixed = [(1 - abs(share)) * part + abs(share) * towards for part in mpl.colors.to_rgb(colour)]
    return str(mpl.colors.to_hex(mixed))


def stroke(recipe: str, mask: str, plain: str) -> dict[str, Any]:
    """The line of a recipe: solid for the plain one, dashed and hollow if the mask is released, else dash-dotted."""
    if mask == "released":
        return {"linestyle": "--", **HOLLOW}
    return {"linestyle": "-" if recipe == plain else "-."}


def weights(count: int) -> str:
    """A number of weights, in millions if there are so many."""
    return f"{count / 1e6:,.1f} M weights" if count >= 1e6 else f"{count:,} weights"


def swept(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that lie on lines over sparsity.

    Parts that were pruned at one fraction only, beside scopes with several, are left to the figure of parts; models of
    which nothing is removed, such as quantised ones, to the frontier.
    """
    rows = rows[(rows.method == "dense") | (fractions(rows) > 0)]
    pruned = rows[rows.method != "dense"]
    counts = pruned[~are_patterns(pruned)].groupby("scope")["sparsity"].nunique()
    if pruned.scope.nunique() <= 2 or not (counts > 1).any():
        return rows
    return rows[rows.scope.isin(counts.index[counts > 1]) | (rows.method == "dense")]


def sparsity_axis(ax: Axes, rows: pd.DataFrame) -> None:
    """Sparsity in percent. Ticks are the fractions that were computed, unless they would touch."""
    ticks: list[float] = []
    for fraction in sorted(set(fractions(rows)), reverse=True):
        if not ticks or ticks[-1] - fraction > 0.07:
            ticks.append(fraction)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=None if any(t * 100 % 1 > 1e-9 for t in ticks) else 0))
    ax.set_xlabel("Sparsity of the scope (% of weights removed)")


def ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    """Round numbers from one value to another; on a logarithmic axis of several decades, 1 and 3 of each, or powers."""
    if log and high > 1e5 * low:
        return [10.0 ** round(power) for power in ticks(math.log10(low), math.log10(high))]
    locator = LogLocator(subs=(1, 3)) if log and high > 10 * low else MaxNLocator(8, steps=(1, 2, 5, 10))
    return [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]


def plain(value: float) -> str:
    """A tick as text: "0.75", "30,000", "1e+09"."""
    return f"{value:,.0f}" if 1000 <= value < 1e7 else f"{value:.6g}"


def widened(low: float, high: float) -> tuple[float, float]:
    """The ends of a logarithmic axis from one value to another, with room beyond them."""
    ends = math.log10(low), math.log10(high)
    room = max(ROOM * (ends[1] - ends[0]), 0.02)
    return 10.0 ** (ends[0] - room), 10.0 ** min(ends[1] + room, sys.float_info.max_10_exp)


def log_perplexity(axes: Sequence[Axes], which: str = "y") -> None:
    """Plain numbers on the logarithmic axes of panels, `x` or `y`, which span what is drawn in all of them."""
    low = min(getattr(ax.dataLim, f"minpos{which}") for ax in axes)
    high = max(getattr(ax.dataLim, f"{which}1") for ax in axes)
    low, high = widened(low, high)
    for ax in axes:
        axis = getattr(ax, f"{which}axis")
        ax.set(**{f"{which}lim": (low, high)})
        ax.set(**{f"{which}scale": "log"})
        axis.set_major_locator(FixedLocator(ticks(low, high, log=True)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
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
        fontsize=8.5, color=INK, ha=align,
    )  # fmt: skip


def line(
    ax: Axes, rows: pd.DataFrame, name: str, stroke: Mapping[str, Any], taken: Counter[float], **look: Any
) -> tuple[list[Point], list[Point]]:
    """Draw values by sparsity: seeds as points, their mean as a line, its 95 % interval as a band.

    Args:
        ax: the axes.
        rows: with the columns sparsity and value, those of a dense model among them, and stderr if the standard errors
            of values are known. A pattern is drawn apart.
        name: of the line.
        stroke: linestyle, and markers where they differ.
        taken: x -> number of bars that stand there; those of points that are not joined stand to their left.
        look: colour and marker.

    Returns:
        The points to be named: the last one of the line, and the patterns.
    """
    spots = patterns(ax, rows, name, **look)
    groups = [
        (sparsity.fraction, *seeds_of(group)) for sparsity, group in rows[~are_patterns(rows)].groupby("sparsity")
    ]
    if len(groups) < JOINED:
        for x, values, about in groups:
            if x > 0:
                _bar(ax, x, values, about, taken, **look, **{**stroke, "linestyle": ""})
    else:
        _seeds(ax, [(x, value) for x, values, _ in groups for value in values if len(values) > 1], ax.transData, look)
        at, means = [x for x, *_ in groups], [float(values.mean()) for _, values, _ in groups]
        ax.plot(at, means, **look, **stroke)
        low, high = ([mean + sign * each[2] for mean, each in zip(means, groups, strict=True)] for sign in (-1, 1))
        if any(about > 0 for *_, about in groups):  # NaN where there is one seed
            ax.fill_between(at, low, high, color=look["color"], alpha=0.12, linewidth=0)
    return [(x, float(values.mean()), name, look["color"]) for x, values, _ in groups[-1:] if x > 0], spots


def _bar(ax: Axes, x: float, values: "pd.Series[float]", about: float, taken: Counter[float], **look: Any) -> None:
    """A point with its seeds and its 95 % interval, which stands beside those that are there already."""
    mean, place = float(values.mean()), ax.transData
    if about > 0:
        place += ScaledTranslation(-taken[x] / 12, 0, ax.figure.dpi_scale_trans)
        taken[x] += 1
        ax.errorbar(x, mean, about, capsize=2, elinewidth=1, color=look["color"], transform=place)
        # Points that are moved are left out otherwise.
        ax.update_datalim([(x, y) for y in (mean - about, mean + about, *values)])
    _seeds(ax, [(x, value) for value in values if len(values) > 1], place, look)
    ax.plot(x, mean, **look, transform=place)


def _seeds(ax: Axes, points: Sequence[tuple[float, float]], place: Any, look: Mapping[str, Any]) -> None:
    if points:
        small = {"linestyle": "", "alpha": 0.45, "markersize": 3}
        ax.plot(*zip(*points, strict=True), **{**look, **small}, transform=place)


def seeds_of(rows: pd.DataFrame) -> tuple["pd.Series[float]", float]:
    """The values of one cell by seed, and half the width of the 95 % interval of their mean; NaN if there is none."""
    values = by_seed(rows)
    return values, sampled_margin(values, rows["stderr"]) if "stderr" in rows else margin(values)


def patterns(ax: Axes, rows: pd.DataFrame, name: str, **look: Any) -> list[Point]:
    """Draw patterns as hollow points, with their 95 % intervals over rows; returns the points to be named."""
    spots = []
    for sparsity, group in rows[are_patterns(rows)].groupby("sparsity"):
        at, (values, about) = sparsity.fraction, seeds_of(group)
        mean = float(values.mean())
        if about > 0:
            ax.errorbar(at, mean, about, capsize=2, elinewidth=1, color=look["color"])
        ax.plot(at, mean, linestyle="", **{**look, **HOLLOW})
        spots.append((at, mean, f"{sparsity}, {name}", look["color"]))
    return spots


def crosses(ax: Axes, rows: pd.DataFrame, colour: str, *, faint: bool = False) -> list[Point]:
    """Draw numbers of others as crosses; returns the patterns among them, to be named."""
    size = {"alpha": 0.45, "markersize": 7} if faint else {"markersize": 9}
    ax.plot(fractions(rows), rows.value, "x", color=colour, **size)
    return [
        (row.sparsity.fraction, row.value, str(row.sparsity), colour) for row in rows[are_patterns(rows)].itertuples()
    ]
