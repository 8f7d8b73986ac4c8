"""Quality and training time by sparsity: a panel for each method and scope, a line for each model and recipe."""

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes

from llm_sparsity.reporting.claims import Claims
from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.drawing import Drawn, Study
from llm_sparsity.reporting.figures.labels import Point, Points, name_points, thinned
from llm_sparsity.reporting.tables import Tables, majority
from llm_sparsity.reporting.wording import resolution

METRICS = {"accuracy": "Accuracy", "f1": "F1", "combined": "Combined score (mean of accuracy and F1)"}


def draw(study: Study) -> Iterable[Drawn]:
    """For each task: accuracy, F1, their mean, and the time of training."""
    data = study.tables
    for task, rows in study.metric("accuracy"):
        every = data["metrics"][data["metrics"].task == task]
        for metric, label in METRICS.items():
            yield by_sparsity(
                study, f"{metric}-{task}", "Task quality", every[every.metric == metric], label, _noise(data, task),
                majority(data, task, metric), _earlier(study, task, metric),
            )  # fmt: skip
        runs = data["runs"][data["runs"].task == task].assign(value=lambda rows: rows.train_seconds)
        caption = "Seconds of training, without set-up and evaluation. A mask alone saves no time."
        yield by_sparsity(study, f"train-time-{task}", "Cost", runs, "Training time (s)", caption)


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
        "that hold it; dashed: released, zeros may grow back. Dotted: the majority class."
    )


def _earlier(study: Study, task: str, metric: str) -> pd.DataFrame | None:
    """The numbers of the earlier study whose claims are judged."""
    if study.claims is None:
        return None
    rows = study.claims.numbers
    return rows[(rows.task == task) & (rows.metric == metric) & rows.model.isin(study.models)]


def by_sparsity(
    study: Study,
    name: str,
    section: str,
    rows: pd.DataFrame,
    label: str,
    caption: str,
    majority: float | None = None,
    earlier: pd.DataFrame | None = None,
) -> Drawn:
    """One value by sparsity.

    Args:
        study: for the order of models, and the earlier study's name.
        name: of the files.
        section: of the page.
        rows: with the columns of a cell, recipe, mask and value.
        label: of the y axis.
        caption: what follows the label.
        majority: the score of the majority class, drawn as a line.
        earlier: numbers of the earlier study, drawn as faint crosses.
    """
    groups = style.groups(rows)
    height = style.height(rows.model.nunique() * rows.recipe.nunique())
    figure, axes = style.panels([style.group_name(*group) for group in groups], height=height, sharey=True)
    ends: Points = {}
    for ax, (method, scope) in zip(axes, groups, strict=True):
        group = style.with_dense(rows, method, scope)
        ends[ax] = _panel(ax, study, group, method, earlier)
        style.sparsity_axis(ax, group)
    if majority is None:
        axes[0].set_ylim(bottom=0)
    else:
        _with_majority(axes, majority)
    name_points(figure, ends)
    axes[0].set_ylabel(label)
    if earlier is not None and len(earlier) and study.claims:
        caption += _crosses(study.claims)
    return Drawn(name, section, f"{label} by sparsity. {caption}", figure)


def _panel(ax: Axes, study: Study, group: pd.DataFrame, method: str, earlier: pd.DataFrame | None) -> list[Point]:
    """The lines of one method and scope; returns the points to be named."""
    named: list[Point] = []
    spots: list[Point] = []
    pruned = group[group.method != "dense"]
    recipes = dict(zip(pruned.recipe, pruned["mask"], strict=True)) or {"kept": "kept"}
    several = len(recipes) > 1
    for model in study.present(group[group.method == method]):
        look = style.look(study.models, model)
        for recipe, mask in recipes.items():
            rows = group[(group.model == model) & ((group.recipe == recipe) | (group.method == "dense"))]
            if (rows.method == method).any():
                name = f"{model}, {recipe}" if several else model
                stroke = style.stroke(recipe, mask)
                ends, patterns = style.line(ax, rows, name, stroke, detail=recipe if several else "", **look)
                named += ends
                spots += patterns
        if earlier is not None:
            marks = earlier[(earlier.model == model) & earlier.method.isin([method, "dense"])]
            spots += style.crosses(ax, marks, look["color"], faint=True)
    return [*named, *thinned(spots)]


def _with_majority(axes: list[Axes], majority: float) -> None:
    """The majority class as a line in panels that share their y axis."""
    low, high = axes[0].get_ylim()
    low = min(low, majority - 0.03 * (high - majority))
    axes[0].set_ylim(max(low, 0), min(max(high, low + 0.1), 1))  # noise does not fill the axis, nor bands leave [0, 1]
    for ax in axes:
        style.reference_line(ax, majority, "majority class", (2, 3), linestyle=":")


def _crosses(claims: Claims) -> str:
    return f" Faint crosses: {claims.source.name}, which {claims.source.summary}."
