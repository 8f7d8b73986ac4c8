"""A study's config: the grids that it crosses, checked as a whole before any job starts.

Every section is a class with its defaults: the grids here, models and tasks in `sources.py`, the others in
`settings.py`; `checks.py` tells how they fit together. None of them imports torch: `snakemake -n` runs where it is not
installed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.study import checks
from llm_sparsity.study.cells import Cells, Run, expand, variant_folder
from llm_sparsity.study.document import read_config
from llm_sparsity.study.fields import (
    Name,
    ScopeName,
    Section,
    Seed,
    SparsityValue,
    lines,
    override,
    refuse_repeats,
)
from llm_sparsity.study.methods import CALIBRATED, Chain, is_calibrated
from llm_sparsity.study.settings import RECIPES, Calibration, Evaluate, Finetune, Measure, Prune, Recipe
from llm_sparsity.study.sources import Model, Task


class Grid(Section):
    """Lists of names that are crossed. A study is one grid or several."""

    models: list[Name] = Field(min_length=1, description="names of `models`")
    methods: list[str] = Field(
        ["magnitude"],
        min_length=1,
        description="pruning methods, each a file of pruning/methods/, such as `wanda`; steps follow a +",
    )
    scopes: list[ScopeName] = Field(
        ["all"], min_length=1, description="parts that are pruned; a list of numbers: layers"
    )
    sparsities: list[SparsityValue] = Field(
        min_length=1, description="fractions of the scope that are removed, or patterns such as `2of4`: 2 of 4 are kept"
    )
    tasks: list[Name] = Field([], description="empty: variants are pruned, described and measured only")
    recipes: list[Name] = Field(["kept"], min_length=1, description="ways to fine-tune, built in or of `recipes`")
    seeds: list[Seed] = Field([0], min_length=1, description="of fine-tuning; with three, figures have intervals")
    measure: bool = Field(True, description="measure seconds and memory of the variants")

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        refuse_repeats(self)
        return self


class Config(Section):
    """A study: the grids to cross, and the definitions of their names."""

    name: Name = Field(description="of the study; its report is in reports/{name}/")
    study: list[Grid] = Field(
        min_length=1, description="grids; each crosses its lists, and a cell of two is computed once"
    )
    models: dict[Name, Model] = Field(description="pretrained checkpoints, by name")
    tasks: dict[Name, Task] = Field(description="data sets, by name")
    prune: Prune = Prune()
    calibration: Calibration | None = None
    measure: Measure = Measure()
    finetune: Finetune = Finetune()
    recipes: dict[Name, Recipe] = Field(
        {}, description="beside the built-in kept, released, one-shot, gradual, gradual-unlabelled and lora"
    )
    evaluate: Evaluate = Evaluate()
    tracker: Literal["tensorboard", "mlflow", "trackio", "wandb"] | None = Field(
        None,
        description="where fine-tunings write loss, scores and sparsity to, by step, with its own package; does not "
        "affect results",
    )
    claims: str | None = Field(None, description="YAML file with claims of an earlier study, to be judged by this one")
    published: str | None = Field(None, description="CSV file with published values, drawn beside this study's")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        checks.check(self)
        return self

    def recipe(self, name: str) -> Recipe:
        """A recipe, built in or of this config."""
        return RECIPES.get(name) or self.recipes[name]

    def prunes_finetuned(self, run: Run) -> bool:
        """Whether a run starts from a variant of the fine-tuned dense model, not of the pretrained one."""
        return not run.variant.is_dense and self.recipe(run.recipe).start == "finetuned"

    def trained_tasks(self, grid: Grid) -> list[str]:
        """The tasks of a grid that have runs."""
        stages = self.stages()
        return [task for task in grid.tasks if "finetune" in stages[task]]

    def trains(self, task: str, recipe: str) -> bool:
        """Whether the runs of a recipe on a task train; if not, the model is evaluated as it is."""
        return bool(self.finetune_settings(task, recipe)["epochs"])

    def training_text(self, task: str, recipe: str) -> str | None:
        """Another task that runs learn from: instead of their own text (`train_on`), or beside it (`unlabelled`)."""
        entry, distill = self.tasks[task], self.recipe(recipe).distill
        return entry.train_on or (entry.unlabelled if distill and distill.unlabelled else None)

    def untrained(self, grid: Grid) -> list[str]:
        """The recipes of a grid that train on none of its tasks."""
        tasks = self.trained_tasks(grid)
        return [recipe for recipe in grid.recipes if tasks and not any(self.trains(task, recipe) for task in tasks)]

    def start_folder(self, run: Run) -> Path:
        """The model folder that a run starts from."""
        return run.pruned / "model" if self.prunes_finetuned(run) else variant_folder(run.model, run.variant)

    def download_settings(self, kind: str, name: str) -> dict[str, Any]:
        """The settings that shape a downloaded "model" or "task"."""
        if kind == "model":
            return self.models[name].model_dump(exclude_none=True, include={"architecture", "source"})
        task = self.tasks[name]
        values = task.model_dump(exclude_none=True, exclude={"finetune", "train_on", "unlabelled", "evaluate", "score"})
        # Accuracy and perplexity are computed in any case.
        return values | ({} if task.judged_by in (None, "accuracy", "perplexity") else {"score": task.judged_by})

    def prune_settings(self, method: str, calibration_seed: int = 0) -> dict[str, Any]:
        """The values of `prune` and `calibration` that a method and its steps use."""
        chain = Chain(method)
        chosen: dict[str, Any] = {}
        if chain.method:  # calibrated methods draw no numbers with `seed`, others have no `layerwise`
            unused = "seed" if chain.method in CALIBRATED else "layerwise"
            chosen = self.prune.model_dump(exclude={unused})
        if chain.is_calibrated and self.calibration is not None:
            drawn = self.calibration.model_dump(exclude={"task", "seeds"})
            chosen["calibration"] = {**drawn, "seed": calibration_seed}
        return chosen

    def finetune_settings(self, task: str, recipe: str) -> dict[str, Any]:
        """The values of `finetune` with the task's and the recipe's overrides, and the recipe itself."""
        chosen = self.recipe(recipe)
        own = Finetune(**override(self.finetune, self.tasks[task].finetune or {}, f"tasks.{task}.finetune"))
        values = override(own, chosen.finetune, f"recipes.{recipe}.finetune")
        return values | chosen.training()

    def run_settings(self, task: str, recipe: str, seed: int) -> dict[str, Any]:
        """All settings that shape the result of a run."""
        chosen = self.finetune_settings(task, recipe)
        del chosen["save_minutes"]
        if self.tasks[task].kind == "language-model":
            measured = self.evaluate_settings(task)
            chosen["evaluation"] = {key: measured[key] for key in ("sequence_length", "max_tokens")}
        return {"seed": seed, **chosen}

    def evaluate_settings(self, task: str) -> dict[str, Any]:
        """The values of `evaluate` that a task uses, with its overrides."""
        values = override(self.evaluate, self.tasks[task].evaluate, f"tasks.{task}.evaluate")
        return values if self.tasks[task].kind != "zero-shot" else {"batch_size": values["batch_size"]}

    def cells(self) -> Cells:
        """Everything that this study computes."""
        return expand(self.grids(), self.stages())

    def grids(self) -> list[dict[str, Any]]:
        """The grids as plain values, each with the seeds of its calibrated methods."""
        seeds = self.calibration.seeds if self.calibration else [0]
        return [
            {
                **grid.model_dump(),
                "calibration_seeds": {method: seeds for method in grid.methods if is_calibrated(method)},
                "finetuned": [recipe for recipe in grid.recipes if self.recipe(recipe).start == "finetuned"],
                "untrained": self.untrained(grid),
            }
            for grid in self.study
        ]

    def stages(self) -> dict[str, list[str]]:
        """Task -> the stages of its variants: "evaluate" (without training), "finetune", or both."""
        return {
            name: ["evaluate"] * (not task.has_labels) + ["finetune"] * (task.has_labels or task.finetune is not None)
            for name, task in self.tasks.items()
        }

    def scores(self) -> dict[str, str]:
        """Task -> the score that it is judged by; none of zero-shot tasks, which have several."""
        return {name: task.judged_by for name, task in self.tasks.items() if task.judged_by}

    def wanted_tasks(self) -> list[str]:
        """The tasks to download: those that are evaluated, trained on, or calibrated with, and those of kept heads."""
        cells = self.cells()
        trained, measured = ([cell.task for cell in found] for found in (cells.runs, cells.evaluations))
        texts = [self.training_text(run.task, run.recipe) for run in cells.runs]
        if self.calibration and any(variant.is_calibrated for _, variant in cells.variants):
            texts.append(self.calibration.task)
        heads = [self.models[model].head for model, _ in cells.variants]
        return list(dict.fromkeys(task for task in [*trained, *measured, *texts, *heads] if task))

    def tasks_of(self, kind: str) -> list[str]:
        """The tasks of a kind."""
        return [name for name, task in self.tasks.items() if task.kind == kind]


def read(file: Path) -> Config:
    """Read a config and validate it.

    Raises:
        UserError: the file is no YAML of a config; or one line for each fault, with key, value and fix.
    """
    return load(read_config(file))


def load(values: Mapping[str, Any] | Path | str) -> Config:
    """Validate a config.

    Args:
        values: of the config, or the path of its file.

    Raises:
        UserError: one line for each fault, with key, value and fix.
    """
    if isinstance(values, Path | str):
        return read(Path(values))
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(f"config: {line}" for line in lines(error, Config))) from None
