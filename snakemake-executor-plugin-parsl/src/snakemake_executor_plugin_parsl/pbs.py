"""Parsl pilots as PBS Pro jobs.

`PBSProvider` and `wait_for_pilots` fix faults of Parsl's PBSProProvider (2026.10.26), each reproduced on OpenPBS 23.06:

- `qstat` in JSON lists only the first of several jobs; Parsl takes all others as ended and submits a new pilot every
  minute.
- One unknown job freezes the state of all jobs.
- One refused `qsub` (a full queue) ends the run.
- A job that PBS holds after 21 failed starts is never removed.
"""

import csv
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parsl.errors import ConfigurationError
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.jobs.errors import TooManyJobFailuresError
from parsl.jobs.states import JobState, JobStatus
from parsl.providers import PBSProProvider
from parsl.providers.errors import SubmitException

Job = Mapping[str, Any]  # attributes of a job, from qstat

QSTAT = "qstat -x -E -f -F"  # without -E, JSON lists the first job only
UNKNOWN = "Unknown Job Id"
SERVER_DOWN = ("cannot connect to server", "Connection refused", "Couldn't connect")
LIMIT = ("would exceed",)  # "... queue generic's per-user limit", per-project, per-group, server's
GONE = (0, 35, 153, 168)  # exit codes of qdel: deleted, has finished, unknown, is being deleted

PENDING = "QWTM"
RUNNING = "RBESU"  # E: exiting, its node is not free yet
WALLTIME, MEMORY, KILLED = -29, -27, 256 + 9
TRIES = 20  # failed starts; after one more, PBS holds the job
PREEMPTED = "preempted"
WAITING = "PBS accepts no more jobs now"
REFUSED = "qsub refuses"


class NotSubmitted(SubmitException):  # type: ignore[misc]
    """A pilot was not submitted. The message is WAITING or REFUSED, followed by the output of qsub."""

    def __str__(self) -> str:
        return str(self.message)


def judge(job: Job) -> JobStatus:
    """The state of a job and its reason, from the attributes that qstat shows."""
    state, code, comment = job["job_state"], job.get("Exit_status"), str(job.get("comment") or "")
    if state in RUNNING:
        return JobStatus(JobState.RUNNING)
    if state == "H" and ("too many failed attempts" in comment or int(job.get("run_count", 0)) > TRIES):
        return JobStatus(
            JobState.FAILED,
            f"PBS holds it after {TRIES + 1} failed starts; most often the folder of its -o and -e files is missing "
            "or not writable on the compute node",
        )
    if state in PENDING or state == "H":  # with the Exit_status of an earlier start, perhaps
        return JobStatus(JobState.PENDING, comment or None)
    if state not in ("F", "X"):
        return JobStatus(JobState.UNKNOWN, f"PBS shows state {state}")
    if code is None:
        return JobStatus(JobState.FAILED, "ended before it ran: deleted while it was queued, or a dependency failed")
    return _judge_ended(int(code), comment)


def _judge_ended(code: int, comment: str) -> JobStatus:
    terminated = re.search(r"terminated by (\S+)", comment)
    if terminated:  # the exit code is then 271, 265, or any that its script returns after the signal, even 0
        scheduler = terminated.group(1).startswith("Scheduler")
        return JobStatus(JobState.CANCELLED, PREEMPTED if scheduler else f"deleted by {terminated.group(1)}", code)
    if code == 0:
        return JobStatus(JobState.COMPLETED, exit_code=0)
    if code == WALLTIME:
        return JobStatus(JobState.TIMEOUT, "its walltime is exceeded", code)
    if code == MEMORY or code in (KILLED, 128 + 9):
        return JobStatus(JobState.FAILED, "killed: out of memory", code)
    if code < 0:
        return JobStatus(JobState.FAILED, f"PBS could not start it (Exit_status {code})", code)
    return JobStatus(JobState.FAILED, f"exit code {code}", code)


def number(job_id: str) -> str:
    """The number of a job id; the name of the server behind it may be short or complete."""
    return job_id.partition(".")[0]


def read(text: str) -> dict[str, Job]:
    """Jobs by number, from `qstat -F json`.

    Raises:
        ValueError: invalid JSON. PBS does not escape all characters of environment variables.
    """
    return {number(name): job for name, job in json.loads(text).get("Jobs", {}).items()}


def read_lines(text: str) -> dict[str, Job]:
    """Jobs by number, from `qstat -F dsv` (one line per job), with the attributes that `judge` reads."""
    jobs: dict[str, Job] = {}
    for line in text.splitlines():
        name, *fields = line.split("|")
        if name.startswith("Job Id: "):
            pairs = [field.partition("=") for field in fields]
            job = {key: value for key, _, value in pairs if key in ("job_state", "Exit_status", "comment", "run_count")}
            jobs[number(name.removeprefix("Job Id: "))] = job
    return jobs


class PBSProvider(PBSProProvider):  # type: ignore[misc]
    """Parsl's PBSProProvider with the faults above fixed.

    Args:
        queues: CSV file of the limits of queues (queue, min_nodes, max_nodes, min_minutes, max_minutes, ...), several
            rows for a queue whose limits depend on nodes. Nodes and walltime are checked against it.
        poll_seconds: seconds between two calls of qstat.
        patience: seconds until the next qsub after one was refused because a queue is full or the server is down.
        arguments: of PBSProProvider.

    Raises:
        ConfigurationError: no account, or nodes and walltime outside the limits of the queue.
    """

    def __init__(
        self, *, queues: Path | None = None, poll_seconds: int = 60, patience: int = 60, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.queues, self.poll_seconds, self.patience = queues, poll_seconds, patience
        if not self.account:
            raise ConfigurationError("ACCOUNT: missing; set it to the project that is charged for the node-hours")
        if queues is not None:
            check(queues, str(self.queue), self.nodes_per_block, self.walltime)
        self._not_before = 0.0
        self._refusal = ""
        self._cleaned = False

    @property
    def status_polling_interval(self) -> int:
        """Seconds between two calls of qstat."""
        return self.poll_seconds

    def submit(self, command: str, tasks_per_node: int, job_name: str = "parsl") -> str:
        """Submit a pilot. Before the first one, delete the pilots of an earlier driver.

        Raises:
            NotSubmitted: a queue is full, the server is down, or qsub refuses for another reason.
        """
        if not self._cleaned:
            self._delete_left_over()
            self._cleaned = True
        if time.monotonic() < self._not_before:
            raise NotSubmitted(job_name, self._refusal)
        try:
            job_id: str = super().submit(command, tasks_per_node, job_name)
        except SubmitException as error:
            output = " ".join((error.stderr or error.stdout or str(error)).split())
            temporary = any(words in output for words in (*LIMIT, *SERVER_DOWN))
            self._refusal = f"{WAITING if temporary else REFUSED}: {output}"
            self._not_before = time.monotonic() + self.patience
            raise NotSubmitted(job_name, self._refusal) from None
        self._mark(job_id).touch()
        return job_id

    def cancel(self, job_ids: Sequence[str]) -> list[bool]:
        """Delete jobs. A job that no longer exists counts as deleted."""
        if not job_ids:
            return []
        code, _, _ = self.execute_wait("qdel " + " ".join(job_ids))
        for job_id in job_ids if code in GONE else ():
            self._end(job_id, JobStatus(JobState.COMPLETED))
        return [code in GONE] * len(job_ids)

    def _status(self) -> None:
        """Update the states of jobs that have not ended. They stay unchanged while the server does not answer."""
        waiting = [job_id for job_id, resource in self.resources.items() if not resource["status"].terminal]
        found = self._query(waiting) if waiting else {}
        for job_id in waiting:
            resource = self.resources[job_id]
            if number(job_id) not in found:
                continue
            job = found[number(job_id)]
            if job is None:
                resource["unknown"] = resource.get("unknown", 0) + 1
                if resource["unknown"] > 1:
                    self._end(
                        job_id,
                        JobStatus(
                            JobState.FAILED,
                            "PBS accepted it and no longer knows it: a routing queue (prod) without an execution "
                            "queue for its nodes and walltime?",
                        ),
                    )
                continue
            resource["unknown"] = 0
            status = judge(job)
            if status.terminal:
                self._end(job_id, status)
                if job["job_state"] == "H":
                    self.execute_wait(f"qdel {job_id}")
            else:
                resource["status"] = status

    def _query(self, job_ids: Sequence[str]) -> dict[str, Job | None]:
        """Attributes of jobs by number; None for a job that PBS does not know."""
        found, _ = self._qstat(job_ids)
        if found is None:
            return {}
        for job_id in job_ids:
            if number(job_id) not in found:  # its absence from a list proves nothing, so it is queried alone
                alone, error = self._qstat([job_id])
                if alone is None:
                    break
                found |= alone
                if UNKNOWN in error and not alone:
                    found[number(job_id)] = None
        return found

    def _qstat(self, job_ids: Sequence[str]) -> tuple[dict[str, Job | None] | None, str]:
        """Attributes of jobs by number, None if the server is down; and stderr.

        The exit code is of no use: it is that of the last bad id.
        """
        _, text, error = self.execute_wait(f"{QSTAT} json {' '.join(job_ids)}")
        if any(words in error for words in SERVER_DOWN):
            return None, error
        try:
            return {**read(text)}, error
        except ValueError:
            _, text, error = self.execute_wait(f"{QSTAT} dsv {' '.join(job_ids)}")
            return {**read_lines(text)}, error

    def _end(self, job_id: str, status: JobStatus) -> None:
        resource = self.resources[job_id]
        status.stdout_path, status.stderr_path = resource["job_stdout_path"], resource["job_stderr_path"]
        resource["status"] = status
        self._mark(job_id).unlink(missing_ok=True)

    def _mark(self, job_id: str) -> Path:
        """A file beside the submit scripts that exists as long as the job may."""
        return Path(self.script_dir) / f"{job_id}.pilot"

    def _delete_left_over(self) -> None:
        """Delete the pilots of a killed driver, found by its marks."""
        here = Path(self.script_dir).resolve()
        marks = [mark for mark in here.parents[1].glob(f"*/{here.name}/*.pilot") if mark.parent != here]
        if marks and self.execute_wait("qdel " + " ".join(mark.stem for mark in marks))[0] in GONE:
            for mark in marks:
                mark.unlink(missing_ok=True)


def check(queues: Path, queue: str, nodes: int, walltime: str) -> None:
    """Check nodes and walltime against the limits of a queue: `prod` would accept such a job and lose it.

    Raises:
        ConfigurationError: outside the limits; one line with the rows of the table.
    """
    with queues.open(newline="") as file:
        table = list(csv.DictReader(file))
    rows = [row for row in table if row["queue"] == queue]
    if not rows:
        known = ", ".join(dict.fromkeys(row["queue"] for row in table))
        raise ConfigurationError(f"QUEUE: found {queue!r}, which is not in {queues.name}; known: {known}")
    if not re.fullmatch(r"\d+:\d\d:\d\d", walltime):
        raise ConfigurationError(f"WALLTIME: found {walltime!r}; write HH:MM:SS")
    hours, minutes, seconds = map(int, walltime.split(":"))
    requested = hours * 60 + minutes + seconds / 60
    fits = [
        int(row["min_nodes"]) <= nodes <= int(row["max_nodes"])
        and int(row["min_minutes"]) <= requested <= int(row["max_minutes"])
        for row in rows
    ]
    if not any(fits):
        limits = "; ".join(
            f"{row['min_nodes']}-{row['max_nodes']} nodes for {row['min_minutes']}-{row['max_minutes']} minutes"
            for row in rows
        )
        raise ConfigurationError(f"NODES, WALLTIME: found {nodes} for {walltime}, but queue {queue} takes {limits}")


def wait_for_pilots(executor: BlockProviderExecutor, status: Mapping[str, JobStatus], in_a_row: int = 3) -> None:
    """Block error handler of Parsl: end the run with a reason when waiting for pilots cannot help.

    That is the case when no pilot runs or is queued, and either qsub refuses for another reason than a full queue or a
    server that is down, or the last pilots all ended before a worker connected.

    Args:
        executor: of a pool.
        status: of its pilots, by block.
        in_a_row: number of such pilots.
    """
    if not status or executor.bad_state_is_set:
        return
    if any(pilot.state in (JobState.PENDING, JobState.RUNNING) for pilot in status.values()):
        return
    latest = [status[block] for block in sorted(status, key=int)]
    message = latest[-1].message or ""
    if REFUSED in message:
        executor.set_bad_state_and_fail_all(TooManyJobFailuresError(message[message.index(REFUSED) :]))
    started = [pilot for pilot in latest if WAITING not in (pilot.message or "")][-in_a_row:]
    if len(started) == in_a_row and all(
        pilot.state in (JobState.FAILED, JobState.MISSING) and pilot.message != PREEMPTED for pilot in started
    ):
        last = started[-1]
        printed = " ".join((last.stderr_summary or "").split())[-500:]
        executor.set_bad_state_and_fail_all(
            TooManyJobFailuresError(
                f"{in_a_row} pilots in a row ended before a worker connected: {last.message or 'no reason given'}"
                + (f"; the last one printed: {printed}" if printed else "")
            )
        )
