"""Zero-shot accuracy by sparsity: the mean over the tasks of lm-evaluation-harness."""

import math
from collections.abc import Iterable

import pandas as pd

from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.by_sparsity import by_sparsity, from_zero, highest_loss
from llm_sparsity.reporting.figures.drawing import QUALITY, Drawn, Study, joined
from llm_sparsity.reporting.tables import CELL, UNTRAINED, with_errors


def draw(study: Study) -> Iterable[Drawn]:
    """A figure for each set of tasks that variants were scored on: means over different tasks do not compare."""
    rows = with_errors(study.tables["metrics"], "acc")
    variants = rows[rows.method != "dense"].groupby([*CELL, "calibration_seed"], sort=False)
    sets = [set(mine.task) for _, mine in variants]
    ordered = dict.fromkeys(tuple(task for task in rows.task.unique() if task in each) for each in sets)
    for tasks in ordered:
        means = style.swept(_means(rows[rows.task.isin(tasks)], len(tasks)))
        if (means.method != "dense").any():
            yield _zero_shot(study, means, tasks, alone=len(ordered) == 1)


def _zero_shot(study: Study, means: pd.DataFrame, tasks: tuple[str, ...], *, alone: bool) -> Drawn:
    figure = by_sparsity(study, means, "Zero-shot accuracy", from_zero)
    names, several = ", ".join(tasks), len(tasks) > 1
    caption = (
        f"Zero-shot accuracy by sparsity. {'Mean over' if several else 'On'} {names}, by "
        "lm-evaluation-harness, without examples in the prompt and untrained. Bands are 95 % intervals, from the "
        "standard errors that the harness reports, and of several draws of calibration text from their differences too."
    )
    what = f"mean of {len(tasks)} tasks" if several else f"on {tasks[0]}"
    title = highest_loss(study, means, "accuracy", f"without training, {what}")
    return Drawn("zero-shot" if alone else f"zero-shot-{joined(tasks)}", QUALITY, title, caption, figure)


def _means(rows: pd.DataFrame, tasks: int) -> pd.DataFrame:
    """The mean of each variant that was scored on all of the tasks."""
    cells = rows.groupby([*CELL, "calibration_seed"], sort=False)
    means = cells.agg(value=("value", "mean"), stderr=("stderr", _error), tasks=("task", "nunique")).reset_index()
    return means[means.tasks == tasks].assign(recipe=UNTRAINED, mask="")


def _error(errors: "pd.Series[float]") -> float:
    """The standard error of a mean over tasks from those of the tasks; NaN if one is unknown."""
    return math.sqrt(float((errors**2).sum(skipna=False))) / len(errors)
