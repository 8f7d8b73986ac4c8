"""Zero-shot accuracy by sparsity: the mean over the tasks of lm-evaluation-harness."""

import math
from collections.abc import Iterable

import pandas as pd

from llm_sparsity.reporting.figures.by_sparsity import by_sparsity, from_zero, highest_loss
from llm_sparsity.reporting.figures.drawing import QUALITY, Drawn, Study
from llm_sparsity.reporting.tables import CELL, with_errors


def draw(study: Study) -> Iterable[Drawn]:
    """One figure, if the study has zero-shot tasks."""
    found = dict(study.metric("acc"))
    if not found:
        return
    rows = with_errors(study.tables["metrics"], "acc")
    means = rows.groupby([*CELL, "calibration_seed"], sort=False).agg(
        value=("value", "mean"), stderr=("stderr", _error)
    )
    means = means.reset_index().assign(recipe="kept", mask="")
    caption = (
        f"Mean over {', '.join(found)}, by lm-evaluation-harness, without examples in the prompt and untrained. Bands "
        "are 95 % intervals, from the standard errors that the harness reports, and of several draws of calibration "
        "text from their differences too."
    )
    figure = by_sparsity(study, means, "Zero-shot accuracy", from_zero)
    title = highest_loss(study, means, "accuracy", f"without training, mean of {len(found)} tasks")
    yield Drawn("zero-shot", QUALITY, title, f"Zero-shot accuracy by sparsity. {caption}", figure)


def _error(errors: "pd.Series[float]") -> float:
    """The standard error of a mean over tasks from those of the tasks; NaN if one is unknown."""
    return math.sqrt(float((errors**2).sum(skipna=False))) / len(errors)
