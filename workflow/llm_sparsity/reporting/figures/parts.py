"""Parts: the loss of quality when each part of a model is pruned alone, at the same sparsity."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.drawing import PARTS, Drawn, Study
from llm_sparsity.reporting.tables import UNTRAINED, judged
from llm_sparsity.reporting.wording import begin, in_points, name_of_metric, part_of, scope_name, shown
from llm_sparsity.study.sparsity import Sparsity


def draw(study: Study) -> Iterable[Drawn]:
    """A figure for each task on which several scopes were pruned at one sparsity."""
    metrics = judged(study.tables)
    plain = metrics.metric.map(lambda metric: "kept" if in_points(metric) else UNTRAINED)
    for (task, metric), rows in metrics[metrics.recipe == plain].groupby(["task", "metric"], sort=False):
        bars = [
            (model, method, sparsity, group.groupby("scope").value.mean())
            for (model, method, sparsity), group in rows[rows.method != "dense"].groupby(
                ["model", "method", "sparsity"], sort=False
            )
            if group.scope.nunique() > 2 and ((rows.model == model) & (rows.method == "dense")).any()
        ]
        if not bars:
            continue
        names = [f"{model}: {_amount(sparsity)}, {method}" for model, method, sparsity, _ in bars]
        tallest = max(len(values) for *_, values in bars)
        figure, axes = style.panels(names, width=6.6, height=1.3 + 0.34 * tallest)
        for ax, (model, method, sparsity, values) in zip(axes, bars, strict=True):
            sizes = study.tables["sizes"]
            sizes = sizes[(sizes.model == model) & (sizes.method == method) & (sizes.sparsity == sparsity)]
            dense = float(rows.loc[(rows.model == model) & (rows.method == "dense"), "value"].mean())
            _panel(ax, values, dense, sizes.set_index("scope").removed, metric, study.colour(model))
        caption = (
            f"Each part pruned alone, at the same sparsity of the part, on {task}; the most harmful on top. Beside "
            "each bar: the number of weights removed. A part that loses little quality and holds many weights is where "
            "to prune. Dotted: the dense model."
        )
        yield Drawn(f"parts-{task}", PARTS, _title(bars[0], str(metric), str(task)), caption, figure)


def _title(bar: Any, metric: str, task: str) -> str:
    """What is seen of the first panel: the part that loses least, and the one that loses most."""
    model, _, sparsity, values = bar
    ends = (values.idxmin(), values.idxmax())
    mild, harmful = ends if metric == "perplexity" else ends[::-1]
    least = f"{name_of_metric(metric)} {shown(metric, values[mild])}"
    return (
        f"{model} on {task} suffers least in {scope_name(mild)} ({least}) and most in {scope_name(harmful)} "
        f"({shown(metric, values[harmful])}), {part_of(sparsity, 'one part')} removed"
    )


def _amount(sparsity: Sparsity) -> str:
    return f"{sparsity} in one part" if sparsity.is_pattern else f"{style.short(sparsity)} of one part removed"


def _panel(
    ax: Axes, values: "pd.Series[float]", dense: float, removed: "pd.Series[int]", metric: str, colour: str
) -> None:
    """The bars of one model, method and sparsity.

    Args:
        ax: the axes.
        values: of the metric, by scope.
        dense: value of the dense model.
        removed: number of weights, by scope.
        metric: the score of the task.
        colour: of the bars.
    """
    values = values.sort_values(ascending=metric == "perplexity")
    ax.barh(range(len(values)), values, color=colour, alpha=0.75, height=0.65)
    for number, (scope, value) in enumerate(values.items()):
        ax.annotate(
            f"{shown(metric, value)}   ({float(removed[scope]) / 1e6:,.1f} M weights)", (value, number), (4, 0),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    ax.set_yticks(range(len(values)), [scope_name(str(scope)) for scope in values.index])
    ax.axvline(dense, color=style.GREY, linewidth=1, linestyle=":")
    ax.grid(visible=False, axis="y")
    highest = float(values.max())
    if metric == "perplexity":
        ax.set_xscale("log")
        ax.set_xlim(dense * 0.8, highest * (highest / dense) ** 0.8 * 1.2)
        style.log_perplexity(ax.xaxis, subs=(1, 2, 5))
        ax.set_xlabel("Perplexity (log scale; lower is better)")
    else:
        ax.set_xlim(float(values.min()) * 0.9, max(dense, highest) * 1.15)
        ax.set_xlabel(begin(name_of_metric(metric)))
