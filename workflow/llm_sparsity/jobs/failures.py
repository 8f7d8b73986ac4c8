"""Failed jobs: the reason of each, from its log, in one line."""

import re
from collections.abc import Iterable
from pathlib import Path

SAID = re.compile(
    r"^(?:\S+\.py: )?error: (?P<error>.+)$"
    r"|^(?P<ended>SIGTERM: .+)$"
    r"|^Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*(?P<exception>\S.*)$",
    re.MULTILINE,
)
TAIL = 20_000  # bytes of a log that are read


def failures(jobs: Iterable[tuple[str, list[str]]]) -> list[str]:
    """One line for each failed job: its name, the reason, its log.

    Args:
        jobs: name and log files of each.
    """
    return [f"error: {name}: {_reason([Path(log) for log in logs])}; see {', '.join(logs)}" for name, logs in jobs]


def _reason(logs: list[Path]) -> str:
    """The last error message, exception or word about SIGTERM in logs, else that there is none."""
    text = "\n".join(map(_tail, logs))
    if said := list(SAID.finditer(text)):
        return str(said[-1][said[-1].lastgroup or 0])
    if not any(log.exists() for log in logs):
        return "it did not start, or its results are missing; Snakemake's message is above"
    return "it ended without a message, as a process does that is killed, such as when memory or its time ran out"


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            return "\n".join(file.read().decode(errors="replace").splitlines())  # a progress bar's \r ends a line, too
    except OSError:
        return ""
