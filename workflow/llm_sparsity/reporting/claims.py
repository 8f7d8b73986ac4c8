"""What an earlier study claimed, checked against a study's tables.

That study pruned roberta-base, gpt2 and bart-base by global magnitude and fine-tuned each once, for three epochs, with
an effective batch of 128 (87 steps on MRPC) and the mask released. Its numbers are in `published.csv`.

A claim is a quantity and the range in which it is true. A quantity of accuracies has a 95 % interval: that of the mean
over seeds (Student's t) and that of a validation split of its size (the binomial's normal approximation), added in
squares; one run's seconds decide nothing. An interval inside the range: the claim holds; outside: it does not hold;
across an edge: undecided. Where the study lacks the cells: not studied.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from llm_sparsity.study.cells import fraction

PUBLISHED = Path(__file__).parents[2] / "report" / "published.csv"
EARLIER = "the study that began this one"  # its rows there
EXAMPLES = {"sst2": 872, "mrpc": 408}  # of the validation splits of GLUE
MAJORITY = {"sst2": 444 / 872, "mrpc": 279 / 408}  # accuracy of always answering with their most frequent label
HIGHEST = (0.9, 0.95, 0.99)
SCOPES = ("all", "linear")  # claims are about whole models
POINTS = 0.02  # of accuracy: what "nothing" and "alike" allow for
COLUMNS = [
    "claim", "model", "task", "scope", "recipe", "quantity", "value", "margin", "seeds", "low", "high", "earlier",
    "verdict",
]  # fmt: skip

Tables = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Estimate:
    """A quantity, half of its 95 % interval, and from how many seeds."""

    value: float
    margin: float = 0.0
    seeds: int = 1


@dataclass(frozen=True)
class Cell:
    """Where a claim is looked at: a model and, where the claim needs them, a task, a scope and a recipe."""

    tables: Tables
    model: str
    task: str = ""
    scope: str = ""
    recipe: str = ""

    def rows(self, table: str, sparsity: float | None = None, **equal: str) -> pd.DataFrame:
        """Rows of a table; at a sparsity, those of magnitude pruning, or the dense model's at 0."""
        rows = self.tables[table]
        chosen = {"model": self.model, "task": self.task, **equal}
        if sparsity:
            chosen |= {"method": "magnitude", "scope": self.scope, "recipe": self.recipe}
            rows = rows[[fraction(str(found)) == sparsity for found in rows.sparsity]]
        elif sparsity == 0:
            chosen["method"] = "dense"
        for column, value in chosen.items():
            if value and column in rows:
                rows = rows[rows[column] == value]
        return rows

    def accuracy(self, sparsity: float) -> "pd.Series[float]":
        """Accuracy, by seed."""
        rows = self.rows("metrics", sparsity, metric="accuracy")
        return pd.Series(rows.value.astype(float).to_numpy(), index=rows.seed.astype(str))

    def estimate(self, values: "pd.Series[float]", *accuracies: "pd.Series[float]") -> Estimate | None:
        """The mean of values, one a seed, that were computed from accuracies on one validation split."""
        values = values.dropna()
        if values.empty:
            return None
        examples = int(self.rows("runs").validation_examples.iloc[0])
        split = sum(float(accuracy.mean() * (1 - accuracy.mean())) / examples for accuracy in accuracies)
        return Estimate(float(values.mean()), math.hypot(margin(values), 1.96 * math.sqrt(split)), len(values))


def margin(values: "pd.Series[float]") -> float:
    """Half of the 95 % t-interval of a mean; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


def _change(start: float, end: float) -> Callable[[Cell], Estimate | None]:
    """Accuracy at one sparsity less that at a lower one."""

    def measure(cell: Cell) -> Estimate | None:
        before, after = cell.accuracy(start), cell.accuracy(end)
        return cell.estimate(after - before, before, after)

    return measure


def _above_majority(cell: Cell) -> Estimate | None:
    """The best accuracy at .9, .95 and .99, less that of always answering with the most frequent label."""
    found = [cell.accuracy(level) for level in HIGHEST]
    if any(values.empty for values in found):
        return None
    best = max(found, key=lambda values: float(values.mean()))
    majority = cell.rows("baselines", metric="accuracy").value.iloc[0]
    return cell.estimate(best - float(majority), best)


def _dip(cell: Cell) -> Estimate | None:
    """Accuracy at .95 less the mean of those at .9 and .99."""
    below, at, above = (cell.accuracy(level) for level in HIGHEST)
    return cell.estimate(at - (below + above) / 2, below, at, above)


def _highest(rows: pd.DataFrame) -> float:
    return max((fraction(str(sparsity)) for sparsity in rows.sparsity), default=0.0)


def _time(cell: Cell) -> Estimate | None:
    """Training seconds at the highest sparsity, as a multiple of the dense model's."""
    mine = cell.rows("runs")
    mine = mine[(mine.method == "magnitude") & (mine.scope == cell.scope) & (mine.recipe == cell.recipe)]
    by_seed = [
        cell.rows("runs", level).astype({"seed": str, "train_seconds": float}).set_index("seed").train_seconds
        for level in (_highest(mine), 0)
    ]
    ratios = (by_seed[0] / by_seed[1]).dropna()
    if ratios.empty:
        return None
    return Estimate(float(ratios.mean()), margin(ratios) if len(ratios) > 1 else math.inf, len(ratios))


def _size(cell: Cell) -> Estimate | None:
    """Bytes of the weight file at the highest sparsity, as a share of the dense file."""
    mine = cell.rows("sizes")
    mine = mine[(mine.method == "magnitude") & (mine.scope == cell.scope)]
    rows = cell.rows("sizes", _highest(mine))
    return None if rows.empty else Estimate(float(rows.ratio.iloc[0]))


def _curve(cell: Cell, *magnitudes: float) -> list[float]:
    """The share of a dense model's weights with abs(w) <= each magnitude, between the points that were counted."""
    rows = cell.rows("weights", 0, level="overall", statistic="cumulative")
    x, y = rows.x.astype(float), rows.value.astype(float)
    return [float(share) for share in np.interp(np.log(magnitudes), np.log(x), y)] if len(rows) else []


def _within(limit: float) -> Callable[[Cell], Estimate | None]:
    """The share of weights within ±limit."""

    def measure(cell: Cell) -> Estimate | None:
        shares = _curve(cell, limit)
        return Estimate(shares[0]) if shares else None

    return measure


def _spike(cell: Cell) -> Estimate | None:
    """Weights with abs(w) in .237 to .274, as a multiple of those in .205 to .237, per unit of width."""
    edges = [10**exponent for exponent in (-0.6875, -0.625, -0.5625)]  # three points of the counted curve
    shares = _curve(cell, *edges)
    if not shares or shares[1] == shares[0]:
        return None
    before, near = np.diff(shares) / np.diff(edges)
    return Estimate(float(near / before))


def _outstanding(stack: str) -> Callable[[Cell], Estimate | None]:
    """The layer, from 0, whose standard deviation is farthest from the median of its stack's, as a ratio."""

    def measure(cell: Cell) -> Estimate | None:
        rows = cell.rows("weights", 0, level="layer", statistic="std", stack=stack).astype({"value": float})
        rows = rows[rows.layer.astype(int) >= 0]
        if rows.empty:
            return None
        distance = np.abs(np.log(rows.value / rows.value.median()))
        return Estimate(float(rows.layer.astype(int)[distance.idxmax()]))

    return measure


@dataclass(frozen=True)
class Claim:
    """A claim: true where its quantity lies between low and high.

    `table` and `over`: the columns, and where they are found, that tell the cells apart in which it is looked at;
    `models` and `tasks` limit it (none: all).
    """

    text: str
    quantity: str
    measure: Callable[[Cell], Estimate | None]
    low: float = -math.inf
    high: float = math.inf
    models: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    table: str = "metrics"
    over: tuple[str, ...] = ("model", "task", "scope", "recipe")


CLAIMS = (
    Claim("Removing 10 % costs nothing", "accuracy at .1 less dense", _change(0, 0.1), low=-POINTS),
    Claim("Removing 50 % costs some accuracy", "accuracy at .5 less dense", _change(0, 0.5), high=-POINTS),
    Claim(
        "On SST-2 RoBERTa and BART are alike at 90, 95 and 99 %", "accuracy at .99 less at .9", _change(0.9, 0.99),
        low=-POINTS, high=POINTS, models=("roberta-base", "bart-base"), tasks=("sst2",),
    ),
    Claim(
        "On SST-2 GPT-2 keeps falling from 90 to 99 %", "accuracy at .99 less at .9", _change(0.9, 0.99), high=-POINTS,
        models=("gpt2",), tasks=("sst2",),
    ),
    Claim(
        "On MRPC models are at the majority class from 90 % on", "best accuracy at .9, .95, .99 less the majority's",
        _above_majority, low=-POINTS, high=POINTS, tasks=("mrpc",),
    ),
    Claim(
        "On MRPC GPT-2 dips at 95 %", "accuracy at .95 less the mean of .9 and .99", _dip, high=-POINTS,
        models=("gpt2",), tasks=("mrpc",),
    ),
    Claim(
        "Pruning does not change training time", "training seconds at the highest sparsity / dense", _time, low=0.9,
        high=1.1, table="runs",
    ),
    Claim(
        "Pruning does not change the size", "bytes of the weight file at the highest sparsity / dense", _size, low=0.99,
        high=1.01, table="sizes", over=("model", "scope"),
    ),
    Claim("GPT-2's weights lie within ±.5", "share of them", _within(0.5), low=0.999, models=("gpt2",), table="weights",
          over=("model",)),
    Claim("BART's weights lie within ±.25", "share of them", _within(0.25), low=0.999, models=("bart-base",),
          table="weights", over=("model",)),
    Claim(
        "RoBERTa's weights have spikes near ±.25", "density of abs(w) at .25 / just below", _spike, low=1.0,
        models=("roberta-base",), table="weights", over=("model",),
    ),
    *(
        Claim(f"{name} layer {layer} stands out", "layer, from 0, with the most unlike standard deviation",
              _outstanding(stack), low=layer, high=layer, models=(model,), table="weights", over=("model",))
        for name, model, stack, layer in (
            ("GPT-2's", "gpt2", "decoder", 10), ("RoBERTa's", "roberta-base", "encoder", 1),
            ("BART's decoder", "bart-base", "decoder", 1),
        )
    ),
)  # fmt: skip


def published() -> pd.DataFrame:
    """The numbers of others: model, task, method, sparsity, metric, value, source."""
    return pd.read_csv(PUBLISHED, dtype={"sparsity": str})


def check(tables: Tables) -> pd.DataFrame:
    """Every claim, in every cell of a study where it can be looked at.

    Args:
        tables: the study's, by name, as `collect` makes them.

    Returns:
        Rows of `COLUMNS`. `value` ± `margin` is the quantity here, `earlier` the same quantity of the earlier study's
        own numbers, between `low` and `high` the claim is true, `verdict` is "holds", "does not hold", "undecided" or
        "not studied".
    """
    rows = []
    for claim in CLAIMS:
        head = {"claim": claim.text, "quantity": claim.quantity, "low": claim.low, "high": claim.high}
        found = [head | row for row in _looked_at(claim, tables)]
        rows += found or [head | {"verdict": "not studied"}]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"seeds": "Int64"})


def _looked_at(claim: Claim, tables: Tables) -> Iterable[dict[str, Any]]:
    table = tables[claim.table]
    if "scope" in claim.over:
        table = table[(table.method == "magnitude") & table.scope.isin(SCOPES)]
    earlier = _earlier()
    for where in table[list(claim.over)].drop_duplicates().itertuples(index=False):
        cell = Cell(tables, **where._asdict())
        if (claim.models and cell.model not in claim.models) or (claim.tasks and cell.task not in claim.tasks):
            continue
        if "task" in claim.over and not (cell.rows("metrics").metric == "accuracy").any():
            continue
        if estimate := claim.measure(cell):
            then = Cell(earlier, cell.model, cell.task, "all", "released")
            told = claim.measure(then) if claim.table == "metrics" and len(then.rows("metrics")) else None
            yield {
                **where._asdict(),
                **vars(estimate),
                "earlier": told.value if told else math.nan,
                "verdict": _verdict(claim, estimate),
            }


def _earlier() -> dict[str, pd.DataFrame]:
    """The earlier study's numbers, as tables."""
    rows = published()
    metrics = rows[rows.source == EARLIER].assign(scope="all", recipe="released", seed="0")
    runs = metrics[["model", "task"]].drop_duplicates()
    return {
        "metrics": metrics,
        "runs": runs.assign(validation_examples=runs.task.map(EXAMPLES)),
        "baselines": pd.DataFrame([{"task": t, "metric": "accuracy", "value": v} for t, v in MAJORITY.items()]),
    }


def _verdict(claim: Claim, found: Estimate) -> str:
    low, high = found.value - found.margin, found.value + found.margin
    if claim.low <= low and high <= claim.high:
        return "holds"
    return "does not hold" if high < claim.low or low > claim.high else "undecided"
