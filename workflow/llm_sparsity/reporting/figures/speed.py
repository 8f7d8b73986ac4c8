"""Speed: inference of a variant against the dense model, by sparsity and execution."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.drawing import Drawn, Study
from llm_sparsity.reporting.figures.labels import Point, Points, name_points, thinned
from llm_sparsity.reporting.tables import are_patterns, fractions

EXECUTIONS = ("dense", "sparse", "2of4")


def draw(study: Study) -> Iterable[Drawn]:
    """A figure for each batch size, with a panel for each method and scope."""
    speed = study.tables["speed"]
    for size in sorted(set(speed.batch_size)):
        rows = speed[speed.batch_size == size]
        if (rows.method != "dense").any():
            yield _speed(study, int(size), rows)


def _speed(study: Study, batch: int, rows: pd.DataFrame) -> Drawn:
    groups = style.groups(rows)
    figure, axes = style.panels([style.group_name(*group) for group in groups], sharey=True)
    ends: Points = {}
    for ax, (method, scope) in zip(axes, groups, strict=True):
        group = style.with_dense(rows, method, scope)
        models = study.present(group[group.method == method])
        drawn = [_lines(ax, study, group[group.model == model], method, model) for model in models]
        spots = [point for _, patterns in drawn for point in patterns]
        ends[ax] = [*(point for named, _ in drawn for point in named), *thinned(spots)]
        style.reference_line(ax, 1, "as fast as dense", (2, -10))
        ax.set_ylim(0, max(1.2, float(rows.speedup_high.max()) * 1.08))
        style.sparsity_axis(ax, group)
    name_points(figure, ends)
    axes[0].set_ylabel("Speed-up over the dense model")
    tokens, threads, device = int(rows.sequence_length.iloc[0]), int(rows.threads.iloc[0]), rows.device.iloc[0]
    caption = (
        f"Speed of the base model on {batch} sequence{'s' * (batch > 1)} of {tokens} tokens, {device}, {threads} "
        f"thread{'s' * (threads > 1)}; both models take turns, points are medians, bars are quartiles. Dashed and "
        "hollow: dense execution, which multiplies zeros like any number. Solid: sparse execution, which skips removed "
        "weights; below break-even it costs more than it saves."
    )
    return Drawn(f"speed-batch-{batch}", "Cost", caption, figure)


def _lines(ax: Axes, study: Study, rows: pd.DataFrame, method: str, model: str) -> tuple[list[Point], list[Point]]:
    """A line for each execution of one model, and its break-even; returns the points to be named, and the patterns."""
    named: list[Point] = []
    patterns: list[Point] = []
    look = style.look(study.models, model)
    executions = [name for name in EXECUTIONS if ((rows.execution == name) & (rows.method == method)).any()]
    for name in executions:
        line = rows[(rows.execution == name) | (rows.method == "dense")].sort_values("sparsity", kind="stable")
        hollow = name == "dense" and "sparse" in executions
        spots = _errorbars(ax, line[are_patterns(line)], {**look, **style.HOLLOW, "linestyle": ""})
        patterns += [(x, y, f"{pattern}, {name}", colour) for x, y, pattern, colour in spots]
        line = line[~are_patterns(line)]
        points = _errorbars(ax, line, {**look, **({"linestyle": "--", **style.HOLLOW} if hollow else {})})
        if (line.method == method).any():
            x, y, _, colour = points[-1]
            named.append((x, y, f"{model}, {name}", colour))
            if name == "sparse" and (even := _crossing(fractions(line).to_numpy(), line.speedup.to_numpy())):
                _break_even(ax, even, colour)
    return named, patterns


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


def _break_even(ax: Axes, fraction: float, colour: str) -> None:
    ax.axvline(fraction, color=colour, linewidth=1, linestyle=":")
    ax.annotate(
        f"break-even {fraction:.0%}", (fraction, 1), (3, 3), xycoords=("data", "axes fraction"), rotation=0,
        textcoords="offset points", fontsize=8, color=colour, ha="center",
    )  # fmt: skip
