"""What a config may say, checked before any job starts.

Each class is one section of config.yaml and the only place of its defaults. Import-light on purpose (no torch):
`snakemake -n` uses it on a laptop.
"""

import ast
import difflib
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.study.cells import Cells, expand

_SOURCES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in (Path(__file__).parents[1] / "pruning/methods").glob("[a-z]*.py")
}
METHODS = tuple(sorted(_SOURCES))
METHOD_NOTES = {  # the first paragraph of a method's module: what goes, and whose idea it is
    name: " ".join((ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].split())
    for name, source in _SOURCES.items()
}
CALIBRATED = tuple(method for method in METHODS if "\ndef observe(" in _SOURCES[method])  # read: importing takes torch
SCHEDULED = ("magnitude", "uniform")  # methods whose weights a schedule can choose as well
SCOPES = ("all", "linear", "attention", "mlp", "embeddings", "encoder", "decoder")

Architecture = Literal["encoder", "decoder", "encoder-decoder"]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def _sparsity(value: Any) -> str:
    """The one spelling of a sparsity: "0", "0.5" or "2of4"."""
    text = str(value).strip()
    pattern = re.fullmatch(r"(\d+)of(\d+)", text)
    if pattern:
        kept, group = map(int, pattern.groups())
        if 0 < kept < group:
            return text
    elif not isinstance(value, bool) and re.fullmatch(r"\d*\.?\d+(e-?\d+)?", text):
        fraction = Decimal(text)
        if 0 <= fraction < 1:
            return format(fraction.normalize(), "f")
    raise ValueError("expected a fraction in [0, 1) such as 0.5, or a pattern N of M kept such as 2of4")


def _matches(pattern: str, expected: str) -> BeforeValidator:
    def check(value: Any) -> str:
        if not re.fullmatch(pattern, str(value)):
            raise ValueError(expected)
        return str(value)

    return BeforeValidator(check)


def _scope(value: Any) -> str:
    """The one spelling of a scope: its word, or layers.0.3 for a list of layers."""
    if isinstance(value, list):
        if not value or any(isinstance(layer, bool) or not isinstance(layer, int) or layer < 0 for layer in value):
            raise ValueError("expected a list of layers, counted from 0, such as [0, 3]")
        return ".".join(["layers", *map(str, sorted(set(value)))])
    if value in SCOPES or re.fullmatch(r"layers(\.\d+)+", str(value)):
        return str(value)
    guess = _guess(str(value), list(SCOPES))
    raise ValueError(f"expected {', '.join(SCOPES)} or a list of layers such as [0, 3]{guess}")


Scope = Annotated[str, BeforeValidator(_scope)]
Sparsity = Annotated[str, BeforeValidator(_sparsity)]
Name = Annotated[
    str, _matches(r"[A-Za-z0-9][\w.-]*", "a name becomes a folder: use letters, digits, '.', '_' and '-' only")
]
Commit = Annotated[
    str, _matches(r"[0-9a-f]{40}", "expected a commit: 40 hex digits, not a branch or tag that can move")
]
Pinned = Annotated[str, _matches(r"[\w.-]+==[\w.+!-]+", "expected name==version")]
Sha256 = Annotated[str, _matches(r"[0-9a-f]{64}", "expected the 64 hex digits of a sha256")]


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values never change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Section):
    """Where a model or a task comes from: exactly one of `hub`, `package`, `folder`."""

    hub: str | None = Field(None, description="repository id on the model or data set hub")
    revision: Commit | None = Field(None, description="commit of the hub repository")
    converted: Literal[True] | None = Field(
        None, description="of a model whose revision has pickles alone: the safetensors that the hub made of them"
    )
    package: Pinned | None = Field(None, description="name==version, a registry package")
    sha256: Sha256 | None = Field(None, description="of the package's archive")
    path: str | None = Field(None, description="what to take from the package's archive")
    folder: str | None = Field(None, description="a folder of this machine")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        needs = {"hub": {"revision"}, "package": {"sha256"}, "folder": set[str]()}
        allowed = {"hub": {"revision", "converted"}, "package": {"sha256", "path"}, "folder": set[str]()}
        kinds = [kind for kind in needs if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f"give exactly one of hub, package or folder, found {' and '.join(kinds) or 'none'}")
        given = {key for key in ("revision", "converted", "sha256", "path") if getattr(self, key) is not None}
        if missing := needs[kinds[0]] - given:
            raise ValueError(f"`{kinds[0]}` needs `{missing.pop()}` too, so that everyone gets the same bytes")
        if extra := given - allowed[kinds[0]]:
            raise ValueError(f"`{extra.pop()}` does not go with `{kinds[0]}`; remove it")
        return self


class Model(Section):
    """A pretrained checkpoint."""

    architecture: Architecture
    source: Source
    gpus: Positive = Field(1, description="that a fine-tuning uses, where there are so many; whole nodes if several")
    accelerate: Literal["node", "fsdp"] = Field(
        "node", description="several GPUs hold the whole model each, or its weights are spread over them"
    )
    parameters: Annotated[float, Field(gt=0)] | None = Field(
        None, description="how many, for the plan alone, until the model has been downloaded; shapes no result"
    )


class Binarize(Section):
    """Turn a rating into a label: 1 above the threshold, 0 below, rows nearer than `margin` are dropped."""

    threshold: float = 0.0
    margin: Annotated[float, Field(ge=0)] = 0.0


class Split(Section):
    """Carve a validation set out of the training rows."""

    validation: Positive
    seed: int = 0


class Pairs(Section):
    """Draw sentence pairs from the rows; the label says whether both sentences have the same label."""

    train: Positive
    validation: Positive
    seed: int = 0
    group: str | None = Field(None, description="pattern; rows whose label begins with the same match share a label")


class Limit(Section):
    """Use at most so many rows of a split, drawn with a fixed seed."""

    train: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None
    seed: int = 0


class Prune(Section):
    """How weights are chosen, whatever the method."""

    seed: Annotated[int, Field(ge=0)] = 0
    floor: Fraction = Field(0.0, description="the share of every tensor that stays, so that no layer collapses")
    budgets: Literal["uniform", "owl"] = Field(
        "uniform", description="of calibrated methods: each layer loses the same share, or less with more outliers"
    )


class Calibration(Section):
    """The sequences that calibrated methods see."""

    task: Name = Field(description="a language-model task whose split train is the text")
    samples: Positive = Field(128, description="sequences")
    sequence_length: Positive = Field(2048, description="tokens in each")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [0], min_length=1, description="each draws them anew: so many variants of every calibrated method"
    )

    @model_validator(mode="after")
    def _once(self) -> Self:
        _no_twins(self)
        return self


class Measure(Section):
    """How seconds and memory of inference are measured."""

    batch_sizes: list[Positive] = Field([1, 32], min_length=1, description="sequences at once")
    sequence_length: Positive = 128
    repeats: Annotated[int, Field(ge=3)] = Field(15, description="rounds; each runs everything once, medians are told")


class Finetune(Section):
    """How a variant is fine-tuned."""

    epochs: Positive = 3
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    batch_size: Positive = Field(128, description="sentences per optimizer step, over all processes")
    micro_batch_size: Positive = Field(32, description="sentences in memory at once, per process")
    max_length: Positive = Field(128, description="tokens per sentence or pair; longer ones are cut")
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_ratio: Fraction = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    freeze_embeddings: bool = False
    gradient_checkpointing: bool = Field(False, description="less memory, more time: activations are computed twice")
    save_minutes: Positive = Field(15, description="between saves within an epoch; no result's part")


class Schedule(Section):
    """Remove weights little by little while training, along a cubic curve, instead of all at once before it."""

    begin: Fraction = Field(0.0, description="the part of all steps before the first weight goes")
    end: Annotated[float, Field(gt=0, le=1)] = Field(0.3, description="the part of all steps after which all are gone")
    scores: Literal["magnitude", "movement"] = Field("magnitude", description="what decides which weights go")

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.begin >= self.end:
            raise ValueError(f"begin: {self.begin} is not before end, {self.end}")
        return self


class Distill(Section):
    """Learn from the dense model that was fine-tuned on the same task with the same seed; weights of the losses."""

    labels: Annotated[float, Field(ge=0)] = Field(1.0, description="cross-entropy with the true labels")
    logits: Annotated[float, Field(ge=0)] = Field(1.0, description="divergence from the teacher's probabilities")
    hidden: Annotated[float, Field(ge=0)] = Field(10.0, description="distance from the output of each of its layers")
    temperature: Annotated[float, Field(gt=0)] = Field(2.0, description="softens both models' probabilities")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.labels or self.logits or self.hidden):
            raise ValueError("labels, logits and hidden are all 0, so nothing is learned; raise one")
        return self


class Lora(Section):
    """Train low-rank updates of the matrices instead of all weights; merged, they keep the mask."""

    rank: Positive = Field(16, description="of an update: the product of two matrices")
    alpha: Annotated[float, Field(gt=0)] = Field(32.0, description="an update counts alpha / rank times")


class Recipe(Section):
    """How a variant is fine-tuned, so that it recovers what pruning took."""

    mask: Literal["kept", "released"] = Field("kept", description="what is removed stays removed, or may grow back")
    schedule: Schedule | None = Field(None, description="none: all weights are removed before training")
    distill: Distill | None = Field(None, description="none: the labels alone teach")
    lora: Lora | None = Field(None, description="none: the weights themselves are trained")
    finetune: dict[str, Any] = Field({}, description="overrides of the config's and the task's `finetune`")

    @model_validator(mode="after")
    def _sense(self) -> Self:
        if self.schedule and self.mask == "released":
            raise ValueError("schedule: what it removes cannot be released; remove schedule, or use mask: kept")
        if self.lora and (self.schedule or self.mask == "released"):
            other = "schedule" if self.schedule else "mask: released"
            raise ValueError(
                f"lora: leaves the weights as they were pruned, so {other} does not go with it; remove one"
            )
        return self

    @property
    def needs_dense(self) -> bool:
        """Whether it needs the dense model, fine-tuned: a schedule starts from it, distillation learns from it."""
        return bool(self.schedule or self.distill)


RECIPES = {  # built in: the same words mean the same in every study
    "kept": Recipe(),
    "released": Recipe(mask="released"),
    # Few sentences a step and a high learning rate: what is left of a model at 90 % has much to learn anew. Chosen on
    # MiniLM, and provisional (BENCHMARKS.md, Recovery); a larger model may need a lower rate.
    "lora": Recipe(lora=Lora(), finetune={"learning_rate": 1e-3}),
    "gradual": Recipe(schedule=Schedule(), distill=Distill(), finetune={"learning_rate": 1.5e-3, "batch_size": 8}),
}


class Evaluate(Section):
    """How a causal language model is measured without training; of zero-shot tasks `batch_size` alone counts."""

    sequence_length: Annotated[int, Field(gt=1)] = 2048
    max_tokens: Positive | None = None
    batch_size: Positive = 1


class Task(Section):
    """A data set with a metric."""

    kind: Literal["classification", "language-model", "zero-shot"]
    source: Source
    files: dict[str, str] = Field(min_length=1, description="split -> file inside the source")
    format: Literal["parquet", "jsonl", "csv", "tsv", "text"] | None = None
    columns: list[str] | None = Field(None, description="names, for files without a header line")
    harness: str | None = Field(None, description="of a zero-shot task: what lm-evaluation-harness calls it")
    text: str = "text"
    text_pair: str | None = None
    label: str | None = None
    labels: list[str] | None = None
    binarize: Binarize | None = None
    split: Split | None = None
    pairs: Pairs | None = None
    limit: Limit | None = None
    finetune: dict[str, Any] | None = Field(
        None,
        description="overrides of the config's `finetune`; a language-model task is trained on where this is given",
    )
    train_on: Name | None = Field(
        None, description="of a language-model task: the one whose training text it is trained on, if not its own"
    )
    evaluate: dict[str, Any] = Field({}, description="overrides of the config's `evaluate`")

    @model_validator(mode="after")
    def _splits(self) -> Self:
        if self.source.converted:
            raise ValueError("source.converted: is for models, whose weights it is about; remove it")
        if self.kind == "zero-shot":
            return self._zero_shot()
        if self.harness:
            raise ValueError(f"harness: is for zero-shot tasks, but kind is {self.kind}; correct one of them")
        if self.kind == "language-model":
            if extra := set(self.files) - {"train", "test"}:
                raise ValueError(
                    f"files: a language-model task has test, to measure perplexity on, or train, to calibrate with, or "
                    f"both; found {extra.pop()}"
                )
            if self.label:
                raise ValueError("label: a language model's text has none; remove it")
            if self.train_on and self.finetune is None:
                raise ValueError("train_on: says what text is trained on, but nothing is; add finetune: {}")
            if self.finetune is not None and {*self.files, *(["train"] if self.train_on else [])} != {"train", "test"}:
                raise ValueError(
                    f"finetune: trains on the split train and measures on test, but files has {', '.join(self.files)} "
                    "alone; add the other, name another task's text by train_on, or remove finetune"
                )
            return self
        if self.train_on:
            raise ValueError("train_on: is for language-model tasks; remove it")
        if self.label is None:
            raise ValueError("label: missing; name the column that holds the label")
        expected = {"train"} if self.split else {"train", "validation"}
        if set(self.files) != expected:
            raise ValueError(
                f"files: expected {' and '.join(sorted(expected))}, found {', '.join(self.files)}; "
                "`split` carves a validation set out of train"
            )
        if self.evaluate:
            raise ValueError("evaluate: is for language-model tasks; use finetune here")
        return self

    def _zero_shot(self) -> Self:
        if self.harness is None:
            raise ValueError("harness: missing; name the task of lm-evaluation-harness, such as boolq")
        if len(self.files) != 1 or set(self.files) - {"validation", "test"}:
            raise ValueError(
                f"files: expected validation or test, the one that the harness scores, found {', '.join(self.files)}"
            )
        others = ("text_pair", "label", "labels", "binarize", "split", "pairs", "finetune", "train_on")
        if extra := [key for key in others if getattr(self, key)]:
            raise ValueError(f"{extra[0]}: the harness knows how to read and score a zero-shot task; remove it")
        if extra := [key for key in self.evaluate if key in Evaluate.model_fields and key != "batch_size"]:
            raise ValueError(f"evaluate.{extra[0]}: shapes no zero-shot task; remove it")
        return self


class Grid(Section):
    """Lists of names that are crossed. A study is one grid or several."""

    models: list[Name] = Field(min_length=1)
    methods: list[str] = Field(["magnitude"], min_length=1)
    scopes: list[Scope] = Field(["all"], min_length=1)
    sparsities: list[Sparsity] = Field(min_length=1)
    tasks: list[Name] = Field([], description="none: the variants are pruned, weighed and measured only")
    recipes: list[Name] = Field(["kept"], min_length=1)
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    measure: bool = Field(True, description="measure seconds and memory of the variants")

    @model_validator(mode="after")
    def _once(self) -> Self:
        _no_twins(self)
        return self


class Config(Section):
    """A study: what to cross, and what the names stand for."""

    name: Name
    study: list[Grid] = Field(min_length=1)
    models: dict[Name, Model]
    tasks: dict[Name, Task]
    prune: Prune = Prune()
    calibration: Calibration | None = None
    measure: Measure = Measure()
    finetune: Finetune = Finetune()
    recipes: dict[Name, Recipe] = Field({}, description="besides those built in: kept, released, gradual, lora")
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        if "model" in self.tasks:
            raise ValueError("tasks.model: this name is taken by a folder of the results; choose another")
        for name in self.recipes:
            if name in RECIPES:
                raise ValueError(f"recipes.{name}: this name is built in; choose another, so that it means one thing")
        for number, grid in enumerate(self.study):
            where = f"study.{number}"
            _known(f"{where}.models", grid.models, self.models)
            _known(f"{where}.tasks", grid.tasks, self.tasks)
            _known(f"{where}.methods", grid.methods, METHODS)
            _known(f"{where}.recipes", grid.recipes, [*RECIPES, *self.recipes])
            self._schedules(where, grid)
            patterns = [level for level in grid.sparsities if "of" in level]
            for method in {"block", "structured", *CALIBRATED} & set(grid.methods):
                if patterns and method not in CALIBRATED:
                    raise ValueError(
                        f"{where}.sparsities: {patterns[0]} is of single weights, but {method} removes more"
                    )
                if patterns and self.prune.budgets == "owl":
                    raise ValueError(
                        f"{where}.sparsities: {patterns[0]} takes the same of every layer, but prune.budgets is owl; "
                        "remove one"
                    )
                if method in CALIBRATED and self.calibration is None:
                    raise ValueError(
                        f"{where}.methods: {method} needs a text to calibrate with; add calibration: {{task: ...}}"
                    )
                if scopes := {"all", "embeddings"} & set(grid.scopes):
                    raise ValueError(
                        f"{where}.scopes: {scopes.pop()} holds more than matrices of layers, which {method} needs; "
                        "choose linear, attention, mlp, encoder, decoder or a list of layers"
                    )
            for model in grid.models:
                architecture = self.models[model].architecture
                for scope in {"encoder", "decoder"} & set(grid.scopes):
                    if scope not in architecture.split("-"):
                        raise ValueError(f"{where}.scopes: {scope}, but model {model} is an {architecture}; remove one")
                for task in grid.tasks:
                    kind = self.tasks[task].kind
                    if kind == "language-model" and "test" not in self.tasks[task].files:
                        raise ValueError(f"{where}.tasks: {task} has no split test to measure perplexity on; add it")
                    if kind != "classification" and architecture != "decoder":
                        raise ValueError(
                            f"{where}.tasks: {task} is a {kind} task, but model {model} is an {architecture}; "
                            "give decoders a grid of their own"
                        )
        texts = {f"tasks.{name}.train_on": task.train_on for name, task in self.tasks.items() if task.train_on}
        if self.calibration is not None:
            texts["calibration.task"] = self.calibration.task
        for key, name in texts.items():
            _known(key, [name], self.tasks)
            if self.tasks[name].kind != "language-model" or "train" not in self.tasks[name].files:
                raise ValueError(f"{key}: {name} is no language-model task with a split train; name one that is")
        for task in self.tasks:
            self.evaluate_settings(task)
            for recipe in [*RECIPES, *self.recipes]:
                self.finetune_settings(task, recipe)
        return self

    def _schedules(self, where: str, grid: Grid) -> None:
        """Refuse a schedule where it cannot choose the weights, or they were chosen otherwise than it would."""
        for name in grid.recipes:
            if self.recipe(name).schedule is None:
                continue
            for method in grid.methods:
                if method not in SCHEDULED and method != "structured":  # which is fine-tuned under `kept` alone
                    raise ValueError(
                        f"{where}.recipes: {name} chooses weights while training, which stands beside methods "
                        f"{' and '.join(SCHEDULED)}, not {method}; give {method} a grid of its own"
                    )
            for model in grid.models:
                if self.models[model].accelerate == "fsdp" and self.models[model].gpus > 1:
                    raise ValueError(
                        f"{where}.recipes: {name} ranks whole tensors, but model {model} has accelerate: fsdp, which "
                        "spreads them; use node, or give it a grid of its own"
                    )
            if patterns := [level for level in grid.sparsities if "of" in level]:
                raise ValueError(f"{where}.recipes: {name} keeps no pattern such as {patterns[0]}; remove one of them")

    def recipe(self, name: str) -> Recipe:
        """A recipe, built in or the config's own."""
        return RECIPES.get(name) or self.recipes[name]

    def finetune_settings(self, task: str, recipe: str) -> dict[str, Any]:
        """What a run uses: `finetune` with the task's overrides and the recipe's, and the recipe itself."""
        chosen = self.recipe(recipe)
        values = Finetune(**_override(self.finetune, self.tasks[task].finetune or {}, f"tasks.{task}.finetune"))
        return _override(values, chosen.finetune, f"recipes.{recipe}.finetune") | chosen.model_dump(
            exclude={"finetune"}
        )

    def prune_settings(self, method: str, calibration_seed: int = 0) -> dict[str, Any]:
        """What a method uses of `prune` and `calibration`."""
        if method not in CALIBRATED or self.calibration is None:
            return self.prune.model_dump(exclude={"budgets"})
        return {
            **self.prune.model_dump(exclude={"seed"}),  # which nothing is drawn with
            "calibration": {**self.calibration.model_dump(exclude={"task", "seeds"}), "seed": calibration_seed},
        }

    def run_settings(self, task: str, recipe: str, seed: int) -> dict[str, Any]:
        """All settings that shape a run's result."""
        chosen = self.finetune_settings(task, recipe)
        del chosen["save_minutes"]
        if self.tasks[task].kind == "language-model":
            measured = self.evaluate_settings(task)
            chosen["evaluation"] = {key: measured[key] for key in ("sequence_length", "max_tokens")}
        return {"seed": seed, **chosen}

    def evaluate_settings(self, task: str) -> dict[str, Any]:
        """What a task uses of `evaluate`, with its overrides."""
        values = _override(self.evaluate, self.tasks[task].evaluate, f"tasks.{task}.evaluate")
        return values if self.tasks[task].kind != "zero-shot" else {"batch_size": values["batch_size"]}

    def cells(self) -> Cells:
        """Everything this study computes."""
        return expand(self.grids(), self.stages())

    def grids(self) -> list[dict[str, Any]]:
        """The grids as plain values, and how often their calibrated methods are repeated."""
        seeds = self.calibration.seeds if self.calibration else [0]
        return [
            {
                **grid.model_dump(),
                "calibration_seeds": {method: seeds for method in grid.methods if method in CALIBRATED},
            }
            for grid in self.study
        ]

    def stages(self) -> dict[str, list[str]]:
        """Task -> what its variants go through: evaluation without training, fine-tuning, or both."""
        without = ("language-model", "zero-shot")
        return {
            name: ["evaluate"] * (task.kind in without)
            + ["finetune"] * (task.kind not in without or task.finetune is not None)
            for name, task in self.tasks.items()
        }

    def wanted_tasks(self) -> list[str]:
        """The tasks that have to be there: measured on, trained on, calibrated with."""
        cells = self.cells()
        trained, measured = ([cell.task for cell in found] for found in (cells.runs, cells.evaluations))
        texts = [self.tasks[task].train_on for task in trained]
        if self.calibration and any(variant.method in CALIBRATED for _, variant in cells.variants):
            texts.append(self.calibration.task)
        return list(dict.fromkeys(task for task in [*trained, *measured, *texts] if task))

    def tasks_of(self, kind: str) -> list[str]:
        """The tasks of a kind."""
        return [name for name, task in self.tasks.items() if task.kind == kind]


SECTIONS = {section.__name__: section for section in Section.__subclasses__()}


def _no_twins(section: Section) -> None:
    """Refuse a list that names something twice."""
    for key in type(section).model_fields:
        values = getattr(section, key)
        if isinstance(values, list) and (twice := [value for value in values if values.count(value) > 1]):
            raise ValueError(f"{key}: {twice[0]} is given twice; remove one")


def _override(section: Section, changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        return type(section).model_validate({**section.model_dump(), **changes}).model_dump()
    except ValidationError as error:
        raise ValueError("; ".join(f"{where}.{line}" for line in _lines(error, type(section)))) from None


def _known(key: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"{key}: found {name!r}, which is not defined{_guess(name, known)}")


def _guess(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known) or 'none'}"


def _fields(section: type[BaseModel] | None, path: tuple[Any, ...]) -> list[str]:
    """The keys that the section at `path` has, to guess a misspelled one from."""
    for step in path:
        field = section.model_fields.get(str(step)) if section else None
        if field is None:
            continue
        names = "|".join(SECTIONS)
        found = re.search(rf"\b({names})\b", str(field))
        section = SECTIONS[found.group(1)] if found else None
    return list(section.model_fields) if section else []


def _lines(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line for each fault: key, value found, what to do."""
    lines = []
    for fault in error.errors():
        path = tuple(step for step in fault["loc"] if step != "[key]")
        key = ".".join(map(str, path))
        value = repr(fault["input"])
        value = value if len(value) <= 60 else f"{value[:57]}..."
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key{_guess(str(path[-1]), _fields(root, path[:-1]))}")
        elif fault["type"] == "missing":
            lines.append(f"{key}: missing; add it")
        elif fault["type"] == "too_short":
            lines.append(f"{key}: found nothing; give at least one")
        elif isinstance(fault["input"], Mapping | BaseModel):
            lines.append(f"{key}: {message}" if key else message)
        else:
            lines.append(f"{key}: found {value}; {message[0].lower()}{message[1:]}")
    return lines


def load(values: Mapping[str, Any]) -> Config:
    """Check a config.

    Raises:
        UserError: one line for each fault, with key, value and fix.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(f"config: {line}" for line in _lines(error, Config))) from None
