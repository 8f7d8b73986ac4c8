"""Size: bytes of the weight files by sparsity, as a share of the dense model in the same file format."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.by_sparsity import by_sparsity
from llm_sparsity.reporting.figures.drawing import SAVINGS, Drawn, Study
from llm_sparsity.reporting.tables import UNTRAINED, are_patterns, fractions
from llm_sparsity.reporting.wording import name_of, percent

CAPTION = (
    "Measured size of the saved weights: the values that remain and their positions; zeros are not stored. What is "
    "outside the scope (such as embeddings, if only matrices are pruned) is the lower limit. The dense model is taken "
    "in the same compressed file format, so what is saved is saved by pruning."
)
BOUND = " Dotted: an ideal coder of positions and bytes, where its size was measured."


def draw(study: Study) -> Iterable[Drawn]:
    """One figure, with a panel for each model."""
    rows = style.swept(study.tables["sizes"])
    pruned = rows[rows.method != "dense"]
    if pruned.empty:
        return
    whole = (rows.container_bytes / rows.ratio).astype(float)
    rows = rows.assign(value=rows.ratio, whole=whole, recipe=UNTRAINED, mask="")
    figure = by_sparsity(study, rows, "Weight file, share of dense", _shares)
    bounds = [
        _bounds(ax, rows[rows.model == model], study.colour(model))
        for ax, model in zip(figure.axes, study.present(pruned), strict=True)
    ]
    smallest: Any = rows.loc[pruned.ratio.idxmin()]
    title = f"{smallest.model} by {name_of(smallest)} takes {percent(round(smallest.value, 3))} of the dense bytes"
    yield Drawn("size", SAVINGS, title, CAPTION + BOUND * any(bounds), figure)


def _shares(axes: list[Axes]) -> None:
    for ax in axes:
        style.reference_line(ax, 1, "dense model", (-2, 3), ha="right", linestyle="--")
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.set_ylim(0, max(1.1, ax.get_ylim()[1]))


def _bounds(ax: Axes, rows: pd.DataFrame, colour: str) -> bool:
    """Draw the bytes of an ideal coder, for each method and scope; returns whether any are known."""
    drawn = False
    for _, line in rows.dropna(subset=["bound_bytes"]).groupby(["method", "scope"], sort=False):
        bound = line[~are_patterns(line)].sort_values("sparsity")
        if len(bound) >= style.JOINED:
            share = bound.bound_bytes.astype(float) / bound.whole
            ax.plot(fractions(bound), share, color=colour, linestyle=":", linewidth=1.2)
            drawn = True
    return drawn
