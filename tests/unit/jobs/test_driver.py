import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_sparsity.jobs import driver
from llm_sparsity.jobs.lock import this_process


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    """The locks of one driver, as Snakemake makes them."""
    folder = tmp_path / "locks"
    folder.mkdir()
    for kind in ("input", "output"):
        (folder / f"0.{kind}.lock").write_text("results/a\n")
    return folder


@pytest.fixture
def dead() -> str:
    """What a process that has ended said of itself."""
    code = "from llm_sparsity.jobs.lock import this_process; print(this_process())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_locks_of_a_dead_driver_are_removed(locks: Path, dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    (locks / "owner-1").write_text(dead)
    driver.unlock(locks)
    assert list(locks.parent.iterdir()) == []
    assert f"process {json.loads(dead)['pid']} of an earlier run has ended" in capsys.readouterr().err


def test_locks_of_a_living_driver_stay(locks: Path, dead: str) -> None:
    driver.record(locks)
    (locks / "owner-1").write_text(dead)
    driver.unlock(locks)
    assert (locks / "0.output.lock").exists()
    assert (driver.holder(locks) or "").startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("elsewhere", [{"host": "elsewhere"}, {"started": None}])
def test_locks_of_a_driver_that_cannot_be_seen_stay(locks: Path, dead: str, elsewhere: dict[str, str]) -> None:
    (locks / "owner-1").write_text(json.dumps(json.loads(dead) | elsewhere))
    driver.unlock(locks)
    assert driver.holder(locks)


def test_locks_without_a_name_stay(locks: Path, dead: str) -> None:
    """A driver of another version, or one that has just started beside the locks of a dead one."""
    driver.unlock(locks)
    assert driver.holder(locks) is None
    (locks / "owner-1").write_text(dead)
    (locks / "1.output.lock").write_text("results/b\n")
    driver.unlock(locks)
    assert len(list(locks.glob("*.output.lock"))) == 2


def test_locks_that_were_taken_anew_stay(locks: Path, dead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two drivers start at once: the first has unlocked and locked anew when the second unlocks."""
    (locks / "owner-1").write_text(dead)
    rename = Path.rename

    def later(path: Path, target: Path) -> Path:
        (locks / "owner-1").write_text(this_process())
        monkeypatch.setattr(Path, "rename", rename)
        return path.rename(target)

    monkeypatch.setattr(Path, "rename", later)
    driver.unlock(locks)
    assert (locks / "0.output.lock").exists()
    assert [path.name for path in locks.parent.iterdir()] == ["locks"]


def test_without_locks_nothing_happens(tmp_path: Path) -> None:
    driver.record(tmp_path / "locks")
    driver.unlock(tmp_path / "locks")
    assert driver.holder(tmp_path / "locks") is None
    assert list(tmp_path.iterdir()) == []


TRACEBACK = """Traceback (most recent call last):
  File "a.py", line 1, in <module>
    1 / 0
    ~~^~~

{last}
"""
KILLED = "it ended without a message"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("10%|#\rerror: task.csv: no column 'label'\n", "task.csv: no column 'label'"),
        ("error: first\nmore\nerror: last\nmore\n", "last"),
        ("usage: finetune.py [-h]\nfinetune.py: error: no such option\n", "no such option"),
        (TRACEBACK.format(last="ZeroDivisionError: division by zero"), "ZeroDivisionError: division by zero"),
        (TRACEBACK.format(last="A: 1") + TRACEBACK.format(last="B: 2") + "bye\n", "B: 2"),
        (TRACEBACK.format(last="A: 1") + "error: then\n", "then"),
        ("error: then\n" + TRACEBACK.format(last="A: 1"), "A: 1"),
        ("10%|#\r20%|##", KILLED),
        ("", KILLED),
        ("x" * 50_000 + "\nerror: at the end", "at the end"),
        ("error: m\xfcll \N{PILE OF POO}", "m\xfcll \N{PILE OF POO}"),
    ],
)
def test_the_reason_of_a_failure_is_one_line(log: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "job.log"
    path.write_bytes(log.encode())
    (line,) = driver.failures([("prune m", [str(path)])])
    assert line.startswith(f"error: prune m: {reason}")
    assert line.endswith(f"; see {path}")
    assert "\n" not in line


def test_a_job_without_a_log(tmp_path: Path) -> None:
    (line,) = driver.failures([("prune m", [str(tmp_path / "none.log")])])
    assert "it did not start" in line
