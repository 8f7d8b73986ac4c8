"""Regrowth: the share of zeros during fine-tuning with the mask released."""

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.drawing import QUALITY, Drawn, Study
from llm_sparsity.reporting.figures.labels import Point, Points, name_points
from llm_sparsity.reporting.tables import CELL
from llm_sparsity.reporting.wording import percent


def draw(study: Study) -> Iterable[Drawn]:
    """A figure for each task with released masks."""
    history = study.tables["history"]
    released = history[(history["mask"] == "released") & (history.method != "dense")]
    for task, rows in released.groupby("task", sort=False):
        yield _regrowth(study, str(task), rows)


def _regrowth(study: Study, task: str, rows: pd.DataFrame) -> Drawn:
    rows = rows[rows.seed == rows.seed.min()].sort_values("step", kind="stable")
    models = study.present(rows)
    variants = rows[["method", "scope", "recipe", "sparsity"]].drop_duplicates()
    figure, axes = style.panels(models, height=style.height(len(variants)), sharey=True)
    ends: Points = {}
    telling = [column for column in ("method", "scope") if variants[column].nunique() > 1]
    for ax, model in zip(axes, models, strict=True):
        ends[ax] = _panel(ax, rows[rows.model == model], telling, study.colour(model))
        ax.set_xlim(-0.1, int(rows.step.max()) * 1.2)
    name_points(figure, ends)
    axes[0].set_ylabel("Measured sparsity of the scope")
    line = rows[rows.sparsity == max(rows.sparsity)]
    line = line[(line[["recipe", *CELL]] == line[["recipe", *CELL]].iloc[0]).all(axis=1)]
    first, last = (float(line.measured_sparsity.iloc[at]) for at in (0, -1))
    step = int(line.step.iloc[0])
    caption = (
        "Share of zeros while fine-tuning with the mask released, from each pruned sparsity (named at its start): step "
        f"by step at first, then epoch by epoch. Of the zeros of {line.model.iloc[0]} at "
        f"{line.sparsity.iloc[0].label}, {first:.1%} are left after {step} step{'s' * (step > 1)} and {last:.1%} at "
        "the end."
    )
    title = (
        f"Released zeros grow back on {task}: {percent(round(first, 3))} of the weights of {line.model.iloc[0]} are "
        f"zero after {step} step{'s' * (step > 1)}, of {line.sparsity.iloc[0].label} at the start"
    )
    return Drawn(f"regrowth-{task}", QUALITY, title, caption, figure)


def _panel(ax: Axes, rows: pd.DataFrame, telling: list[str], base: str) -> list[Point]:
    """The lines of one model; returns their starts, to be named by the columns that tell them apart."""
    named = []
    variants = rows.groupby(["recipe", "method", "scope", "sparsity"], sort=True)
    for number, ((recipe, _, _, sparsity), line) in enumerate(variants):
        colour = style.tint(base, number, len(variants))
        start = sparsity.fraction
        ax.plot([0, *line.step], [start, *line.measured_sparsity], marker="o", markersize=3, color=colour)
        epochs = line[line.epoch > 0]
        ax.plot(
            epochs.step.astype(int), epochs.measured_sparsity, linestyle="", marker="s", color=colour, **style.HOLLOW
        )
        names = [*(str(line[column].iloc[0]) for column in telling), *([recipe] if recipe != "released" else [])]
        named.append((0.0, start, " ".join([*names, style.short(sparsity)]), colour))
    ax.plot([], [], linestyle="", marker="o", markersize=3, color=style.INK, label="within the first epoch")
    ax.plot([], [], linestyle="", marker="s", color=style.INK, label="after an epoch", **style.HOLLOW)
    ax.legend(loc="upper right", fontsize=8)
    ax.set_xscale("symlog", linthresh=1)
    ax.xaxis.set_major_locator(FixedLocator([0, 1, 10, 100, 1000, 10000]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set_ylim(0, 1)
    ax.set_xlabel("Optimizer step")
    return named
