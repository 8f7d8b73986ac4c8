import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_sparsity.jobs import lease
from tests.marks import slow

# Holds its lease, and a file that names the devices, until a test removes the file.
JOB = """
import os, sys, time
from pathlib import Path
from llm_sparsity.jobs.lease import lease
count = lease(int(sys.argv[1]))
held, new = Path(f"held-{os.getpid()}"), Path(f"new-{os.getpid()}")
new.write_text(os.environ["CUDA_VISIBLE_DEVICES"])
new.rename(held)
while held.exists():
    time.sleep(0.02)
print(count)
"""
HANGS = 300  # seconds


def start(
    root: Path, tmp_path: Path, count: int, program: str = JOB, visible: str | None = "0,1,GPU-abc"
) -> subprocess.Popen[str]:
    environment = {"PYTHONPATH": str(root / "workflow"), "TMPDIR": str(tmp_path)}
    environment |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible, "LLM_SPARSITY_LEASE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", program, str(count)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )


def wait(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + HANGS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_no_device_is_leased_twice_at_once(root: Path, tmp_path: Path) -> None:
    jobs = [start(root, tmp_path, 1) for _ in range(5)] + [start(root, tmp_path, 2)]
    counts = {1: 0, 2: 0}
    for _ in jobs:
        wait(lambda: list(tmp_path.glob("held-*")))
        held = {file: file.read_text().split(",") for file in tmp_path.glob("held-*")}
        devices = [device for names in held.values() for device in names]
        assert len(devices) == len(set(devices))
        file = next(iter(held))
        counts[len(held[file])] += 1
        file.unlink()
    assert counts == {1: 5, 2: 1}
    assert [job.communicate(timeout=HANGS)[0] for job in jobs] == ["1\n"] * 5 + ["2\n"]


def test_a_lease_outlives_exec_and_ends_with_the_process(root: Path, tmp_path: Path) -> None:
    program = "import os\nfrom llm_sparsity.jobs.lease import lease\nlease(2)\nos.execvp('sleep', ['sleep', '3600'])"
    holder = start(root, tmp_path, 2, program)
    wait(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n")
    locks = tmp_path / f"gpus-{os.getuid()}"
    free = [lease._acquire(locks / f"{device}.lock") for device in ("0", "1", "GPU-abc")]
    assert free.count(None) == 2
    os.close(next(lock for lock in free if lock is not None))
    other = start(root, tmp_path, 2)
    holder.kill()
    holder.wait()
    wait(lambda: list(tmp_path.glob("held-*")))
    next(tmp_path.glob("held-*")).unlink()
    assert other.communicate(timeout=HANGS)[0] == "2\n"


@pytest.mark.parametrize(("visible", "asked", "count"), [("3", 1, 1), ("0,1", 4, 2), ("", 1, 0), ("0,1,2,3", 0, 0)])
def test_where_there_is_nothing_to_choose_nothing_changes(
    visible: str, asked: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert lease.lease(asked) == count
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


ON_A_WORKSTATION = """
from pathlib import Path
from llm_sparsity.jobs import lease
lease.DRIVER = Path("gpus")
"""


@pytest.mark.parametrize(
    ("devices", "asked", "confined"),
    [(1, 1, False), slow(1, 4, False), slow(2, 2, False), slow(1, 1, True), (2, 4, True)],
)
def test_jobs_that_ask_for_all_devices_of_a_machine_or_of_a_confined_driver_take_turns(
    devices: int, asked: int, confined: bool, root: Path, tmp_path: Path
) -> None:
    for number in range(devices):
        (tmp_path / f"gpus/{number}").mkdir(parents=True)
    visible = ",".join(map(str, range(devices))) if confined else None
    jobs = [start(root, tmp_path, asked, ON_A_WORKSTATION + JOB, visible) for _ in range(3)]
    for _ in jobs:
        wait(lambda: list(tmp_path.glob("held-*")))
        (file,) = tmp_path.glob("held-*")
        assert len(file.read_text().split(",")) == devices
        file.unlink()
    assert [job.communicate(timeout=HANGS)[0] for job in jobs] == [f"{devices}\n"] * 3


def test_without_devices_nothing_is_leased(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(lease, "DRIVER", tmp_path / "none")
    assert lease.lease(2) == 0
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_full_temporary_folder_keeps_its_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "which has space"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    locks: list[Path] = []
    monkeypatch.setattr(lease, "_acquire", lambda path: locks.append(path) or 0)
    assert lease.lease(1) == 1
    assert locks == [tmp_path / f"gpus-{os.getuid()}/0.lock"]
