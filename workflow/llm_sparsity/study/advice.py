"""Advice for a site: the queue, batch jobs, nodes and walltime with which a set of jobs costs few node-hours.

A table of the site's queues and a simulation of the packing of jobs onto nodes are all that it needs. Nothing here
depends on what the jobs compute.
"""

import csv
import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.study.plan import Job, plain_table

PILOT_MINUTES = 1.5  # from the start of a batch job to its first job
JOB_MINUTES = 0.3  # from a free slot to the first step of the next job
HEADROOM = 1.2  # node-hours allowed for a faster finish, relative to the cheapest choice
RESERVE = 1.2  # minutes that a queue must allow, relative to the simulated minutes
WALLTIME_STEP = 15  # minutes


@dataclass(frozen=True)
class Queue:
    """A row of the table of queues: the GPUs of a node, the limits of one batch job, and how many are allowed at once.

    A queue whose note has the words "by request" is never recommended.
    """

    queue: str
    gpus: int
    min_nodes: int
    max_nodes: int
    min_minutes: int
    max_minutes: int
    jobs: int
    note: str

    @property
    def is_by_request(self) -> bool:
        """Whether the site opens it on request only."""
        return "by request" in self.note

    def nodes(self, job: Job) -> int:
        """Whole nodes that a job of several GPUs occupies; 1 for a job that occupies one slot."""
        return max(1, math.ceil(job.gpus / self.gpus))


@dataclass(frozen=True)
class Option:
    """A choice: `jobs` batch jobs of `nodes` nodes each in a queue, for each pool, with its cost."""

    queue: Queue
    jobs: int
    nodes: int
    minutes: float
    node_hours: float
    utilisation: float

    @property
    def walltime(self) -> int:
        """Minutes to request: 25 % more than simulated, in steps of 15, within the limits of the queue."""
        steps = WALLTIME_STEP * math.ceil(self.minutes * 1.25 / WALLTIME_STEP)
        return min(self.queue.max_minutes, max(self.queue.min_minutes, steps))


def queues(table: Path) -> list[Queue]:
    """Read the table of a site's queues (CSV, columns as in `Queue`).

    Raises:
        UserError: the file is no such table.
    """
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{table}: no table of queues: {error}") from None
    if not rows:
        raise UserError(f"{table}: has no row; write one for each queue, below a line with the columns' names")
    return [_queue(row, f"{table}: row {number}") for number, row in enumerate(rows, start=1)]


def _queue(row: dict[str, str | None], where: str) -> Queue:
    values: dict[str, str | int] = {}
    for column in fields(Queue):
        text = (row.get(column.name) or "").strip()
        if row.get(column.name) is None:
            raise UserError(f"{where}: no column {column.name}; it has {', '.join(map(str, row))}")
        if column.type is int and not (text.isdecimal() and int(text)):
            raise UserError(f"{where}: {column.name}: found {text!r}; write a whole number from 1")
        values[column.name] = int(text) if column.type is int else text
    return Queue(**values)  # type: ignore[arg-type]


def slot_hours(work: Iterable[Job], queue: Queue) -> float:
    """Hours for which jobs occupy slots; a job of several GPUs occupies all slots of its nodes."""
    return sum(job.minutes * (queue.gpus * queue.nodes(job) if job.gpus > 1 else 1) for job in work) / 60


def pack(
    work: Iterable[Job],
    count: int,
    queue: Queue,
    pilot_minutes: float = PILOT_MINUTES,
    job_minutes: float = JOB_MINUTES,
) -> float:
    """Minutes until the last job ends on `count` nodes: longest first, jobs of several GPUs before all others.

    No job may need more than `count` nodes.
    """
    free = [pilot_minutes] * count
    heapq.heapify(free)
    ordered = sorted(work, key=lambda job: -job.minutes)
    for job in ordered:
        if job.gpus > 1:
            ready = [heapq.heappop(free) for _ in range(queue.nodes(job))][-1]
            for _ in range(queue.nodes(job)):
                heapq.heappush(free, ready + job_minutes + job.minutes)
    slots = [time for time in free for _ in range(queue.gpus)]
    heapq.heapify(slots)
    for job in ordered:
        if job.gpus <= 1:
            heapq.heapreplace(slots, slots[0] + job_minutes + job.minutes)
    return max(slots)


def option(queue: Queue, jobs: int, nodes_each: int, work: Sequence[Job]) -> Option:
    """Simulate `jobs` batch jobs of `nodes_each` nodes in each pool that is needed: for a GPU, a node, several nodes.

    Each pool requests its own batch jobs. Where the queue does not allow all of them at once, pools wait for others.
    """
    pools: dict[int, list[Job]] = {}
    for job in work:
        pools.setdefault(queue.nodes(job) if job.gpus > 1 else 0, []).append(job)
    times = [pack(mine, jobs * nodes_each, queue) for mine in pools.values()]
    minutes = max(times) if jobs * len(times) <= queue.jobs else sum(times)
    hours = jobs * nodes_each * sum(times) / 60
    return Option(queue, jobs, nodes_each, minutes, hours, slot_hours(work, queue) / queue.gpus / hours)


def options(table: Sequence[Queue], work: Sequence[Job]) -> list[Option]:
    """The best option of each queue that can finish all jobs, in the order of the table.

    A job of several nodes occupies all nodes of a batch job, so batch jobs then have as many nodes as it needs.
    """
    best: list[Option] = []
    for queue in table:
        widths = _widths(queue, work)
        widest = max(widths, default=1)
        if len(widths) > 1 or (widths and not queue.min_nodes <= widest <= queue.max_nodes):
            continue
        # One-node batch jobs start as soon as a node is free, and each ends by itself.
        several = queue.jobs > 1 and queue.min_nodes == 1
        most = max(queue.min_nodes, min(queue.max_nodes, len(work)))
        shapes = (
            [(count, widest) for count in range(1, queue.jobs + 1)]
            if several or widest > 1
            else [(1, count) for count in range(queue.min_nodes, most + 1)]
        )
        found = [option(queue, jobs, count, work) for jobs, count in shapes]
        found = [choice for choice in found if choice.minutes * RESERVE <= queue.max_minutes]
        cheapest = option(queue, 1, widest, work).node_hours
        thrifty = [choice for choice in found if choice.node_hours <= HEADROOM * cheapest]
        if thrifty:
            best.append(min(thrifty, key=lambda choice: (round(choice.minutes), choice.node_hours)))
        elif found and queue.queue not in {choice.queue.queue for choice in best}:
            best.append(min(found, key=lambda choice: choice.node_hours))
    return best


def _widths(queue: Queue, work: Iterable[Job]) -> list[int]:
    """The numbers of nodes that jobs of several nodes need in a queue."""
    return sorted({queue.nodes(job) for job in work} - {1})


def recommend(choices: Sequence[Option]) -> Option | None:
    """The first thrifty option in the order of the table. Queues that need a request are never recommended."""
    usual = [choice for choice in choices if not choice.queue.is_by_request]
    thrifty = [choice for choice in usual if choice.node_hours <= HEADROOM * min(other.node_hours for other in usual)]
    return next(iter(thrifty or usual), None)


def advise(jobs: Iterable[Job], table: Sequence[Queue]) -> str:
    """The options for the jobs that are left, and a recommendation, as text.

    Args:
        jobs: all jobs of a study; finished and local ones are ignored.
        table: of the site's queues, see `queues`.
    """
    work = [job for job in jobs if not job.done and not job.local]
    if not work:
        return "Nothing is left to do in pools."
    separate = sum((PILOT_MINUTES + job.minutes) * table[0].nodes(job) for job in work) / 60
    head = f"left: {len(work)} jobs in pools; one batch job for each of them would take {separate:.1f} node-hours"
    if all(len(_widths(queue, work)) > 1 for queue in table):
        found = " and others ".join(f"{width} nodes" for width in _widths(table[0], work))
        return f"{head}\ngpus: some runs take {found}, but all batch jobs have the same size; give each its own study."
    choices = options(table, work)
    columns = ["queue", "batch jobs", "nodes each", "minutes", "node-hours", "utilisation", "note"]
    rows = [
        [
            choice.queue.queue, choice.jobs, choice.nodes, f"{choice.minutes:.0f}", f"{choice.node_hours:.1f}",
            f"{choice.utilisation:.0%}", choice.queue.note,
        ]
        for choice in choices
    ]  # fmt: skip
    best = recommend(choices)
    return "\n".join([head, "", plain_table(rows, columns), "", _settings(best, work) if best else _none(table, work)])


def _settings(choice: Option, work: Iterable[Job]) -> str:
    """Settings of the executor plugin, as lines to paste into a profile, and the reason."""
    least = max(_widths(choice.queue, work), default=1)
    return (
        "Recommended, for config.yaml of the profile:\n\n"
        f"parsl-queue: {choice.queue.queue}\nparsl-pilots: {choice.jobs}\nparsl-nodes: {choice.nodes}\n"
        f"parsl-minutes: {choice.walltime}\n\n"
        f"All jobs end {choice.minutes:.0f} minutes after the nodes have started, the fastest choice with at most "
        f"{HEADROOM - 1:.0%} more node-hours than {'one node' if least == 1 else f'{least} nodes'} would take; the "
        "first such queue of the table."
    )


def _none(table: Sequence[Queue], work: Sequence[Job]) -> str:
    """What to do where no queue can finish all jobs."""
    widest = {queue: max(map(queue.nodes, work)) for queue in table}
    wide = [queue for queue in table if widest[queue] <= queue.max_nodes]
    if not wide:
        return f"No queue has the {min(widest.values())} nodes of the widest job: lower `gpus`."
    longest = max(job.minutes for job in work)
    long = [queue.queue for queue in wide if longest * RESERVE <= queue.max_minutes and not queue.is_by_request]
    if not long:
        most = max(queue.max_minutes for queue in wide)
        return f"No queue has the {longest:.0f} minutes of the longest job, but at most {most}: give it more GPUs."
    names = " or ".join(dict.fromkeys(long))
    return f"No queue can finish all jobs at once: choose {names}, and repeat the command for the rest."
