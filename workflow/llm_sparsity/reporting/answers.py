"""The answers of a study: sentences and small tables."""

import math
from typing import Any

import pandas as pd

from llm_sparsity.reporting.intervals import sampled_margin
from llm_sparsity.reporting.tables import (
    CELL,
    LIBRARIES,
    UNTRAINED,
    Tables,
    dense,
    examples,
    majority,
    scored,
    start_of,
    with_errors,
)
from llm_sparsity.reporting.tolerance import QUALITY, compare, furthest
from llm_sparsity.reporting.wording import how, number_of, part_of, percent, resolution, scope_name, shown
from llm_sparsity.study.sparsity import DENSE

WHOLE = ("all", "linear")  # scopes that are whole models, not parts
NAMED = 4  # models that a sentence can name; of more, it names the extremes


def answers(data: Tables) -> list[str]:
    """The answer of the study, in five sentences at most. Cells that diverged have no part in it."""
    data = {**data, "metrics": scored(data["metrics"])}
    found = [_quality(data, "accuracy"), _quality(data, "perplexity"), _choice(data), _cost(data), _training(data)]
    return [line for line in found if line]


def _held(data: Tables, metric: str) -> pd.DataFrame:
    """The rows of a metric. Cells with a released mask are dense models, and left out."""
    rows = data["metrics"]
    return rows[(rows.metric == metric) & (rows["mask"] != "released")]


def _means(data: Tables, metric: str) -> pd.DataFrame:
    """Means over seeds, one row a cell, the best first."""
    rows = _held(data, metric)
    means = rows.groupby(["task", *CELL, "recipe"], sort=False).value.mean().reset_index()
    return means.sort_values("value", ascending=QUALITY[metric][0] < 0, kind="stable")


def _quality(data: Tables, metric: str) -> str:
    """The highest sparsity of each model, of all its matrices or weights, that is still as good as dense."""
    rows = _held(data, metric)
    if rows.scope.isin(WHOLE).any():
        rows = rows[rows.scope.isin(["", *WHOLE])]
    sentences = []
    for task in dict.fromkeys(data["metrics"].task):
        found = [
            _free(data, metric, task, model, rows[(rows.task == task) & (rows.model == model)])
            for model in dict.fromkeys(data["metrics"].model)
        ]
        told = [each for each in found if each]
        if len(told) > NAMED:
            told = [max(told), min(told)]
        if told:
            sentences.append(f"on {task} {', '.join(text for _, text in told)}")
    return f"What can go within {QUALITY[metric][1]} of dense: {'; '.join(sentences)}." if sentences else ""


def _free(data: Tables, metric: str, task: str, model: str, rows: pd.DataFrame) -> tuple[float, str] | None:
    """A rank, and the text: how much of one model can go on one task. None if nothing can be compared."""
    points = compare(data, metric, task, rows)
    if not points:
        return None
    if metric == "accuracy" and max(point.dense for point in points) < majority(data, task, metric) + 0.02:
        return -1.0, f"{model} is uninformative (the dense model is at the majority baseline)"
    proven, near = (furthest(points, good) for good in (lambda point: point.inside is True, lambda point: point.near))
    undecided = [point for point in points if point.inside is None]
    best = proven or near or min(undecided or points, key=lambda point: point.sparsity)
    found = f"{how(best)}: {shown(metric, best.value)}, dense {shown(metric, best.dense)}"
    if proven:
        return proven.sparsity.fraction, f"{part_of(proven.sparsity, model)} ({found})"
    if best.inside is False:
        return -0.5, f"nothing of {model} (at {best.sparsity.label} by {found})"
    size = [number_of(examples(data, task), "example")] if metric == "accuracy" else []
    chance = ", ".join([*size, number_of(best.seeds, "seed")])
    return 0.0, f"{model} is not decided by this study of {chance} (at {best.sparsity.label} by {found})"


def _at(rows: pd.DataFrame, sparsity: Any) -> Any:
    """The first row with a sparsity, which is the best where rows are sorted."""
    return rows[rows.sparsity == sparsity].iloc[0]


def _choice(data: Tables) -> str:
    """The effect of the method, and of the part: the widest gap of each at the same sparsity."""
    means = pd.concat([_means(data, metric).assign(metric=metric) for metric in QUALITY])
    means = means[~means.method.isin(["dense", "random"])]  # random is a control
    means = means[(means.metric != "perplexity") | (means.recipe == UNTRAINED)]
    sentences = []
    if gap := _widest(means, "method"):
        best, worst = gap
        sentences.append(
            f"How matters: with {part_of(best.sparsity, best.model)} removed, {best.method} leaves {best.metric} "
            f"{shown(best.metric, best.value)} on {best.task}, {worst.method} {shown(best.metric, worst.value)}"
        )
    if gap := _widest(means[~means.scope.isin(WHOLE)], "scope"):
        best, worst = gap
        sentences.append(
            f"Where matters: with {part_of(best.sparsity, 'one part')} removed, {best.model} has {best.metric} "
            f"{shown(best.metric, best.value)} on {best.task} ({scope_name(best.scope)}) to "
            f"{shown(best.metric, worst.value)} ({scope_name(worst.scope)})"
        )
    return ". ".join(sentences) + "." if sentences else ""


def _widest(means: pd.DataFrame, axis: str) -> tuple[Any, Any] | None:
    """The best and the worst of cells that differ in one column alone, for which the ratio of values is largest."""
    same = [column for column in ("metric", "task", *CELL, "recipe") if column != axis]
    pairs = [(rows.iloc[0], rows.iloc[-1]) for _, rows in means.groupby(same, sort=False) if len(rows) > 1]
    pairs = [pair for pair in pairs if min(pair[0].value, pair[1].value) > 0]
    return max(pairs, key=lambda pair: abs(math.log(pair[0].value / pair[1].value)), default=None)


def _cost(data: Tables) -> str:
    """The smallest file, and the fastest execution."""
    sizes, speed, sentences = data["sizes"], data["speed"], []
    if (sizes.method != "dense").any():
        alike = bool(sizes.ratio.notna().all())
        ratio = sizes.ratio if alike else sizes.plain_ratio
        row, share = sizes.loc[ratio.idxmin()], float(ratio.min())
        whole = row.container_bytes / row.ratio if alike else row.dense_bytes
        text = "the dense model in the same file format" if alike else "its dense file, which is not compressed"
        sentences.append(
            f"Bytes: {row.model} at {row.sparsity.label} ({row.method}, {scope_name(row.scope)}) takes "
            f"{percent(round(share, 3))} of {text}: {row.bytes / 1e6:,.1f} of {whole / 1e6:,.1f} MB"
        )
    pruned = speed[speed.method != "dense"]
    if len(pruned):
        row = pruned.loc[pruned.speedup.idxmax()]
        sentences.append(
            f"Seconds: {row.model} at {row.sparsity.label} ({row.method}, {scope_name(row.scope)}, {row.execution}) "
            f"runs {row.speedup:.1f} times as fast as dense ({row.device}, batch {row.batch_size})"
        )
    return ". ".join(sentences) + "." if sentences else ""


def _training(data: Tables) -> str:
    """The gain of recipes, and the zeros that remain where the mask is released."""
    found = [_recipe_gain(data), _recovery(data), _regrown(data)]
    return ". ".join(line for line in found if line) + "." if any(found) else ""


def _recipe_gain(data: Tables) -> str:
    means = _means(data, "accuracy")
    both = means[means.recipe == "kept"].merge(means[means.recipe != "kept"], on=["task", *CELL])
    if both.empty:
        return ""
    row = both.loc[(both.value_y - both.value_x).idxmax()]
    return (
        f"Training: on {row.task}, {row.model} at {row.sparsity.label} reaches {row.value_y:.3f} by the recipe "
        f"{row.recipe_y}, {row.value_x:.3f} by kept"
    )


def _recovery(data: Tables) -> str:
    means = _means(data, "perplexity")
    both = means[means.recipe == UNTRAINED].merge(means[means.recipe != UNTRAINED], on=["task", *CELL])
    both = both[both.method != "dense"]
    if both.empty:
        return ""
    row = both.assign(gain=both.value_x / both.value_y).sort_values("gain").iloc[-1]
    trained = dense(means[(means.task == row.task) & (means.model == row.model)], row.recipe_y).value.mean()
    return (
        f"Training: on {row.task}, {row.model} at {row.sparsity.label} ({row.method}) goes from perplexity "
        f"{shown('perplexity', row.value_x)} to {shown('perplexity', row.value_y)} by the recipe {row.recipe_y}; "
        f"the dense model, trained as well, has {shown('perplexity', trained)}"
    )


def _regrown(data: Tables) -> str:
    runs = data["runs"]
    released = runs[(runs["mask"] == "released") & (runs.method != "dense")]
    if released.empty:
        return ""
    row = _at(released, max(released.sparsity))
    left = float(row.measured_sparsity)
    return (
        f"With the mask released, zeros grow back: {percent(round(left, 3))} are left of the target "
        f"{row.sparsity.label}" + (", and what is then measured is a dense model" if left < 0.1 else "")
    )


def results(data: Tables) -> list[dict[str, Any]]:
    """For each task and metric a small table: a row a model, method, scope and recipe; a column a sparsity.

    An entry is the mean over seeds, with half the width of its 95 % interval, or "diverged" if a seed has no value. A
    single seed has no interval, unless lm-evaluation-harness reports the standard error over examples.
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
    sparsities = sorted(set(rows.sparsity))
    untrained = "not trained" if (rows.recipe != UNTRAINED).any() else ""  # only where it could be mistaken
    cells = rows.groupby(["model", "method", "scope", "recipe", "sparsity"], sort=False)
    texts = {key: _interval(metric, cell) for key, cell in cells}
    lines = []
    for line in dict.fromkeys(key[:4] for key in texts if key[1] != "dense"):
        model, method, scope, recipe = line
        start = texts.get((model, "dense", "", start_of(recipe), DENSE), "")
        values = [start if sparsity.is_dense else texts.get((*line, sparsity), "") for sparsity in sparsities]
        lines.append([model, method, scope_name(scope), recipe or untrained, *values])
    return {
        "task": task,
        "metric": metric,
        "heads": ["model", "method", "scope", "recipe", *(sparsity.label for sparsity in sparsities)],
        "lines": lines,
        "note": resolution(data, task) if metric == "accuracy" else "",
    }


def _interval(metric: str, rows: pd.DataFrame) -> str:
    mean = rows.value.mean(skipna=False)
    about = sampled_margin(rows.value, rows.stderr)
    text = shown(metric, mean)
    return text if math.isnan(mean) or math.isnan(about) else f"{text} ± {shown(metric, about)}"


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
            found.append(", ".join(f"{library} {version} ({number} runs)" for version, number in counts.items()))
    return f"Results come from different versions, so they may differ for that reason: {'; '.join(found)}." * bool(
        found
    )
