"""Claims of an earlier study, judged by the tables of this one.

A claim is a quantity (see `quantities`) and the range in which the claim is true. If the 95 % interval of the quantity
lies inside the range, the claim holds; outside, it does not hold; across an edge, it is undecided. So is a claim with
data of a single seed, which has no interval. A claim whose data this study lacks is not studied. The claims are data: a
YAML file that the config of a study names.

    source:
      name: the study by A. Author       # in sentences: "Claims of {name}"
      summary: pruned three models ...   # "{name} {summary}."
      numbers: numbers.csv               # its numbers, beside this file: see `references.NUMBERS`
      scope: all                         # of all its numbers
      recipe: released
      tasks:                             # of its validation splits: rows, and rows with the most frequent label
        sst2: {examples: 872, majority: 444}
    method: magnitude                    # claims are judged for this method and these scopes
    scopes: [all, linear]
    claims:
      - claim: Removing 10 % costs nothing
        quantity: score_change           # a function of `quantities`; its arguments are keys of the claim
        sparsity: 0.1
        low: -0.02                       # true from low to high, one of which may be left out
      - claim: ...
        models: [gpt2]                   # judged for these models and tasks alone; default: all
        tasks: [sst2]
"""

import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

import pandas as pd
from pydantic import ConfigDict, Field, ValidationError, model_validator

from llm_sparsity.jobs.errors import UserError, guess
from llm_sparsity.reporting.intervals import Estimate
from llm_sparsity.reporting.quantities import QUANTITIES, Cell, Quantity
from llm_sparsity.reporting.references import NUMBERS, read_numbers
from llm_sparsity.reporting.tables import Tables, frame, judged
from llm_sparsity.reporting.wording import in_points
from llm_sparsity.study.document import UNREADABLE, read_document
from llm_sparsity.study.fields import ScopeName, Section, lines
from llm_sparsity.study.methods import Chain
from llm_sparsity.study.sparsity import Sparsity


class Split(Section):
    """A validation split of the earlier study."""

    examples: int = Field(gt=0)
    majority: int = Field(ge=0, description="examples with the most frequent label")

    @model_validator(mode="after")
    def _majority_fits(self) -> Self:
        if self.majority > self.examples:
            raise ValueError(f"majority: found {self.majority} of {self.examples} examples; correct one of them")
        return self


class Source(Section):
    """The earlier study."""

    name: str
    summary: str
    numbers: str | None = None
    scope: str = ""
    recipe: str = ""
    tasks: dict[str, Split] = Field({})


class Claim(Section):
    """A claim: true where its quantity lies between low and high. Other keys are arguments of the quantity."""

    model_config = ConfigDict(extra="allow")

    claim: str
    quantity: str
    low: float = -math.inf
    high: float = math.inf
    models: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _arguments_fit(self) -> Self:
        if not self.low <= self.high:
            raise ValueError(f"low: found {self.low:g}, which is not up to high, {self.high:g}; correct one of them")
        if self.quantity not in QUANTITIES:
            raise ValueError(f"quantity: found {self.quantity!r}{guess(self.quantity, QUANTITIES)}")
        edges = [edge for edge in (self.low, self.high) if math.isfinite(edge)]
        if not edges:
            raise ValueError("low: missing, and high; a claim without either is always true, give one")
        if self.function.points and (outside := [edge for edge in edges if abs(edge) > 1]):
            raise ValueError(f"low, high: found {outside[0]:g}; scores are fractions, so two points are 0.02")
        parameters = self.function.parameters
        for key in self.model_extra or {}:
            if key not in parameters:
                raise ValueError(f"{key}: unknown key{guess(key, [*type(self).model_fields, *parameters])}")
        for name, parameter in parameters.items():
            if parameter.default is inspect.Parameter.empty and name not in (self.model_extra or {}):
                raise ValueError(f"{name}: missing; add it, {self.quantity} needs it")
        _ = self.arguments
        return self

    @property
    def function(self) -> Quantity:
        """The quantity that it names."""
        return QUANTITIES[self.quantity]

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of its quantity."""
        kinds = {name: parameter.annotation for name, parameter in self.function.parameters.items()}
        return {name: _argument(name, value, kinds[name]) for name, value in (self.model_extra or {}).items()}


class File(Section):
    """A claims file."""

    source: Source
    method: str
    scopes: tuple[ScopeName, ...] = Field(min_length=1)
    claims: tuple[Claim, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _method_removes_weights(self) -> Self:
        try:
            removes = Chain(self.method).method
        except ValueError as error:
            raise ValueError(f"method: {error}") from None
        if not removes:
            raise ValueError(f"method: found {self.method}, which removes nothing; claims are of pruned models")
        return self


@dataclass(frozen=True)
class Claims:
    """The claims of an earlier study, and its numbers (columns `references.NUMBERS`)."""

    source: Source
    method: str
    scopes: tuple[str, ...]
    claims: tuple[Claim, ...]
    numbers: pd.DataFrame

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The earlier numbers as tables of a study with one seed."""
        splits = pd.DataFrame(
            [
                {"task": task, "validation_examples": split.examples, "value": split.majority / split.examples}
                for task, split in self.source.tasks.items()
            ],
            columns=["task", "validation_examples", "value"],
        )
        cell = {"scope": self.source.scope, "recipe": self.source.recipe, "seed": 0}
        runs = self.numbers[["model", "task"]].drop_duplicates().merge(splits, on="task")
        return {
            "tasks": frame("tasks", [{"task": task, "score": "accuracy"} for task in self.source.tasks]),
            "metrics": frame("metrics", self.numbers.assign(**cell)),
            "runs": frame("runs", runs.assign(**cell, sparsity="0")),
            "baselines": frame("baselines", splits.assign(metric="accuracy")),
        }


def load(path: Path) -> Claims:
    """Read a claims file and the numbers that it names.

    Raises:
        UserError: one line with file, key, value found and fix.
    """
    try:
        file = File.model_validate(read_document(path))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; correct `claims` in the config, or remove it") from None
    except ValidationError as error:
        raise UserError(f"{path}: {lines(error, File)[0]}") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: no YAML ({' '.join(str(error).split())}); correct it") from None
    numbers = pd.DataFrame(columns=NUMBERS)
    if file.source.numbers:
        numbers = read_numbers(path.parent / file.source.numbers, NUMBERS)
    for task in numbers.task.unique():
        if task not in file.source.tasks:
            raise UserError(f"{path}: source.tasks: {task} is missing, {file.source.numbers} has it; add it")
    return Claims(file.source, file.method, file.scopes, file.claims, numbers)


def _argument(name: str, value: Any, kind: Any) -> Any:
    """An argument of a quantity from the value of a key."""
    found: Any
    try:
        if get_args(kind):
            found = tuple(get_args(kind)[0].of(each) for each in value)
        else:
            found = Sparsity.of(value) if kind is Sparsity else kind(value)
        if found == () or (kind is float and (isinstance(value, bool) or not 0 < found < math.inf)):
            raise ValueError
        return found
    except (ValueError, TypeError):
        expected = {float: "a number above 0", str: "a word", Sparsity: "a sparsity such as 0.5 or 2of4"}
        raise ValueError(
            f"{name}: found {value!r}; give {expected.get(kind, 'a list of sparsities such as [0.5, 2of4]')}"
        ) from None


def judge(claims: Claims | None, tables: Tables) -> pd.DataFrame:
    """Judge every claim in every cell of a study where its quantity can be measured.

    Args:
        claims: of the earlier study; None: no claims.
        tables: of this study, see `tables`.

    Returns:
        The table `claims`. `value` ± `margin` is the quantity here, `earlier` the same quantity of the earlier numbers;
        the claim is true between `low` and `high`; `verdict` is "holds", "does not hold", "undecided" or "not studied".
    """
    rows: list[dict[str, Any]] = []
    if claims:
        earlier = _with_judged({**claims.tables, "tasks": tables["tasks"]})
        tables = _with_judged(tables)
        for claim in claims.claims:
            quantity = claim.function.describe(claim.arguments)
            head = {"claim": claim.claim, "quantity": quantity, "low": claim.low, "high": claim.high}
            found = [head | row for row in _judged(claim, claims, tables, earlier)]
            rows += found or [head | {"verdict": "not studied"}]
    return frame("claims", rows)


def _with_judged(tables: Tables) -> Tables:
    """Tables, and the rows of metrics that tasks are judged by."""
    return {**tables, "judged": judged(tables)}


def _judged(claim: Claim, claims: Claims, tables: Tables, earlier: Tables) -> Iterable[dict[str, Any]]:
    quantity, arguments = claim.function, claim.arguments
    table = tables[quantity.table]
    if "scope" in quantity.over:
        table = table[(table.method == claims.method) & table.scope.isin(claims.scopes)]
    for where in table[list(quantity.over)].drop_duplicates().to_dict("records"):
        cell = Cell(tables, claims.method, **{str(column): str(value) for column, value in where.items()})
        if (claim.models and cell.model not in claim.models) or (claim.tasks and cell.task not in claim.tasks):
            continue
        scored = "task" in quantity.over
        if scored and (not in_points(cell.metric) or cell.rows("judged").empty):
            continue
        if estimate := quantity.measure(cell, **arguments):
            then = Cell(earlier, claims.method, cell.model, cell.task, claims.source.scope, claims.source.recipe)
            known = quantity.table == "metrics" and len(then.rows("metrics"))
            before = quantity.measure(then, **arguments) if known else None
            yield {
                **where,
                **({"quantity": quantity.describe(arguments, cell.metric)} if scored else {}),
                **vars(estimate),
                "earlier": before.value if before else math.nan,
                "verdict": _verdict(claim, estimate),
            }


def _verdict(claim: Claim, found: Estimate) -> str:
    low, high = found.value - found.margin, found.value + found.margin  # NaN, which decides nothing, of one seed
    if claim.low <= low and high <= claim.high:
        return "holds"
    return "does not hold" if high < claim.low or low > claim.high else "undecided"
