"""Which drivers live: on this machine by their process, on others by the time of their file."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from parsl.executors import HighThroughputExecutor
from parsl.jobs.states import JobState, JobStatus

from snakemake_executor_plugin_parsl import drivers, pbs
from snakemake_executor_plugin_parsl.drivers import Driver

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "BEAT", 0.1)


def other(folder: Path, *, host: str, pid: int, began: str = "1", age: float = 0.0, pilots: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"driver-{host}-{pid}.json"
    file.write_text(json.dumps({"host": host, "pid": pid, "began": began, "pilots": pilots or {}}))
    os.utime(file, (time.time() - age, time.time() - age))
    return file


def test_a_living_process_of_this_machine_is_not_disturbed(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "600"])
    try:
        living = other(
            tmp_path, host=drivers.platform.node(), pid=process.pid, began=drivers._began(process.pid), age=1e6
        )
        with pytest.raises(ValueError, match=rf"process {process.pid} on \S+ runs jobs of this folder; wait until"):
            Driver(tmp_path, print)
        assert list(tmp_path.iterdir()) == [living]
    finally:
        process.kill()
        process.wait()


def test_a_driver_that_ends_while_it_is_looked_at_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending = other(tmp_path, host="login-02", pid=7)
    monkeypatch.setattr(Driver, "_is_alive", lambda *_: ending.unlink() is None)
    with pytest.raises(ValueError, match="process 7 on login-02 runs jobs of this folder"):
        Driver(tmp_path, print)


def test_a_process_that_got_the_number_of_a_dead_driver_is_none(tmp_path: Path) -> None:
    other(tmp_path, host=drivers.platform.node(), pid=os.getppid(), began="another time")
    Driver(tmp_path, print).end(clean=True)


def test_a_driver_on_another_login_node_lives_while_the_time_of_its_file_moves(tmp_path: Path) -> None:
    file = other(tmp_path, host="login-02", pid=7)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            os.utime(file)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ValueError, match="process 7 on login-02 runs jobs of this folder"):
            Driver(tmp_path, print)
    finally:
        ended.set()
        thread.join()
    assert list(tmp_path.iterdir()) == [file]


def test_a_driver_on_another_login_node_whose_file_is_old_is_dead(tmp_path: Path) -> None:
    other(tmp_path, host="login-02", pid=7, age=drivers.STALE + 1)
    driver = Driver(tmp_path, print)
    driver.take_over({"gpu": HighThroughputExecutor(label="gpu", address="127.0.0.1")})
    assert list(tmp_path.iterdir()) == [driver.file]
    driver.end(clean=True)
    assert not list(tmp_path.iterdir())


def test_pilots_of_a_dead_driver_are_deleted_and_waited_for(tmp_path: Path) -> None:
    provider = pbs.PBSProvider(account="p", queue="debug")
    pool = HighThroughputExecutor(label="gpu", address="127.0.0.1", provider=provider)
    answers = iter(["R", "R", "F"])
    calls: list[str] = []

    def shell(command: str) -> tuple[int, str, str]:
        calls.append(command)
        if command.startswith("qdel"):
            return 0, "", ""
        return 0, json.dumps({"Jobs": {"9.server": {"job_state": next(answers), "Exit_status": 271}}}), ""

    provider.execute_wait = shell
    other(tmp_path, host="login-02", pid=7, age=drivers.STALE + 1, pilots={"gpu": ["9.server"]})
    said: list[str] = []
    driver = Driver(tmp_path, said.append)
    driver.take_over({"gpu": pool})
    assert said == ["parsl: process 7 on login-02 was killed; waiting until its pilots have ended"]
    assert calls[0] == "qdel 9.server"
    assert next(answers, None) is None, "until PBS says that it has ended"
    assert not provider.resources, "it is none of this driver's"
    assert list(tmp_path.iterdir()) == [driver.file]
    driver.end(clean=True)


def test_pilots_that_cannot_be_deleted_stay_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is down: the next driver tries again."""
    monkeypatch.setattr(drivers, "MARGIN", -120)
    provider = pbs.PBSProvider(account="p", queue="debug")
    provider.execute_wait = lambda command: (162, "", "cannot connect to server")
    pool = HighThroughputExecutor(label="gpu", address="127.0.0.1", provider=provider, heartbeat_threshold=121)
    dead = other(tmp_path, host="login-02", pid=7, age=drivers.STALE + 1, pilots={"gpu": ["9.server"]})
    driver = Driver(tmp_path, print)
    driver.take_over({"gpu": pool})
    driver.end(clean=True)
    assert list(tmp_path.iterdir()) == [dead]


def test_pilots_are_written_down_when_they_are_submitted(tmp_path: Path) -> None:
    provider = pbs.PBSProvider(account="p", queue="debug")
    provider.script_dir = str(tmp_path)
    provider.execute_wait = lambda command: (0, "11.server\n", "")
    driver = Driver(tmp_path / "pilots", print)
    driver.record(HighThroughputExecutor(label="gpu", address="127.0.0.1", provider=provider))
    provider.submit("true", 1)
    assert json.loads(driver.file.read_text())["pilots"] == {"gpu": ["11.server"]}
    assert provider.status(["11.server"])[0].state == JobStatus(JobState.PENDING).state
    driver.end(clean=False)
    assert driver.file.exists(), "the next driver sees to them"
