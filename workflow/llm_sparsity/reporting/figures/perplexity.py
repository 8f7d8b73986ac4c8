"""Perplexity by sparsity, with crosses from papers."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from llm_sparsity.reporting.figures import style
from llm_sparsity.reporting.figures.by_sparsity import by_sparsity, highest_loss
from llm_sparsity.reporting.figures.drawing import QUALITY, Drawn, Study
from llm_sparsity.reporting.tables import UNTRAINED, judged


def draw(study: Study) -> Iterable[Drawn]:
    """A figure for each task that is judged by perplexity: text. A task of the harness may report one too."""
    rows = judged(study.tables)
    for task, mine in rows[rows.metric == "perplexity"].groupby("task", sort=False):
        found = style.swept(mine)
        if (found.method != "dense").any():
            yield _perplexity(study, str(task), found)


def _perplexity(study: Study, task: str, rows: pd.DataFrame) -> Drawn:
    published = study.published
    published = published[
        (published.task == task) & (published.metric == "perplexity") & published.model.isin(study.models)
    ]
    figure = by_sparsity(
        study, rows, "Perplexity (log scale; lower is better)", style.log_perplexity, published, faint=False
    )
    settings = {**study.config.get("evaluate", {}), **study.config.get("tasks", {}).get(task, {}).get("evaluate", {})}
    caption = f"Perplexity by sparsity; every line starts at the dense model. {_protocol(settings)}".rstrip()
    if rows.recipe.nunique() > 1:
        caption += (
            " Solid: pruned and measured, not trained. Dash-dotted: trained on the training text of the task by the "
            "recipe named; these lines start at the dense model trained in the same way."
        )
    else:
        caption += " The models are pruned and measured, not trained."
    trained = rows.recipe != UNTRAINED
    drawn = {
        "draws of the calibration text": rows[~trained].calibration_seed.nunique() > 1,
        "seeds of trained models": rows[trained].seed.nunique() > 1,
    }
    if any(drawn.values()):
        points = " and ".join(what for what, are_drawn in drawn.items() if are_drawn)
        caption += f" Small points: {points}; line and band are their mean and its 95 % t-interval."
    if len(published):
        sources = [
            f"{source} ({', '.join(each.model.unique())})" for source, each in published.groupby("source", sort=False)
        ]
        caption += f" Crosses are published values: {'; '.join(sources)}."
    title = highest_loss(study, rows[rows.method != "random"], "perplexity", f"on {task}")
    return Drawn(f"perplexity-{task}", QUALITY, title, caption, figure)


def _protocol(settings: Mapping[str, Any]) -> str:
    """How perplexity was measured."""
    if not settings:
        return ""
    limit = settings.get("max_tokens")
    text = f"the first {limit:,} tokens" if limit else "the whole text"
    return f"Measured on {text}, in windows of {settings['sequence_length']:,} tokens that do not overlap."
