"""How much of a model can be removed within a tolerance of the dense model.

Every pruned cell is compared with its dense model by the interval of their difference. Along a sweep (a method, scope
and recipe) sparsities are tested from the lowest up, and the first that is not inside ends it: a single high point that
is good by luck wins nothing. Choosing among sweeps is corrected for, see `intervals.quantile`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from llm_sparsity.reporting.intervals import Estimate, combined, margin
from llm_sparsity.reporting.tables import UNTRAINED, Tables, dense, examples
from llm_sparsity.study.sparsity import Sparsity

QUALITY = {  # metric -> its sign, and the tolerance of "as good as dense"
    "accuracy": (1, "2 points of accuracy"),
    "perplexity": (-1, "10 % of perplexity"),
}
UNSEEDED = -1  # stands for the seed of what has none
POINTS, TIMES = -0.02, 1.1  # the tolerances: of a difference of accuracies, of a ratio of perplexities


@dataclass(frozen=True)
class Point:
    """A pruned cell beside its dense model.

    Args:
        method, scope, recipe, sparsity: the cell.
        value, dense: means over seeds.
        near: whether the difference is inside the tolerance.
        inside: whether its 95 % interval is; None: the interval crosses the edge, or there is none.
        seeds: that both have.
    """

    method: str
    scope: str
    recipe: str
    sparsity: Sparsity
    value: float
    dense: float
    near: bool
    inside: bool | None
    seeds: int


def compare(data: Tables, metric: str, task: str, rows: pd.DataFrame) -> list[Point]:
    """The pruned cells of one model, the best first at each sparsity.

    Args:
        data: the tables of the study.
        metric: accuracy or perplexity.
        task: its name.
        rows: of the metric, of one model on the task.
    """
    pruned = rows[rows.method != "dense"]
    if pruned.empty:
        return []
    sweeps = pruned.groupby(["method", "scope", "recipe"], sort=False)
    count = examples(data, task) if metric == "accuracy" else 0
    points = []
    for (method, scope, recipe), sweep in sweeps:
        baseline = dense(rows, recipe)
        for sparsity, cell in sweep.groupby("sparsity"):
            estimate = _difference(cell, baseline, count, len(sweeps))
            if estimate is None:
                continue
            near, inside = _judged(metric, estimate)
            means = float(cell.value.mean()), float(baseline.value.mean())
            points.append(Point(method, scope, recipe, sparsity, *means, near, inside, estimate.seeds or 1))
    sign, _ = QUALITY[metric]
    return sorted(points, key=lambda point: -sign * point.value)


def furthest(points: list[Point], good: Callable[[Point], bool]) -> Point | None:
    """The point with the highest sparsity, the best of several, that is good and has none but good ones below it.

    A pattern is no point of a sweep: it needs good fractions below it, but no fraction needs it.
    """

    def reached(point: Point) -> bool:
        sweep = (point.method, point.scope, point.recipe)
        below = (
            each
            for each in points
            if (each.method, each.scope, each.recipe) == sweep
            and not each.sparsity.is_pattern
            and each.sparsity < point.sparsity
        )
        return good(point) and all(map(good, below))

    return max(filter(reached, points), key=lambda point: point.sparsity, default=None)


def _difference(cell: pd.DataFrame, baseline: pd.DataFrame, count: int, comparisons: int) -> Estimate | None:
    """Pruned less dense accuracy, of so many examples; or, without examples, the ratio of perplexities."""
    seeds, before = cell.seed.fillna(UNSEEDED), baseline.groupby(baseline.seed.fillna(UNSEEDED)).value.mean()
    if count:
        return combined([(1, cell.groupby(seeds).value.mean()), (-1, before)], count, comparisons)
    ratios = (cell.value / seeds.map(before)).dropna()
    if ratios.empty:
        return None
    if len(ratios) == 1 and (cell.recipe == UNTRAINED).all():
        return Estimate(float(ratios.iloc[0]))  # of one model on the whole text: no seed, no sample
    return Estimate(float(ratios.mean()), margin(ratios, comparisons), len(ratios))


def _judged(metric: str, found: Estimate) -> tuple[bool, bool | None]:
    """Whether a difference is inside the tolerance, and whether its interval is."""
    low, high = found.value - found.margin, found.value + found.margin
    if metric == "accuracy":
        return found.value >= POINTS, True if low >= POINTS else False if high < POINTS else None
    return found.value <= TIMES, True if high <= TIMES else False if low > TIMES else None
