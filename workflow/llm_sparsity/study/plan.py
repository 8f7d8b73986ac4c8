"""What a study will take, before it is spent: jobs, GPU-hours, node-hours, minutes, bytes; which queue, how many nodes.

Minutes are those of results that exist, of the same model and task, measured on a GPU; else ASSUMED, for one A100.
Light on purpose (standard library only): the Snakefile uses it for every job, on a laptop that has no torch.
"""

import csv
import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llm_sparsity.storage.files import MANIFEST, read_json
from llm_sparsity.study.cells import Run, fraction
from llm_sparsity.study.config import CALIBRATED, Config

SLOTS = 4  # GPUs a node
PILOT_MINUTES = 1.5  # from the start of a batch job to its first run
JOB_MINUTES = 0.3  # from a free slot to the first step of the next job
HEADROOM = 1.2  # how many node-hours may be spent above the cheapest, to end sooner

# Assumptions, for a model of BASE parameters.
BASE = 125e6
ASSUMED = {
    "download": 2.0, "prune": 0.5, "calibrate": 3.0, "weights": 0.3, "measure": 1.0, "evaluate": 3.0,
    "zero_shot": 1.0,
}  # fmt: skip
SETUP_MINUTES = 2.0
SAMPLES_PER_SECOND = 146.0  # sentences of SENTENCE_TOKENS
SENTENCE_TOKENS = 40
TOKEN_BYTES = 4.5  # of English
ROW_BYTES = 1500  # of a text that has not been downloaded
ROWS = {"sst2": 67_349, "mrpc": 3_668, "cola": 8_551, "rte": 2_490, "qnli": 104_743, "qqp": 363_846, "mnli": 392_702}
UNKNOWN_ROWS = 20_000
# Bytes that a sparse checkpoint takes, as a share of dense float32: (sparsity, share), linear in between.
STORED = [(0.0, 1.0), (0.5, 0.441), (0.9, 0.093), (0.95, 0.049), (0.99, 0.012), (1.0, 0.0)]


@dataclass(frozen=True)
class Job:
    """One job of a study."""

    stage: str
    gpus: int  # 0: none; it still takes a slot of a node, or runs where the driver does
    minutes: float
    measured: bool
    bytes: int
    done: bool

    @property
    def nodes(self) -> int:
        """Whole nodes that a job of several GPUs keeps; 1 also for one that keeps a slot of a node."""
        return max(1, math.ceil(self.gpus / SLOTS))


@dataclass(frozen=True)
class Queue:
    """One row of what a batch system takes."""

    queue: str
    min_nodes: int
    max_nodes: int
    min_minutes: int
    max_minutes: int
    jobs: int
    note: str


@dataclass(frozen=True)
class Option:
    """One way to run what is left: `jobs` batch jobs of `nodes` nodes each."""

    queue: Queue
    jobs: int
    nodes: int
    minutes: float
    node_hours: float
    utilisation: float

    @property
    def walltime(self) -> int:
        """Minutes to ask for: a quarter more than it should take, in steps of 15, within what the queue takes."""
        steps = 15 * math.ceil(self.minutes * 1.25 / 15)
        return min(self.queue.max_minutes, max(self.queue.min_minutes, steps))


def queues(table: Path) -> list[Queue]:
    """Read the table of a site's queues."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = ("min_nodes", "max_nodes", "min_minutes", "max_minutes", "jobs")
    return [Queue(queue=row["queue"], note=row["note"], **{key: int(row[key]) for key in numbers}) for row in rows]


def stored(sparsity: str) -> float:
    """Bytes of a sparse checkpoint as a share of dense; sparsity as a config writes it."""
    removed = fraction(sparsity)
    for (low, more), (high, less) in itertools.pairwise(STORED):
        if low <= removed <= high:
            return more + (less - more) * (removed - low) / (high - low)
    raise ValueError(f"a sparsity lies in [0, 1], found {sparsity}")


def model_size(config: Config, model: str) -> tuple[float, float]:
    """Parameters and bytes of a model: what the config says, else assumed, until it has been downloaded."""
    found = _model_size(Path("resources/models") / model / MANIFEST)
    parameters = config.models[model].parameters or BASE
    return found or (parameters, 4 * parameters)


@cache
def _model_size(manifest: Path) -> tuple[float, float] | None:
    if not manifest.exists():
        return None
    found = read_json(manifest)
    size = sum(file["bytes"] for name, file in found["files"].items() if name.endswith(".safetensors"))
    return found["parameters"], size


def sentences(config: Config, task: str) -> float:
    """Training sentences of a task, or what a text comes to in them; assumed until it has been downloaded."""
    source = config.tasks[task].train_on or task
    manifest, limit = Path("resources/tasks") / source / MANIFEST, config.tasks[source].limit
    found = read_json(manifest) if manifest.exists() else None
    rows = found["rows"].get("train") if found else (limit and limit.train) or ROWS.get(source)
    rows = rows or UNKNOWN_ROWS
    if config.tasks[source].kind != "language-model":
        return float(rows)
    size = found["files"]["train.jsonl"]["bytes"] if found else rows * ROW_BYTES
    return float(size / TOKEN_BYTES / SENTENCE_TOKENS)


def minutes(
    config: Config, stage: str, model: str, *, task: str = "", recipe: str = "kept", method: str = ""
) -> tuple[float, bool]:
    """Minutes of one job, and whether they were measured."""
    if stage in ("finetune", "evaluate", "zero_shot"):
        found = _measured(stage, model, task, recipe)
        if found is not None:
            return found, True
    size = max(1.0, model_size(config, model)[0] / BASE)
    if stage == "finetune":
        passes = sentences(config, task) * config.finetune_settings(task, recipe)["epochs"]
        return SETUP_MINUTES + size * passes / SAMPLES_PER_SECOND / 60 / config.models[model].gpus, False
    return size * ASSUMED["calibrate" if method in CALIBRATED else stage], False


@cache
def _measured(stage: str, model: str, task: str, recipe: str) -> float | None:
    """Mean minutes of a model's finished jobs of a task that ran on a GPU."""
    pattern = f"{model}/*/{task}/{recipe}/*/runtime.json" if stage == "finetune" else f"{model}/*/{task}/runtime.json"
    found = [read_json(path) for path in sorted(Path("results").glob(pattern))]
    seconds = [
        sum(value for key, value in runtime.items() if key.endswith("_seconds"))
        for runtime in found
        if runtime["device"] != "cpu"
    ]
    return sum(seconds) / len(seconds) / 60 if seconds else None


def jobs(config: Config) -> list[Job]:
    """Every job of a study; what exists counts as done."""
    cells = config.cells()
    found: list[Job] = []

    def add(stage: str, output: Path, size: float, model: str, gpus: int = 0, **what: str) -> None:
        took, measured = minutes(config, stage, model, **what)
        found.append(Job(stage, gpus, took, measured, int(size), output.exists()))

    for model in dict.fromkeys(model for model, _ in cells.variants):
        add("download", Path("resources/models") / model / MANIFEST, model_size(config, model)[1], model)
    for task in config.wanted_tasks():
        done = (Path("resources/tasks") / task / MANIFEST).exists()
        found.append(Job("download", 0, ASSUMED["download"], False, 0, done))
    for model, variant in cells.variants:
        folder = Path("results") / model / str(variant)
        if not variant.is_dense:
            size = model_size(config, model)[1] * stored(variant.sparsity)
            gpus = int(variant.method in CALIBRATED)
            add("prune", folder / "sparsity.csv", size, model, gpus, method=variant.method)
        add("weights", folder / "weights.parquet", 0, model)
    for model, variant in cells.measured:
        add("measure", Path("results") / model / str(variant) / "cost.json", 0, model, 1)
    for evaluation in cells.evaluations:
        stage = "zero_shot" if config.tasks[evaluation.task].kind == "zero-shot" else "evaluate"
        add(stage, evaluation.folder / "metrics.json", 0, evaluation.model, 1, task=evaluation.task)
    for run in cells.runs:
        gpus, size = config.models[run.model].gpus, _work_bytes(config, run)
        add("finetune", run.folder / "metrics.json", size, run.model, gpus, task=run.task, recipe=run.recipe)
    return found


def _work_bytes(config: Config, run: Run) -> float:
    """Bytes that a run caches: the weights of every epoch, and two moments of the newest; a released mask fills up."""
    settings = config.finetune_settings(run.task, run.recipe)
    share = stored(run.variant.sparsity) if settings["mask"] == "kept" else 1.0
    return float(model_size(config, run.model)[1] * share * (settings["epochs"] + 2))


def pack(
    work: Iterable[Job], nodes: int, pilot_minutes: float = PILOT_MINUTES, job_minutes: float = JOB_MINUTES
) -> float:
    """Minutes until the last job has ended on so many nodes: longest first, jobs of several GPUs before the rest.

    No job may need more nodes than there are.
    """
    free = [pilot_minutes] * nodes
    heapq.heapify(free)
    ordered = sorted(work, key=lambda job: -job.minutes)
    for job in ordered:
        if job.gpus > 1:
            ready = [heapq.heappop(free) for _ in range(job.nodes)][-1]
            for _ in range(job.nodes):
                heapq.heappush(free, ready + job_minutes + job.minutes)
    slots = [time for time in free for _ in range(SLOTS)]
    heapq.heapify(slots)
    for job in ordered:
        if job.gpus <= 1:
            heapq.heapreplace(slots, slots[0] + job_minutes + job.minutes)
    return max(slots)


def gpu_hours(work: Iterable[Job]) -> float:
    """Hours that jobs keep a slot, all slots of their nodes those of several GPUs."""
    return sum(job.minutes * (SLOTS * job.nodes if job.gpus > 1 else 1) for job in work) / 60


def option(queue: Queue, count: int, nodes: int, work: Sequence[Job]) -> Option:
    """What `count` batch jobs of `nodes` nodes would take."""
    took = pack(work, count * nodes)
    hours = count * nodes * took / 60
    return Option(queue, count, nodes, took, hours, gpu_hours(work) / SLOTS / hours)


def options(table: Sequence[Queue], work: Sequence[Job]) -> list[Option]:
    """The best way on every queue that can take it all, in the order of the table.

    A run over several nodes takes all the nodes of a batch job: then each has as many as the widest needs.
    """
    widest = max(job.nodes for job in work)
    cheapest = option(table[0], 1, widest, work).node_hours
    best = []
    for queue in table:
        if widest > 1 and not queue.min_nodes <= widest <= queue.max_nodes:
            continue
        many = queue.jobs > 1 and queue.min_nodes == 1  # one-node jobs start as nodes become free, and end singly
        shapes = (
            [(count, widest) for count in range(1, queue.jobs + 1)]
            if many or widest > 1
            else [(1, nodes) for nodes in range(queue.min_nodes, min(queue.max_nodes, len(work)) + 1)]
        )
        found = [option(queue, count, nodes, work) for count, nodes in shapes]
        found = [way for way in found if way.minutes * 1.2 <= queue.max_minutes]
        thrifty = [way for way in found if way.node_hours <= HEADROOM * cheapest]
        if thrifty:
            best.append(min(thrifty, key=lambda way: (round(way.minutes), way.node_hours)))
        elif found and queue.queue not in {way.queue.queue for way in best}:
            best.append(min(found, key=lambda way: way.node_hours))
    return best


def recommend(ways: Sequence[Option]) -> Option | None:
    """The first queue of the table on which nothing is wasted; by request only is nobody's default."""
    usual = [way for way in ways if "by request" not in way.queue.note]
    thrifty = [way for way in usual if way.node_hours <= HEADROOM * min(other.node_hours for other in usual)]
    return next(iter(thrifty or usual), None)


def table(config: Config, site: Sequence[Queue]) -> str:
    """The plan of a study, as text."""
    every = jobs(config)
    lines = [f"Plan of {config.name}: what is left to do", ""]
    lines += _grid(
        ["stage", "jobs", "done", "minutes each", "GPU-hours", "GB", "from"],
        [
            _stage(stage, [job for job in every if job.stage == stage])
            for stage in dict.fromkeys(j.stage for j in every)
        ],
    )
    models = dict.fromkeys(model for model, _ in config.cells().variants)
    unknown = [
        model
        for model in models
        if config.models[model].parameters is None and not (Path("resources/models") / model / MANIFEST).exists()
    ]
    if unknown:
        lines += [
            "",
            f"taken for models of {BASE / 1e6:.0f} million parameters until they are downloaded (snakemake --cores 2 "
            f"--until download_model), or their `parameters` are given: {', '.join(unknown)}",
        ]
    work = [job for job in every if not job.done and job.stage != "download"]
    total = sum(job.bytes for job in every if not job.done)
    lines += ["", f"left: {len(work)} jobs in pools, {gpu_hours(work):.1f} GPU-hours, {total / 1e9:.0f} GB of disk"]
    if not work:
        return "\n".join([*lines, "Nothing is left to do in pools."])
    naive = sum((PILOT_MINUTES + job.minutes) * job.nodes for job in work) / 60
    lines += [f"one batch job for each of them would take {naive:.1f} node-hours", ""]
    sizes = sorted({job.nodes for job in work if job.nodes > 1})
    if len(sizes) > 1:
        told = " and others ".join(f"{nodes} nodes" for nodes in sizes)
        return "\n".join([*lines, f"gpus: some runs take {told}, but batch jobs are of one size: give each a study."])
    ways = options(site, work)
    lines += _grid(
        ["queue", "batch jobs", "nodes each", "minutes", "node-hours", "utilisation", "note"],
        [
            [
                way.queue.queue, way.jobs, way.nodes, f"{way.minutes:.0f}", f"{way.node_hours:.1f}",
                f"{way.utilisation:.0%}", way.queue.note,
            ]
            for way in ways
        ],
    )  # fmt: skip
    lines += ["", advice(recommend(ways), max(job.nodes for job in work))]
    return "\n".join(lines)


def advice(way: Option | None, widest: int = 1) -> str:
    """One line: what to write into the site's configuration file, and why; `widest`: nodes that one run takes."""
    if way is None and widest > 1:
        return f"No queue takes it all in batch jobs of {widest} nodes, which runs of that many need: lower `gpus`."
    if way is None:
        return "No queue takes all of it in one go: choose preemptable or prod, and run again what is left."
    hours, rest = divmod(way.walltime, 60)
    return (
        f'Recommended: QUEUE = "{way.queue.queue}", JOBS = {way.jobs}, NODES = {way.nodes}, '
        f'WALLTIME = "{hours:02d}:{rest:02d}:00": {way.minutes:.0f} minutes after the nodes have come it '
        f"is done, as soon as can be with at most {HEADROOM - 1:.0%} more node-hours than on "
        f"{'one node' if widest == 1 else f'{widest} nodes'}; of several such queues the first in the table"
    )


def _stage(stage: str, work: Sequence[Job]) -> list[Any]:
    left = [job for job in work if not job.done]
    each = sorted(job.minutes for job in work)
    span = f"{each[0]:.1f}" if each[0] == each[-1] else f"{each[0]:.1f}-{each[-1]:.1f}"
    measured = sum(job.measured for job in work)
    source = "assumed" if not measured else "measured" if measured == len(work) else f"{measured} measured"
    hours = "-" if stage == "download" else f"{gpu_hours(left):.1f}"
    return [stage, len(work), len(work) - len(left), span, hours, f"{sum(job.bytes for job in left) / 1e9:.1f}", source]


def _grid(head: Sequence[str], body: Sequence[Sequence[Any]]) -> list[str]:
    """Aligned columns; numbers to the right."""
    cells = [list(map(str, row)) for row in (head, *body)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    right = [column > 0 and column < len(head) - 1 for column in range(len(head))]
    return [
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
