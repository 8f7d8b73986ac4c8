"""Which task goes to which manager, and when a manager ends: by the time that is left of its pilot."""

import pickle
import time
from typing import Any

import pytest
from sortedcontainers import SortedList

from snakemake_executor_plugin_parsl.interchange import Interchange


class Socket:
    """Keeps what is sent, by manager."""

    def __init__(self) -> None:
        self.sent: dict[bytes, list[int]] = {}

    def send_multipart(self, parts: list[bytes]) -> None:
        manager, tasks = parts[0], pickle.loads(parts[1])
        self.sent.setdefault(manager, []).extend(task["task_id"] for task in tasks)


class Site:
    """An interchange without a network, whose managers and tasks a test makes."""

    def __init__(self) -> None:
        self.interchange = Interchange.__new__(Interchange)
        self.interchange.pending_task_queue = SortedList(key=lambda entry: (entry[0], entry[1]))
        self.interchange._ready_managers = {}
        self.interchange.manager_sock = self.socket = Socket()
        self.interchange.socks = {"any": 1}
        self.interchange.pace, self.interchange._searched, self.interchange.count = 1.0, 0.0, 0

    def manager(
        self, name: bytes, left: float, whole: float = 3600, slots: int = 1, tasks: Any = (), idle: float = 60
    ) -> Any:
        self.interchange._ready_managers[name] = {
            "block_id": "0", "hostname": "h", "worker_count": slots, "max_capacity": slots, "tasks": list(tasks),
            "active": True, "draining": False, "idle_since": time.time() - idle, "lifetime": whole,
            "drain_time": time.time() + left, "last_heartbeat": time.time(),
        }  # fmt: skip
        return self.interchange._ready_managers[name]

    def task(self, number: int, seconds: float, priority: float = 0) -> None:
        message = {"task_id": number, "context": {"resource_spec": {"priority": priority, "seconds": seconds}}}
        self.interchange.pending_task_queue.add((-priority, -number, message))

    def hand_out(self) -> dict[bytes, list[int]]:
        self.interchange.process_tasks_to_send(set(), None)
        return self.socket.sent


@pytest.fixture
def site() -> Site:
    return Site()


def test_tasks_go_out_by_priority(site: Site) -> None:
    site.manager(b"m", left=3600, slots=2)
    for number, priority in ((1, -10), (2, -30), (3, -20)):
        site.task(number, 60, priority)
    assert site.hand_out() == {b"m": [2, 3]}
    assert [entry[-1]["task_id"] for entry in site.interchange.pending_task_queue] == [1]


def test_a_task_goes_only_where_enough_time_is_left(site: Site) -> None:
    site.manager(b"short", left=100)
    site.manager(b"long", left=1000)
    site.task(1, 500, priority=-500)
    site.task(2, 90, priority=-90)
    site.manager(b"unused", left=100)
    assert site.hand_out() == {b"short": [2], b"long": [1]}
    assert [manager["used"] for manager in site.interchange._answer("MANAGERS")] == [True, True, False]


def test_an_idle_manager_that_no_task_fits_ends_and_a_busy_one_goes_on(site: Site) -> None:
    idle, busy = site.manager(b"idle", left=100), site.manager(b"busy", left=100, slots=2, tasks=(9,))
    site.task(1, 500)
    assert site.hand_out() == {}
    assert (idle["draining"], busy["draining"]) == (True, False)
    assert site.interchange._answer("MANAGERS")[1]["unfit"] == 1, "the driver asks for another slot"


def test_a_manager_that_has_just_become_idle_waits_for_the_pace(site: Site) -> None:
    """Its task was faster than planned, which the driver has not said yet."""
    manager = site.manager(b"m", left=100, idle=1)
    site.task(1, 180)
    site.hand_out()
    assert not manager["draining"]
    site.interchange._answer(["PACE", 0.5])
    assert site.hand_out() == {b"m": [1]}


def test_without_waiting_tasks_nothing_ends(site: Site) -> None:
    idle = site.manager(b"idle", left=1)
    site.hand_out()
    assert not idle["draining"]
    assert site.interchange._answer("MANAGERS")[0]["unfit"] == 0


def test_a_task_longer_than_a_pilot_starts_in_a_fresh_one(site: Site) -> None:
    site.task(1, 10_000)
    old = site.manager(b"old", left=2000)
    site.hand_out()
    assert old["draining"]
    site.manager(b"fresh", left=3590)
    assert site.hand_out() == {b"fresh": [1]}


def test_a_task_of_unknown_duration_and_a_pilot_without_end_always_fit(site: Site) -> None:
    site.task(1, 0)
    site.manager(b"ending", left=10)
    assert site.hand_out() == {b"ending": [1]}
    site.task(2, 1e9)
    site.manager(b"endless", left=float("inf"), whole=float("inf"))
    assert site.hand_out()[b"endless"] == [2]


def test_the_pace_of_ended_tasks_corrects_what_is_expected(site: Site) -> None:
    site.manager(b"m", left=100, tasks=(), slots=1)
    site.task(1, 180)
    site.interchange._answer(["PACE", 0.5])
    assert site.hand_out() == {b"m": [1]}


def test_a_manager_that_is_held_or_drains_gets_nothing(site: Site) -> None:
    site.manager(b"held", left=1000)
    site.interchange._answer(["HOLD_MANAGER", "held"])
    site.manager(b"drains", left=1000)["draining"] = True
    site.task(1, 1)
    assert site.hand_out() == {}


def test_the_managers_of_a_pilot_that_has_ended_are_given_up_at_once(site: Site) -> None:
    ended = site.manager(b"m", left=1000, tasks=(1,))
    other = site.manager(b"other", left=1000)
    other["block_id"] = "1"
    site.interchange._answer(["LOST", "0"])
    assert ended["last_heartbeat"] == 0
    assert other["last_heartbeat"] > 0
