"""The study as a set of cells: what is crossed with what, and where each cell's results live.

Light on purpose (standard library only): the Snakefile uses it on a laptop that has no torch.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path("results")


def fraction(sparsity: str) -> float:
    """A sparsity as a number: "0.5" is 0.5, "2of4" (2 kept) is 0.5."""
    if "of" in sparsity:
        kept, group = map(int, sparsity.split("of"))
        return 1 - kept / group
    return float(sparsity)


@dataclass(frozen=True, order=True)
class Variant:
    """A model after pruning: `{method}-{scope}-{sparsity}`, or `dense`; with `-{calibration_seed}` where that is not 0.

    `sparsity` keeps its spelling from the config ("0.5", "2of4"), so that paths never suffer from rounding.
    """

    method: str = "dense"
    scope: str = ""
    sparsity: str = "0"
    calibration_seed: int = 0

    def __str__(self) -> str:
        if self.is_dense:
            return "dense"
        name = f"{self.method}-{self.scope}-{self.sparsity}"
        return f"{name}-{self.calibration_seed}" if self.calibration_seed else name

    @property
    def is_dense(self) -> bool:
        """Whether nothing is removed."""
        return self.method == "dense"

    @property
    def has_mask(self) -> bool:
        """Whether weights are removed by setting them to zero; `structured` makes tensors smaller instead."""
        return self.method not in ("dense", "structured")

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """The inverse of `str`."""
        if text == "dense":
            return cls()
        method, scope, sparsity, *seed = text.split("-")
        return cls(method, scope, sparsity, int(seed[0]) if seed else 0)


DENSE = Variant()


@dataclass(frozen=True, order=True)
class Evaluation:
    """One variant measured on one task without training."""

    model: str
    variant: Variant
    task: str

    @property
    def folder(self) -> Path:
        """Where the stage evaluate leaves its files."""
        return RESULTS / self.model / str(self.variant) / self.task


@dataclass(frozen=True, order=True)
class Run:
    """One fine-tuning of one variant on one task with one seed."""

    model: str
    variant: Variant
    task: str
    recipe: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where the stage finetune leaves its files."""
        return RESULTS / self.model / str(self.variant) / self.task / self.recipe / f"seed-{self.seed}"


@dataclass(frozen=True)
class Cells:
    """Everything a study computes, each once, in a fixed order."""

    variants: tuple[tuple[str, Variant], ...]
    measured: tuple[tuple[str, Variant], ...]
    evaluations: tuple[Evaluation, ...]
    runs: tuple[Run, ...]


def expand(grids: Iterable[Mapping[str, Any]], stages: Mapping[str, Iterable[str]]) -> Cells:
    """Cross the lists of every grid.

    `stages` says of each task whether its variants go through "evaluate", "finetune", or both. A grid's
    `calibration_seeds` (method -> seeds) repeat a method. Every model is studied dense as well: without it nothing can
    be compared. A model that holds no zeros has no mask: dense, or with heads and neurons cut out, it is fine-tuned
    once, under `kept`.
    """
    variants: dict[tuple[str, Variant], None] = {}
    measured: dict[tuple[str, Variant], None] = {}
    evaluations: dict[Evaluation, None] = {}
    runs: dict[Run, None] = {}
    for grid in grids:
        pruned = [
            Variant(method, scope, sparsity, seed)
            for method, scope, sparsity in itertools.product(grid["methods"], grid["scopes"], grid["sparsities"])
            if sparsity != "0"
            for seed in grid.get("calibration_seeds", {}).get(method, [0])
        ]
        for model, variant in itertools.product(grid["models"], [DENSE, *pruned]):
            variants[model, variant] = None
            if grid["measure"]:
                measured[model, variant] = None
            for task in grid["tasks"]:
                if "evaluate" in stages[task]:
                    evaluations[Evaluation(model, variant, task)] = None
                if "finetune" not in stages[task]:
                    continue
                recipes = grid["recipes"] if variant.has_mask else ["kept"]
                for recipe, seed in itertools.product(recipes, grid["seeds"]):
                    runs[Run(model, variant, task, recipe, seed)] = None
    return Cells(tuple(variants), tuple(measured), tuple(evaluations), tuple(runs))
