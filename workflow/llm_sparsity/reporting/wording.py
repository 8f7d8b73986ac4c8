"""Names and numbers as text, for sentences, tables and figures."""

import math
from typing import Any

from llm_sparsity.reporting.tables import Tables
from llm_sparsity.study.sparsity import Sparsity


def shown(metric: str, value: float) -> str:
    """A value with the digits that its metric supports."""
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


def resolution(data: Tables, task: str) -> str:
    """The precision of an accuracy on the validation split of a task: the 95 % interval of a binomial."""
    metrics, runs = data["metrics"], data["runs"]
    dense = metrics[(metrics.task == task) & (metrics.metric == "accuracy") & (metrics.method == "dense")]
    examples, accuracy = int(runs.validation_examples[runs.task == task].iloc[0]), float(dense.value.mean())
    band = 196 * math.sqrt(accuracy * (1 - accuracy) / examples)
    return (
        f"The validation split has {examples} examples: near the dense accuracy of {accuracy:.2f}, the 95 % interval "
        f"of one seed is ±{band:.1f} points."
    )
