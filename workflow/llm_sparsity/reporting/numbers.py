"""The small tables of the page: for each task and metric, a value for each sparsity."""

import math
from typing import Any

import pandas as pd

from llm_sparsity.reporting.intervals import margin, sampled_margin
from llm_sparsity.reporting.tables import CELL, LIBRARIES, UNTRAINED, Tables, by_seed, score_of, start_of, with_errors
from llm_sparsity.reporting.wording import in_points, name_of_metric, number_of, resolution, scope_name, shown
from llm_sparsity.study.sparsity import ZERO

MAIN = ("accuracy", "combined", "perplexity", "acc", "acc_norm")  # shown on the page beside the score of a task


def results(data: Tables) -> list[dict[str, Any]]:
    """For each task and metric a small table: a row a model, method, scope and recipe; a column a sparsity.

    An entry is the mean over seeds, with half the width of its 95 % interval, or "diverged" if a seed has no value. A
    single seed has no interval, but a zero-shot task has that of its examples, which lm-evaluation-harness reports. The
    column of 0 % is that of the dense model, and in the row of a method that only quantises, its own.
    """
    metrics = data["metrics"]
    names = [name for name in dict.fromkeys(metrics.metric) if name != "nll" and not name.endswith("_stderr")]
    found = ((metric, with_errors(metrics, metric)) for metric in names)
    tables = [
        _result(data, task, metric, rows[rows.task == task]) for metric, rows in found for task in rows.task.unique()
    ]
    order = list(dict.fromkeys(metrics.task))
    return sorted(tables, key=lambda table: order.index(table["task"]))


def _result(data: Tables, task: str, metric: str, rows: pd.DataFrame) -> dict[str, Any]:
    sparsities, score, on_task = sorted(set(rows.sparsity)), score_of(data, task), data["metrics"].task == task
    untrained = "not trained" if (rows.recipe != UNTRAINED).any() else ""  # only where it could be mistaken
    cells = rows.groupby(["model", "method", "scope", "recipe", "sparsity"], sort=False)
    texts = {key: _interval(metric, cell, is_zero_shot=not score) for key, cell in cells}
    keys = dict.fromkeys(key[:4] for key in texts)
    starts = {key: (key[0], "dense", "", start_of(key[3])) for key in keys if key[1] != "dense"}
    beside = {start for key, start in starts.items() if (*key, ZERO) not in texts}  # which a pruned row shows
    lines = []
    rows_of = [*dict.fromkeys(each for line in keys for each in (starts.get(line, line), line))]
    for key in (each for each in rows_of if each not in beside):
        model, method, scope, recipe = key
        start = texts.get((*starts.get(key, key), ZERO), "")
        values = [texts.get((*key, sparsity), start if sparsity.is_dense else "") for sparsity in sparsities]
        lines.append([model, method, scope_name(scope), recipe or untrained, *values])
    return {
        "task": task,
        "metric": name_of_metric(metric),
        # Or of a further split, or of a zero-shot task that has none of the usual ones.
        "main": metric in (score, *MAIN)
        or (metric.startswith(f"{score}_") if score else not set(MAIN) & set(data["metrics"].metric[on_task])),
        "heads": ["model", "method", "scope", "recipe", *(sparsity.label for sparsity in sparsities)],
        "lines": lines,
        "note": resolution(data, task) if metric == score and in_points(metric) else "",
    }


def _interval(metric: str, rows: pd.DataFrame, *, is_zero_shot: bool) -> str:
    if rows.value.isna().any():
        return shown(metric, math.nan)
    values = by_seed(rows)
    about = sampled_margin(values, rows.stderr) if is_zero_shot else margin(values)
    text = shown(metric, float(values.mean()))
    return text if math.isnan(about) else f"{text} ± {shown(metric, about)}"


def versions(data: Tables) -> str:
    """A warning if results come from different versions of a library; else "".

    A run is one fine-tuning, one evaluation without training, or one measurement of speed.
    """
    cells = [*CELL, "calibration_seed"]
    runs = pd.concat(
        [
            data["metrics"].drop_duplicates([*cells, "task", "recipe", "seed"])[LIBRARIES],
            data["speed"].drop_duplicates(cells)[LIBRARIES],
        ]
    )
    found = []
    for library in LIBRARIES:
        counts = runs[library].value_counts().sort_index()
        if len(counts) > 1:
            found.append(
                ", ".join(f"{library} {version} ({number_of(number, 'run')})" for version, number in counts.items())
            )
    if not found:
        return ""
    return f"Results come from different versions, so they may differ for that reason: {'; '.join(found)}."
