"""The cells of a study: its grids, crossed, and the folders of their results."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_sparsity.study.methods import WITHOUT_MASK, Chain, is_calibrated
from llm_sparsity.study.sparsity import ZERO, Sparsity

RESULTS = Path("results")
MODELS, TASKS = Path("resources/models"), Path("resources/tasks")


@dataclass(frozen=True, order=True)
class Variant:
    """A model after pruning: `{method}-{scope}-{sparsity}`, or `dense`; with `-{calibration_seed}` where that is not 0.

    The method may be followed by steps, see `methods.Chain`. The name of a variant is a folder of the results.
    """

    method: str = "dense"
    scope: str = ""
    sparsity: Sparsity = ZERO
    calibration_seed: int = 0

    def __str__(self) -> str:
        if self.is_dense:
            return "dense"
        name = f"{self.method}-{self.scope}-{self.sparsity}"
        return f"{name}-{self.calibration_seed}" if self.calibration_seed else name

    @property
    def is_dense(self) -> bool:
        """Whether nothing was removed: the pretrained model."""
        return self.method == "dense"

    @property
    def has_mask(self) -> bool:
        """Whether weights are removed by setting them to zero; `structured` shrinks tensors instead."""
        return not self.is_dense and Chain(self.method).parts[0] not in WITHOUT_MASK

    @property
    def is_calibrated(self) -> bool:
        """Whether its method or a step needs calibration text."""
        return is_calibrated(self.method)

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """The inverse of `str`."""
        if text == "dense":
            return cls()
        method, scope, sparsity, *seed = text.split("-")
        return cls(method, scope, Sparsity(sparsity), int(seed[0]) if seed else 0)


DENSE = Variant()


def results_folder(model: str, variant: Variant) -> Path:
    """The folder of a variant's results."""
    return RESULTS / model / str(variant)


def variant_folder(model: str, variant: Variant) -> Path:
    """The model folder of a variant of a pretrained model."""
    return MODELS / model if variant.is_dense else results_folder(model, variant) / "model"


@dataclass(frozen=True, order=True)
class Evaluation:
    """One variant evaluated on one task without training."""

    model: str
    variant: Variant
    task: str

    @property
    def folder(self) -> Path:
        """The folder of its results."""
        return results_folder(self.model, self.variant) / self.task

    @property
    def dense(self) -> "Evaluation":
        """The dense model, evaluated on the same task."""
        return replace(self, variant=DENSE)


@dataclass(frozen=True, order=True)
class Run:
    """One fine-tuning: a variant on a task, by a recipe, with a seed."""

    model: str
    variant: Variant
    task: str
    recipe: str
    seed: int

    @property
    def folder(self) -> Path:
        """The folder of its results."""
        return results_folder(self.model, self.variant) / self.task / self.recipe / f"seed-{self.seed}"

    @property
    def dense(self) -> "Run":
        """The dense model, fine-tuned on the same task with the same seed."""
        return replace(self, variant=DENSE, recipe="kept")

    @property
    def pruned(self) -> Path:
        """The folder of the variant of that model, which recipes with `start: finetuned` begin with."""
        return results_folder(self.model, self.variant) / self.task / f"seed-{self.seed}"


@dataclass(frozen=True)
class Cells:
    """Everything that a study computes, each once, in a fixed order.

    Attributes:
        variants: (model, variant) of the pretrained models.
        measured: those of them whose size and speed are measured.
        evaluations: variants of pretrained models, scored without training.
        runs: fine-tunings.
    """

    variants: tuple[tuple[str, Variant], ...]
    measured: tuple[tuple[str, Variant], ...]
    evaluations: tuple[Evaluation, ...]
    runs: tuple[Run, ...]


def expand(grids: Iterable[Mapping[str, Any]], stages: Mapping[str, Iterable[str]]) -> Cells:
    """Cross the lists of every grid.

    Every model is also studied dense, as the baseline of every comparison. A quantised model of which nothing is
    removed is one variant, of sparsity 0, whatever the sparsities of its grid. The pretrained model is not pruned for
    recipes that all start from the fine-tuned one.

    Args:
        grids: of a config, see `Config.grids`. `calibration_seeds` (method -> seeds) repeat a method; `finetuned` are
            the recipes that start from the fine-tuned model, `untrained` those of them that do not train.
        stages: task -> "evaluate", "finetune", or both.
    """
    variants: dict[tuple[str, Variant], None] = {}
    measured: dict[tuple[str, Variant], None] = {}
    evaluations: dict[Evaluation, None] = {}
    runs: dict[Run, None] = {}
    for grid in grids:
        pruned = [
            Variant(method, scope, Sparsity.of(sparsity), seed)
            for method, scope in itertools.product(grid["methods"], grid["scopes"])
            for sparsity in (grid["sparsities"] if Chain(method).method else [ZERO])
            if not (Chain(method).method and Sparsity.of(sparsity).is_dense)
            for seed in grid.get("calibration_seeds", {}).get(method, [0])
        ]
        evaluated, trained = ([t for t in grid["tasks"] if stage in stages[t]] for stage in ("evaluate", "finetune"))
        for model, variant in itertools.product(grid["models"], [DENSE, *pruned]):
            recipes = _recipes(grid, variant) if trained else []
            only_finetuned = recipes and set(recipes) <= set(grid.get("finetuned", []))
            if variant.is_dense or grid["measure"] or evaluated or not only_finetuned:
                variants[model, variant] = None
            if grid["measure"]:
                measured[model, variant] = None
            evaluations |= dict.fromkeys(Evaluation(model, variant, task) for task in evaluated)
            for task, recipe, seed in itertools.product(trained, recipes, grid["seeds"]):
                runs[Run(model, variant, task, recipe, seed)] = None
    return Cells(tuple(variants), tuple(measured), tuple(evaluations), tuple(runs))


def _recipes(grid: Mapping[str, Any], variant: Variant) -> list[str]:
    """The recipes of a variant: `kept` alone if it is dense, `kept` for any mask if it has none.

    Quantised variants are not trained.
    """
    if variant.is_dense:
        return ["kept"]
    chosen, finetuned = grid["recipes"], grid.get("finetuned", [])
    if Chain(variant.method).is_quantised:
        return [recipe for recipe in chosen if recipe in grid.get("untrained", [])]
    if not variant.has_mask:
        chosen = [recipe if recipe in finetuned else "kept" for recipe in chosen]
    return list(dict.fromkeys(chosen))
