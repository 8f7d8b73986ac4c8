import errno
import json
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_sparsity.jobs import lock, process
from llm_sparsity.jobs.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from llm_sparsity.jobs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path, root: Path) -> Any:
    """A process that holds a lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "lock"],
        env=os.environ | {"PYTHONPATH": str(root / "workflow")}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def napping(monkeypatch: pytest.MonkeyPatch, nap: Callable[[float], None]) -> None:
    """Let what waits for a lock call `nap` where it would sleep, on a clock that only naps move."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        nap(now[0])

    monkeypatch.setattr(lock, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))


def test_a_second_copy_waits_until_the_first_is_dead(
    holder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(now: float) -> None:
        holder.kill()
        holder.wait()

    napping(monkeypatch, kill)
    with locked(tmp_path / "lock"):
        assert process._started(holder.pid) is None
    assert f'"pid": {holder.pid}' in capsys.readouterr().err
    assert not (tmp_path / "lock").exists()


def test_a_process_number_that_was_given_out_anew_is_not_the_owner(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps({"host": process._host(), "pid": os.getpid(), "started": "1"}))
    with locked(tmp_path / "lock"):
        pass


def test_an_owner_elsewhere_is_dead_when_its_heart_stops_whatever_the_clocks_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "1"}))
    os.utime(path, (2**32, 2**32))  # its clock is far ahead
    naps: list[float] = []

    def beat(now: float) -> None:
        naps.append(now)
        if now <= 100:
            os.utime(path, (now, now))  # and jumps back

    napping(monkeypatch, beat)
    with locked(path, patience=10.0):
        assert naps[-1] == pytest.approx(110, abs=2)


def test_of_two_that_take_over_one_gives_back(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("new owner")
    lock._take_over(path, "old owner")
    assert path.read_text() == "new owner"
    assert [found.name for found in tmp_path.iterdir()] == ["lock"]


def test_a_lock_that_is_taken_over_may_be_removed_by_its_next_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next owner takes the renamed lock, in which the dead owner stands, for one that a killed process left."""
    path = tmp_path / "lock"
    dead = json.dumps({"host": process._host(), "pid": os.getpid(), "started": "1"})
    path.write_text(dead)
    rename = Path.rename

    def then_removed(self: Path, target: Path) -> Path:
        done = rename(self, target)
        lock._remove_left(path)
        return done

    monkeypatch.setattr(Path, "rename", then_removed)
    lock._take_over(path, dead)
    assert not list(tmp_path.iterdir())


def test_what_a_process_left_that_was_killed_while_it_took_over_is_removed(tmp_path: Path) -> None:
    dead, alive = tmp_path / "lock.here.1", tmp_path / "lock.there.2"
    dead.write_text(json.dumps({"host": process._host(), "pid": os.getpid(), "started": "1"}))
    alive.write_text(json.dumps({"host": "elsewhere", "pid": 2, "started": "1"}))
    with locked(tmp_path / "lock"):
        assert not dead.exists()
        assert alive.exists()  # its owner may live: a lock that is about to be put back


def test_a_file_system_that_does_not_answer_for_once_stops_no_heart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.01)
    beats, utime = [0], os.utime

    def touch(path: Path) -> None:
        beats[0] += 1
        if beats[0] == 1:
            raise OSError(errno.ESTALE, "stale file handle")
        utime(path)
        later.set()

    later = threading.Event()
    monkeypatch.setattr(lock.os, "utime", touch)
    with locked(tmp_path / "lock"):
        assert later.wait(60)


def test_a_process_that_is_hidden_may_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's, where /proc is mounted with hidepid: the kernel says that it exists, /proc that it does not."""
    owner = json.dumps({"host": process._host(), "pid": 2**22 + 1, "started": "5"})  # above the largest number
    assert process.is_dead(owner)
    assert not process.runs(2**22 + 1)

    def refused(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(process.os, "kill", refused)
    assert not process.is_dead(owner)
    assert process.runs(2**22 + 1)


class WaitsError(Exception):
    pass


@pytest.mark.parametrize("stage", ["weights", "prune", "evaluate", "measure", "zero_shot"])
def test_a_job_waits_for_one_that_writes_the_same_results(
    stage: str, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As that of a killed driver may, which would replace the results of this one."""
    folders = {
        "weights": (),
        "prune": (),
        "measure": ("dense",),
        "evaluate": ("task",),
        "zero_shot": ("task", "harness"),
    }
    options = [text for name in ("model", "output", *folders[stage]) for text in (f"--{name}", str(tmp_path))]
    monkeypatch.setattr(sys, "argv", [stage, *options, "--settings", '{"sparsity": 0.5}'])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def waits(now: float) -> None:
        raise WaitsError

    napping(monkeypatch, waits)
    with locked(tmp_path / f".{stage}.lock"), pytest.raises(WaitsError):
        runpy.run_path(str(root / f"scripts/{stage}.py"), run_name="__main__")
    assert "waiting for it to end" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"^error: "):  # there is no model
        runpy.run_path(str(root / f"scripts/{stage}.py"), run_name="__main__")
