"""Perplexity by sparsity: a panel for each model, a line for each method, scope and recipe, crosses from papers."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.drawing import Drawn, Study
from llm_sparsity.reporting.figures.labels import Point, Points, name_points, thinned
from llm_sparsity.reporting.tables import UNTRAINED, dense


def draw(study: Study) -> Iterable[Drawn]:
    """A figure for each language-model task."""
    for task, rows in study.metric("perplexity"):
        yield _perplexity(study, task, rows)


def _perplexity(study: Study, task: str, rows: pd.DataFrame) -> Drawn:
    published = study.published
    published = published[
        (published.task == task) & (published.metric == "perplexity") & published.model.isin(study.models)
    ]
    models, groups = study.present(rows), style.groups(rows)
    figure, axes = style.panels(models, width=6.0, height=style.height(len(groups) * rows.recipe.nunique()))
    ends: Points = {}
    for ax, model in zip(axes, models, strict=True):
        ends[ax] = _panel(ax, rows[rows.model == model], groups, published[published.model == model])
        ax.set_yscale("log")
        style.log_perplexity(ax.yaxis)
        style.sparsity_axis(ax, rows)
    name_points(figure, ends)
    axes[0].set_ylabel("Perplexity (log scale; lower is better)")
    settings = {**study.config.get("evaluate", {}), **study.config.get("tasks", {}).get(task, {}).get("evaluate", {})}
    scopes = " and ".join(sorted({scope for _, scope in groups}))
    caption = (
        f"Perplexity on {task} by sparsity of the scope {scopes}, one-shot: pruned and measured, not trained. Every "
        f"line starts at the dense model. {_protocol(settings)}"
    )
    if rows.recipe.nunique() > 1:
        caption += (
            " Dash-dotted: trained on the training text of the task by the recipe named; these lines start at the "
            "dense model trained in the same way."
        )
    if len(published):
        sources = [
            f"{source} ({', '.join(each.model.unique())})" for source, each in published.groupby("source", sort=False)
        ]
        caption += f" Crosses are published values: {'; '.join(sources)}."
    return Drawn(f"perplexity-{task}", "Task quality", caption, figure)


def _panel(ax: Axes, rows: pd.DataFrame, groups: list[tuple[str, str]], published: pd.DataFrame) -> list[Point]:
    """The lines of one model; returns the points to be named."""
    named: list[Point] = []
    spots: list[Point] = []
    scopes = {scope for _, scope in groups}
    recipes = list(dict.fromkeys(rows.recipe))
    for (method, scope), recipe in itertools.product(groups, recipes):
        line = rows[(rows.method == method) & (rows.scope == scope) & (rows.recipe == recipe)]
        if line.empty:
            continue
        look = style.look(groups, (method, scope))
        if method != "dense":
            line = pd.concat([dense(rows, recipe), line])
        name = ", ".join([method, *([scope] if len(scopes) > 1 else []), *([recipe] if recipe else [])])
        stroke = {"linestyle": "-" if recipe == UNTRAINED else "-."}
        ends, patterns = style.line(ax, line, name, stroke, detail=recipe, **look)
        named += ends
        spots += patterns
        marks = published[published.method.isin([method, "dense"])]
        spots += style.crosses(ax, marks, look["color"])
    return [*named, *thinned(spots)]


def _protocol(settings: Mapping[str, Any]) -> str:
    """How perplexity was measured."""
    if not settings:
        return ""
    limit = settings.get("max_tokens")
    text = f"the first {limit:,} tokens" if limit else "the whole text"
    return f"Measured on {text}, in windows of {settings['sequence_length']:,} tokens that do not overlap."
