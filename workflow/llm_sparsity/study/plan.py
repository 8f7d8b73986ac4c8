"""The plan of a study: its jobs, with their minutes, GPUs, memory and bytes, before any of them runs.

Minutes are the mean of finished jobs of the same model, task and settings that ran on a GPU; otherwise ASSUMED, for one
A100.
The Snakefile imports this module where torch is not installed.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tabulate import tabulate  # type: ignore[import-untyped]

from llm_sparsity.storage.files import MANIFEST, read_json, read_manifest
from llm_sparsity.study.cells import MODELS, RESULTS, TASKS, Variant, results_folder
from llm_sparsity.study.config import Config
from llm_sparsity.study.footprint import (
    BASE,
    ROW_BYTES,
    mem_mb,
    model_size,
    run_bytes,
    variant_bytes,
)
from llm_sparsity.study.methods import is_calibrated
from llm_sparsity.study.sources import Task

# Minutes of a job, for a model of BASE parameters.
ASSUMED = {
    "download": 2.0, "prune": 0.5, "calibrate": 3.0, "weights": 0.3, "measure": 1.0, "evaluate": 3.0,
    "zero_shot": 1.0,
}  # fmt: skip
SETUP_MINUTES = 2.0  # of a fine-tuning
SAMPLES_PER_SECOND = 146.0  # sentences of SENTENCE_TOKENS in a fine-tuning, for a model of BASE parameters
SENTENCE_TOKENS = 40
TOKEN_BYTES = 4.5  # of English
ROWS = {  # of GLUE's training splits
    "cola": 8_551, "sst2": 67_349, "mrpc": 3_668, "stsb": 5_749, "qqp": 363_846, "mnli": 392_702, "qnli": 104_743,
    "rte": 2_490, "wnli": 635,
}  # fmt: skip
UNKNOWN_ROWS = 20_000
VALIDATION_ROWS = 1_000  # of a task whose entry gives no number
SCORED = 1 / 3  # minutes of a sentence that is scored, relative to one that is trained on


@dataclass(frozen=True)
class Job:
    """A job of a study.

    Args:
        stage: its stage.
        gpus: GPUs that it uses; 0: none.
        minutes: expected duration.
        measured: whether `minutes` come from finished jobs.
        bytes: size of what it leaves on disk.
        done: whether its output exists.
        memory: of the host, MB.
    """

    stage: str
    gpus: int
    minutes: float
    measured: bool
    bytes: int
    done: bool
    memory: int

    @property
    def local(self) -> bool:
        """Whether it runs beside the driver, where the network is."""
        return self.stage == "download"


def sentences(config: Config, task: str, recipe: str = "kept") -> float:
    """Training sentences of a task, or its training text in units of them; assumed until it has been downloaded.

    With those without labels that a recipe learns from too.
    """
    other = config.training_text(task, recipe)
    if config.tasks[task].kind == "language-model":
        return _sentences(config, other or task)
    return _sentences(config, task) + (_sentences(config, other, lines=True) if other else 0.0)


def _sentences(config: Config, source: str, *, lines: bool = False) -> float:
    """`sentences` of a task that is trained on; each line of a text counts as one if they are learned one by one."""
    manifest = TASKS / source / MANIFEST
    found = read_manifest(manifest.parent) if manifest.exists() else {}
    if "train" not in found.get("rows", {}):  # downloaded before it was trained on: it will be again
        found = {}
    rows = found["rows"]["train"] if found else _expected_rows(source, config.tasks[source])
    if lines or config.tasks[source].kind != "language-model":
        return float(rows)
    size = found["files"]["train.jsonl"]["bytes"] if found else rows * ROW_BYTES
    return float(size / TOKEN_BYTES / SENTENCE_TOKENS)


def _scored(config: Config, task: str) -> float:
    """Sentences that a run is scored on after each epoch, of all splits beside train; assumed likewise."""
    manifest, entry = TASKS / task / MANIFEST, config.tasks[task]
    found = read_manifest(manifest.parent).get("rows", {}) if manifest.exists() else {}
    rows = sum(count for split, count in found.items() if split != "train")
    given = [part.validation for part in (entry.limit, entry.pairs, entry.split) if part and part.validation]
    rows = rows or min(given, default=VALIDATION_ROWS)
    return rows * ROW_BYTES / TOKEN_BYTES / SENTENCE_TOKENS if entry.kind == "language-model" else float(rows)


def _expected_rows(name: str, task: Task) -> int:
    """Training rows of a task that has not been downloaded, as `preparation` will make them."""
    limit = task.limit.train if task.limit else None
    if task.pairs:
        rows = task.pairs.train
    elif name in ROWS:
        rows = max(1, ROWS[name] - (task.split.validation if task.split else 0))
    else:
        rows = limit or UNKNOWN_ROWS
    return min(rows, limit or rows)


def minutes(
    config: Config,
    stage: str,
    model: str,
    *,
    task: str = "",
    recipe: str = "kept",
    variant: str = "",
    measured: bool = False,
) -> tuple[float, bool]:
    """Minutes of a job, and whether they come from finished jobs.

    Args:
        config: the study.
        stage, model, task, recipe, variant: of the job.
        measured: read the results of finished jobs. A process that runs a single job leaves that out: it would read
            the results of all others.
    """
    if measured and stage in ("finetune", "evaluate", "zero_shot"):
        settings = config.run_settings(task, recipe, 0) if stage == "finetune" else config.evaluate_settings(task)
        rows = sentences(config, task, recipe) if config.tasks[task].has_labels else None
        found = _measured(stage, model, task, recipe, json.dumps(settings), rows)
        if found is not None:
            return found, True
    size = max(1.0, model_size(config, model)[0] / BASE)
    if stage == "finetune":
        epochs = config.finetune_settings(task, recipe)["epochs"]
        passes = sentences(config, task, recipe) * epochs + SCORED * _scored(config, task) * max(1, epochs)
        return SETUP_MINUTES + size * passes / SAMPLES_PER_SECOND / 60 / config.models[model].gpus, False
    chain = Variant.parse(variant).method if stage == "prune" and variant else ""
    passes = sum(map(is_calibrated, chain.split("+")))
    return size * (passes * ASSUMED["calibrate"] or ASSUMED[stage]), False


def requested_minutes(expected: float) -> int:
    """Minutes that a job requests, twice those expected: batch systems enforce them."""
    return 5 + round(2 * expected)


@cache
def _measured(stage: str, model: str, task: str, recipe: str, settings: str, sentences: float | None) -> float | None:
    """Mean minutes of a model's finished jobs on a task that ran on a GPU, with the same settings and sentences."""
    pattern = f"{model}/*/{task}/{recipe}/*/metrics.json" if stage == "finetune" else f"{model}/*/{task}/metrics.json"
    wanted = {key: value for key, value in json.loads(settings).items() if key != "seed"}

    def same(result: dict[str, Any]) -> bool:
        examples = result.get("examples", {})
        trained = examples.get("train", 0) + examples.get("unlabelled", 0)
        return wanted.items() <= result["settings"].items() and sentences in (None, trained)

    seconds = []
    for path in sorted(RESULTS.glob(pattern)):
        with suppress(OSError, ValueError, KeyError):  # a result that is cut off, or lacks a file, tells nothing
            if same(read_json(path)) and (runtime := read_json(path.with_name("runtime.json")))["device"] != "cpu":
                seconds.append(sum(value for key, value in runtime.items() if key.endswith("_seconds")))
    return sum(seconds) / len(seconds) / 60 if seconds else None


def jobs(config: Config) -> list[Job]:
    """The jobs of a study, but for the last two and the harness; one whose output exists is done."""
    cells = config.cells()
    found: list[Job] = []

    def add(stage: str, output: Path, size: float, model: str, gpus: int = 0, **axes: str) -> None:
        memory = mem_mb(config, stage, model, **axes)
        took, measured = minutes(config, stage, model, measured=True, **axes)
        found.append(Job(stage, gpus, took, measured, int(size), output.exists(), memory))

    def add_prune(model: str, variant: Variant, folder: Path) -> None:
        size, gpus = variant_bytes(config, model, variant), int(variant.is_calibrated)
        add("prune", folder / "sparsity.csv", size, model, gpus, variant=str(variant))

    for model in dict.fromkeys(model for model, _ in cells.variants):
        add("download", MODELS / model / MANIFEST, model_size(config, model)[1], model)
    for task in config.wanted_tasks():
        done = (TASKS / task / MANIFEST).exists()
        memory = mem_mb(config, "download", task=task)
        found.append(Job("download", 0, ASSUMED["download"], False, 0, done, memory))
    for model, variant in cells.variants:
        folder = results_folder(model, variant)
        if not variant.is_dense:
            add_prune(model, variant, folder)
        else:
            add("weights", folder / "weights.parquet", 0, model)
    for model, variant in cells.measured:
        add("measure", results_folder(model, variant) / "cost.json", 0, model, 1, variant=str(variant))
    for evaluation in cells.evaluations:
        stage = "zero_shot" if config.tasks[evaluation.task].kind == "zero-shot" else "evaluate"
        add(stage, evaluation.folder / "metrics.json", 0, evaluation.model, 1, task=evaluation.task)
    for folder, run in {run.pruned: run for run in cells.runs if config.prunes_finetuned(run)}.items():
        add_prune(run.model, run.variant, folder)
    for run in cells.runs:
        size, gpus = run_bytes(config, run.model, run.variant, run.task, run.recipe), config.models[run.model].gpus
        add("finetune", run.folder / "metrics.json", size, run.model, gpus, task=run.task, recipe=run.recipe)
    return found


def table(config: Config) -> str:
    """The plan of a study, as text: a row for each stage, and the sums of what is left."""
    every = jobs(config)
    stages = dict.fromkeys(job.stage for job in every)
    columns = ["stage", "jobs", "done", "minutes each", "GPU-hours", "GB of memory", "GB of disk", "from"]
    lines = [
        f"Plan of {config.name}: jobs that are left",
        "",
        plain_table([_row(stage, [job for job in every if job.stage == stage]) for stage in stages], columns),
    ]
    models = dict.fromkeys(model for model, _ in config.cells().variants)
    unknown = [
        model
        for model in models
        if config.models[model].parameters is None and not (MODELS / model / MANIFEST).exists()
    ]
    if unknown:
        lines += [
            "",
            f"{BASE / 1e6:.0f} million parameters are assumed for {', '.join(unknown)}, until they are downloaded "
            "(snakemake --cores 2 --until download_model) or their `parameters` are given",
        ]
    left = [job for job in every if not job.done]
    total = sum(job.bytes for job in left)
    lines += ["", f"left: {len(left)} jobs, {_gpu_hours(left):.1f} GPU-hours, {total / 1e9:.0f} GB of disk"]
    if not all(job.measured for job in left):
        lines.append("assumed minutes are those of an A100; a run shows when it will end where it runs")
    return "\n".join(lines)


def plain_table(rows: Sequence[Sequence[Any]], columns: Sequence[str]) -> str:
    """A plain table; all columns but the first and the last are numbers."""
    alignment = ["left", *["right"] * (len(columns) - 2), "left"] if rows else None
    return str(tabulate(rows, columns, tablefmt="plain", disable_numparse=True, colalign=alignment))


def _gpu_hours(work: Sequence[Job]) -> float:
    return sum(job.minutes * job.gpus for job in work) / 60


def _row(stage: str, work: Sequence[Job]) -> list[Any]:
    """A stage's row of the table."""
    left = [job for job in work if not job.done]
    span = "-".join(dict.fromkeys(f"{limit(job.minutes for job in work):.1f}" for limit in (min, max)))
    measured = sum(job.measured for job in work)
    source = "assumed" if not measured else "measured" if measured == len(work) else f"{measured} measured"
    hours = f"{_gpu_hours(left):.1f}" if any(job.gpus for job in work) else "-"
    memory, disk = max(job.memory for job in work) / 1000, sum(job.bytes for job in left) / 1e9
    return [stage, len(work), len(work) - len(left), span, hours, f"{memory:.1f}", f"{disk:.1f}", source]
