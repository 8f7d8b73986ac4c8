"""Figures, from a study's tables alone; `report` puts them on a page.

House style: a model has one colour and one marker everywhere (Okabe & Ito's palette and two of Tol's, told apart
without colour too); a kept mask has filled markers, a released one is dashed and hollow, other recipes are dash-dotted;
every seed is a point, lines join their means, bands are 95 % t-intervals over seeds; lines carry their names. Each
figure is a vector and a bitmap file.
"""

import base64
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator, PercentFormatter

from llm_sparsity.reporting import claims
from llm_sparsity.reporting import page as report
from llm_sparsity.reporting.claims import margin
from llm_sparsity.reporting.page import CELL
from llm_sparsity.storage.files import atomic, write_text
from llm_sparsity.study.cells import fraction

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933", "#882255", "#44AA99")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "h")
SECTIONS = ("What to pick", "Task quality", "Cost", "Weights")
METRICS = {"accuracy": "Accuracy", "f1": "F1", "combined": "Combined score (mean of accuracy and F1)"}
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.edgecolor": "#555555",
    "lines.linewidth": 1.6, "lines.markersize": 5, "legend.frameon": False, "figure.dpi": 100, "savefig.dpi": 160,
    "svg.hashsalt": "llm-sparsity", "figure.constrained_layout.use": True,
}  # fmt: skip
CROWD = 10  # points that can all be named; of more, those on the frontier are

Points = dict[Axes, list[tuple[float, float, str, str]]]  # to be named: x, y, name, colour


@dataclass(frozen=True)
class Drawn:
    """A figure, the name of its files, and how to read it."""

    name: str
    section: str
    caption: str
    figure: Figure


def plot(tables: Path, output: Path, *, config: Mapping[str, Any], methods: Mapping[str, str]) -> None:
    """Draw every figure that the tables hold, and write report.html and summary.txt.

    Args:
        tables: folder of the study's CSV files.
        output: gets figures/, report.html and summary.txt.
        config: the study's config, for the order of names and for the page.
        methods: for the page: name -> what it does, and its paper.
    """
    data = report.read(tables)
    models = list(dict.fromkeys(model for grid in config["study"] for model in grid["models"]))
    with mpl.rc_context(STYLE):
        drawn = [_save(figure, output / "figures") for figure in _figures(data, models, config)]
    sections = {name: [figure for figure in drawn if figure["section"] == name] for name in SECTIONS}
    write_text(output / "summary.txt", report.summary(data, output))
    write_text(output / "report.html", report.page(data, config, methods, sections))


def _figures(data: Mapping[str, pd.DataFrame], models: list[str], config: Mapping[str, Any]) -> Iterable[Drawn]:
    metrics = data["metrics"]
    for task in dict.fromkeys(metrics.loc[metrics.metric == "accuracy", "task"]):
        for metric, label in METRICS.items():
            rows = metrics[(metrics.task == task) & (metrics.metric == metric)]
            majority = report.majority(data, task, metric)
            earlier = _published(task, metric, models)
            yield _by_sparsity(
                f"{metric}-{task}", "Task quality", rows, models, label, _noise(data, task), majority, earlier
            )
        runs = data["runs"][data["runs"].task == task].assign(value=lambda rows: rows.train_seconds)
        caption = "Seconds of training; set-up and evaluation are not counted. A mask alone saves no time."
        yield _by_sparsity(f"train-time-{task}", "Cost", runs, models, "Training time (s)", caption)
    for task in dict.fromkeys(metrics.loc[metrics.metric == "perplexity", "task"]):
        rows = metrics[(metrics.task == task) & (metrics.metric == "perplexity")]
        settings = {**config.get("evaluate", {}), **config.get("tasks", {}).get(task, {}).get("evaluate", {})}
        yield _perplexity(task, rows, models, settings)
    released = data["history"][(data["history"]["mask"] == "released") & (data["history"].method != "dense")]
    for task, rows in released.groupby("task", sort=False):
        yield _regrowth(str(task), rows, models)
    zero_shot = metrics[metrics.metric == "acc"]
    if len(zero_shot):
        tasks = ", ".join(dict.fromkeys(zero_shot.task))
        rows = zero_shot.groupby([*CELL, "level", "calibration_seed"], sort=False).value.mean().reset_index()
        caption = f"Mean over {tasks}, by lm-evaluation-harness, without examples in the prompt and without training."
        rows = rows.assign(recipe="kept", mask="")
        yield _by_sparsity("zero-shot", "Task quality", rows, models, "Zero-shot accuracy", caption)
    yield from _parts(data, models)
    yield from _errors(data["tensors"])
    yield _sizes(data["sizes"], models)
    speed = data["speed"]
    for size in sorted(set(speed.batch_size)):
        rows = speed[speed.batch_size == size]
        if (rows.method != "dense").any():
            yield _speed(size, rows, models)
    yield from _frontiers(data, models)
    for model in models:
        rows = data["weights"][data["weights"].model == model]
        yield _histogram(model, rows, models)
        yield _layers(model, rows[rows.method == "dense"])


def _save(drawn: Drawn, folder: Path) -> dict[str, str]:
    """Write both files; what the page needs."""
    for suffix, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        with atomic(folder / f"{drawn.name}.{suffix}") as temporary:
            drawn.figure.savefig(temporary, format=suffix, metadata=metadata)
    plt.close(drawn.figure)
    svg = (folder / f"{drawn.name}.svg").read_bytes()
    width, height = drawn.figure.get_size_inches() * 96
    return {
        "name": drawn.name, "section": drawn.section, "caption": drawn.caption, "width": str(round(width)),
        "height": str(round(height)), "svg": base64.b64encode(svg).decode(),
    }  # fmt: skip


def _panels(names: Sequence[str], width: float = 4.4, height: float = 3.4, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """Small multiples, at most four in a row, each with its name; unused ones are taken away."""
    columns = min(len(names), 4) if len(names) != 4 else 2
    rows = math.ceil(len(names) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(width * columns, 6.0), height * rows), squeeze=False, **kwargs
    )
    for ax, name in itertools.zip_longest(axes.flat, names):
        if name is None:
            ax.remove()
        else:
            ax.set_title(name)
    return figure, list(axes.flat)[: len(names)]


def _look(names: Sequence[Any], name: Any) -> dict[str, Any]:
    """The colour and marker of a model among models, or of a method among methods."""
    number = names.index(name)
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def _groups(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """The (method, scope) that were pruned with; dense belongs to each.

    Parts that were pruned at one sparsity only, beside scopes that were swept, are left to the figure of parts.
    """
    pruned = rows[rows.method != "dense"]
    levels = pruned.groupby("scope")["level"].nunique()
    if len(levels) > 2 and (levels > 1).any():
        pruned = pruned[pruned.scope.map(levels) > 1]
    return list(dict.fromkeys(zip(pruned.method, pruned.scope, strict=True))) or [("dense", "")]


def _with_dense(rows: pd.DataFrame, method: str, scope: str) -> pd.DataFrame:
    """The rows of one method and scope, the dense model as their beginning."""
    return rows[((rows.method == method) & (rows.scope == scope)) | (rows.method == "dense")]


def _sparsity_axis(ax: Axes, levels: Iterable[float]) -> None:
    """Sparsity in percent; the levels that were computed are the ticks, unless they would touch."""
    ticks: list[float] = []
    for level in sorted(set(levels), reverse=True):
        if not ticks or ticks[-1] - level > 0.07:
            ticks.append(level)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=None if any(t * 100 % 1 > 1e-9 for t in ticks) else 0))
    ax.set_xlabel("Sparsity of the scope (% of weights removed)")


def _name_points(figure: Figure, points: Points, up: float = 0) -> None:
    """Write names (x, y, text, colour) beside points, such as the last of a line.

    A name stands to the right of its point and `up` points above it. Where it would touch another name or point, it
    stands below it, or to the left, or, if there is no room either or it names a line, as far above as it must.
    """
    figure.draw_without_rendering()  # the layout decides where points are
    point = figure.dpi / 72
    height, width = 9.4 * point, 4.7 * point  # of a letter, with a margin
    apart, radius = 5 * point, 3 * point  # of a name from its point, of a marker
    corners = [(side, rise * point) for side in ("left", "right") for rise in (up, -up)] if up else [("left", 0.0)]
    for ax, labels in points.items():
        places = [tuple(map(float, ax.transData.transform((x, y)))) for x, y, _, _ in labels]
        taken = [(x - radius, x + radius, y - radius, y + radius) for x, y in places]
        for (x, y), (at, value, text, colour) in sorted(zip(places, labels, strict=True), key=lambda each: each[0][1]):
            found = []
            for side, rise in corners:
                left = x + apart if side == "left" else x - apart - width * len(text)
                centre = _rise(left, left + width * len(text), y + rise, height, taken)
                found.append((centre != y + rise, side, left, centre))
            _, side, left, centre = next((place for place in found if not place[0]), found[0])
            taken.append((left, left + width * len(text), centre - height / 2, centre + height / 2))
            ax.annotate(
                text, (at, value), (7 if side == "left" else -7, (centre - y) / point), textcoords="offset points",
                color=colour, ha=side, va="center", fontsize=8.5, annotation_clip=False,
            )  # fmt: skip


def _rise(left: float, right: float, centre: float, height: float, taken: Sequence[tuple[float, ...]]) -> float:
    """The lowest centre from this one on at which a name touches no box (left, right, bottom, top) that is taken."""
    for start, end, bottom, top in sorted(taken, key=lambda box: box[3]):
        if start < right and left < end and bottom < centre + height / 2 and centre - height / 2 < top:
            centre = top + height / 2
    return centre


def _stroke(recipe: str, mask: str) -> dict[str, Any]:
    """A recipe's line: solid for `kept`, dashed and hollow where the mask is released, dash-dotted for others."""
    if mask == "released":
        return {"linestyle": "--", "markerfacecolor": "white"}
    return {"linestyle": "-" if recipe in ("kept", "") else "-."}


def _line(ax: Axes, rows: pd.DataFrame, stroke: Mapping[str, Any], **look: Any) -> tuple[float, float]:
    """Seeds as points, their mean as a line, a 95 % t-interval as a band; returns the last point."""
    patterns = rows[rows.sparsity.str.contains("of")]  # as sparse as a fraction is, but no point of its line
    for row in patterns.itertuples():
        ax.plot(row.level, float(row.value), linestyle="", markerfacecolor="white", **look)
        ax.annotate(row.sparsity, (row.level, float(row.value)), (5, 3), textcoords="offset points", fontsize=7)
    rows = rows[~rows.sparsity.str.contains("of")]
    levels, means, low, high = [], [], [], []
    for level, group in rows.groupby("level"):
        values = group["value"].astype(float)
        about = margin(values)
        if len(values) > 1:
            ax.plot([level] * len(values), values, linestyle="", alpha=0.45, **{**look, "markersize": 3})
        levels.append(float(level))
        means.append(float(values.mean()))
        low.append(means[-1] - about)
        high.append(means[-1] + about)
    ax.plot(levels, means, **look, **stroke)
    if high != low:
        ax.fill_between(levels, low, high, color=look["color"], alpha=0.12, linewidth=0)
    return levels[-1], means[-1]


def _noise(data: Mapping[str, pd.DataFrame], task: str) -> str:
    """What a reader must know about chance before comparing two points."""
    seeds = data["runs"][data["runs"].task == task].seed.nunique()
    told = (
        "One seed: points without a band"
        if seeds == 1
        else f"{seeds} seeds: small points; line and band are their mean and its 95 % t-interval"
    )
    return (
        f"{told}. {report.resolution(data, task)} Solid: the recipe kept, which holds the mask; dash-dotted: another "
        "that holds it; dashed: released, zeros may grow back. Dotted: the majority class."
    )


def _by_sparsity(
    name: str,
    section: str,
    rows: pd.DataFrame,
    models: list[str],
    label: str,
    caption: str,
    majority: float | None = None,
    earlier: pd.DataFrame | None = None,
) -> Drawn:
    """One value by sparsity: a panel for each method and scope, a line for each model and recipe."""
    groups = _groups(rows)
    figure, axes = _panels([_group_name(*group) for group in groups], sharey=True)
    ends: Points = {}
    for ax, (method, scope) in zip(axes, groups, strict=True):
        ends[ax] = []
        group = _with_dense(rows, method, scope)
        pruned = group[group.method != "dense"]
        recipes = dict(zip(pruned.recipe, pruned["mask"], strict=True)) or {"kept": "kept"}
        for model in [model for model in models if model in set(group.loc[group.method == method, "model"])]:
            for recipe, mask in recipes.items():
                line = group[(group.model == model) & ((group.recipe == recipe) | (group.method == "dense"))]
                if not (line.method == method).any():
                    continue
                look = _look(models, model)
                x, y = _line(ax, line, _stroke(recipe, mask), **look)
                ends[ax].append((x, y, f"{model}, {recipe}" if len(recipes) > 1 else model, look["color"]))
            if earlier is not None:
                marks = earlier[(earlier.model == model) & earlier.method.isin([method, "dense"])]
                ax.plot(marks.level, marks.value, "x", color=_look(models, model)["color"], alpha=0.45, markersize=7)
        _sparsity_axis(ax, group.level)
        if majority is not None:
            low, high = ax.get_ylim()
            low = min(low, majority - 0.03 * (high - majority))
            ax.set_ylim(max(low, 0), min(max(high, low + 0.1), 1))  # chance fills no axis, a band leaves no scale
            ax.axhline(majority, color="#777777", linewidth=1, linestyle=":")
            ax.annotate(
                "majority class", (0, majority), (2, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                fontsize=8, color="#555555",
            )  # fmt: skip
        else:
            ax.set_ylim(bottom=0)
    _name_points(figure, ends)
    axes[0].set_ylabel(label)
    if earlier is not None and len(earlier):
        caption += (
            f" Faint crosses: {claims.EARLIER}, which trained few steps (an effective batch of 128: 87 steps on MRPC), "
            "once, with the mask released."
        )
    return Drawn(name, section, f"{label} by sparsity. {caption}", figure)


def _regrowth(task: str, rows: pd.DataFrame, models: list[str]) -> Drawn:
    """How fast zeros grow back when the mask is released."""
    rows = rows[rows.seed == rows.seed.min()]
    shown = [model for model in models if model in set(rows.model)]
    figure, axes = _panels(shown, sharey=True)
    ends: Points = {}
    for ax, model in zip(axes, shown, strict=True):
        ends[ax] = []
        variants = rows[rows.model == model].groupby(["recipe", "method", "scope", "level"], sort=True)
        for number, ((recipe, method, scope, level), group) in enumerate(variants):
            line = group.astype({"step": int, "epoch": int, "measured_sparsity": float}).sort_values("step")
            colour = mpl.colors.to_hex(mpl.colormaps["viridis"](0.85 * number / max(len(variants) - 1, 1)))
            ax.plot([0, *line.step], [level, *line.measured_sparsity], marker="o", markersize=3, color=colour)
            ends_of_epochs = line[line.epoch > 0]
            ax.plot(
                ends_of_epochs.step, ends_of_epochs.measured_sparsity, linestyle="", marker="s", color=colour,
                markerfacecolor="white",
            )  # fmt: skip
            names = [*([method, scope] if len(_groups(rows)) > 1 else []), *([recipe] if recipe != "released" else [])]
            ends[ax].append((0.0, float(level), " ".join([*names, f"{level:.0%}"]), colour))
        ax.plot([], [], linestyle="", marker="o", markersize=3, color="#555555", label="within the first epoch")
        ax.plot([], [], linestyle="", marker="s", markerfacecolor="white", color="#555555", label="after an epoch")
        ax.legend(loc="upper right", fontsize=8)
        ax.set_xscale("symlog", linthresh=1)
        ax.xaxis.set_major_locator(FixedLocator([0, 1, 10, 100, 1000, 10000]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.set_xlim(-0.1, max(rows.step.astype(int)) * 1.2)
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.set_ylim(0, 1)
        ax.set_xlabel("Optimizer step")
    _name_points(figure, ends)
    axes[0].set_ylabel("Measured sparsity of the scope")
    line = rows[rows.level == rows.level.max()].sort_values("step", key=lambda steps: steps.astype(int))
    line = line[(line[["recipe", *CELL]] == line[["recipe", *CELL]].iloc[0]).all(axis=1)]
    first, last = (float(line.measured_sparsity.iloc[at]) for at in (0, -1))
    step = int(line.step.iloc[0])
    caption = (
        "Share of zeros while fine-tuning with the mask released, from each pruned sparsity (named at its start), step "
        f"by step at first, then epoch by epoch. Of {line.model.iloc[0]}'s {line.level.iloc[0]:.0%} zeros {first:.1%} "
        f"are left after {step} step{'s' * (step > 1)}, {last:.1%} at the end: what is then measured is a dense model."
    )
    return Drawn(f"regrowth-{task}", "Task quality", caption, figure)


def _perplexity(task: str, rows: pd.DataFrame, models: list[str], settings: Mapping[str, Any]) -> Drawn:
    """Perplexity by sparsity: a panel for each model, a line for each method, scope and recipe; what was published."""
    published = _published(task, "perplexity", models)
    shown = [model for model in models if model in set(rows.model)]
    figure, axes = _panels(shown, width=6.0)
    groups = _groups(rows)
    scopes = {scope for _, scope in groups}
    recipes = list(dict.fromkeys(rows.recipe))
    ends: Points = {}
    for ax, model in zip(axes, shown, strict=True):
        ends[ax] = []
        mine = rows[rows.model == model]
        for (method, scope), recipe in itertools.product(groups, recipes):
            line = mine[(mine.method == method) & (mine.scope == scope) & (mine.recipe == recipe)]
            if line.empty:
                continue
            look = _look(groups, (method, scope))
            if method != "dense":
                line = pd.concat([report.dense(mine, recipe), line])
            x, y = _line(ax, line, {"linestyle": "-" if recipe == report.UNTRAINED else "-."}, **look)
            name = [method, *([scope] if len(scopes) > 1 else []), *([recipe] if recipe else [])]
            ends[ax].append((x, y, ", ".join(name), look["color"]))
            marks = published[(published.model == model) & published.method.isin([method, "dense"])]
            ax.plot(marks.level, marks.value, "x", color=look["color"], markersize=9)
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
        ax.yaxis.set_minor_locator(NullLocator())
        _sparsity_axis(ax, rows.level)
    _name_points(figure, ends)
    axes[0].set_ylabel("Perplexity (log scale; lower is better)")
    caption = (
        f"Perplexity on {task} by sparsity of the scope {' and '.join(sorted(scopes))}, one-shot: pruned and measured, "
        f"not trained. Every method starts at the dense model. {_protocol(settings)}"
    )
    if len(recipes) > 1:
        caption += (
            " Dash-dotted: trained on the task's training text by the recipe that is named; the line starts at the "
            "dense model that was trained so too."
        )
    if len(published):
        sources = [
            f"{source} ({', '.join(rows.model.unique())})" for source, rows in published.groupby("source", sort=False)
        ]
        caption += f" Crosses are published values: {'; '.join(sources)}."
    return Drawn(f"perplexity-{task}", "Task quality", caption, figure)


def _published(task: str, metric: str, models: list[str]) -> pd.DataFrame:
    """What others published on a task."""
    rows = claims.published()
    rows = rows[(rows.task == task) & (rows.metric == metric) & rows.model.isin(models)]
    return rows.assign(level=rows.sparsity.map(fraction))


def _protocol(settings: Mapping[str, Any]) -> str:
    """How perplexity was measured, which a number means nothing without."""
    if not settings:
        return ""
    limit = settings.get("max_tokens")
    text = f"the first {limit:,} tokens" if limit else "the whole text"
    return f"Measured on {text}, in windows of {settings['sequence_length']:,} tokens that do not overlap."


def _parts(data: Mapping[str, pd.DataFrame], models: list[str]) -> Iterable[Drawn]:
    """Which part hurts most: a figure for each task whose study prunes several scopes at one sparsity."""
    metrics = data["metrics"]
    plain = metrics.metric.map({"accuracy": "kept", "perplexity": report.UNTRAINED})
    shown = metrics[metrics.recipe == plain]
    for (task, metric), rows in shown.groupby(["task", "metric"], sort=False):
        groups = [
            (model, method, level, group.groupby("scope").value.mean())
            for (model, method, level), group in rows[rows.method != "dense"].groupby(
                ["model", "method", "level"], sort=False
            )
            if group.scope.nunique() > 2
        ]
        if groups:
            names = [f"{model}: {level:.0%} of one part removed, {method}" for model, method, level, _ in groups]
            tallest = max(len(values) for *_, values in groups)
            figure, axes = _panels(names, width=6.6, height=1.3 + 0.34 * tallest)
            for ax, group in zip(axes, groups, strict=True):
                _part(ax, rows, data["sizes"], str(metric), *group, _look(models, group[0])["color"])
            caption = (
                f"Each part pruned alone, at the same sparsity of the part, on {task}; the most harmful on top. Beside "
                "each bar, how many weights went: a part that loses little and holds much is where to prune. Dotted: "
                "the dense model."
            )
            yield Drawn(f"parts-{task}", "Task quality", caption, figure)


def _part(
    ax: Axes, rows: pd.DataFrame, sizes: pd.DataFrame, metric: str, model: str, method: str, level: float,
    values: pd.Series, colour: str,
) -> None:  # fmt: skip
    """The bars of one model, method and sparsity."""
    sizes = sizes[(sizes.model == model) & (sizes.method == method) & (sizes.level == level)]
    dense = float(rows.loc[(rows.model == model) & (rows.method == "dense"), "value"].mean())
    values = values.sort_values(ascending=metric == "perplexity")
    ax.barh(range(len(values)), values, color=colour, alpha=0.75, height=0.65)
    for number, (scope, value) in enumerate(values.items()):
        chosen = sizes[
            (sizes.model == model) & (sizes.method == method) & (sizes.scope == scope) & (sizes.level == level)
        ]
        removed = float(chosen.removed.iloc[0]) / 1e6
        ax.annotate(
            f"{report.shown(metric, value)}   ({removed:,.1f} M weights)", (value, number), (4, 0),
            textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    ax.set_yticks(range(len(values)), [report.scope_name(str(scope)) for scope in values.index])
    ax.axvline(dense, color="#777777", linewidth=1, linestyle=":")
    ax.grid(visible=False, axis="y")
    if metric == "perplexity":
        ax.set_xscale("log")
        ax.set_xlim(dense * 0.8, float(values.max()) * (float(values.max()) / dense) ** 0.8 * 1.2)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("Perplexity (log scale; lower is better)")
    else:
        ax.set_xlim(float(values.min()) * 0.9, max(dense, float(values.max())) * 1.15)
        ax.set_xlabel("Accuracy")


def _errors(rows: pd.DataFrame) -> Iterable[Drawn]:
    """How far matrices are from what they were, layer by layer: a figure a model, a panel a sparsity and stack."""
    rows = rows.dropna(subset=["error"])
    for model, mine in rows.groupby("model", sort=False):
        methods = list(dict.fromkeys(mine.method))
        panels = list(mine.groupby(["sparsity", "stack"], sort=False))
        stacked = mine["stack"].nunique() > 1
        names = [f"{model}, {sparsity}{f', {stack}' if stacked else ''}" for (sparsity, stack), _ in panels]
        figure, axes = _panels(names, width=5.2, sharey=True)
        ends: Points = {}
        for ax, (_, group) in zip(axes, panels, strict=True):
            ends[ax] = []
            for method, line in group.groupby("method", sort=False):
                mean, look = line.groupby("layer").error.mean(), _look(methods, str(method))
                ax.plot(mean.index, mean, markersize=3.5, **look)
                ends[ax].append((float(mean.index[-1]), float(mean.iloc[-1]), str(method), look["color"]))
            ax.set_ylim(bottom=0)
            ax.set_xlabel("Layer, from 0")
        _name_points(figure, ends)
        axes[0].set_ylabel("Error of a matrix's output, relative")
        caption = (
            f"What {model}'s matrices answer to the calibration text once they are pruned, against what they answered "
            "before: the norm of the difference as a share of the norm, mean over a layer's matrices. Inputs are what "
            "the layers before give once they are pruned. A layer with a large error may need a lower sparsity."
        )
        yield Drawn(f"errors-{model}", "Task quality", caption, figure)


def _sizes(rows: pd.DataFrame, models: list[str]) -> Drawn:
    """Bytes of the weight files by sparsity, as a share of the dense file."""
    groups = _groups(rows)
    figure, axes = _panels([_group_name(*group) for group in groups], sharey=True)
    ends: Points = {}
    for ax, (method, scope) in zip(axes, groups, strict=True):
        ends[ax] = []
        group = _with_dense(rows, method, scope)
        for model in [
            model for model in models if (method == "dense" or model in set(group.model[group.method == method]))
        ]:
            points = group[group.model == model].sort_values("level")
            look = _look(models, model)
            ax.plot(points.level, points.ratio, **look)
            bound = points.dropna(subset=["bound_bytes"])
            ax.plot(
                bound.level, bound.bound_bytes / bound.dense_bytes, color=look["color"], linestyle=":", linewidth=1.2
            )
            ends[ax].append((float(points.level.iloc[-1]), float(points.ratio.iloc[-1]), model, look["color"]))
        ax.axhline(1, color="#777777", linewidth=1, linestyle="--")
        ax.annotate("dense file", (1, 1), (-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                    fontsize=8, color="#555555", ha="right")  # fmt: skip
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.set_ylim(0, 1.1)
        _sparsity_axis(ax, group.level)
    _name_points(figure, ends)
    axes[0].set_ylabel("Weight file, share of dense")
    caption = (
        "Bytes of the saved weights, measured: survivors and where they are; zeros are not stored. What is outside "
        "the scope (embeddings, when only matrices are pruned) sets the floor. Dotted: what an ideal coder of the "
        "survivors' positions and bytes would take, where it was measured."
    )
    return Drawn("size", "Cost", caption, figure)


def _group_name(method: str, scope: str) -> str:
    """A panel's name."""
    return f"{method}, {report.scope_name(scope)}" if scope else method


def _speed(batch: int, rows: pd.DataFrame, models: list[str]) -> Drawn:
    """How much faster than the dense model a variant runs, by sparsity and execution."""
    groups = _groups(rows)
    figure, axes = _panels([_group_name(*group) for group in groups], sharey=True)
    ends: Points = {}
    for ax, (method, scope) in zip(axes, groups, strict=True):
        ends[ax], found = [], []
        group = _with_dense(rows, method, scope)
        for model in [model for model in models if model in set(group.model[group.method == method])]:
            mine, look = group[group.model == model], _look(models, model)
            for name in ("dense", "sparse", "2of4"):
                line = mine[(mine.execution == name) | (mine.method == "dense")].sort_values("level")
                if not (line.method == method).any():
                    continue
                hollow = name == "dense" and "sparse" in set(mine.execution)  # zeros that are multiplied
                style = {"linestyle": "--", "markerfacecolor": "white"} if hollow else {}
                bars = [line.speedup - line.speedup_low, line.speedup_high - line.speedup]
                ax.errorbar(line.level, line.speedup, bars, capsize=2, elinewidth=1, **look, **style)
                ends[ax].append(
                    (float(line.level.iloc[-1]), float(line.speedup.iloc[-1]), f"{model}, {name}", look["color"])
                )
                if name == "sparse" and (even := _crossing(line.level.to_numpy(), line.speedup.to_numpy())):
                    found.append((even, look["color"]))
        for even, colour in found:
            ax.axvline(even, color=colour, linewidth=1, linestyle=":")
            ax.annotate(
                f"break-even {even:.0%}", (even, 1), (3, 3), xycoords=("data", "axes fraction"), rotation=0,
                textcoords="offset points", fontsize=8, color=colour, ha="center",
            )  # fmt: skip
        ax.axhline(1, color="#777777", linewidth=1)
        ax.annotate("as fast as dense", (0, 1), (2, -10), xycoords=("axes fraction", "data"),
                    textcoords="offset points", fontsize=8, color="#555555")  # fmt: skip
        ax.set_ylim(0, max(1.2, float(rows.speedup_high.max()) * 1.08))
        _sparsity_axis(ax, group.level)
    _name_points(figure, ends)
    axes[0].set_ylabel("Speed-up over the dense model")
    tokens, threads, device = (rows[key].iloc[0] for key in ("sequence_length", "threads", "device"))
    batch, threads = int(batch), int(threads)  # NumPy's make no plural
    caption = (
        f"Speed of the base model on {batch} sequence{'s' * (batch > 1)} of {tokens} tokens, {device}, {threads} "
        f"thread{'s' * (threads > 1)}; both models take turns, points are medians, bars quartiles. Dashed and hollow: "
        "dense execution, in which zeros are multiplied like any number. Solid: what was removed is not computed. "
        "Below break-even sparse execution costs more than it saves."
    )
    return Drawn(f"speed-batch-{batch}", "Cost", caption, figure)


def _crossing(levels: Any, speedups: Any) -> float | None:
    """The sparsity from which on sparse execution is faster: where the line last crosses 1, if it does."""
    below = np.flatnonzero(speedups[1:] < 1) + 1  # the first point is the dense model
    if not len(below) or below[-1] == len(levels) - 1:
        return None
    at = below[-1]
    return float(np.interp(1, speedups[at : at + 2], levels[at : at + 2]))


def _frontiers(data: Mapping[str, pd.DataFrame], models: list[str]) -> Iterable[Drawn]:
    """What to pick: quality against measured bytes, and against measured latency."""
    metrics, sizes, speed = data["metrics"], data["sizes"], data["speed"]
    quality = metrics[metrics.metric.isin(["accuracy", "perplexity"]) & (metrics["mask"] != "released")]
    quality = quality[quality.method != "random"]  # a control, nobody's pick
    cells = quality.groupby(["task", "metric", *CELL, "recipe", "level"], sort=False).value.mean().reset_index()
    cells = cells.merge(sizes[[*CELL, "bytes"]], on=CELL)
    single = speed[speed.batch_size == speed.batch_size.min()]
    dense = single[single.method == "dense"].groupby("model").seconds.min()
    fastest = single.groupby(CELL).speedup.max().reset_index()
    fastest.loc[fastest.method == "dense", "speedup"] = 1.0
    cells = cells.merge(fastest, on=CELL, how="left")
    cells["seconds"] = cells.model.map(dense) / cells.speedup
    costs = {
        "bytes": ("bytes", "Weight file (MB)", 1e6),
        "seconds": ("latency", "Latency, fastest execution (ms)", 1e-3),
    }
    for (task, metric), rows in cells.groupby(["task", "metric"], sort=False):
        shown = [cost for cost in costs if rows[cost].notna().sum() > 1]
        if not shown:  # dense alone: every mask was released
            continue
        figure, axes = _panels(
            [f"{metric} against {costs[cost][0].split(' (')[0].lower()}" for cost in shown], width=5.2
        )
        named: Points = {}
        for ax, cost in zip(axes, shown, strict=True):
            points = rows.dropna(subset=[cost]).assign(cost=rows[cost] / costs[cost][2])
            named[ax] = _frontier(ax, points, models, str(metric))
            ax.set_xlabel(costs[cost][1])
        _name_points(figure, named, up=7)
        name = "Perplexity (log scale; lower is better)" if metric == "perplexity" else "Accuracy"
        axes[0].set_ylabel(name)
        recipes = "recipes" if metric == "perplexity" else "recipes other than plain fine-tuning"
        caption = (
            f"What to pick on {task}: every variant by what it costs and reaches, mask kept; {recipes} are "
            "named. The grey line joins those that no other beats in both; what is far from it is not worth "
            "having; where there are many points, only those on the line are named. Latency: the dense model's, "
            "divided by the speed-up that was measured side by side."
        )
        yield Drawn(f"frontier-{task}", "What to pick", caption, figure)


def _frontier(ax: Axes, rows: pd.DataFrame, models: list[str], metric: str) -> list[tuple[float, float, str, str]]:
    """One cost against one metric: a model's colour, a method's marker; the points to be named by their sparsity."""
    better = -1 if metric == "perplexity" else 1
    methods = list(dict.fromkeys(rows.method))
    scopes = rows.scope[rows.method != "dense"].nunique()
    plain = report.UNTRAINED if (rows.recipe == report.UNTRAINED).any() else "kept"
    order = rows.sort_values(["cost", "value"], ascending=[True, better < 0])
    best = (better * order.value).cummax()
    front = order[(better * order.value == best) & (best > best.shift(fill_value=-math.inf))]
    ax.plot(front.cost, front.value, color="#bbbbbb", linewidth=3, zorder=1)
    named = []
    for row in rows.itertuples():
        marker = MARKERS[methods.index(row.method) % len(MARKERS)]
        ax.plot(row.cost, row.value, marker=marker, color=_look(models, row.model)["color"], linestyle="", zorder=2)
        text = "dense" if row.method == "dense" else f"{row.level:.0%}"
        text += f" {report.scope_name(row.scope)}" if scopes > 1 and row.method != "dense" else ""
        text += f" {row.recipe}" if row.recipe != plain else ""
        if len(rows) <= CROWD or row.Index in front.index or row.method == "dense":
            named.append((row.cost, row.value, text, "#333333"))
    for number, method in enumerate(methods):
        if method != "dense":
            ax.plot([], [], marker=MARKERS[number % len(MARKERS)], color="#555555", linestyle="", label=method)
    for model in [model for model in models if model in set(rows.model)] if rows.model.nunique() > 1 else []:
        ax.plot([], [], color=_look(models, model)["color"], linewidth=4, label=model)
    handles, _ = ax.get_legend_handles_labels()
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if len(handles) > 8 else {"loc": "best"}
    ax.legend(fontsize=8, **beside)
    ax.set_xlim(left=0, right=float(rows.cost.max()) * 1.12)
    if metric == "perplexity":
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
        ax.yaxis.set_minor_locator(NullLocator())
    return named


def _number(rows: pd.DataFrame, statistic: str) -> float:
    return float(rows.loc[rows.statistic == statistic, "value"].iloc[0])


def _histogram(model: str, rows: pd.DataFrame, models: list[str]) -> Drawn:
    """The distribution of a model's weights."""
    overall = rows[(rows.method == "dense") & (rows["level_"] == "overall")]
    bins = overall[overall.statistic == "histogram"]
    x, count = bins.x.astype(float).to_numpy(), bins.value.astype(float).to_numpy()
    width = x[1] - x[0]
    figure, (ax,) = _panels([model], width=6.4)
    colour = _look(models, model)["color"]
    ax.fill_between(x + width / 2, count, step="mid", color=colour, alpha=0.35, linewidth=0)
    ax.step(x + width / 2, count, where="mid", color=colour, linewidth=1)
    ax.set_yscale("log")
    ax.set_ylim(0.8, 40 * count.max())  # room for the text
    ax.set_xlabel("Weight")
    ax.set_ylabel("Weights in the bin (log scale)")
    below = overall[overall.statistic == "share_below"]
    shares = "\n".join(f"|w| < {float(at):g}:  {value:.1%}" for at, value in zip(below.x, below.value, strict=True))
    ax.text(
        0.985, 0.97, f"{_number(overall, 'count') / 1e6:,.1f} M weights\n{shares}", transform=ax.transAxes, ha="right",
        va="top", fontsize=8.5, linespacing=1.5,
    )  # fmt: skip
    caption = (
        f"Weights of dense {model} that can be pruned: standard deviation {_number(overall, 'std'):.3g}, all between "
        f"{_number(overall, 'min'):.3g} and {_number(overall, 'max'):.3g}. The axis spans 99.9 % of them; the end "
        "bins hold the rest. The more weights lie near zero, the more can go unnoticed."
    )
    return Drawn(f"weights-{model}", "Weights", caption, figure)


def _layers(model: str, rows: pd.DataFrame) -> Drawn:
    """Cumulative curves of abs(w), layer by layer, a panel for each stack."""
    curves = rows[(rows["level_"] == "layer") & (rows.statistic == "cumulative")]
    stacks = list(dict.fromkeys(curves["stack"]))
    figure, axes = _panels(
        [f"{model}: {stack}" if len(stacks) > 1 else model for stack in stacks], width=6.4, sharey=True
    )
    named = []
    for ax, stack in zip(axes, stacks, strict=True):
        layers = curves[curves["stack"] == stack]
        highest = max(int(layers.layer.max()), 1)
        medians = {}
        for layer, curve in layers.groupby("layer"):
            x, y = curve.x.astype(float).to_numpy(), curve.value.astype(float).to_numpy()
            number = int(str(layer))
            inside = number >= 0
            colour = mpl.colormaps["viridis"](0.9 * number / highest) if inside else "#D55E00"
            ax.plot(x, y, color=colour, linewidth=1.2, linestyle="-" if inside else "--")
            medians[number] = float(x[min(int(np.searchsorted(y, 0.5)), len(x) - 1)])
        inner = {number: median for number, median in medians.items() if number >= 0} or medians
        largest, smallest = max(inner, key=lambda n: inner[n]), min(inner, key=lambda n: inner[n])
        named.append(f"{stack} layer {largest}")
        for number, side in ((largest, 1), (smallest, -1)):
            arrow = {"arrowstyle": "-", "color": "#555555", "lw": 0.8}
            ax.annotate(
                f"layer {number}", (inner[number], 0.5), (26 * side, -22 * side), textcoords="offset points",
                fontsize=8.5, ha="left" if side > 0 else "right", va="center", arrowprops=arrow,
            )  # fmt: skip
        if -1 in medians:
            ax.plot([], [], color="#D55E00", linestyle="--", label="embeddings")
        ax.plot([], [], color=mpl.colormaps["viridis"](0.0), label="layer 0")
        ax.plot([], [], color=mpl.colormaps["viridis"](0.9), label=f"layer {highest}")
        ax.legend(loc="upper left", fontsize=8)
        ax.set_xscale("log")
        spread = layers[(layers.value.astype(float) > 0.005) & (layers.value.astype(float) < 0.9995)].x.astype(float)
        ax.set_xlim(spread.min(), spread.max())
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.set_xlabel("|weight| (log scale)")
    axes[0].set_ylabel("Share of the layer's weights below")
    caption = (
        f"Cumulative distribution of |w| in each layer of dense {model}. A curve further right has larger weights and "
        f"loses less under global magnitude pruning; the largest: {', '.join(named)}."
    )
    return Drawn(f"layers-{model}", "Weights", caption, figure)
