"""Snakemake executor plugin: runs jobs as Parsl tasks in pilot jobs, one job per device, longest first.

Snakemake imports this module at every start, dry runs included, so Parsl is imported only when jobs are executed.
"""

import re
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase


@dataclass
class ExecutorSettings(ExecutorSettingsBase):  # type: ignore[misc]
    """Settings of the plugin, from the command line or a profile."""

    config: Path | None = field(
        default=None,
        metadata={"help": "Parsl configuration file: Python code that sets `config`.", "required": True, "type": Path},
    )
    again: int = field(
        default=5,
        metadata={"help": "Maximum number of restarts of a job whose pilot was preempted or lost.", "type": int},
    )
    status: int = field(default=60, metadata={"help": "Seconds between two lines of progress.", "type": int})


common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    auto_deploy_default_storage_provider=False,
)

WATCH = 5  # seconds between two checks of pilots and nodes


class Executor(RemoteExecutor):  # type: ignore[misc]
    """Submits jobs to the pools of a Parsl configuration file."""

    _pools: Any = None  # read by the thread that checks jobs before __post_init__ runs
    _broken = False

    def __post_init__(self) -> None:
        """Load the pools, in the main thread: Parsl ends its processes with the thread that started them."""
        from snakemake_executor_plugin_parsl.pools import Pools
        from snakemake_logger_plugin_progress.progress import Progress

        settings = self.workflow.executor_settings
        self._lengths: dict[Any, float] = {}
        self._watched = self._reported = 0.0
        self.next_seconds_between_status_checks = 1  # futures are checked, no batch system is queried
        try:
            jobs = [job for job in self.dag.needrun_jobs() if not job.is_local]
            gpus = {_number(job, "gpu") for job in jobs}
            if jobs:  # otherwise all remaining jobs are local and no pilot is needed
                self._pools = Pools(settings.config, gpus, settings.again, self.logger.info)
        except ValueError as error:
            self.shutdown()
            sys.exit(f"error: {error}")
        self._progress = Progress(Counter(job.name for job in jobs))

    def run_jobs(self, jobs: list[Any]) -> None:
        """Submit jobs, longest first: a free slot takes the first job of the queue."""
        super().run_jobs(sorted(jobs, key=self._length, reverse=True))

    def run_job(self, job: Any) -> None:
        """Submit a job to the first pool with enough GPUs per worker."""
        from snakemake_executor_plugin_parsl.pools import PoolError, Task
        from snakemake_logger_plugin_progress.progress import Job

        name = " ".join([job.name, *map(str, job.wildcards)]) if not job.is_group() else str(job)
        log = self._pools.folder / "jobs" / f"{job.name}-{job.jobid}-{job.attempt}.log"
        task = Task(
            name=name,
            label=self._pools.route(_number(job, "gpu")),
            priority=-self._length(job),
            command=self.format_job_exec(job),
            log=str(log),
        )
        self._progress.start(job.jobid, Job(job.name, minutes=_number(job, "runtime"), begun=None))
        self.report_job_submission(SubmittedJobInfo(job, aux={"task": task}))
        try:
            self._pools.start(task)
        except PoolError as error:
            self._give_up(error)

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Report jobs that have ended, yield all others, and check the pools every WATCH seconds."""
        from snakemake_executor_plugin_parsl.pools import LostError, PoolError, summary
        from snakemake_executor_plugin_parsl.progress import line

        if self._pools is None or self._broken:
            return
        own: dict[int, Any] = {}
        try:
            if time.monotonic() > self._watched + WATCH:
                own = {id(task): outcome for task, outcome in self._pools.watch()}
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
                    self._progress.end(info.job.jobid, outcome.seconds)
                    self.report_job_success(info)
                else:
                    reason = why(outcome.code, Path(task.log), [Path(log) for log in info.job.log])
                    self._failed(info, f"{reason}, on {outcome.host} after {outcome.seconds:.0f} s")
            if time.monotonic() > self._reported + self.workflow.executor_settings.status:
                self._reported = time.monotonic()
                status = line(self._progress, summary(self._pools))
                self.logger.info(status, extra={"status": status})
        except PoolError as error:
            self._give_up(error)

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Do nothing: Snakemake calls `shutdown` next, which deletes the pilots and with them all jobs."""

    def shutdown(self) -> None:
        """Delete all pilots."""
        super().shutdown()
        if self._pools is not None:
            pools, self._pools = self._pools, None
            pools.close()

    def _failed(self, info: SubmittedJobInfo, reason: str) -> None:
        """Report a failed job with its reason in one line, which `--quiet` does not hide."""
        task = info.aux["task"]
        logs = ", ".join([*map(str, info.job.log), task.log])
        self.logger.error(f"parsl: {task.name} failed: {reason}; see {logs}")
        self._progress.end(info.job.jobid, None)
        self.report_job_error(info)

    def _give_up(self, error: Exception) -> None:
        if not self._broken:
            self._broken = True
            self.logger.error(f"error: {error}")
            self.workflow.scheduler.executor_error_callback(WorkflowError(str(error)))

    def _length(self, job: Any) -> float:
        """Minutes of the longest chain of dependent jobs that starts with this one; it is the priority."""
        if job not in self._lengths:
            waiting = [after for after in self.dag.depending[job] if self.dag.needrun(after)]
            self._lengths[job] = _number(job, "runtime") + max(map(self._length, waiting), default=0.0)
        return self._lengths[job]


def _number(job: Any, resource: str) -> int:
    value = job.resources.get(resource, 0)
    return value if isinstance(value, int) else 0


def why(code: int, spawned: Path, logs: list[Path]) -> str:
    """The reason of a failure: the error message of the job, or its exit code.

    Args:
        code: exit code of the Snakemake that ran the job, which is not that of the job.
        spawned: output of that Snakemake.
        logs: of the job.
    """
    printed = "\n".join(_tail(log) for log in logs)
    if errors := re.findall(r"^error: (.+)$", printed, re.MULTILINE):
        return str(errors[-1])
    if "out of memory" in printed.lower() or "MemoryError" in printed:
        return "out of memory"
    text = _tail(spawned)
    if killed := re.search(r"died with <Signals\.(\w+)", text):
        name = killed.group(1)
        return "killed (SIGKILL), most likely out of memory" if name == "SIGKILL" else f"killed ({name})"
    if exit_code := re.search(r"returned non-zero exit status (\d+)", text):
        number = int(exit_code.group(1))
        return "killed (SIGKILL), most likely out of memory" if number == 137 else f"exit code {number}"
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
