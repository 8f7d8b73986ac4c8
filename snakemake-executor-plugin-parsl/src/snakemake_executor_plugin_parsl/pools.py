"""The Parsl side of the plugin: running pools, one task per Snakemake job, and what becomes of nodes and pilots.

This module imports Parsl, so only a run that starts jobs imports it.
"""

import re
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import parsl
from parsl.executors import HighThroughputExecutor
from parsl.executors.errors import BadStateException
from parsl.executors.high_throughput.errors import (
    CommandClientBadError,
    CommandClientTimeoutError,
    ManagerLost,
    WorkerLost,
)
from parsl.jobs.states import JobState, JobStatus

from snakemake_executor_plugin_parsl.config import load, repair, route
from snakemake_executor_plugin_parsl.drivers import Driver
from snakemake_executor_plugin_parsl.site import Site
from snakemake_executor_plugin_parsl.task import Outcome, run

FAST = 120  # seconds; a bad node fails jobs within this time
TOGETHER = 2  # failures that mark a node as bad, if no job has succeeded on it
PATIENCE = 30  # seconds to wait for the second failure
ANSWER = 60  # seconds in which an interchange has to answer
STARTS = 2  # deaths of workers on a node that has completed nothing, after which the run ends
LEAVE = 15  # seconds for pilots to end after they are deleted
TRY = 3  # seconds between two attempts to delete a pilot at the end


@dataclass
class Task:
    """One Snakemake job in a pool."""

    name: str
    label: str
    priority: float  # Parsl starts the lowest first
    seconds: float  # expected duration; 0: unknown
    command: str
    log: str
    future: Future[Outcome] | None = None
    begun: float | None = None  # when it was seen to run, of `time.monotonic`
    again_at: float | None = None
    lost: int = 0
    moved: bool = False


@dataclass
class Node:
    """State of a node, which runs one Parsl manager."""

    label: str = ""
    block: str = ""
    host: str = ""
    busy: int = 0
    slots: int = 0
    used: bool = False  # whether it was given a job
    good: bool = False  # whether a job of it succeeded
    held: bool = False
    suspects: list[tuple[Task, Outcome, float]] = field(default_factory=list)

    @property
    def works(self) -> bool:
        """Whether it is connected and runs jobs without failures, or has run them and their outcomes are on the way."""
        return bool(self.slots and self.used and not self.held and not self.suspects)


class Pools:
    """The running pools of a configuration file.

    Args:
        file: a Parsl configuration file, see `config.load`.
        site: what the file's function `config` is called with.
        gpus: numbers of GPUs that jobs use. A pool that no job needs is not started.
        again: maximum number of restarts of a job whose pilot was lost.
        say: prints one line to the user.

    Raises:
        ValueError: an error in the file, or another driver is alive; in one line.
    """

    def __init__(self, file: Path, site: Site, gpus: set[int], again: int, say: Callable[[str], None]) -> None:
        self.again, self.say = again, say
        config = load(file, site)
        every: dict[str, HighThroughputExecutor] = {executor.label: executor for executor in config.executors}
        try:
            needed = {route(every, count) for count in gpus}
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        self.executors = {label: executor for label, executor in every.items() if label in needed}
        config._executors = tuple(self.executors.values())
        self.driver = Driver(Path(config.run_dir), say)
        self.driver.take_over(every)
        for executor in self.executors.values():
            repair(executor)
            self.driver.record(executor)
        self.dfk = parsl.load(config)
        self.folder = Path(self.dfk.run_dir)
        self.nodes: dict[str, Node] = defaultdict(Node)
        self.lost = 0
        self.hurry = False  # set by a second signal: `close` waits for nothing
        self._pace = 1.0
        self._said: dict[tuple[str, str], str] = {}
        self._ended: set[tuple[str, str]] = set()

    def route(self, gpus: int) -> str:
        """The label of the pool for a job that uses `gpus` GPUs."""
        return route(self.executors, gpus)

    def start(self, task: Task) -> None:
        """Submit a task to its pool."""
        task.again_at = task.begun = None
        executor = self.executors[task.label]
        resources = {"priority": task.priority, "seconds": task.seconds}
        try:
            task.future = executor.submit(run, resources, task.command, str(Path.cwd()), task.log)
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
        manager = getattr(error, "manager_id", b"").decode()
        block = self.nodes[manager].block if manager in self.nodes else ""
        reason = self._verdict(task.label, block)
        loss = f"lost with {getattr(error, 'hostname', 'its node')}" + (f" ({reason})" if reason else "")
        if task.lost > self.again:
            fix = "raise parsl-minutes, or parsl-again for a job that resumes"
            raise LostError(f"{loss}, {task.lost} times; {fix}")
        self.say(f"parsl: {task.name}: {loss}; restart {task.lost} of at most {self.again}")
        has_ended = (task.label, block) in self._ended
        task.again_at = time.monotonic() + (0 if has_ended else self.executors[task.label].heartbeat_period)

    def _verdict(self, label: str, block: str) -> str:
        """The reason of a pilot's end, if the batch system gives one."""
        status = self.executors[label].status_facade.get(block)
        return status.message or "" if status is not None and status.terminal else ""

    def watch(self, running: list[Task], pace: float) -> list[tuple[Task, Outcome]]:
        """Check pilots and nodes. Call it every few seconds.

        Args:
            running: tasks that have not ended.
            pace: measured by expected duration of the tasks that have ended.

        Returns:
            Tasks with outcomes whose failures are not due to their node.

        Raises:
            PoolError: the interchange of a pool has died, or workers cannot start.
        """
        for node in self.nodes.values():
            node.busy = node.slots = 0
        numbers: set[tuple[str, int]] = set()
        for label, executor in self.executors.items():
            managers = self._ask(label, "MANAGERS")
            for manager in managers:
                node = self.nodes[manager["manager"]]
                node.label, node.block, node.host = label, manager["block_id"], manager["hostname"]
                node.slots = manager["worker_count"]
                node.busy = min(manager["tasks"], node.slots)
                node.used = manager["used"]
                numbers |= {(label, number) for number in manager["running"]}
                if node.busy and not node.good:
                    self._refuse_dying_workers(executor, node, manager["manager"])
            executor.unfit = sum(manager["unfit"] for manager in managers)
            if abs(pace / self._pace - 1) > 0.1:
                self._ask(label, ["PACE", pace])
            for block, status in list(executor.status_facade.items()):
                self._follow(label, block, status, {manager["block_id"] for manager in managers})
        self._pace = pace if abs(pace / self._pace - 1) > 0.1 else self._pace
        for task in running:
            number = getattr(task.future, "parsl_executor_task_id", -1)
            if task.begun is None and (task.label, number) in numbers:
                task.begun = time.monotonic()
        return self._judge_nodes()

    def _follow(self, label: str, block: str, status: JobStatus, connected: set[str]) -> None:
        """Say why a pilot waits or has ended, and give its tasks out again once the batch system says that it has."""
        job_id = self.executors[label].blocks_to_job_id.get(block)
        if status.message and status.state != JobState.SCALED_IN:
            reason = re.sub(r"^Failed to start block \d+: ", "", status.message)
            key = (label, block if job_id else "")
            if self._said.get(key) != reason:
                self._said[key] = reason
                verb = "" if status.terminal else " waits" if status.state == JobState.PENDING else ""
                who = f"pilot {job_id}{verb}" if job_id else f"no pilot for pool {label} yet"
                self.say(f"parsl: {who}: {reason}")
        if status.terminal and job_id and (label, block) not in self._ended:
            self._ended.add((label, block))
            if block in connected:
                self._ask(label, ["LOST", block])

    def _ask(self, label: str, command: str | list[Any]) -> Any:
        """The answer of the interchange of a pool. One that does not answer is killed."""
        executor = self.executors[label]
        if executor.interchange_proc.poll() is None:
            try:
                return executor.command_client.run(command, timeout_s=ANSWER)
            except (CommandClientTimeoutError, CommandClientBadError):
                executor.interchange_proc.kill()
                executor.interchange_proc.wait()  # `close` asks whether it is dead
        raise PoolError(f"the interchange of pool {label} has died; see {executor.logdir}/interchange.log")

    def _refuse_dying_workers(self, executor: HighThroughputExecutor, node: Node, manager: str) -> None:
        """End the run where workers die again and again before they do anything, as their manager restarts them.

        Raises:
            PoolError: with the end of a worker's log.
        """
        folder = Path(executor.worker_logdir) / f"block-{node.block}" / manager
        if _text(folder / "manager.log").count("was not busy when it died") < STARTS:
            return
        batch_job = executor.provider.resources.get(executor.blocks_to_job_id.get(node.block), {})
        files = [batch_job.get("job_stderr_path"), *sorted(folder.glob("worker_*.log"))]
        printed = [_text(Path(file)).strip() for file in files if file]
        last = next((text.splitlines()[-1] for text in printed if text), "nothing")
        raise PoolError(
            f"workers of pool {node.label} die on {node.host} before they run anything; the last words: {last}; check "
            f"cpu_affinity ({executor.cpu_affinity}) against the cores of a node, and see {folder}"
        )

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
        self._ask(task.label, ["HOLD_MANAGER", manager])
        self.say(
            f"parsl: node {outcome.host} is held back: its first {len(node.suspects)} jobs failed within "
            f"{outcome.seconds:.0f} s while other nodes work; they are moved to other nodes (see {task.log})"
        )

    def counts(self) -> dict[str, int]:
        """Numbers of slots and pilots. A pilot is up once a node of it is connected, whenever its state was asked."""
        connected = {(node.label, node.block) for node in self.nodes.values() if node.slots}
        waiting = [
            block
            for label, executor in self.executors.items()
            for block, status in executor.status_facade.items()
            if not status.terminal and (label, block) not in connected
        ]
        return {
            "busy": sum(node.busy for node in self.nodes.values()),
            "slots": sum(node.slots for node in self.nodes.values()),
            "pilots": len(connected),
            "waiting": len(waiting),
            "lost": self.lost,
        }

    def close(self) -> None:
        """Delete all pilots and wait until they have ended, for their tasks save their state."""
        pilots = {label: self._not_ended(executor) for label, executor in self.executors.items()}
        if all(executor.interchange_proc.poll() is None for executor in self.executors.values()):
            self.dfk.cleanup()  # it never returns if an interchange is dead
        for executor in self.executors.values():
            executor.provider.cancel(self._not_ended(executor))
            if executor.interchange_proc.poll() is None:
                executor.interchange_proc.kill()
        deadline = time.monotonic() + LEAVE
        while pilots := {label: left for label, each in pilots.items() if (left := self._living(label, each))}:
            if self.hurry or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        for label, left in pilots.items():
            said = {self.executors[label].provider.resources[pilot]["status"].message for pilot in left} - {None}
            self.say(f"parsl: pilots that have not ended yet: {', '.join(left)} {'; '.join(said)}".rstrip())
        self.driver.end(clean=not pilots)

    def _not_ended(self, executor: HighThroughputExecutor) -> list[str]:
        """Ids of the pilots of a pool that have not ended, as far as Parsl knows."""
        states = executor.status_facade
        return [
            pilot
            for block, pilot in executor.blocks_to_job_id.items()
            if block not in states or not states[block].terminal
        ]

    def _living(self, label: str, pilots: list[str]) -> list[str]:
        """The pilots among these that have not ended, as the batch system says now."""
        states = self.executors[label].provider.status(pilots)
        return [pilot for pilot, status in zip(pilots, states, strict=True) if not status.terminal]


class PoolError(Exception):
    """A pool can start no more jobs."""


class LostError(Exception):
    """A job lost its pilot more often than it may be restarted."""


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
