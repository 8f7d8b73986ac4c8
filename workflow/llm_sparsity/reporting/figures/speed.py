"""Speed: inference of a variant against the dense model, by sparsity and execution."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.by_sparsity import name_of_line
from llm_sparsity.reporting.figures.drawing import SAVINGS, Drawn, Study
from llm_sparsity.reporting.figures.labels import Point, Points, legible, name_points, thinned
from llm_sparsity.reporting.tables import are_masked, are_patterns, fractions
from llm_sparsity.reporting.wording import name_of, number_of, scope_name, span, times

EXECUTIONS = ("dense", "sparse", "2of4")
LIMIT = (
    "Thin line: the limit of decoding, which reads each weight once; of a matrix with zeros it reads a bit for every "
    "weight, and the weights that remain."
)


def draw(study: Study) -> Iterable[Drawn]:
    """A figure for each batch size, and of decoders one for each phase, with a panel for each model."""
    speed = style.swept(study.tables["speed"])
    speed = speed[speed.execution.isin(EXECUTIONS)]
    for (decodes, size), rows in speed.groupby([speed.phase == "decode", "batch_size"]):
        if (rows.method != "dense").any():
            yield _speed(study, int(size), rows, bool(decodes))


def _speed(study: Study, batch: int, rows: pd.DataFrame, decodes: bool) -> Drawn:
    models = study.present(rows[rows.method != "dense"])
    lines = rows[rows.method != "dense"].groupby(["method", "scope", "execution"]).ngroups
    figure, axes = style.panels(models, height=style.height(lines), sharey=True)
    ends: Points = {}
    for ax, model in zip(axes, models, strict=True):
        ends[ax] = _panel(ax, study, rows[rows.model == model], model)
        style.reference_line(ax, 1, "as fast as dense", (2, -10))
        style.sparsity_axis(ax, rows[rows.model == model])
    axes[0].set_ylim(0, 1.08 * max(1.1, float(rows.speedup_high.max()), *(ax.dataLim.y1 for ax in axes)))
    name_points(figure, ends)
    for ax in axes[::2]:
        ax.set_ylabel("Speed-up over the dense model")
    machines = rows[["device", "threads"]].drop_duplicates().itertuples()
    where = " and ".join(f"{each.device}, {number_of(each.threads, 'thread')}" for each in machines)
    what = "the last token of " if decodes else ""
    caption = (
        f"Speed of the base model on {what}{batch} sequence{'s' * (batch > 1)} of "
        f"{span(rows.sequence_length, 0)} tokens, {where}; both models take turns, points are medians, bars are "
        "quartiles. Dashed and hollow: dense execution, which multiplies zeros like any number. Solid: sparse "
        "execution, which skips removed weights; below break-even (the first one of a model is marked) it costs more "
        "than it saves."
    )
    if decodes:
        caption += f" {LIMIT}"
    return Drawn(f"speed-{'decode-' * decodes}batch-{batch}", SAVINGS, _title(rows, batch, decodes), caption, figure)


def _title(rows: pd.DataFrame, batch: int, decodes: bool) -> str:
    """What is seen: the fastest. A masked model in dense execution is the dense model, and differs by noise alone."""
    found = rows[(rows.method != "dense") & ~(are_masked(rows) & (rows.execution == "dense"))]
    at = f"at batch {batch}{', decoding' * decodes}"
    if found.empty:
        return f"Dense execution of pruned models {at}: zeros are multiplied like any number"
    faster = found[found.speedup_low > 1]
    shown = found if faster.empty else faster
    fastest: Any = shown.loc[shown.speedup.idxmax()]
    name = f"{fastest.model}, {name_of(fastest)}, {fastest.execution} execution"
    if faster.empty:
        nearest = f"the nearest ({fastest.speedup:.2f} times) is {name}"
        return f"Nothing is measurably faster than the dense model {at}; {nearest}"
    return f"At most {times(fastest.speedup)} as fast as dense {at}: {name}"


def _panel(ax: Axes, study: Study, rows: pd.DataFrame, model: str) -> list[Point]:
    """A line for each method, scope and execution of one model, limits, and the first break-even.

    Returns:
        The points to be named.
    """
    named: list[Point] = []
    patterns: list[Point] = []
    limits: dict[str, Point] = {}  # by scope: the same for all methods
    evens: list[tuple[float, str]] = []  # with their colours
    pruned, start = rows[rows.method != "dense"], rows[rows.method == "dense"]
    methods, scopes = list(dict.fromkeys(pruned.method)), pruned.scope.nunique() > 1
    for (method, scope), mine in pruned.groupby(["method", "scope"], sort=False):
        executions = [name for name in EXECUTIONS if (mine.execution == name).any()]
        look = study.look(model, method, methods)
        for execution in executions:
            name = name_of_line(method, scope_name(scope) if scopes else "", execution)
            line = pd.concat([start, mine[mine.execution == execution]]).sort_values("sparsity", kind="stable")
            spots = _errorbars(ax, line[are_patterns(line)], {**look, **style.HOLLOW, "linestyle": ""})
            if execution != "dense" or execution == executions[-1]:
                patterns += [(x, y, f"{pattern}, {name}", colour) for x, y, pattern, colour in spots]
            line = line[~are_patterns(line)]
            hollow = {"linestyle": "--", **style.HOLLOW} if execution == "dense" and "sparse" in executions else {}
            if line.sparsity.nunique() < style.JOINED:
                line, hollow = line[line.method != "dense"], hollow | {"linestyle": ""}
            points = _errorbars(ax, line, {**look, **hollow})
            if points and (execution == executions[-1] or line.sparsity.nunique() >= style.JOINED):
                x, y, _, colour = points[-1]
                named.append((x, y, name, colour))
            if execution != "sparse" or len(points) < style.JOINED:
                continue
            if line.limit.notna().any() and scope not in limits:
                ax.plot(fractions(line), line.limit, color=style.GREY, linewidth=0.8)
                what = name_of_line("limit", scope_name(scope) if scopes else "", "")
                limits[scope] = (points[-1][0], float(line.limit.iloc[-1]), what, style.INK)
            even = _crossing(fractions(line).to_numpy(), line.speedup.to_numpy())
            evens += [] if even is None else [(even, look["color"])]
    if evens:
        _break_even(ax, *min(evens))
    return [*named, *limits.values(), *thinned(patterns)]


def _errorbars(ax: Axes, rows: pd.DataFrame, look: dict[str, Any]) -> list[Point]:
    """Medians with their quartiles; returns the points with their sparsities."""
    if rows.empty:
        return []
    bars = [rows.speedup - rows.speedup_low, rows.speedup_high - rows.speedup]
    ax.errorbar(fractions(rows), rows.speedup, bars, capsize=2, elinewidth=1, **look)
    return [(row.sparsity.fraction, row.speedup, str(row.sparsity), look["color"]) for row in rows.itertuples()]


def _crossing(fractions: Any, speedups: Any) -> float | None:
    """The sparsity above which sparse execution is faster: where the line last crosses 1, if it does."""
    below = np.flatnonzero(speedups[1:] < 1) + 1  # the first point is the dense model
    if not len(below) or below[-1] == len(fractions) - 1:
        return None
    at = below[-1]
    return float(np.interp(1, speedups[at : at + 2], fractions[at : at + 2]))


def _break_even(ax: Axes, even: float, colour: str) -> None:
    """The sparsity from which sparse execution is faster."""
    ax.axvline(even, color=colour, linewidth=1, linestyle=":")
    ax.annotate(
        f"break-even {even:.0%}", (even, 1), (3, 3), xycoords=("data", "axes fraction"), rotation=0,
        textcoords="offset points", fontsize=8.5, color=legible(colour), ha="center",
    )  # fmt: skip
