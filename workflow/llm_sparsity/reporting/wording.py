"""Names and numbers as text, for sentences, tables and figures."""

import math
from typing import Any

from llm_sparsity.reporting.intervals import quantile
from llm_sparsity.reporting.tables import Tables, examples
from llm_sparsity.study.sparsity import Sparsity


def shown(metric: str, value: float) -> str:
    """A value with the digits that its metric supports; a missing one is that of a model that diverged."""
    if math.isnan(value):
        return "diverged"
    return f"{value:,.1f}" if metric == "perplexity" else f"{value:.3f}"


def percent(share: float) -> str:
    """A share as text: 0.152 is "15.2 %"."""
    return f"{100 * share:g} %"


def part_of(sparsity: Sparsity, whole: str) -> str:
    """How much of something is removed: "50 % of gpt2", "2of4 in gpt2"."""
    return f"{sparsity.label} {'in' if sparsity.is_pattern else 'of'} {whole}"


def scope_name(scope: str) -> str:
    """A scope for readers: layers.3.4.5 becomes layers 3-5."""
    word, *numbers = scope.split(".")
    if not numbers:
        return word
    layers = [int(number) for number in numbers]
    if len(layers) > 1 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]}-{layers[-1]}"
    return f"layer{'s' * (len(layers) > 1)} {', '.join(numbers)}"


def how(row: Any) -> str:
    """The method and scope of a cell, and its recipe where that is not plain fine-tuning."""
    recipe = f", {row.recipe}" if row.recipe not in ("kept", "") else ""
    return f"{row.method}, {scope_name(row.scope)}{recipe}"


def number_of(count: int, noun: str) -> str:
    """A number with its noun: "one seed", "3 seeds"."""
    return f"one {noun}" if count == 1 else f"{count} {noun}s"


def resolution(data: Tables, task: str) -> str:
    """The precision of an accuracy on the validation split of a task: the 95 % interval of a binomial."""
    metrics = data["metrics"]
    dense = metrics[(metrics.task == task) & (metrics.metric == "accuracy") & (metrics.method == "dense")]
    count, accuracy = examples(data, task), float(dense.value.mean())
    if math.isnan(accuracy):
        return f"The validation split has {count} examples."
    band = 100 * quantile() * math.sqrt(accuracy * (1 - accuracy) / count)
    return (
        f"The validation split has {count} examples: near the dense accuracy of {accuracy:.2f}, their number alone "
        f"leaves ±{band:.1f} points of chance (95 %); seeds add theirs."
    )
