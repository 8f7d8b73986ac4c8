"""The driver: the process in which Snakemake runs jobs. Who holds a folder's locks, and why jobs have failed.

Snakemake locks the files that a driver writes by `.snakemake/locks/{n}.output.lock`, without saying whose they are. A
driver adds `owner-{pid}`, which Snakemake removes with the locks. Those of a killed driver are removed by the next one.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from llm_sparsity.jobs.lock import is_dead, this_process

LOCKS = Path(".snakemake/locks")
SAID = re.compile(
    r"^(?:\S+\.py: )?error: (?P<error>.+)$"
    r"|^Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*(?P<exception>\S.*)$",
    re.MULTILINE,
)
TAIL = 20_000  # bytes of a log that are read


def record(locks: Path = LOCKS) -> None:
    """Write down that this process holds locks."""
    if locks.is_dir():
        (locks / f"owner-{os.getpid()}").write_text(this_process())


def unlock(locks: Path = LOCKS) -> None:
    """Remove the locks of drivers that were killed; those of a living one, or of another machine, stay."""
    owners = _owners(locks)
    if not _are_dead(locks):
        return
    aside = locks.with_name(f"locks-{os.getpid()}")
    try:
        locks.rename(aside)  # of two drivers that start at once, one unlocks
    except FileNotFoundError:
        return
    if not _are_dead(aside):  # the other one has locked anew already
        aside.rename(locks)
        return
    shutil.rmtree(aside)
    ended = ", ".join(str(json.loads(owner)["pid"]) for owner in owners)
    print(f"unlocked: process {ended} of an earlier run has ended without removing its locks", file=sys.stderr)


def holder(locks: Path = LOCKS) -> str | None:
    """Who holds locks, as the end of a sentence; None if nobody does who has written it down."""
    for owner in _owners(locks):
        found = json.loads(owner)
        if not is_dead(owner):
            return f"process {found['pid']} on {found['host'].split()[0]}"
    return None


def failures(jobs: Iterable[tuple[str, list[str]]]) -> list[str]:
    """One line for each failed job: its name, the reason, its log.

    Args:
        jobs: name and log files of each.
    """
    return [f"error: {name}: {_reason([Path(log) for log in logs])}; see {', '.join(logs)}" for name, logs in jobs]


def _owners(locks: Path) -> list[str]:
    return [path.read_text() for path in sorted(locks.glob("owner-*"))]


def _are_dead(locks: Path) -> bool:
    """Whether every lock has an owner that has ended. A driver that has just started has not said yet who it is."""
    owners = _owners(locks)
    return len(owners) >= max(1, len(list(locks.glob("*.output.lock")))) and all(map(is_dead, owners))


def _reason(logs: list[Path]) -> str:
    """The last error message in logs, else the last exception, else that there is none."""
    text = "\n".join(map(_tail, logs))
    if said := list(SAID.finditer(text)):
        return said[-1]["error"] or said[-1]["exception"]
    if not any(log.exists() for log in logs):
        return "it did not start, or its results are missing; Snakemake's message is above"
    return "it ended without a message, as a process does that is killed, for example because memory ran out"


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            return "\n".join(file.read().decode(errors="replace").splitlines())  # a progress bar's \r ends a line, too
    except OSError:
        return ""
