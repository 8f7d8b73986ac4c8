"""Snakemake executor plugin: runs jobs as Parsl tasks in pilot jobs, one job per device, longest first.

Snakemake imports this module at every start, dry runs included, so Parsl is imported only when jobs are executed.
"""

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

from snakemake_executor_plugin_parsl.progress import Job, Progress, line
from snakemake_executor_plugin_parsl.site import Site, whole


@dataclass
class ExecutorSettings(ExecutorSettingsBase):  # type: ignore[misc]
    """Settings of the plugin, from the command line or a profile.

    Numbers of the site are text, so that a mistake is one line instead of a page of usage.
    """

    config: Path | None = field(
        default=None,
        metadata={
            "help": "Parsl configuration file: Python code that sets `config`, to a parsl.config.Config or to a "
            "function of a snakemake_executor_plugin_parsl.site.Site, which holds the five settings that follow.",
            "required": True,
            "type": Path,
        },
    )
    account: str = field(default="", metadata={"help": "Project that is charged for the pilots.", "type": str})
    queue: str = field(default="", metadata={"help": "Queue or partition of the pilots.", "type": str})
    pilots: str = field(default="1", metadata={"help": "Maximum number of pilots at once.", "type": str})
    nodes: str = field(default="1", metadata={"help": "Nodes of each pilot.", "type": str})
    minutes: str = field(default="60", metadata={"help": "Walltime of each pilot, in minutes.", "type": str})
    again: int = field(
        default=5,
        metadata={"help": "Maximum number of restarts of a job whose pilot was preempted or lost.", "type": int},
    )
    status: int = field(default=60, metadata={"help": "Seconds between two lines of progress.", "type": int})

    def site(self) -> Site:
        """The settings of the site.

        Raises:
            ValueError: one of them is no number; in one line.
        """
        numbers = {name: whole(name, getattr(self, name)) for name in ("pilots", "nodes", "minutes")}
        return Site(account=str(self.account or ""), queue=str(self.queue or ""), **numbers)


common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    auto_deploy_default_storage_provider=False,
)

WATCH = 5  # seconds between two checks of pilots and nodes
HEED = 5  # seconds for the main thread to heed a signal
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Executor(RemoteExecutor):  # type: ignore[misc]
    """Submits jobs to the pools of a Parsl configuration file."""

    _pools: Any = None  # read by the thread that checks jobs before __post_init__ runs
    _broken = _closed = False
    _signals = 0

    def __post_init__(self) -> None:
        """Load the pools, in the main thread: Parsl ends its processes with the thread that started them."""
        from snakemake_executor_plugin_parsl.pools import Pools

        settings = self.workflow.executor_settings
        self._lengths: dict[Any, float] = {}
        self._progress = Progress()
        self._usual: dict[int, Any] = {}  # handlers of signals
        self._signalled, written = os.pipe()  # the number of each signal as a byte
        self._unheeded = 0.0  # when a signal was seen that has not ended the run yet
        for end in (self._signalled, written):
            os.set_blocking(end, False)
        if in_main_thread():
            signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        self._watched = self._reported = 0.0
        self.next_seconds_between_status_checks = 1  # futures are checked, no batch system is queried
        outlive_readers()
        try:
            gpus = {_number(job, "gpu") for job in self.dag.needrun_jobs() if not job.is_local}
            if gpus:  # otherwise all remaining jobs are local and no pilot is needed
                self._pools = Pools(settings.config, settings.site(), gpus, settings.again, self.logger.info)
        except ValueError as error:
            self.shutdown()
            sys.exit(f"error: {error}")
        self._handle_signals()

    def run_jobs(self, jobs: list[Any]) -> None:
        """Submit jobs, longest first: a free slot takes the first job of the queue."""
        self._handle_signals()  # Snakemake's scheduler, made after this object, has set its own
        self._lengths.clear()  # a checkpoint may have added jobs
        never = self._never()
        self._progress.left = {
            job: Job(_number(job, "runtime") * 60, self._length(job) * 60)
            for job in self.dag.needrun_jobs()
            if not job.is_local and not self.dag.finished(job) and job not in never
        }
        super().run_jobs(sorted(jobs, key=self._length, reverse=True))

    def run_job(self, job: Any) -> None:
        """Submit a job to the first pool with enough GPUs per worker."""
        from snakemake_executor_plugin_parsl.pools import PoolError, Task

        name = " ".join([job.name, *map(str, job.wildcards)]) if not job.is_group() else str(job)
        log = self._pools.folder / "jobs" / f"{job.name}-{job.jobid}-{job.attempt}.log"
        try:
            task = Task(
                name=name,
                label=self._pools.route(_number(job, "gpu")),
                priority=-self._length(job),
                seconds=_number(job, "runtime") * 60,
                command=self.format_job_exec(job),
                log=str(log),
            )
            self.report_job_submission(SubmittedJobInfo(job, aux={"task": task}))
            self._pools.start(task)
        except (PoolError, ValueError) as error:
            self._give_up(error)

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Report jobs that have ended, yield all others, and check the pools every WATCH seconds."""
        from snakemake_executor_plugin_parsl.pools import LostError, PoolError

        if self._pools is None or self._broken or self._closed:
            return
        own: dict[int, Any] = {}
        try:
            self._insist_on_signals()
            if time.monotonic() > self._watched + WATCH:
                tasks = [info.aux["task"] for info in active_jobs]
                own = {id(task): outcome for task, outcome in self._pools.watch(tasks, self._progress.pace)}
                self._watched = time.monotonic()
            for info in active_jobs:
                task = info.aux["task"]
                try:
                    outcome = own.get(id(task)) or self._pools.outcome(task)
                except LostError as error:
                    self._failed(info, str(error))
                    continue
                if outcome is None:
                    yield info
                elif outcome.code == 0:
                    self._progress.end(_members(info.job), outcome.seconds)
                    self.report_job_success(info)
                else:
                    logs = [Path(log) for log in info.job.log]
                    reason = outcome.reason or why(
                        outcome.code, Path(task.log), logs, out_of_memory=outcome.out_of_memory
                    )
                    self._failed(info, f"{reason}, on {outcome.host} after {outcome.seconds:.0f} s")
            if time.monotonic() > self._reported + self.workflow.executor_settings.status:
                self._reported = time.monotonic()
                begun = {
                    member: info.aux["task"].begun
                    for info in active_jobs
                    if info.aux["task"].begun is not None
                    for member in _members(info.job)
                    if member in self._progress.left
                }
                submitted = sum(len(_members(info.job)) for info in active_jobs)
                status = line(self._progress, begun, submitted, self._pools.counts())
                self.logger.info(status, extra={"status": status})
        except PoolError as error:
            self._give_up(error)

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Do nothing: Snakemake calls `shutdown` next, which deletes the pilots and with them all jobs."""

    def shutdown(self) -> None:
        """Delete all pilots."""
        super().shutdown()
        if self._pools is not None and not self._closed:
            self._closed = True
            self._pools.close()
        if in_main_thread() and not self._signals:  # after a signal, another one must not keep Snakemake from unlocking
            for number, usual in self._usual.items():
                signal.signal(number, usual)

    def _handle_signals(self) -> None:
        """Let SIGTERM and SIGHUP end a run as Ctrl-C does."""
        for number in ENDS if in_main_thread() else ():
            usual = signal.getsignal(number)
            if usual not in (None, signal.SIG_IGN, self._interrupt):  # nohup ignores SIGHUP
                self._usual[number] = usual
                signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: Any) -> None:
        """The first signal ends the run; with the second, nothing waits for pilots; the third kills the driver."""
        self._signals += 1
        if self._signals == 1:
            raise KeyboardInterrupt
        if self._pools is not None:
            self._pools.hurry = True
        signal.signal(number, signal.SIG_DFL)

    def _insist_on_signals(self) -> None:
        """End a run that a signal should have ended.

        The main thread sleeps on if the kernel hands the signal to another thread, and Snakemake's log handler ignores
        a KeyboardInterrupt while it prints.

        Raises:
            PoolError: a signal came HEED seconds ago.
        """
        from snakemake_executor_plugin_parsl.pools import PoolError

        with contextlib.suppress(BlockingIOError):
            if set(os.read(self._signalled, 100)) & set(ENDS):
                self._unheeded = self._unheeded or time.monotonic()
        if self._unheeded and time.monotonic() > self._unheeded + HEED:
            raise PoolError("interrupted by a signal")

    def _failed(self, info: SubmittedJobInfo, reason: str) -> None:
        """Report a failed job with its reason in one line, which `--quiet` does not hide."""
        task = info.aux["task"]
        logs = ", ".join([*map(str, info.job.log), task.log])
        self.logger.error(f"parsl: {task.name} failed: {reason}; see {logs}")
        if info.job.attempt > info.job.restart_times:  # otherwise Snakemake tries it again
            self._progress.end(_members(info.job), None)
        self.report_job_error(info)

    def _give_up(self, error: Exception) -> None:
        if not self._broken:
            self._broken = True
            self.logger.error(f"error: {error}")
            self.workflow.scheduler.executor_error_callback(WorkflowError(str(error)))

    def _never(self) -> set[Any]:
        """Jobs that have failed, and all that depend on them."""
        never: set[Any] = set()
        found = [member for job in self.workflow.scheduler.failed for member in _members(job)]
        while found:
            if (job := found.pop()) not in never:
                never.add(job)
                found += self.dag.depending.get(job, ())
        return never

    def _length(self, job: Any) -> float:
        """Minutes of the longest chain of dependent jobs that starts with this one; it is the priority."""
        if job not in self._lengths:
            members = _members(job)
            waiting = {
                after
                for member in members
                for after in self.dag.depending.get(member, ())
                if self.dag.needrun(after) and after not in members
            }
            self._lengths[job] = _number(job, "runtime") + max(map(self._length, waiting), default=0.0)
        return self._lengths[job]


def _members(job: Any) -> list[Any]:
    """The jobs of a group; a job alone."""
    return list(job.jobs) if job.is_group() else [job]


def _number(job: Any, resource: str) -> int:
    value = job.resources.get(resource, 0)
    return value if isinstance(value, int) else 0


def in_main_thread() -> bool:
    """Whether signals can be handled here."""
    return threading.current_thread() is threading.main_thread()


def outlive_readers() -> None:
    """Let output that nobody reads be lost: after Ctrl-C, `| tee` is gone before the pilots are deleted."""

    def patient(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except OSError:
                return None

        return call

    for stream in (sys.stdout, sys.stderr):
        stream.write, stream.flush = patient(stream.write), patient(stream.flush)  # type: ignore[method-assign]


def why(code: int, spawned: Path, logs: list[Path], *, out_of_memory: bool = False) -> str:
    """The reason of a failure: the error message of the job, or its exit code.

    Args:
        code: exit code of the Snakemake that ran the job, which is not that of the job.
        spawned: output of that Snakemake.
        logs: of the job.
        out_of_memory: whether the kernel killed a process of the job's control group because memory ran out.
    """
    printed = "\n".join(_tail(log) for log in logs)
    if errors := re.findall(r"^error: (.+)$", printed, re.MULTILINE):
        return str(errors[-1])
    if out_of_memory or "out of memory" in printed.lower() or "MemoryError" in printed:
        return "out of memory"
    text = _tail(spawned)
    if killed := re.search(r"died with <Signals\.(\w+)", text):
        return f"killed ({killed.group(1)})"
    if exit_code := re.search(r"returned non-zero exit status (\d+)", text):
        number = int(exit_code.group(1))
        return "killed (SIGKILL)" if number == 128 + signal.SIGKILL else f"exit code {number}"
    if "MissingOutputException" in text:
        return "it ended without writing all of its outputs"
    return f"exit code {code}"


def _tail(path: Path, size: int = 8000) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
