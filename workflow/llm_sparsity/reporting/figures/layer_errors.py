"""Layer errors: the output error of pruned matrices, layer by layer, as calibrated methods report it."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.by_sparsity import name_of_line
from llm_sparsity.reporting.figures.drawing import PARTS, Drawn, Study
from llm_sparsity.reporting.figures.labels import Point, Points, name_points
from llm_sparsity.reporting.wording import part_of, scope_name


def draw(study: Study) -> Iterable[Drawn]:
    """A figure for each model, with a panel for each sparsity and stack, and a line for each method and scope."""
    rows = study.tables["tensors"].dropna(subset=["error"])
    for model, mine in rows.groupby("model", sort=False):
        panels = list(mine.groupby(["sparsity", "stack"], sort=False))
        stacked = mine["stack"].nunique() > 1
        names = [
            f"{model}: {part_of(sparsity, 'the scope')}{f', {stack}' if stacked else ''}"
            for (sparsity, stack), _ in panels
        ]
        lines = mine.groupby(["method", "scope"]).ngroups
        figure, axes = style.panels(names, height=style.height(lines), sharey=True)
        ends: Points = {ax: _panel(ax, study, mine, group) for ax, (_, group) in zip(axes, panels, strict=True)}
        axes[0].set_ylim(bottom=0)
        name_points(figure, ends)
        for ax in axes[::2]:
            ax.set_ylabel("Error of a matrix's output, relative")
        caption = (
            f"Relative output error of the pruned matrices of {model} on the calibration text: the norm of the change "
            "of the output over its norm before pruning, mean over the matrices of a layer. The inputs come from the "
            "pruned layers before. A layer with a large error may need a lower sparsity."
        )
        yield Drawn(f"errors-{model}", PARTS, _title(str(model), mine, stacked=stacked), caption, figure)


def _panel(ax: Axes, study: Study, mine: pd.DataFrame, rows: pd.DataFrame) -> list[Point]:
    """The lines of one sparsity and stack of a model, whose rows are `mine`; returns their ends, to be named."""
    model, methods, scopes = str(mine.model.iloc[0]), list(dict.fromkeys(mine.method)), mine.scope.nunique() > 1
    ends: list[Point] = []
    for (method, scope), line in rows.groupby(["method", "scope"], sort=False):
        mean, look = line.groupby("layer").error.mean(), study.look(model, method, methods)
        joined = {} if len(mean) >= style.JOINED else {"linestyle": ""}
        ax.plot(mean.index.astype(int), mean, **look, **joined, markersize=4)
        name = name_of_line(method, scope_name(scope) if scopes else "", "")
        ends.append((float(mean.index[-1]), float(mean.iloc[-1]), name, look["color"]))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("Layer, from 0")
    return ends


def _title(model: str, rows: pd.DataFrame, *, stacked: bool) -> str:
    """What is seen: the layer with the largest error."""
    means = rows.groupby(["method", "scope", "sparsity", "stack", "layer"], sort=False).error.mean()
    worst: Any = means.reset_index().loc[means.to_numpy().argmax()]
    where = f"{worst['stack']} layer" if stacked else "layer"
    removed = part_of(worst.sparsity, scope_name(worst.scope))
    return f"The outputs of {model} change most in {where} {worst.layer}, by {worst.method}, {removed}"
