"""Regrowth: the share of zeros during fine-tuning with the mask released."""

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.drawing import QUALITY, Drawn, Study
from llm_sparsity.reporting.figures.labels import Point, Points, name_points
from llm_sparsity.reporting.tables import CELL, fractions
from llm_sparsity.reporting.wording import number_of, percent, short

KEPT = 0.99  # of the zeros: at the end of a run whose zeros do not grow back


def draw(study: Study) -> Iterable[Drawn]:
    """A figure for each task with released masks."""
    history = study.tables["history"]
    released = history[(history["mask"] == "released") & (fractions(history) > 0)]
    for task, rows in released.groupby("task", sort=False):
        yield _regrowth(study, str(task), rows)


def _regrowth(study: Study, task: str, rows: pd.DataFrame) -> Drawn:
    rows = _first_draws(rows).sort_values("step", kind="stable")
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
    model, sparsity, steps = line.model.iloc[0], line.sparsity.iloc[0], number_of(int(line.step.iloc[0]), "step")
    first, last = (float(line.measured_sparsity.iloc[at]) / sparsity.fraction for at in (0, -1))  # of the zeros
    caption = (
        "Share of zeros while fine-tuning with the mask released, from each pruned sparsity (named at its start): step "
        f"by step at first, then epoch by epoch. Of the zeros of {model} at {sparsity.label}, "
        f"{percent(round(first, 3))} are left after {steps} and {percent(round(last, 3))} at the end."
    )
    seen = "grow back" if last < KEPT else "remain"
    title = (
        f"Released zeros {seen} on {task}: of those of {model} at {sparsity.label}, {percent(round(first, 3))} are "
        f"left after {steps}, {percent(round(last, 3))} at the end"
    )
    return Drawn(f"regrowth-{task}", QUALITY, title, caption, figure)


def _first_draws(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the first seed of every cell: each is one line."""
    seeds = rows.groupby(["recipe", *CELL])[["calibration_seed", "seed"]].transform("min")
    return rows[(rows[["calibration_seed", "seed"]] == seeds).all(axis=1)]


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
        named.append((0.0, start, " ".join([*names, short(sparsity)]), colour))
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
