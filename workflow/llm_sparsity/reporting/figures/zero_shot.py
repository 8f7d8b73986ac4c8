"""Zero-shot accuracy by sparsity: the mean over the tasks of lm-evaluation-harness."""

from collections.abc import Iterable

from llm_sparsity.reporting.figures.by_sparsity import by_sparsity
from llm_sparsity.reporting.figures.drawing import Drawn, Study
from llm_sparsity.reporting.tables import CELL


def draw(study: Study) -> Iterable[Drawn]:
    """One figure, if the study has zero-shot tasks."""
    found = dict(study.metric("acc"))
    if not found:
        return
    rows = study.tables["metrics"]
    means = rows[rows.metric == "acc"].groupby([*CELL, "calibration_seed"], sort=False).value.mean().reset_index()
    means = means.assign(recipe="kept", mask="")
    caption = f"Mean over {', '.join(found)}, by lm-evaluation-harness, without examples in the prompt and untrained."
    yield by_sparsity(study, "zero-shot", "Task quality", means, "Zero-shot accuracy", caption)
