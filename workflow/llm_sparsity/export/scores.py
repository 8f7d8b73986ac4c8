"""The scores of a cell: its own, those of other seeds, and those of the dense model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from llm_sparsity.export.cell import Cell
from llm_sparsity.reporting import intervals
from llm_sparsity.storage.files import read_json
from llm_sparsity.study.cells import DENSE

PROPORTIONS = {"accuracy"}  # metrics whose sampling error is that of a binomial


@dataclass(frozen=True)
class Score:
    """A score of the exported model.

    task: its name in the study.
    split: that it was measured on.
    examples: number of examples, windows or tokens; None if the result does not say.
    unit: which of these.
    metric: its name.
    value: of the exported model.
    margin: half the width of its 95 % interval over examples; NaN if that is not known.
    seeds: the values of all seeds of the recipe, this one among them; empty without fine-tuning.
    dense: the values of the dense model, one a seed.
    settings: of the measurement, or of the fine-tuning.
    """

    task: str
    split: str
    examples: int | None
    unit: str
    metric: str
    value: float
    margin: float
    seeds: tuple[float, ...]
    dense: tuple[float, ...]
    settings: Mapping[str, Any]

    @property
    def over_seeds(self) -> tuple[float, float]:
        """The mean over seeds, and half the width of its 95 % t-interval, NaN for one seed."""
        values = pd.Series(self.seeds, dtype=float)
        return float(values.mean()), intervals.margin(values)

    @property
    def of_dense(self) -> tuple[float, float]:
        """The same of the dense model."""
        values = pd.Series(self.dense, dtype=float)
        return float(values.mean()), intervals.margin(values)


def scores(cell: Cell) -> list[Score]:
    """The scores of a cell: of its fine-tuning, or of the evaluations of its variant; none outside of a study.

    The score that a task is judged by comes first.
    """
    if cell.of_variant is None:
        return []
    dense = cell.of_variant.parent / str(DENSE)
    if cell.task and cell.recipe:
        recipe = cell.of_variant / cell.task / cell.recipe
        own, seeds = recipe / f"seed-{cell.seed}", sorted(recipe.glob("seed-*"))
        return _scores(cell, cell.task, own, seeds, sorted((dense / cell.task / "kept").glob("seed-*")))
    if cell.task:  # pruned after it was fine-tuned; what is measured of it lies in its recipes
        return []
    places = sorted(path.parent for path in cell.of_variant.glob("*/metrics.json"))
    return [score for own in places for score in _scores(cell, own.name, own, [], [dense / own.name])]


def _scores(cell: Cell, task: str, own: Path, seeds: Sequence[Path], dense: Sequence[Path]) -> list[Score]:
    """The scores of one result.

    Args:
        cell: for the split of a zero-shot task.
        task: its name.
        own: folder of the result.
        seeds: folders of the results of all seeds.
        dense: folders of the results of the dense model.
    """
    result = _result(own)
    values: dict[str, float | None] = result["metrics"]
    of_seeds, of_dense = ([_result(folder)["metrics"] for folder in folders] for folders in (seeds, dense))
    unit = "examples" if "examples" in result else "tokens"
    counted = result.get(unit)
    tested = str(cell.task_facts(task).get("harness", {}).get("split", "test"))
    if result.get("settings", {}).get("evaluation"):  # a language model, validated on windows of the split test
        unit, counted = "windows", result[unit]["validation"]
    splits: dict[str, int | None] = counted if isinstance(counted, dict) else {tested: counted}
    main = "validation" if "validation" in splits else tested
    found = []
    for name, value in sorted(values.items(), key=lambda item: item[0] != result.get("score", "accuracy")):
        if value is not None and not name.endswith("_stderr"):
            split = next((other for other in splits if name.endswith(f"_{other}")), main)  # of a further split
            metric, examples = name.removesuffix(f"_{split}"), splits.get(split)
            ours, theirs = (
                tuple(each[name] for each in every if each.get(name) is not None) for every in (of_seeds, of_dense)
            )
            margin = _margin(metric, value, values.get(f"{name}_stderr"), examples)
            settings = result.get("settings", {})
            found.append(Score(task, split, examples, unit, metric, value, margin, ours, theirs, settings))
    return found


def _margin(metric: str, value: float, error: float | None, examples: int | None) -> float:
    """Half the width of the 95 % interval over examples; NaN if it is not known."""
    if error is None and metric in PROPORTIONS and examples:
        error = intervals.share_error(value, examples)
    return math.nan if error is None else intervals.quantile() * error


def _result(folder: Path) -> dict[str, Any]:
    """metrics.json of a result; without metrics if it is not there."""
    path = folder / "metrics.json"
    return dict(read_json(path)) if path.exists() else {"metrics": {}}
