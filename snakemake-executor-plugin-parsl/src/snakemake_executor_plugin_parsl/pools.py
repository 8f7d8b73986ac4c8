"""The Parsl side of the plugin: the pools of a configuration file, and one task per Snakemake job.

This module imports Parsl, so only a run that starts jobs imports it.
"""

import os
import re
import runpy
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import parsl
from parsl.config import Config
from parsl.errors import ParslError
from parsl.executors import HighThroughputExecutor
from parsl.executors.errors import BadStateException
from parsl.executors.high_throughput.errors import (
    CommandClientBadError,
    CommandClientTimeoutError,
    ManagerLost,
    WorkerLost,
)
from parsl.executors.high_throughput.executor import DEFAULT_INTERCHANGE_LAUNCH_CMD
from parsl.jobs.states import JobState
from parsl.launchers import SimpleLauncher

from snakemake_executor_plugin_parsl import guard
from snakemake_executor_plugin_parsl.task import Outcome, run

# Labels of pools, in the order in which `route` tries them: workers with no GPU, one, several, those of several nodes.
LABELS = ("cpu", "gpu", "node", "nodes")
FAST = 120  # seconds; a bad node fails jobs within this time
TOGETHER = 2  # failures that mark a node as bad, if no job has succeeded on it
PATIENCE = 30  # seconds to wait for the second failure
ANSWER = 60  # seconds in which an interchange has to answer
MARGIN = 20  # seconds from a driver's last heartbeat to its end, and from a pilot's end to that of its processes


@dataclass
class Task:
    """One Snakemake job in a pool."""

    name: str
    label: str
    priority: float  # Parsl starts the lowest first
    command: str
    log: str
    future: Future[Outcome] | None = None
    again_at: float | None = None
    lost: int = 0
    moved: bool = False


@dataclass
class Node:
    """State of a node, which runs one Parsl manager."""

    block: str = ""
    busy: int = 0
    slots: int = 0
    good: bool = False
    held: bool = False
    suspects: list[tuple[Task, Outcome, float]] = field(default_factory=list)

    @property
    def works(self) -> bool:
        """Whether it is connected and runs jobs without failures."""
        return bool(self.slots and (self.good or self.busy) and not self.held and not self.suspects)


class Pools:
    """The running pools of a configuration file.

    Args:
        file: a Parsl configuration file, which sets `config`.
        gpus: numbers of GPUs that jobs use. A pool that no job needs is not started.
        again: maximum number of restarts of a job whose pilot was lost.
        say: prints one line to the user.

    Raises:
        ValueError: an error in the file, in one line.
    """

    def __init__(self, file: Path, gpus: set[int], again: int, say: Callable[[str], None]) -> None:
        self.again, self.say = again, say
        config = load(file)
        self.executors: dict[str, HighThroughputExecutor] = {executor.label: executor for executor in config.executors}
        try:
            needed = {self.route(count) for count in gpus}
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        self.executors = {label: executor for label, executor in self.executors.items() if label in needed}
        config._executors = tuple(self.executors.values())
        # Parsl finds its scripts by PATH, which lacks them if the environment was not activated.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        for executor in self.executors.values():
            protect(executor)
        self.threshold = max(executor.heartbeat_threshold for executor in self.executors.values())
        self.wait_for_an_earlier_driver(Path(config.run_dir))
        self.dfk = parsl.load(config)
        self.folder = Path(self.dfk.run_dir)
        self.nodes: dict[str, Node] = defaultdict(Node)
        self.lost = 0
        self._reported: set[tuple[str, str]] = set()

    def wait_for_an_earlier_driver(self, folder: Path) -> None:
        """Wait until the pilots of a killed driver have ended, so that no file has two writers.

        They end by themselves within their heartbeat threshold.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._pulse = folder / "driver-alive"
        try:
            last = self._pulse.stat().st_mtime
        except FileNotFoundError:
            last = None
        self._pulse.touch()
        if last is not None:  # both times are from the file system, as clocks of login nodes differ
            left = last + self.threshold + MARGIN - self._pulse.stat().st_mtime
            if left > 0:
                self.say(f"parsl: an earlier run was killed; waiting {left:.0f} s until its pilots have ended")
                time.sleep(left)

    def route(self, gpus: int) -> str:
        """The label of the pool for a job that uses `gpus` GPUs."""
        return route(self.executors, gpus)

    def start(self, task: Task) -> None:
        """Submit a task to its pool."""
        task.again_at = None
        executor = self.executors[task.label]
        try:
            task.future = executor.submit(run, {"priority": task.priority}, task.command, str(Path.cwd()), task.log)
        except Exception as error:
            raise PoolError(str(error)) from error

    def outcome(self, task: Task) -> Outcome | None:
        """The outcome of a task; None while it has not ended, or waits for a restart.

        Raises:
            PoolError: the pool has failed.
            LostError: the pilots of the task were lost more often than it may be restarted.
        """
        if task.again_at is not None:
            if time.monotonic() >= task.again_at:
                self.start(task)
            return None
        if task.future is None or not task.future.done():
            return None
        try:
            outcome = task.future.result()
        except (ManagerLost, WorkerLost) as error:
            self._again(task, error)
            return None
        except BadStateException as error:
            raise PoolError(str(self.executors[task.label].executor_exception or error)) from error
        node = self.nodes[outcome.manager]
        if outcome.code == 0:
            node.good = True
        elif not (node.good or task.moved or outcome.seconds > FAST):
            task.future = None
            node.suspects.append((task, outcome, time.monotonic()))
            return None
        return outcome

    def _again(self, task: Task, error: Exception) -> None:
        """Schedule the restart of a task whose pilot was lost, after the last of its processes must have ended."""
        self.lost += 1
        task.lost += 1
        node = getattr(error, "manager_id", b"").decode()
        reason = self._verdict(task.label, self.nodes[node].block if node in self.nodes else "")
        loss = f"lost with {getattr(error, 'hostname', 'its node')}" + (f" ({reason})" if reason else "")
        if task.lost > self.again:
            raise LostError(f"{loss}, for the {task.lost}th time")
        self.say(f"parsl: {task.name}: {loss}; restart {task.lost} of at most {self.again}")
        task.again_at = time.monotonic() + self.executors[task.label].heartbeat_period

    def _verdict(self, label: str, block: str) -> str:
        """The reason of a pilot's end, if the batch system gives one."""
        status = self.executors[label].status_facade.get(block)
        return status.message or "" if status is not None and status.terminal else ""

    def watch(self) -> list[tuple[Task, Outcome]]:
        """Check pilots and nodes. Call it every few seconds.

        Returns:
            Tasks with outcomes whose failures are not due to their node.

        Raises:
            PoolError: the interchange of a pool has died.
        """
        self._pulse.touch()
        for node in self.nodes.values():
            node.busy = node.slots = 0
        for label, executor in self.executors.items():
            for manager in self._managers(label):
                node = self.nodes[manager["manager"]]
                node.block, node.slots = manager["block_id"], manager["worker_count"]
                node.busy = min(manager["tasks"], node.slots)
            for block, status in list(executor.status_facade.items()):
                if status.terminal and status.message and status.state != JobState.SCALED_IN:
                    self._report(label, block, status.message)
        return self._judge_nodes()

    def _report(self, label: str, block: str, message: str) -> None:
        """Print the reason of a pilot's end once, and each reason for refused submissions once."""
        job_id = self.executors[label].blocks_to_job_id.get(block)
        reason = re.sub(r"^Failed to start block \d+: ", "", message)
        key = (label, block if job_id else reason)
        if key not in self._reported:
            self._reported.add(key)
            self.say(
                f"parsl: pilot {job_id}: {reason}" if job_id else f"parsl: no pilot for pool {label} yet: {reason}"
            )

    def _managers(self, label: str) -> list[dict[str, Any]]:
        """The managers that the interchange of a pool lists. An interchange that does not answer is killed."""
        executor = self.executors[label]
        if executor.interchange_proc.poll() is None:
            try:
                managers: list[dict[str, Any]] = executor.command_client.run("MANAGERS", timeout_s=ANSWER)
                return managers
            except (CommandClientTimeoutError, CommandClientBadError):
                executor.interchange_proc.kill()
        raise PoolError(f"the interchange of pool {label} has died; see {executor.logdir}/interchange.log")

    def _judge_nodes(self) -> list[tuple[Task, Outcome]]:
        """Hold back nodes on which jobs fail while other nodes work, and move each of their jobs once."""
        own: list[tuple[Task, Outcome]] = []
        for manager, node in self.nodes.items():
            if not node.suspects:
                continue
            others = any(other is not node and other.works for other in self.nodes.values())
            if node.good or not others:
                own += [(task, outcome) for task, outcome, _ in node.suspects]
            elif node.held or len(node.suspects) >= TOGETHER:
                self._hold(manager, node)
                for task, _, _ in node.suspects:
                    task.moved = True
                    self.start(task)
            elif time.monotonic() > node.suspects[0][2] + PATIENCE:
                own += [(task, outcome) for task, outcome, _ in node.suspects]
            else:
                continue
            node.suspects = []
        return own

    def _hold(self, manager: str, node: Node) -> None:
        if node.held:
            return
        node.held = True
        task, outcome, _ = node.suspects[0]
        self.executors[task.label]._hold_manager(manager)
        self.say(
            f"parsl: node {outcome.host} is held back: its first {len(node.suspects)} jobs failed within "
            f"{outcome.seconds:.0f} s while other nodes work; they are moved to other nodes (see {task.log})"
        )

    def close(self) -> None:
        """Delete all pilots."""
        if all(executor.interchange_proc.poll() is None for executor in self.executors.values()):
            self.dfk.cleanup()  # it never returns if an interchange is dead
        for executor in self.executors.values():
            left = [block for block, status in executor.status_facade.items() if not status.terminal]
            executor.provider.cancel([executor.blocks_to_job_id[block] for block in left])
            if executor.interchange_proc.poll() is None:
                executor.interchange_proc.kill()
        self._pulse.unlink(missing_ok=True)


class PoolError(Exception):
    """A pool can start no more jobs."""


class LostError(Exception):
    """A job lost its pilot more often than it may be restarted."""


def load(file: Path) -> Config:
    """Run a Parsl configuration file.

    Raises:
        ValueError: one line with the file, the error and the fix.
    """
    if not file.is_file():
        raise ValueError(f"{file}: not found; parsl-config in the profile names a Parsl configuration file")
    try:
        config = runpy.run_path(str(file)).get("config")
    except (ParslError, OSError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(config, Config):
        raise ValueError(f"{file}: sets no `config = parsl.config.Config(...)`")
    if others := [executor.label for executor in config.executors if not isinstance(executor, HighThroughputExecutor)]:
        raise ValueError(f"{file}: {others[0]} is not a HighThroughputExecutor")
    return config


def route(executors: Mapping[str, HighThroughputExecutor], gpus: int) -> str:
    """The label of the first pool whose workers have enough GPUs for a job.

    A pool that pins no GPUs takes any job, unless its label is `cpu`.

    Raises:
        ValueError: no pool has enough GPUs per worker.
    """
    has = {label: devices(executor) for label, executor in executors.items()}
    for label in sorted(has, key=lambda label: LABELS.index(label) if label in LABELS else len(LABELS)):
        enough = has[label] == gpus if span(executors[label]) > 1 else has[label] >= gpus
        if gpus == 0 or (enough if has[label] else label != "cpu"):
            return label
    raise ValueError(
        f"gpus: a job uses {gpus}, but no pool has workers of so many "
        f"({', '.join(f'{label}: {count}' for label, count in has.items())}); change `gpus` of its model, or the nodes "
        "of a batch job: a run over several nodes uses all of them"
    )


def devices(executor: HighThroughputExecutor) -> int:
    """GPUs of each worker of a pool; 0 if it pins none."""
    return span(executor) * min((len(name.split(",")) for name in executor.available_accelerators), default=0)


def span(executor: HighThroughputExecutor) -> int:
    """Nodes of each worker of a pool: all of its block if the block starts a single manager, otherwise 1."""
    alone = isinstance(getattr(executor.provider, "launcher", None), SimpleLauncher)
    return executor.provider.nodes_per_block if alone else 1


def protect(executor: HighThroughputExecutor) -> None:
    """Work around three faults of Parsl's executor, in place.

    - Its interchange outlives a killed driver and keeps starting jobs: it is tied to the driver.
    - When the slots outnumber the jobs by less than a pilot, Parsl asks to remove 0 pilots, and the executor then
      removes all that are queued: such calls are ignored.
    - Parsl counts one slot per node even where one worker has all nodes of a block: `parallelism` makes up for it.
    """
    executor.provider.parallelism *= span(executor)
    scale_in = executor.scale_in
    executor.scale_in = lambda blocks, *args, **kwargs: scale_in(blocks, *args, **kwargs) if blocks > 0 else []
    if executor.interchange_launch_cmd == DEFAULT_INTERCHANGE_LAUNCH_CMD:
        script = Path(sys.executable).parent / DEFAULT_INTERCHANGE_LAUNCH_CMD[0]
        executor.interchange_launch_cmd = [sys.executable, "-I", guard.__file__, sys.executable, str(script)]


def summary(pools: Pools) -> dict[str, Any]:
    """Counts of slots and pilots."""
    states = [status.state for executor in pools.executors.values() for status in executor.status_facade.values()]
    return {
        "busy": sum(node.busy for node in pools.nodes.values()),
        "slots": sum(node.slots for node in pools.nodes.values()),
        "pilots": states.count(JobState.RUNNING),
        "waiting": states.count(JobState.PENDING),
        "lost": pools.lost,
    }
