"""Frontier: quality against measured bytes and latency, the choice among all variants."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.drawing import Drawn, Study
from llm_sparsity.reporting.figures.labels import Point, Points, name_points
from llm_sparsity.reporting.tables import CELL, UNTRAINED, Tables
from llm_sparsity.reporting.wording import scope_name

CROWD = 10  # points that can all be named; of more, only those on the frontier and the dense models are
COSTS = {  # column -> its name, its axis, its unit
    "bytes": ("bytes", "Weight file (MB)", 1e6),
    "seconds": ("latency", "Latency, fastest execution (ms)", 1e-3),
}


def draw(study: Study) -> Iterable[Drawn]:
    """A figure for each task, with a panel for each cost that was measured."""
    for (task, metric), rows in _cells(study.tables).groupby(["task", "metric"], sort=False):
        pruned = rows[rows.method != "dense"]
        shown = [cost for cost in COSTS if pruned[cost].notna().any()]
        if not shown:  # nothing to choose: every mask was released
            continue
        figure, axes = style.panels([f"{metric} against {COSTS[cost][0]}" for cost in shown], width=5.2)
        named: Points = {}
        for ax, cost in zip(axes, shown, strict=True):
            points = rows.dropna(subset=[cost])
            points = points.assign(cost=points[cost].astype(float) / COSTS[cost][2])
            named[ax] = _panel(ax, points, study, str(metric))
            ax.set_xlabel(COSTS[cost][1])
        name_points(figure, named, up=7)
        perplexity = metric == "perplexity"
        axes[0].set_ylabel("Perplexity (log scale; lower is better)" if perplexity else "Accuracy")
        caption = (
            f"What to pick on {task}: every variant with a kept mask, by cost and quality; "
            f"{'recipes' if perplexity else 'recipes other than plain fine-tuning'} are named. The grey line joins the "
            "variants that no other beats in both. If there are many points, only those on the line are named. "
            "Bytes: of the weight file that was scored; an untrained dense model's is as downloaded, not compressed. "
            "Latency: that of the dense model, divided by the speed-up measured side by side."
        )
        yield Drawn(f"frontier-{task}", "What to pick", caption, figure)


def _cells(data: Tables) -> pd.DataFrame:
    """Quality and bytes (means over seeds) and seconds of every cell. `random` is a control, and left out.

    Bytes are those of the file that was scored: training changes the weights, and with them what compression saves.
    """
    metrics, runs, speed = data["metrics"], data["runs"], data["speed"]
    quality = metrics[metrics.metric.isin(["accuracy", "perplexity"]) & (metrics["mask"] != "released")]
    quality = quality[quality.method != "random"]
    cells = quality.groupby(["task", "metric", *CELL, "recipe"], sort=False).value.mean().reset_index()
    trained = runs.groupby(["task", *CELL, "recipe"])["bytes"].mean().reset_index()
    untrained = (
        data["sizes"][[*CELL, "bytes"]].assign(recipe=UNTRAINED).merge(cells.task.drop_duplicates(), how="cross")
    )
    cells = cells.merge(pd.concat([trained, untrained]), how="left")
    single = speed[speed.batch_size == speed.batch_size.min()]
    dense = single[single.method == "dense"].groupby("model").seconds.min()
    fastest = single.groupby(CELL).speedup.max().reset_index()
    fastest.loc[fastest.method == "dense", "speedup"] = 1.0
    cells = cells.merge(fastest, on=CELL, how="left")
    return cells.assign(seconds=cells.model.map(dense).astype(float) / cells.speedup)


def _panel(ax: Axes, rows: pd.DataFrame, study: Study, metric: str) -> list[Point]:
    """One cost against one metric: a colour a model, a marker a method; returns the points to be named."""
    methods = list(dict.fromkeys(rows.method))
    marker = {method: style.MARKERS[number % len(style.MARKERS)] for number, method in enumerate(methods)}
    front = _front(rows, better=-1 if metric == "perplexity" else 1)
    ax.plot(front.cost, front.value, color="#bbbbbb", linewidth=3, zorder=1)
    scopes = rows.scope[rows.method != "dense"].nunique() > 1
    plain = UNTRAINED if (rows.recipe == UNTRAINED).any() else "kept"
    named = []
    for row in rows.itertuples():
        colour = style.look(study.models, row.model)["color"]
        hollow = style.HOLLOW if row.sparsity.is_pattern else {}
        ax.plot(row.cost, row.value, marker=marker[row.method], color=colour, linestyle="", zorder=2, **hollow)
        if len(rows) <= CROWD or row.Index in front.index or row.method == "dense":
            named.append((row.cost, row.value, _name(row, scopes, plain), "#333333"))
    _legend(ax, marker, {model: style.look(study.models, model)["color"] for model in study.present(rows)})
    ax.set_xlim(left=0, right=float(rows.cost.max()) * 1.12)
    if metric == "perplexity":
        ax.set_yscale("log")
        style.log_perplexity(ax.yaxis)
    return named


def _front(rows: pd.DataFrame, better: int) -> pd.DataFrame:
    """The rows that no other beats in cost and value. `better`: 1 if a larger value is better, else -1."""
    order = rows.sort_values(["cost", "value"], ascending=[True, better < 0])
    best = (better * order.value).cummax()
    return order[(better * order.value == best) & (best > best.shift(fill_value=-math.inf))]


def _name(row: Any, scopes: bool, plain: str) -> str:
    dense = row.method == "dense"
    words = ["dense" if dense else style.short(row.sparsity)]
    words += [scope_name(row.scope)] if scopes and not dense else []
    words += [row.recipe] if row.recipe != plain else []
    return " ".join(words)


def _legend(ax: Axes, markers: dict[str, str], colours: dict[str, str]) -> None:
    """Methods by marker, and models by colour if there are several."""
    for method, marker in markers.items():
        if method != "dense":
            ax.plot([], [], marker=marker, color=style.INK, linestyle="", label=method)
    for model, colour in colours.items() if len(colours) > 1 else ():
        ax.plot([], [], color=colour, linewidth=4, label=model)
    handles, _ = ax.get_legend_handles_labels()
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if len(handles) > 8 else {"loc": "best"}
    ax.legend(fontsize=8, **beside)
