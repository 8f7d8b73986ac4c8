"""Parsl pilots as PBS Pro jobs.

`PBSProvider` fixes faults of Parsl's PBSProProvider (2026.10.26), each reproduced on OpenPBS 23.06:

- `qstat` in JSON lists only the first of several jobs; Parsl takes all others as ended and submits a new pilot every
  minute.
- One unknown job freezes the state of all jobs.
- A job that PBS holds after 21 failed starts is never removed.
- A `qdel` that fails is forgotten.
- The batch script ends at once on SIGTERM, and PBS then kills the tasks that save their state.
- A list of nodes is left in the home folder.
"""

import csv
import json
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parsl.errors import ConfigurationError
from parsl.jobs.states import JobState, JobStatus
from parsl.providers import PBSProProvider
from parsl.providers.errors import SubmitException

from snakemake_executor_plugin_parsl.config import PREEMPTED, NotSubmitted

Job = Mapping[str, Any]  # attributes of a job, from qstat

QSTAT = "qstat -x -E -f -F"  # without -E, JSON lists the first job only
UNKNOWN = "Unknown Job Id"
SERVER_DOWN = ("cannot connect to server", "Connection refused", "Couldn't connect")
LIMIT = ("would exceed",)  # "... queue generic's per-user limit", per-project, per-group, server's
GONE = (0, 35, 153, 168)  # exit codes of qdel: deleted, has finished, unknown, is being deleted

PENDING = "QWTMH"
RUNNING = "RBESU"  # E: exiting, its node is not free yet
WALLTIME = -29
CODES = {-27: "killed: out of memory", 128 + 9: "killed (SIGKILL)", 256 + 9: "killed (SIGKILL)"}
READ = ("job_state", "Exit_status", "comment", "run_count", "Hold_Types")  # attributes that `judge` reads
HOLDS = {"u": " by its user (qrls releases it)", "o": " by an operator", "s": " by PBS", "p": " for a bad password"}
TRIES = 20  # failed starts; after one more, PBS holds the job


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
    if state in PENDING:  # with the Exit_status of an earlier start, perhaps
        holds = "".join(HOLDS.get(kind, "") for kind in str(job.get("Hold_Types", "")))
        parts = [f"held{holds}"] * (state == "H") + [comment] * bool(comment)
        return JobStatus(JobState.PENDING, ": ".join(parts) or None)
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
    return JobStatus(JobState.FAILED, CODES.get(code) or _named(code), code)


def _named(code: int) -> str:
    return f"PBS could not start it (Exit_status {code})" if code < 0 else f"exit code {code}"


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
    """Jobs by number, from `qstat -F dsv` (one line per job), with the attributes in READ."""
    jobs: dict[str, Job] = {}
    for line in text.splitlines():
        name, *fields = line.split("|")
        if name.startswith("Job Id: "):
            pairs = [field.partition("=") for field in fields]
            job = {key: value for key, _, value in pairs if key in READ}
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

    worker_init: str

    def __init__(
        self, *, queues: Path | None = None, poll_seconds: int = 30, patience: int = 60, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.queues, self.poll_seconds, self.patience = queues, poll_seconds, patience
        if not self.account:
            raise ConfigurationError(
                "parsl-account: missing; set it in the profile to the project that is charged for the node-hours"
            )
        if queues is not None:
            check(queues, str(self.queue), self.nodes_per_block, self.walltime)
        self._not_before = 0.0
        self._refusal: NotSubmitted | None = None
        self._undeleted: set[str] = set()

    @property
    def status_polling_interval(self) -> int:
        """Seconds between two calls of qstat."""
        return self.poll_seconds

    def submit(self, command: str, tasks_per_node: int, job_name: str = "parsl") -> str:
        """Submit a pilot.

        Raises:
            NotSubmitted: a queue is full, the server is down, or qsub refuses for another reason.
        """
        if self._refusal and time.monotonic() < self._not_before:
            raise self._refusal
        init: str = self.worker_init
        self.worker_init = f"cd {shlex.quote(str(self.script_dir))}\ntrap : TERM\n{init}"
        try:
            job_id: str = super().submit(command, tasks_per_node, job_name)
        except SubmitException as error:
            output = " ".join((error.stderr or error.stdout or str(error)).split())
            waits = any(words in output for words in (*LIMIT, *SERVER_DOWN))
            self._refusal = NotSubmitted(job_name, output, waits=waits)
            self._not_before = time.monotonic() + self.patience
            raise self._refusal from None
        finally:
            self.worker_init = init
        return job_id

    def cancel(self, job_ids: Sequence[str]) -> list[bool]:
        """Delete jobs; whether each is deleted. One that no longer exists is. Others are tried again at each poll."""
        return [self._delete(job_id) for job_id in job_ids]

    def _delete(self, job_id: str) -> bool:
        code, _, error = self.execute_wait(f"qdel {job_id}")
        if code in GONE:
            self._undeleted.discard(job_id)
            return True
        self._undeleted.add(job_id)
        status = self.resources[job_id]["status"]
        status.message = f"qdel failed and is tried again: {' '.join(error.split())}"
        return False

    def _status(self) -> None:
        """Update the states of jobs that have not ended. They stay unchanged while the server does not answer."""
        for job_id in sorted(self._undeleted & self.resources.keys()):  # others are no pilots of this driver
            self._delete(job_id)
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
                    self._delete(job_id)
            elif job_id not in self._undeleted:
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
        self._undeleted.discard(job_id)


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
        raise ConfigurationError(f"parsl-queue: found {queue!r}, which is not in {queues.name}; known: {known}")
    if not re.fullmatch(r"\d+:\d\d:\d\d", walltime):
        raise ConfigurationError(f"walltime: found {walltime!r}; write HH:MM:SS")
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
        found = f"found {nodes} nodes for {requested:g} minutes"
        raise ConfigurationError(f"parsl-nodes, parsl-minutes: {found}, but queue {queue} takes {limits}")
