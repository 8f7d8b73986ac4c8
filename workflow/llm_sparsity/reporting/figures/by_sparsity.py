"""Values by sparsity: a panel for each model, a line for each method, scope and recipe. Quality, and training time."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llm_sparsity.reporting.claims import Claims
from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.drawing import QUALITY, SAVINGS, Drawn, Study, joined
from llm_sparsity.reporting.figures.labels import Point, Points, name_points, thinned
from llm_sparsity.reporting.tables import CELL, UNTRAINED, Tables, are_masked, baseline, dense, score_of
from llm_sparsity.reporting.wording import (
    NAMES,
    begin,
    constant_answer,
    in_points,
    name_of,
    name_of_metric,
    resolution,
    scope_name,
    shown,
    span,
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
            values = style.swept(every[every.metric == metric])
            if (values.method == "dense").all():
                continue
            earlier = _earlier(study, task, metric)
            base = functools.partial(_with_baseline, baseline(data, task, metric), metric)
            figure = by_sparsity(study, values, label, base, earlier)
            caption = (
                f"{label} by sparsity. {_noise(data, task)} {_strokes(values)}. Dotted: always answering "
                f"{constant_answer(metric)}."
            )
            if earlier is not None and len(earlier) and study.claims:
                caption += _crosses(study.claims)
            title = highest_loss(study, values, metric, f"on {task}")
            yield Drawn(f"{joined([metric])}-{task}", QUALITY, title, caption, figure)
        runs = data["runs"][data["runs"].task == task].assign(value=lambda rows: rows.train_seconds)
        runs = style.swept(runs[runs.value > 0])  # a recipe may evaluate only
        if (runs.method == "dense").all():
            continue
        figure = by_sparsity(study, runs, "Training time (s)", from_zero)
        caption = f"Seconds of training, without set-up and evaluation. {_strokes(runs)}.{_machines(runs)}"
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
        rows: of `style.swept`, pruned ones among them, with the columns of a cell, recipe, mask and value, and stderr
            if standard errors are known.
        label: of the y axis.
        y_axis: sets the limits and the scale of the panels' shared y axis.
        others: numbers of papers or of an earlier study, drawn as crosses.
        faint: whether these crosses stay in the background.
    """
    pruned = rows[rows.method != "dense"]
    models = study.present(pruned)
    lines = pruned.groupby(["method", "scope", "recipe"]).ngroups
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
    taken: Counter[float] = Counter()
    for (method, scope, recipe), cell in pruned.groupby(["method", "scope", "recipe"], sort=False):
        look = study.look(model, method, methods)
        name = name_of_line(method, scope_name(scope) if scopes else "", recipe if recipes else "")
        start = dense(rows, recipe)
        line = pd.concat([start, cell]) if len(start) else cell
        stroke = style.stroke(recipe, str(cell["mask"].iloc[0]), plain)
        ends, patterns = style.line(ax, line, name, stroke, taken, **look)
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
    """What is seen, of the model that loses most: the best at its highest fraction, against its dense model."""
    points, told = in_points(metric), []
    pruned = rows[(rows.method != "dense") & (rows["mask"] != "released")]
    for model in study.present(pruned):
        mine = pruned[pruned.model == model]
        ends = mine[mine.sparsity == max(mine.sparsity)]
        means = ends.groupby([*CELL, "recipe"], sort=False).value.mean().reset_index()
        found: Any = means.loc[means.value.idxmax() if points else means.value.idxmin()]
        before = float(dense(rows[rows.model == model], found.recipe).value.mean())
        if not math.isnan(before):
            loss = before - found.value if points else math.log(found.value / before)
            text = f"{model} goes from {shown(metric, before)} to {shown(metric, found.value)} by {name_of(found)}"
            told.append((loss, text))
    return ": ".join([f"{begin(name_of_metric(metric))} {where}", *([max(told)[1]] if told else [])])


def _time(runs: pd.DataFrame, task: str) -> str:
    """The range of times with a kept mask, of the dense model's. A structured model has none: its tensors are small."""
    means = runs.groupby([*CELL, "recipe"], sort=False).value.mean().reset_index()
    start = means[means.method == "dense"].set_index("model").value
    kept = means[are_masked(means) & (means.recipe == "kept") & means.model.isin(start.index)]
    if kept.empty:
        return f"Training time on {task}"
    times = kept.value / kept.model.map(start)
    return f"With a mask kept, training on {task} takes {span(times, 2)} times as long as for the dense model"


def _machines(runs: pd.DataFrame) -> str:
    """A warning if times were measured on several kinds of machines; else ""."""
    found = runs[["device", "threads", "processes"]].drop_duplicates()
    if len(found) == 1:
        return ""
    names = (f"{row.device} ({row.threads} threads, {row.processes} processes)" for row in found.itertuples())
    return f" Measured on several machines, so times may differ for that reason: {'; '.join(names)}."


def _strokes(rows: pd.DataFrame) -> str:
    """What the strokes of the lines mean, of those that are drawn."""
    pruned = rows[rows.method != "dense"]
    held = set(pruned.recipe[pruned["mask"] != "released"])
    known = {
        "Solid: the recipe kept, which holds the mask": "kept" in held,
        "dash-dotted: other recipes that hold it": bool(held - {"kept"}),
        "dashed: released, zeros may grow back": bool((pruned["mask"] == "released").any()),
    }
    return begin("; ".join(text for text, drawn in known.items() if drawn))


def _noise(data: Tables, task: str) -> str:
    """What a reader must know about chance before comparing two points."""
    runs = data["runs"][data["runs"].task == task]
    seeds = runs.groupby([*CELL, "recipe"], sort=False).seed.nunique()
    points = (
        "One seed, which has no interval"
        if max(seeds) == 1
        else f"{span(seeds, 0)} seeds: small points; line and band are their mean and its 95 % t-interval"
        f"{'; one seed has no interval' * (min(seeds) == 1)}"
    )
    return f"{points}. {resolution(data, task)}"


def _earlier(study: Study, task: str, metric: str) -> pd.DataFrame | None:
    """The numbers of the earlier study whose claims are judged."""
    if study.claims is None:
        return None
    rows = study.claims.numbers
    return rows[(rows.task == task) & (rows.metric == metric) & rows.model.isin(study.models)]


def _with_baseline(value: float, metric: str, axes: list[Axes]) -> None:
    """The score of a constant answer as a line in panels that share their y axis."""
    low, high = axes[0].get_ylim()
    low = min(low, value - 0.03 * (high - value))
    high = max(high, max(ax.dataLim.y1 for ax in axes) + 0.03 * (high - low))  # markers are whole
    # Noise does not fill the axis, nor do bands leave the range of values.
    lowest = -1 if "correlation" in name_of_metric(metric) else 0
    axes[0].set_ylim(max(low, lowest), min(max(high, low + 0.1), 1))
    for ax in axes:
        style.reference_line(ax, value, f"always {constant_answer(metric)}", (2, 3), linestyle=":")


def _crosses(claims: Claims) -> str:
    return f" Faint crosses: {claims.source.name}, which {claims.source.summary}."
