"""Running pools, with stand-ins for Parsl's executor and the batch system."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parsl.executors.high_throughput.errors import ManagerLost
from parsl.jobs.states import JobState, JobStatus

from snakemake_executor_plugin_parsl import pools
from snakemake_executor_plugin_parsl.pools import LostError, Node, PoolError, Pools, Task
from snakemake_executor_plugin_parsl.task import Outcome


class Executor:
    """A pool with one pilot, "9.server", whose interchange answers with `managers`."""

    label, heartbeat_period, unfit, cpu_affinity = "gpu", 1000, 0, "none"

    def __init__(self, folder: Path) -> None:
        self.blocks_to_job_id = {"0": "9.server"}
        self.status_facade = {"0": JobStatus(JobState.RUNNING)}
        self.worker_logdir = self.logdir = str(folder)
        self.managers: list[dict[str, Any]] = []
        self.commands: list[Any] = []
        self.cancelled: list[str] = []
        self.states: list[JobStatus] = []
        self.interchange_proc = SimpleNamespace(poll=lambda: None, kill=lambda: None, wait=lambda: None)
        self.command_client = SimpleNamespace(run=self.run)
        self.provider = SimpleNamespace(
            resources={"9.server": {"status": JobStatus(JobState.RUNNING, "qdel failed and is tried again: down")}},
            cancel=self.cancelled.extend, status=lambda pilots: [self.states.pop(0) for _ in pilots],
        )  # fmt: skip

    def run(self, command: Any, timeout_s: int) -> Any:
        self.commands.append(command)
        return self.managers if command == "MANAGERS" else None

    def manager(
        self, name: str = "m", tasks: int = 0, running: tuple[int, ...] = (), unfit: int = 0, used: bool = False
    ) -> None:
        self.managers.append(
            {"manager": name, "block_id": "0", "worker_count": 2, "tasks": tasks, "running": list(running),
             "unfit": unfit, "hostname": "node-1", "used": used}
        )  # fmt: skip


@pytest.fixture
def executor(tmp_path: Path) -> Executor:
    return Executor(tmp_path)


@pytest.fixture
def running(executor: Executor) -> Pools:
    made = Pools.__new__(Pools)
    made.executors, made.nodes, made.again, made.lost = {"gpu": executor}, pools.defaultdict(Node), 1, 0
    made.said = []
    made.say, made.hurry, made._pace, made._said, made._ended = made.said.append, False, 1.0, {}, set()
    made.dfk = SimpleNamespace(cleanup=lambda: None)
    made.ended = []

    def end(*, clean: bool) -> None:
        made.ended.append(clean)

    made.driver = SimpleNamespace(end=end)
    return made


def task(number: int = 1) -> Task:
    future = SimpleNamespace(parsl_executor_task_id=number, done=lambda: False)
    return Task(name="job", label="gpu", priority=0, seconds=0, command="true", log="log", future=future)


def test_a_job_runs_once_its_node_has_it(running: Pools, executor: Executor) -> None:
    waiting, begun = task(1), task(2)
    executor.manager(tasks=1, running=(2,), unfit=1)
    running.watch([waiting, begun], 1.0)
    assert waiting.begun is None
    assert begun.begun is not None
    assert running.counts() == {"busy": 1, "slots": 2, "pilots": 1, "waiting": 0, "lost": 0}
    assert executor.unfit == 1


def test_a_pilot_is_up_once_a_node_is_connected_whatever_was_last_asked(running: Pools, executor: Executor) -> None:
    executor.status_facade["0"] = JobStatus(JobState.PENDING)
    assert (running.counts()["pilots"], running.counts()["waiting"]) == (0, 1)
    executor.manager()
    running.watch([], 1.0)
    assert (running.counts()["pilots"], running.counts()["waiting"]) == (1, 0)


def test_reasons_are_printed_when_they_change(running: Pools, executor: Executor) -> None:
    for reason in ("no nodes", "no nodes", "held by its user"):
        executor.status_facade["0"] = JobStatus(JobState.PENDING, reason)
        running.watch([], 1.0)
    assert running.said == ["parsl: pilot 9.server waits: no nodes", "parsl: pilot 9.server waits: held by its user"]


def test_tasks_of_a_pilot_that_has_ended_start_again_at_once(running: Pools, executor: Executor) -> None:
    """The interchange is told, and no heartbeat is waited for."""
    executor.manager(name="m", tasks=1, running=(1,))
    running.watch([], 1.0)
    executor.status_facade["0"] = JobStatus(JobState.CANCELLED, "preempted")
    running.watch([], 1.0)
    running.watch([], 1.0)
    assert executor.commands.count(["LOST", "0"]) == 1

    def lost() -> None:
        raise ManagerLost(b"m", "node-1")

    one = task()
    one.future.done, one.future.result = lambda: True, lost
    assert running.outcome(one) is None
    assert one.again_at <= pools.time.monotonic()
    assert running.said[-1] == "parsl: job: lost with node-1 (preempted); restart 1 of at most 1"
    one.again_at = None
    with pytest.raises(LostError, match="2 times; raise parsl-minutes, or parsl-again "):
        running.outcome(one)


@pytest.mark.parametrize("used", [True, False])
def test_a_node_whose_results_are_on_the_way_is_one_that_works(
    running: Pools, executor: Executor, monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    """The first jobs of the good node have ended, and the driver has not read it: failures of the other still move."""
    started: list[Task] = []
    monkeypatch.setattr(Pools, "start", lambda _, task: started.append(task))
    executor.manager("good", tasks=0, used=used)
    executor.manager("bad", tasks=0, used=True)
    tasks = [task(1), task(2)]
    for one in tasks:
        one.future.done, one.future.result = (
            lambda: True,
            lambda: Outcome(code=9, host="node-1", manager="bad", seconds=1.0),
        )
        assert running.outcome(one) is None
    own = [one for one, _ in running.watch(tasks, 1.0)]
    assert (started, own) == ((tasks, []) if used else ([], tasks))


def test_the_pace_is_sent_when_it_changes(running: Pools, executor: Executor) -> None:
    for pace in (1.0, 1.05, 0.5, 0.5):
        running.watch([], pace)
    assert [command for command in executor.commands if command != "MANAGERS"] == [["PACE", 0.5]]


def test_workers_that_die_before_they_run_anything_end_the_run(
    running: Pools, executor: Executor, tmp_path: Path
) -> None:
    executor.manager(tasks=1)
    folder = tmp_path / "block-0/m"
    folder.mkdir(parents=True)
    (folder / "manager.log").write_text("INFO: Worker 0 was not busy when it died\n")
    (folder / "worker_0.log").write_text("INFO: started\nOSError: Invalid argument\n")
    running.watch([], 1.0)
    (folder / "manager.log").write_text("INFO: Worker 0 was not busy when it died\n" * 2)
    with pytest.raises(PoolError, match=r"workers of pool gpu die on node-1 .*: OSError: Invalid argument; check"):
        running.watch([], 1.0)


ENDED, LIVES = JobStatus(JobState.CANCELLED), JobStatus(JobState.RUNNING)


def test_closing_waits_until_pilots_have_ended(running: Pools, executor: Executor) -> None:
    executor.states = [LIVES, LIVES, ENDED]
    running.close()
    assert executor.cancelled == ["9.server"]
    assert (running.ended, running.said) == ([True], [])


def test_after_a_second_signal_closing_waits_for_nothing(
    running: Pools, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "LEAVE", 1e6)
    executor.states, running.hurry = [LIVES], True
    running.close()
    assert running.ended == [False], "the next driver sees to the pilots"
    assert running.said == ["parsl: pilots that have not ended yet: 9.server qdel failed and is tried again: down"]
