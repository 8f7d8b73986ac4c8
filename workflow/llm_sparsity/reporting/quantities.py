"""The quantities that a claim can be about: named functions of one cell of a study.

A quantity of scores is of the score that the task is judged by: accuracy, unless the task names another. It has a 95 %
interval with two sources of error, the seeds and the validation split; see `intervals.combined`. A single seed has no
interval. A quantity whose data the study lacks is None.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from llm_sparsity.reporting.intervals import Estimate, Score, combined, margin
from llm_sparsity.reporting.tables import Tables, by_seed, examples, score_of
from llm_sparsity.reporting.wording import constant_answer, name_of_metric
from llm_sparsity.study.sparsity import ZERO, Sparsity

WHOLE_CELL = ("model", "task", "scope", "recipe")


@dataclass(frozen=True)
class Cell:
    """A cell in which a claim is judged.

    Args:
        tables: of the study, and as "judged" the rows of `tables.judged`.
        method: the pruning method that is compared with the dense model.
        model: name of the model.
        task: name of the task; empty for quantities without one, as are scope and recipe.
        scope: what was pruned.
        recipe: how it was fine-tuned.
    """

    tables: Tables
    method: str
    model: str
    task: str = ""
    scope: str = ""
    recipe: str = ""

    def rows(self, table: str, sparsity: Sparsity | None = None, **equal: str) -> pd.DataFrame:
        """The rows of a table: of the pruned variant with exactly this sparsity, of the dense model, or (None) of all.

        Args:
            table: its name.
            sparsity: a fraction selects no pattern, and a pattern no fraction.
            equal: column -> value that rows must have besides.
        """
        rows = self.tables[table]
        chosen = {"model": self.model, "task": self.task, **equal}
        if sparsity is not None and sparsity.is_dense:
            chosen["method"] = "dense"
        elif sparsity is not None:
            chosen |= {"method": self.method, "scope": self.scope, "recipe": self.recipe}
            rows = rows[[found == sparsity for found in rows.sparsity]]
        for column, value in chosen.items():
            if value and column in rows:
                rows = rows[rows[column] == value]
        return rows

    @property
    def metric(self) -> str:
        """The score that the task is judged by."""
        return score_of(self.tables, self.task)

    @property
    def examples(self) -> int:
        """Examples of the validation split."""
        return examples(self.tables, self.task)

    def score(self, sparsity: Sparsity) -> Score:
        """The score that the task is judged by."""
        return Score.of(self.rows("judged", sparsity), self.metric, self.examples)

    def highest(self, table: str) -> Sparsity | None:
        """The highest sparsity that was computed. Patterns are left out: they are no point of a sweep."""
        rows = self.rows(table, method=self.method, scope=self.scope, recipe=self.recipe)
        return max((found for found in rows.sparsity if not found.is_pattern), default=None)

    def estimate(self, *terms: tuple[float, Score], comparisons: int = 1) -> Estimate | None:
        """A weighted sum of scores on the validation split of the task; see `intervals.combined`."""
        if any(score.values.empty for _, score in terms):
            return None
        return combined(terms, self.examples, comparisons)


@dataclass(frozen=True)
class Quantity:
    """A named function of a cell.

    Args:
        measure: the function; its keyword arguments are keys of a claim.
        text: its description, with the names of arguments in braces.
        table: where the cells are found in which it can be measured.
        over: the columns of that table that tell cells apart.
    """

    measure: Callable[..., Estimate | None]
    text: str
    table: str
    over: tuple[str, ...]

    @property
    def points(self) -> bool:
        """Whether it is counted in points, as differences of scores are."""
        return self.table == "metrics"

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The arguments by name, without the cell."""
        return dict(list(inspect.signature(self.measure).parameters.items())[1:])

    def describe(self, arguments: Mapping[str, Any], metric: str = "accuracy") -> str:
        """The quantity in words, for a task with this score."""
        values = {name: arguments.get(name, each.default) for name, each in self.parameters.items()}
        told = {name: _words(value) for name, value in values.items()}
        return self.text.format(score=name_of_metric(metric), constant=constant_answer(metric), **told)


QUANTITIES: dict[str, Quantity] = {}


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_words(each) for each in value)
    if isinstance(value, Sparsity):
        return "dense" if value.is_dense else value.label
    return f"{value:g}" if isinstance(value, float) else str(value)


def _quantity(
    text: str, table: str = "metrics", over: tuple[str, ...] = WHOLE_CELL
) -> Callable[[Callable[..., Estimate | None]], Callable[..., Estimate | None]]:
    def register(measure: Callable[..., Estimate | None]) -> Callable[..., Estimate | None]:
        QUANTITIES[measure.__name__] = Quantity(measure, text, table, over)
        return measure

    return register


@_quantity("change of {score} from {against} to {sparsity}")
def score_change(cell: Cell, sparsity: Sparsity, against: Sparsity = ZERO) -> Estimate | None:
    """The score at a sparsity, less that at another one (default: of the dense model)."""
    return cell.estimate((1, cell.score(sparsity)), (-1, cell.score(against)))


@_quantity("best {score} at {sparsities}, less that of always answering {constant}")
def best_above_majority(cell: Cell, sparsities: tuple[Sparsity, ...]) -> Estimate | None:
    """The best score at any of the sparsities, less that of a constant answer.

    The best of several is high by chance: the intervals of all hold together (Bonferroni), and the upper end of the
    result is the highest of theirs.
    """
    found = [cell.estimate((1, cell.score(sparsity)), comparisons=len(sparsities)) for sparsity in sparsities]
    known = [estimate for estimate in found if estimate]
    constant = cell.rows("baselines", metric=cell.metric).value
    if len(known) < len(sparsities) or constant.empty:
        return None
    best = max(known, key=lambda estimate: estimate.value)
    upper = float(np.max([estimate.value + estimate.margin for estimate in known]))  # NaN if one has no interval
    majority = float(constant.iloc[0])
    return Estimate(best.value - majority, upper - best.value, best.seeds)


@_quantity("{score} at {sparsity}, less the mean of that at {below} and {above}")
def score_dip(cell: Cell, sparsity: Sparsity, below: Sparsity, above: Sparsity) -> Estimate | None:
    """The score at a sparsity, less the mean of those at a lower and a higher one."""
    low, at, high = (cell.score(each) for each in (below, sparsity, above))
    return cell.estimate((1, at), (-0.5, low), (-0.5, high))


@_quantity("training seconds at the highest sparsity / dense", table="runs")
def time_ratio(cell: Cell) -> Estimate | None:
    """Training seconds at the highest sparsity, as a multiple of the dense model's."""
    highest = cell.highest("runs")
    if highest is None:
        return None
    each = cell.rows("runs", highest), cell.rows("runs", ZERO)
    trained = [rows[rows.train_seconds > 0] for rows in each]  # a recipe may evaluate only
    pruned, dense = (by_seed(rows.assign(value=rows.train_seconds)) for rows in trained)
    ratios = (pruned / dense).dropna()
    if ratios.empty:
        return None
    return Estimate(float(ratios.mean()), margin(ratios), len(ratios))


@_quantity("bytes of the weight file at the highest sparsity / dense", table="sizes", over=("model", "scope"))
def size_ratio(cell: Cell) -> Estimate | None:
    """Bytes of the weight file at the highest sparsity, as a share of the dense file, which is plain."""
    highest = cell.highest("sizes")
    return None if highest is None else Estimate(float(cell.rows("sizes", highest).plain_ratio.iloc[0]))


def _cumulative(cell: Cell) -> "pd.Series[float]":
    """The share of a dense model's weights up to each magnitude that was counted; the magnitudes are the index."""
    rows = cell.rows("weights", ZERO, level="overall", statistic="cumulative")
    return pd.Series(rows.value.to_numpy(float), rows.x.to_numpy(float))


@_quantity("share of weights within ±{limit}", table="weights", over=("model",))
def share_within(cell: Cell, limit: float) -> Estimate | None:
    """The share of a dense model's weights w with abs(w) <= limit, interpolated between the magnitudes counted."""
    curve = _cumulative(cell)
    if curve.empty or not curve.index[0] <= limit <= curve.index[-1]:
        return None
    return Estimate(float(np.interp(math.log(limit), np.log(curve.index), curve)))


@_quantity("density of weights near ±{magnitude} / just below", table="weights", over=("model",))
def density_ratio(cell: Cell, magnitude: float) -> Estimate | None:
    """The density of abs(w) in the interval around a magnitude, as a multiple of that in the interval below.

    The intervals lie between the magnitudes at which the cumulative curve was counted. A ratio above 1 is a spike:
    the density of weights otherwise falls with their magnitude.
    """
    curve = _cumulative(cell)
    end = int(np.searchsorted(curve.index, magnitude))
    if not 2 <= end < len(curve):
        return None
    around = curve.iloc[end - 2 : end + 1]
    before, near = np.diff(around) / np.diff(around.index)
    return Estimate(float(near / before)) if before else None


@_quantity("layer of the {stack}, from 0, with the most unlike standard deviation", table="weights", over=("model",))
def outlying_layer(cell: Cell, stack: str) -> Estimate | None:
    """The number of the layer whose standard deviation is farthest from the median of its stack, as a ratio."""
    rows = cell.rows("weights", ZERO, level="layer", statistic="std", stack=stack)
    rows = rows[rows.layer >= 0]
    if rows.empty:
        return None
    distance = np.abs(np.log(rows.value / rows.value.median())).dropna()
    if distance.empty:
        return None  # layers of zeros
    return Estimate(float(rows.layer[distance.idxmax()]))
