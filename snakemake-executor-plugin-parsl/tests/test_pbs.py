"""Every state that a real PBS server was seen to report, and its verdict."""

import json
from pathlib import Path
from typing import Any

import pytest
from parsl.errors import ConfigurationError
from parsl.jobs.states import JobState, JobStatus
from parsl.providers.errors import SubmitException

from snakemake_executor_plugin_parsl import pbs
from snakemake_executor_plugin_parsl.config import PREEMPTED, REFUSED, WAITS, wait_for_pilots

TRANSCRIPTS = Path(__file__).parents[3] / "shared/pbs/transcripts"
QUEUES = Path(__file__).with_name("queues.csv")
RAN = "Job run at Tue Nov 24 at 04:08 on (x3001c0s1b0n0:ncpus=1)"
BEGAN = "Job Array Began at Tue Nov 24 at 04:19 and "
QDEL = f"{RAN} and terminated by pbsuser@polaris-pbs-01.lab.test"
GIVEN_UP = "job held, too many failed attempts to run"
NEVER_RAN = "ended before it ran"

# job_state, Exit_status, run_count, comment -> verdict, part of its reason
STATES: list[tuple[str, int | None, int | None, str, JobState, str]] = [
    ("Q", None, None, "Not Running: Not enough free nodes available", JobState.PENDING, "Not enough free nodes"),
    ("Q", None, None, "Job Array Began at Tue Nov 24 at 04:20", JobState.PENDING, ""),
    ("Q", -11, 1, RAN, JobState.PENDING, ""),  # requeued: it has an Exit_status, but is queued
    ("Q", 1, None, f"{BEGAN}terminated", JobState.PENDING, ""),
    ("Q", 1, None, "Job Array Began at Tue Nov 24 at 04:20", JobState.PENDING, ""),
    ("W", None, None, "", JobState.PENDING, ""),
    ("H", None, None, "", JobState.PENDING, "held"),  # held by its user, or for a dependency
    ("H", None, None, "Job held by pbsuser on Tue", JobState.PENDING, "held: Job held by pbsuser"),
    ("H", -3, 21, GIVEN_UP, JobState.FAILED, "folder of its -o and -e files"),
    ("R", None, 1, RAN, JobState.RUNNING, ""),
    ("R", None, 1, "", JobState.RUNNING, ""),  # after a restart of the server
    ("R", None, 2, RAN, JobState.RUNNING, ""),  # after a preemption, under the same id
    ("R", None, 1, QDEL, JobState.RUNNING, ""),  # deleted, but not ended yet
    ("B", None, None, "Job Array Began at Tue Nov 24 at 04:19", JobState.RUNNING, ""),
    ("B", 1, None, "Job Array Began at Tue Nov 24 at 04:19", JobState.RUNNING, ""),
    ("E", 0, 1, RAN, JobState.RUNNING, ""),
    ("S", None, 1, RAN, JobState.RUNNING, ""),
    ("F", 0, 1, f"{RAN} and finished", JobState.COMPLETED, ""),
    ("F", 0, 1, "", JobState.COMPLETED, ""),
    ("F", 0, 2, f"{RAN} and finished", JobState.COMPLETED, ""),
    ("F", 3, 1, f"{RAN} and failed", JobState.FAILED, "exit code 3"),
    ("F", 1, None, f"{BEGAN}failed", JobState.FAILED, "exit code 1"),
    ("F", 1, None, f"{BEGAN}terminated", JobState.FAILED, "exit code 1"),
    ("F", 1, None, "Subjob finished", JobState.FAILED, "exit code 1"),
    ("X", 1, None, "Subjob finished", JobState.FAILED, "exit code 1"),
    ("F", 271, 1, QDEL, JobState.CANCELLED, "deleted by pbsuser@"),
    ("X", 271, 1, QDEL, JobState.CANCELLED, "deleted by pbsuser@"),
    ("F", 265, 1, QDEL, JobState.CANCELLED, "deleted by pbsuser@"),
    ("F", 0, 1, QDEL, JobState.CANCELLED, "deleted by pbsuser@"),  # a pilot's script that returned 0 after SIGTERM
    ("F", 271, 1, f"{RAN} and terminated by Scheduler@polaris-pbs-01.lab.test", JobState.CANCELLED, "preempted"),
    ("F", -29, 1, f"{RAN} and exceeded resource walltime", JobState.TIMEOUT, "walltime"),
    ("F", -27, 1, f"{RAN} and failed", JobState.FAILED, "out of memory"),
    ("F", 137, 1, f"{RAN} and failed", JobState.FAILED, "killed (SIGKILL)"),
    ("F", -1, 1, "", JobState.FAILED, "could not start"),
    ("F", None, None, "", JobState.FAILED, NEVER_RAN),  # deleted while it was queued, or a dependency failed
]


def job(state: str, code: int | None, count: int | None, comment: str) -> dict[str, Any]:
    fields = {"job_state": state, "Exit_status": code, "run_count": count, "comment": comment or None}
    return {key: value for key, value in fields.items() if value is not None}


@pytest.mark.parametrize(("state", "code", "count", "comment", "verdict", "words"), STATES)
def test_a_state_is_judged(
    state: str, code: int | None, count: int | None, comment: str, verdict: JobState, words: str
) -> None:
    status = pbs.judge(job(state, code, count, comment))
    assert status.state == verdict
    assert words in (status.message or "")


def _kind(record: dict[str, Any]) -> tuple[Any, ...]:
    """The attributes of a record that decide; hosts and times do not."""
    comment = str(record.get("comment") or "")
    return (
        record["job_state"],
        record.get("Exit_status"),
        *(words in comment for words in ("terminated by Scheduler", "terminated by", "too many failed", "walltime")),
    )


@pytest.mark.skipif(not TRANSCRIPTS.is_dir(), reason="transcripts of a real server lie beside some checkouts")
def test_no_recorded_state_is_missing() -> None:
    """STATES has every kind of record in the transcripts, with the verdict that `judge` gives."""
    known = {_kind(job(*row[:4])): row[4] for row in STATES}
    for number in (1, 2, 4):  # exit codes of scripts
        known[_kind(job("F", number, 1, f"{RAN} and failed"))] = JobState.FAILED
    seen = 0
    for transcript in sorted(TRANSCRIPTS.glob("*.json")):
        for record in pbs.read(transcript.read_text()).values():
            assert pbs.judge(record).state == known[_kind(dict(record))], transcript.name
            seen += 1
    assert seen > 70


class Commands:
    """Stands in for the shell, with recorded outputs of commands; `calls` lists the commands."""

    def __init__(self, *answers: tuple[str, tuple[int, str, str]]) -> None:
        self.answers = list(answers)
        self.calls: list[str] = []

    def __call__(self, command: str, timeout: int | None = None) -> tuple[int, str, str]:
        self.calls.append(command)
        for start, answer in self.answers:
            if command.startswith(start):
                return answer
        raise AssertionError(f"unexpected: {command}")


def listing(**jobs: dict[str, Any]) -> str:
    return json.dumps({"Jobs": {f"{name[1:]}.polaris-pbs-01": record for name, record in jobs.items()}})


@pytest.fixture
def provider(tmp_path: Path) -> pbs.PBSProvider:
    provider = pbs.PBSProvider(account="p", queue="debug")
    provider.script_dir = str(tmp_path / "000/submit_scripts")
    Path(provider.script_dir).mkdir(parents=True)
    return provider


def known(provider: pbs.PBSProvider, *numbers: int) -> list[str]:
    names = [f"{number}.polaris-pbs-01.lab.test" for number in numbers]
    for name in names:
        provider.resources[name] = {
            "job_id": name, "status": JobStatus(JobState.PENDING), "job_stdout_path": "o", "job_stderr_path": "e"
        }  # fmt: skip
    return names


RUNNING = {"job_state": "R"}


def test_a_job_missing_from_a_list_is_queried_alone(provider: pbs.PBSProvider) -> None:
    """OpenPBS's JSON lists only the first of several jobs: the others count as running, and none is replaced."""
    names = known(provider, 1, 2)
    provider.execute_wait = Commands(
        ("qstat -x -E -f -F json 1.polaris-pbs-01.lab.test 2", (0, listing(j1=RUNNING), "")),
        ("qstat -x -E -f -F json 2.", (0, listing(j2=RUNNING), "")),
    )
    assert [status.state for status in provider.status(names)] == [JobState.RUNNING, JobState.RUNNING]


def test_an_unknown_job_has_failed_the_second_time_and_freezes_no_other(provider: pbs.PBSProvider) -> None:
    names = known(provider, 1, 2)
    unknown = "qstat: Unknown Job Id 2.polaris-pbs-01.lab.test"
    provider.execute_wait = commands = Commands(
        ("qstat -x -E -f -F json 1.polaris-pbs-01.lab.test 2", (153, listing(j1=RUNNING), unknown)),
        ("qstat -x -E -f -F json 2.", (153, "{}", unknown)),
        ("qstat -x -E -f -F json 1.polaris-pbs-01.lab.test", (0, listing(j1=RUNNING), "")),
    )
    assert [status.state for status in provider.status(names)] == [JobState.RUNNING, JobState.PENDING]
    first, second = provider.status(names)
    assert (first.state, second.state) == (JobState.RUNNING, JobState.FAILED)
    assert "prod" in str(second.message)
    commands.calls.clear()
    provider.status(names)
    assert commands.calls == ["qstat -x -E -f -F json 1.polaris-pbs-01.lab.test"], (
        "jobs that have ended are not queried"
    )


@pytest.mark.parametrize("code", [255, 153])
def test_a_server_that_is_down_changes_nothing(provider: pbs.PBSProvider, code: int) -> None:
    names = known(provider, 1, 2)
    error = "Connection refused\nqstat: cannot connect to server polaris-pbs-01.lab.test (errno=15010)"
    provider.execute_wait = Commands(("qstat", (code, '{"timestamp": 1}', error)))
    for _ in range(3):
        assert {status.state for status in provider.status(names)} == {JobState.PENDING}


def test_invalid_json_is_replaced_by_another_format(provider: pbs.PBSProvider) -> None:
    names = known(provider, 7)
    line = "Job Id: 7.polaris-pbs-01.lab.test|Job_Name=x|job_state=F|Variable_List=A=1,B=2|comment=and finished"
    provider.execute_wait = Commands(
        ("qstat -x -E -f -F json", (0, '{"Jobs": {"7.p": {"Variable_List": {"A": "\\\'"}}}}', "")),
        ("qstat -x -E -f -F dsv", (0, f"{line}|run_count=1|Exit_status=-29|project=p\n", "")),
    )
    assert provider.status(names)[0].state == JobState.TIMEOUT


def test_a_job_held_after_failed_starts_is_deleted_with_a_reason(provider: pbs.PBSProvider) -> None:
    names = known(provider, 52)
    held = {"job_state": "H", "Exit_status": -3, "run_count": 21, "comment": GIVEN_UP}
    provider.execute_wait = commands = Commands(("qstat", (0, listing(j52=held), "")), ("qdel", (0, "", "")))
    (status,) = provider.status(names)
    assert status.state == JobState.FAILED
    assert "holds it after 21 failed starts" in str(status.message)
    assert commands.calls[-1] == f"qdel {names[0]}"


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("qsub: would exceed queue generic's per-user limit", WAITS),
        ("Connection refused\nqsub: cannot connect to server polaris-pbs-01.lab.test (errno=15010)", WAITS),
        ("qsub: Account_Name is required to be set.", REFUSED),
        ("qsub: No active allocation found for project p and resource polaris", REFUSED),
        ("qsub: Job violates queue and/or server resource limits", REFUSED),
        ("qsub: Unknown queue", REFUSED),
        ("qsub: Access to queue is denied", REFUSED),
    ],
)
def test_a_refused_qsub_waits_or_ends(provider: pbs.PBSProvider, said: str, word: str) -> None:
    provider.execute_wait = commands = Commands(("qsub", (38, "", said)))
    for _ in range(2):
        with pytest.raises(SubmitException) as error:
            provider.submit("true", 1)
        assert error.value.message.startswith(word)
        assert " ".join(said.split()) in error.value.message
    assert len(commands.calls) == 1, "qsub is not repeated at once"


@pytest.mark.parametrize(
    ("code", "gone"), [(0, True), (35, True), (153, True), (168, True), (162, False), (159, False)]
)
def test_jobs_that_no_longer_exist_count_as_deleted(provider: pbs.PBSProvider, code: int, gone: bool) -> None:
    names = known(provider, 1, 2)
    provider.execute_wait = Commands(("qdel", (code, "", "")))
    assert provider.cancel(names) == [gone, gone]


def test_a_qdel_that_fails_is_said_and_tried_again_until_the_server_answers(provider: pbs.PBSProvider) -> None:
    names = known(provider, 1)
    running = ("qstat", (0, listing(j1=RUNNING), ""))
    provider.execute_wait = Commands(("qdel", (162, "", "qdel: cannot connect to server p\n")), running)
    assert provider.cancel(names) == [False]
    for _ in range(2):
        (status,) = provider.status(names)
        assert status.state == JobState.PENDING
        assert status.message == "qdel failed and is tried again: qdel: cannot connect to server p"
    provider.execute_wait = commands = Commands(("qdel", (0, "", "")), running)
    (status,) = provider.status(names)
    assert (commands.calls[0], status.state, status.message) == (f"qdel {names[0]}", JobState.RUNNING, None)
    commands.calls.clear()
    provider.status(names)
    assert not [call for call in commands.calls if call.startswith("qdel")], "deleted once"


def test_a_batch_script_outlives_sigterm_and_leaves_its_files_with_the_logs(provider: pbs.PBSProvider) -> None:
    provider.worker_init = "source env"
    provider.execute_wait = commands = Commands(("qsub", (0, "1.polaris-pbs-01\n", "")))
    provider.submit("true", 1)
    script = Path(commands.calls[0].split()[-1]).read_text()
    assert f"\ncd {provider.script_dir}\ntrap : TERM\nsource env\n" in script
    provider.submit("true", 1)
    assert provider.worker_init == "source env"


class Executor:
    """Stands in for a Parsl executor; keeps the reason with which it was given up."""

    bad_state_is_set = False
    given_up = ""

    def set_bad_state_and_fail_all(self, error: Exception) -> None:
        self.given_up = str(error)
        self.bad_state_is_set = True


def failed(message: str) -> JobStatus:
    return JobStatus(JobState.FAILED, message)


MISSING = JobStatus(JobState.MISSING, "workers failed to register")


@pytest.mark.parametrize(
    ("pilots", "words"),
    [
        ([], ""),
        ([failed(f"Failed to start block 0: {WAITS}: qsub: would exceed")] * 9, ""),
        ([failed(f"Failed to start block 0: {REFUSED}: qsub: Unknown queue")], "Unknown queue"),
        ([JobStatus(JobState.RUNNING), failed(f"{REFUSED}: qsub: no allocation")], ""),  # running pilots go on
        ([MISSING, MISSING], ""),
        ([MISSING, MISSING, MISSING], "3 pilots in a row"),
        ([MISSING, MISSING, JobStatus(JobState.MISSING, PREEMPTED)], ""),
        ([MISSING, MISSING, JobStatus(JobState.TIMEOUT)], ""),
    ],
)
def test_giving_up(pilots: list[JobStatus], words: str) -> None:
    executor = Executor()
    wait_for_pilots(executor, {str(block): pilot for block, pilot in enumerate(pilots)})
    assert bool(executor.given_up) == bool(words)
    assert words in executor.given_up


@pytest.mark.parametrize(
    ("queue", "nodes", "walltime", "words"),
    [
        ("debug", 3, "01:00:00", "queue debug takes 1-2 nodes for 5-60 minutes"),
        ("debug", 1, "01:00:01", "queue debug takes 1-2 nodes"),
        ("debug", 1, "00:04:59", "for 5-60 minutes"),
        (
            "prod",
            10,
            "24:00:00",
            "10-24 nodes for 5-180 minutes; 25-99 nodes for 5-360 minutes",
        ),  # PBS would accept and lose it
        ("small", 10, "01:00:00", "parsl-queue: found 'small'"),
        ("debug", 1, "5m", "write HH:MM:SS"),
    ],
)
def test_a_request_outside_the_limits_is_refused_with_the_rows_of_the_queue(
    queue: str, nodes: int, walltime: str, words: str
) -> None:
    with pytest.raises(ConfigurationError, match="found") as error:
        pbs.check(QUEUES, queue, nodes, walltime)
    assert words in str(error.value)


@pytest.mark.parametrize(("queue", "nodes", "walltime"), [("debug", 2, "01:00:00"), ("prod", 30, "06:00:00")])
def test_a_request_within_the_limits_passes(queue: str, nodes: int, walltime: str) -> None:
    pbs.check(QUEUES, queue, nodes, walltime)


def test_no_account_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="parsl-account: missing"):
        pbs.PBSProvider(account="", queue="debug")


def test_a_pilot_of_another_driver_that_cannot_be_deleted_stops_nothing(provider: pbs.PBSProvider) -> None:
    """It is known for a while only, see `Drivers.take_over`."""
    provider.resources["55.p"] = {
        "job_id": "55.p", "status": JobStatus(JobState.PENDING), "job_stdout_path": None, "job_stderr_path": None,
    }  # fmt: skip
    provider.execute_wait = Commands(("qdel", (159, "", "qdel: Unauthorized Request 55.p")))
    provider.cancel(["55.p"])
    del provider.resources["55.p"]
    assert provider.status([]) == []
