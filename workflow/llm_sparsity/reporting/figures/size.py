"""Size: bytes of the weight files by sparsity, as a share of the dense model in the same file format."""

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.drawing import Drawn, Study
from llm_sparsity.reporting.figures.labels import Point, Points, name_points, thinned
from llm_sparsity.reporting.tables import are_patterns, fractions

CAPTION = (
    "Measured size of the saved weights: the values that remain and their positions; zeros are not stored. What is "
    "outside the scope (such as embeddings, if only matrices are pruned) is the lower limit. Dotted: an ideal coder of "
    "positions and bytes, where its size was measured."
)
ALIKE = " The dense model is taken in the same compressed file format, so what is saved is saved by pruning."
PLAIN = (
    " The dense file is plain: a part of what is saved is lossless compression, which saves bytes of dense weights too."
)


def draw(study: Study) -> Iterable[Drawn]:
    """One figure, with a panel for each method and scope."""
    rows = study.tables["sizes"]
    alike = bool(rows.ratio.notna().all())
    whole = rows.container_bytes / rows.ratio if alike else rows.dense_bytes
    rows = rows.assign(value=rows.ratio if alike else rows.plain_ratio, whole=whole.astype(float))
    groups = style.groups(rows)
    figure, axes = style.panels([style.group_name(*group) for group in groups], sharey=True)
    ends: Points = {}
    for ax, (method, scope) in zip(axes, groups, strict=True):
        group = style.with_dense(rows, method, scope)
        models = study.present(group[group.method == method])
        drawn = [_line(ax, study, group[group.model == model], model) for model in models]
        spots = [point for _, patterns in drawn for point in patterns]
        ends[ax] = [*(point for named, _ in drawn for point in named), *thinned(spots)]
        style.reference_line(ax, 1, "dense model" if alike else "dense file", (-2, 3), ha="right", linestyle="--")
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.set_ylim(0, 1.1)
        style.sparsity_axis(ax, group)
    name_points(figure, ends)
    axes[0].set_ylabel("Weight file, share of dense")
    yield Drawn("size", "Cost", CAPTION + (ALIKE if alike else PLAIN), figure)


def _line(ax: Axes, study: Study, rows: pd.DataFrame, model: str) -> tuple[list[Point], list[Point]]:
    """One model; returns the points to be named, of the line and of patterns."""
    look = style.look(study.models, model)
    named = style.line(ax, rows, model, {}, **look)
    bound = rows[~are_patterns(rows)].dropna(subset=["bound_bytes"]).sort_values("sparsity")
    share = bound.bound_bytes.astype(float) / bound.whole
    ax.plot(fractions(bound), share, color=look["color"], linestyle=":", linewidth=1.2)
    return named
