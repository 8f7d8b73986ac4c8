import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from snakemake.persistence.file import FilePersistence

from llm_sparsity.jobs import driver


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
    code = "from llm_sparsity.jobs.process import this_process; print(this_process())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_locks_of_a_dead_driver_are_removed(locks: Path, dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    (locks / "owner-1").write_text(dead)
    driver.unlock(locks)
    assert list(locks.parent.rglob("*")) == [locks]
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


def test_locks_that_another_driver_takes_meanwhile_stay(
    locks: Path, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two drivers start at once: the first has unlocked and locked anew when the second one may unlock."""
    (locks / "owner-1").write_text(dead)

    @contextmanager
    def later(path: Path) -> Iterator[None]:
        (locks / "owner-1").unlink()
        driver.record(locks)
        yield

    monkeypatch.setattr(driver, "locked", later)
    driver.unlock(locks)
    assert (locks / "0.output.lock").exists()
    assert (driver.holder(locks) or "").startswith(f"process {os.getpid()} on ")


def test_an_owner_that_is_gone_or_cut_off_stops_no_driver(
    locks: Path, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, text in enumerate(["", dead[: len(dead) // 2], "1", "{}"], start=2):
        (locks / f"owner-{number}").write_text(text)
    (locks / "owner-1").symlink_to("gone")
    driver.unlock(locks)
    assert driver.holder(locks) is None
    assert (locks / "0.output.lock").exists(), "nobody is known to have ended"
    (locks / "owner-1").unlink()
    (locks / "owner-1").write_text(dead)
    driver.unlock(locks)
    assert not list(locks.glob("*.lock"))


def test_an_owner_is_whole_or_absent(locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="full"):
        driver.record(locks)
    assert not list(locks.glob("owner-*"))


def test_without_locks_nothing_happens(tmp_path: Path) -> None:
    driver.record(tmp_path / "locks")
    driver.unlock(tmp_path / "locks")
    assert driver.holder(tmp_path / "locks") is None
    assert list(tmp_path.iterdir()) == []


def test_a_driver_that_ends_spares_the_locks_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the class of Snakemake that keeps locks in files. The last one has found nothing to do."""
    for name in ("_delete_locks", "cleanup_locks"):  # restored at the end
        monkeypatch.setattr(FilePersistence, name, None)
    locks = tmp_path / "locks"
    driver.spare_others(locks)
    first, other, idle = (FilePersistence(dag=None, path=tmp_path) for _ in range(3))
    for each in (first, other):
        each._write_locks("output", ["results/a"])
    driver.record(locks)
    (locks / "owner-1").write_text("another")
    first.unlock()
    idle.unlock()
    assert {path.name for path in locks.iterdir()} == {"1.output.lock", "owner-1"}
    idle.cleanup_locks()  # --unlock
    assert not locks.exists()
