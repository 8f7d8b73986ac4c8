"""Values by sparsity: a panel for each model, a line for each method, scope and recipe. Quality, and training time."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llm_sparsity.reporting.claims import Claims
from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.drawing import QUALITY, SAVINGS, Drawn, Study
from llm_sparsity.reporting.figures.labels import Point, Points, name_points, thinned
from llm_sparsity.reporting.tables import UNTRAINED, Tables, dense, majority, score_of
from llm_sparsity.reporting.wording import (
    CORRELATIONS,
    NAMES,
    begin,
    in_points,
    name_of,
    name_of_metric,
    resolution,
    shown,
)

MEANS = {"combined": " (mean of accuracy and F1)", "macro_f1": " (mean over all labels)"}  # what a name leaves open


def draw(study: Study) -> Iterable[Drawn]:
    """For each task with labels: the score that it is judged by, its other metrics, and the time of training."""
    data = study.tables
    baselines = data["baselines"]
    for task in dict.fromkeys(baselines.task):
        every = data["metrics"][data["metrics"].task == task]
        for metric in _in_order(baselines.metric[baselines.task == task], score_of(data, task)):
            label = begin(name_of_metric(metric)) + MEANS.get(metric, "")
            values = every[every.metric == metric]
            if values.empty:
                continue
            earlier = _earlier(study, task, metric)
            base = functools.partial(_with_majority, majority(data, task, metric), metric)
            figure = by_sparsity(study, values, label, base, earlier)
            caption = f"{label} by sparsity. {_noise(data, task)}"
            if earlier is not None and len(earlier) and study.claims:
                caption += _crosses(study.claims)
            yield Drawn(f"{metric}-{task}", QUALITY, highest_loss(study, values, metric, f"on {task}"), caption, figure)
        runs = data["runs"][data["runs"].task == task].assign(value=lambda rows: rows.train_seconds)
        runs = runs[runs.value > 0]  # a recipe may evaluate only
        if (runs.method == "dense").all():
            continue
        figure = by_sparsity(study, runs, "Training time (s)", from_zero)
        caption = "Seconds of training, without set-up and evaluation."
        yield Drawn(f"train-time-{task}", SAVINGS, _time(runs, task), caption, figure)


def _in_order(metrics: "pd.Series[str]", score: str) -> list[str]:
    """The metrics of a task, its score first, those of splits beside validation last."""
    order = [score, *NAMES, *metrics]
    return sorted(set(metrics), key=order.index)


def by_sparsity(
    study: Study,
    rows: pd.DataFrame,
    label: str,
    y_axis: Callable[[list[Axes]], None],
    others: pd.DataFrame | None = None,
    *,
    faint: bool = True,
) -> Figure:
    """One value by sparsity, a panel a model.

    Args:
        study: for the order of models.
        rows: with the columns of a cell, recipe, mask and value, and stderr if standard errors are known.
        label: of the y axis.
        y_axis: sets the limits and the scale of the panels' shared y axis.
        others: numbers of papers or of an earlier study, drawn as crosses.
        faint: whether these crosses stay in the background.
    """
    rows = style.swept(rows)
    models = study.present(rows)
    lines = rows[rows.method != "dense"].groupby(["method", "scope", "recipe"]).ngroups
    figure, axes = style.panels(models, height=style.height(lines), sharey=True)
    ends: Points = {}
    for ax, model in zip(axes, models, strict=True):
        marks = others[others.model == model] if others is not None else None
        ends[ax] = _panel(ax, study, rows[rows.model == model], marks, faint=faint)
        style.sparsity_axis(ax, rows[rows.model == model])
    y_axis(axes)
    name_points(figure, ends)
    for ax in axes[::2]:
        ax.set_ylabel(label)
    return figure


def from_zero(axes: list[Axes]) -> None:
    """A y axis that starts at 0."""
    for ax in axes:
        ax.set_ylim(bottom=0)


def _panel(ax: Axes, study: Study, rows: pd.DataFrame, others: pd.DataFrame | None, *, faint: bool) -> list[Point]:
    """The lines of one model; returns the points to be named."""
    named: list[Point] = []
    spots: list[Point] = []
    pruned = rows[rows.method != "dense"]
    methods = list(dict.fromkeys(pruned.method))
    scopes, recipes = pruned.scope.nunique() > 1, pruned.recipe.nunique() > 1
    plain = UNTRAINED if (pruned.recipe == UNTRAINED).any() else "kept"
    model = str(rows.model.iloc[0])
    for (method, scope, recipe), cell in pruned.groupby(["method", "scope", "recipe"], sort=False):
        look = study.look(model, method, methods)
        name = name_of_line(method, scope if scopes else "", recipe if recipes else "")
        start = dense(rows, recipe)
        line = pd.concat([start, cell]) if len(start) else cell
        ends, patterns = style.line(ax, line, name, style.stroke(recipe, str(cell["mask"].iloc[0]), plain), **look)
        named += ends
        spots += patterns
    for recipe in dict.fromkeys(rows.recipe[rows.method == "dense"]):
        value = float(rows.value[(rows.method == "dense") & (rows.recipe == recipe)].mean())
        ax.plot([0], [value], marker="o", linestyle="", color=study.colour(model), zorder=3)
    if others is not None:
        for method, marks in others.groupby("method", sort=False):
            if method in (*methods, "dense"):
                colour = study.look(model, str(method), methods)["color"]
                spots += style.crosses(ax, marks, colour, faint=faint)
    return [*named, *thinned(spots)]


def name_of_line(method: str, scope: str, recipe: str) -> str:
    """The name of a line; a scope or recipe that is empty is the same for all lines."""
    return ", ".join(filter(None, [method, scope, recipe]))


def highest_loss(study: Study, rows: pd.DataFrame, metric: str, where: str) -> str:
    """What is seen, of the model that loses most: the dense value, and the best at its highest fraction."""
    sign = 1 if in_points(metric) else -1
    told: list[tuple[float, str]] = []
    rows = style.swept(rows[rows["mask"] != "released"].dropna(subset=["value"]))
    for model in study.present(rows):
        mine = rows[rows.model == model]
        pruned, start = mine[mine.method != "dense"], mine[mine.method == "dense"]
        if pruned.empty or start.empty:
            continue
        means = pruned.groupby(["method", "scope", "sparsity", "recipe"], sort=False).value.mean().reset_index()
        found: Any = means.loc[(sign * means.value[means.sparsity == max(means.sparsity)]).idxmax()]
        before = float(start.groupby("recipe").value.mean().agg("min" if sign < 0 else "max"))
        text = f"{model} goes from {shown(metric, before)} to {shown(metric, found.value)} by {name_of(found)}"
        told.append((abs(found.value / before - 1), text))
    if not told:
        return f"{begin(name_of_metric(metric))} {where}"
    return f"{begin(name_of_metric(metric))} {where}: {max(told)[1]}"


def _time(runs: pd.DataFrame, task: str) -> str:
    means = runs.groupby(["model", "method", "scope", "sparsity", "recipe"], sort=False).value.mean().reset_index()
    start = means[means.method == "dense"].set_index("model").value
    kept = means[(means.method != "dense") & (means.recipe == "kept") & means.model.isin(start.index)]
    if kept.empty:
        return f"Training time on {task}"
    low, high = ((kept.value / kept.model.map(start)).agg(end) for end in ("min", "max"))
    return f"A mask saves no training time on {task}: {low:.2f} to {high:.2f} times the dense model's"


def _noise(data: Tables, task: str) -> str:
    """What a reader must know about chance before comparing two points."""
    seeds = data["runs"][data["runs"].task == task].seed.nunique()
    points = (
        "One seed, which has no interval"
        if seeds == 1
        else f"{seeds} seeds: small points; line and band are their mean and its 95 % t-interval"
    )
    return (
        f"{points}. {resolution(data, task)} Solid: the recipe kept, which holds the mask; dash-dotted: other recipes "
        f"that hold it; dashed: released, zeros may grow back. Dotted: {_constant(score_of(data, task))}."
    )


def _earlier(study: Study, task: str, metric: str) -> pd.DataFrame | None:
    """The numbers of the earlier study whose claims are judged."""
    if study.claims is None:
        return None
    rows = study.claims.numbers
    return rows[(rows.task == task) & (rows.metric == metric) & rows.model.isin(study.models)]


def _constant(metric: str) -> str:
    """The name of the answer that the baseline always gives."""
    return "a constant answer" if metric.startswith(CORRELATIONS) else "the majority class"


def _with_majority(majority: float, metric: str, axes: list[Axes]) -> None:
    """The majority class as a line in panels that share their y axis."""
    low, high = axes[0].get_ylim()
    low = min(low, majority - 0.03 * (high - majority))
    high = max(high, max(ax.dataLim.y1 for ax in axes) + 0.03 * (high - low))  # markers are whole
    # Noise does not fill the axis, nor do bands leave the range of values.
    lowest = -1 if "correlation" in name_of_metric(metric) else 0
    axes[0].set_ylim(max(low, lowest), min(max(high, low + 0.1), 1))
    for ax in axes:
        style.reference_line(ax, majority, _constant(metric).partition(" ")[2], (2, 3), linestyle=":")


def _crosses(claims: Claims) -> str:
    return f" Faint crosses: {claims.source.name}, which {claims.source.summary}."
