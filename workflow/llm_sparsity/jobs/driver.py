"""The driver: the process in which Snakemake runs jobs, and the owner of a folder's locks.

Snakemake locks the files that a driver writes by `.snakemake/locks/{n}.output.lock`, without saying whose they are. A
driver adds `owner-{pid}`, which it removes with its locks. Those of a killed driver are removed by the next one.
"""

import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_sparsity.jobs.lock import locked
from llm_sparsity.jobs.process import Process, read, this_process

LOCKS = Path(".snakemake/locks")


def record(locks: Path = LOCKS) -> None:
    """Write down that this process holds locks."""
    if locks.is_dir():
        new = locks / f"new-{os.getpid()}"
        new.write_text(this_process())
        new.rename(locks / f"owner-{os.getpid()}")  # whole or absent


def spare_others(locks: Path = LOCKS) -> None:
    """Let this process remove its own locks alone when it ends, also if it has none; `--unlock` removes all.

    Snakemake 9 removes the folder, with the locks of drivers that still run, whose files a third one could then write.
    Some names that are used here are not public.
    """
    from snakemake.persistence.file import FilePersistence

    def delete(persistence: Any) -> None:
        for file in [*persistence._lockfile.values(), locks / f"owner-{os.getpid()}"]:
            Path(file).unlink(missing_ok=True)
        persistence._lockfile.clear()

    FilePersistence._delete_locks = delete
    FilePersistence.cleanup_locks = lambda _: shutil.rmtree(locks)


def unlock(locks: Path = LOCKS) -> None:
    """Remove the locks of drivers that were killed; those of a living one, or of another machine, stay."""
    if not _are_dead(list(locks.glob("*"))):
        return
    with locked(locks.with_name("unlocking")):  # of two drivers that start at once, one unlocks; then both may lock
        left = list(locks.glob("*"))
        if not _are_dead(left):
            return
        ended = ", ".join(str(owner.pid) for owner in _owners(left))
        for path in left:  # nothing that another driver adds meanwhile
            path.unlink(missing_ok=True)
    print(f"unlocked: process {ended} of an earlier run has ended without removing its locks", file=sys.stderr)


def holder(locks: Path = LOCKS) -> str | None:
    """Who holds locks, as the end of a sentence; None if nobody does who has written it down."""
    for owner in _owners(locks.glob("*")):
        if not owner.has_ended:
            return f"process {owner.pid} on {owner.host.split()[0]}"
    return None


def _owners(paths: Iterable[Path]) -> list[Process]:
    """The owners among the files of a folder of locks, without those that are gone, or were cut off by a full disk."""
    found = []
    for path in sorted(paths):
        if path.name.startswith("owner-"):
            with suppress(OSError, ValueError):
                found.append(read(path.read_text()))
    return [owner for owner in found if owner]


def _are_dead(paths: Iterable[Path]) -> bool:
    """Whether every lock has an owner that has ended. One that has just started is not recorded yet."""
    paths = list(paths)
    owners = _owners(paths)
    locks = sum(path.name.endswith(".output.lock") for path in paths)
    return len(owners) >= max(1, locks) and all(owner.has_ended for owner in owners)
