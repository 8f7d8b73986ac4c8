"""Parts: the loss of quality when each part of a model is pruned alone, at the same sparsity."""

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes

from llm_sparsity.reporting.answers import WHOLE
from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.drawing import PARTS, Drawn, Study
from llm_sparsity.reporting.tables import UNTRAINED, fractions, judged
from llm_sparsity.reporting.wording import begin, in_points, name_of_metric, part_of, scope_name, short, shown
from llm_sparsity.study.sparsity import Sparsity

Panel = tuple[str, str, Sparsity, pd.DataFrame]  # model, method, sparsity, and the rows of their scopes


def draw(study: Study) -> Iterable[Drawn]:
    """A figure for each task on which several parts were pruned at one sparsity."""
    metrics = judged(study.tables)
    plain = metrics.metric.map(lambda metric: "kept" if in_points(metric) else UNTRAINED)
    for (task, metric), rows in metrics[metrics.recipe == plain].groupby(["task", "metric"], sort=False):
        dense = rows[rows.method == "dense"].groupby("model").value.mean()
        pruned = rows[fractions(rows) > 0]  # of a part that is only quantised nothing is removed
        panels: list[Panel] = [
            (model, method, sparsity, group)
            for (model, method, sparsity), group in pruned.groupby(["model", "method", "sparsity"], sort=False)
            if len(set(group.scope) - set(WHOLE)) > 1 and model in dense.index
        ]
        if not panels:
            continue
        names = [f"{model}: {_amount(sparsity)}, {method}" for model, method, sparsity, _ in panels]
        labels = [_labels(study, panel) for panel in panels]
        tallest, widest = max(map(len, labels)), max(len(label) for each in labels for label in each.values())
        figure, axes = style.panels(names, height=1.3 + 0.42 * tallest, labels=widest / style.LETTERS)
        for ax, panel, label in zip(axes, panels, labels, strict=True):
            _draw(ax, study, panel, label, float(dense[panel[0]]), str(metric))
        caption = (
            f"Each part pruned alone, at the same sparsity of the part, on {task}; the most harmful on top. Beside its "
            "name: the number of weights removed. A part that loses little quality and holds many weights is where to "
            f"prune. Dotted: the dense model.{_intervals(panels)}"
        )
        yield Drawn(f"parts-{task}", PARTS, _title(panels[0], str(metric), str(task)), caption, figure)


def _title(panel: Panel, metric: str, task: str) -> str:
    """What is seen of the first panel: the part that loses least, and the one that loses most."""
    model, _, sparsity, group = panel
    values = group[~group.scope.isin(WHOLE)].groupby("scope").value.mean()
    mild, harmful = (values.idxmax(), values.idxmin()) if in_points(metric) else (values.idxmin(), values.idxmax())
    name, (least, most) = name_of_metric(metric), (shown(metric, values[part]) for part in (mild, harmful))
    removed = f"{part_of(sparsity, 'one part')} removed"
    if least == most:
        return f"{model} on {task} has {name} {least} whichever part is pruned, {removed}"
    return (
        f"{model} on {task} has the best {name}, {least}, if {scope_name(mild)} is pruned, and the worst, {most}, if "
        f"{scope_name(harmful)} is, {removed}"
    )


def _intervals(panels: list[Panel]) -> str:
    """What the bars are; "" if there are none."""
    drawn = any(style.seeds_of(rows)[1] > 0 for *_, group in panels for _, rows in group.groupby("scope"))
    return " Bars are 95 % intervals." * drawn


def _amount(sparsity: Sparsity) -> str:
    return f"{sparsity} in one part" if sparsity.is_pattern else f"{short(sparsity)} of one part removed"


def _labels(study: Study, panel: Panel) -> dict[str, str]:
    """The name of each scope, with the number of weights removed."""
    model, method, sparsity, group = panel
    sizes = study.tables["sizes"]
    sizes = sizes[(sizes.model == model) & (sizes.method == method) & (sizes.sparsity == sparsity)]
    removed = sizes.set_index("scope").removed
    return {scope: f"{scope_name(scope)}, {style.weights(removed[scope])}" for scope in group.scope.unique()}


def _draw(ax: Axes, study: Study, panel: Panel, labels: dict[str, str], dense: float, metric: str) -> None:
    """A point for each scope, with its interval, and a line to the dense model."""
    model, method, _, group = panel
    values = group.groupby("scope").value.mean().sort_values(ascending=not in_points(metric))
    look = study.look(model, method, [method])
    for row, (scope, value) in enumerate(values.items()):
        _, about = style.seeds_of(group[group.scope == scope])
        ax.plot([dense, value], [row, row], color=look["color"], alpha=0.3, linewidth=2.5)
        ax.errorbar(value, row, xerr=about if about > 0 else None, capsize=2, elinewidth=1, **look)
        ax.annotate(
            shown(metric, value), (value, row), (0, 6), textcoords="offset points", ha="center", va="bottom", fontsize=8
        )
    ax.axvline(dense, color=style.GREY, linewidth=1, linestyle=":")
    ax.set_yticks(range(len(values)), [labels[str(scope)] for scope in values.index])
    ax.set_ylim(-0.5, len(values) - 0.3)
    ax.grid(visible=False, axis="y")
    ax.margins(x=0.12)
    if metric == "perplexity":
        style.log_perplexity([ax], "x")
        ax.set_xlabel("Perplexity (log scale; lower is better)")
    else:
        ax.set_xlabel(begin(name_of_metric(metric)))
