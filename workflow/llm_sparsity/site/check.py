"""What a check returns, and how it asks a command."""

import subprocess
from dataclasses import dataclass

SECONDS = 60  # for a command to answer


@dataclass(frozen=True)
class Line:
    """The outcome of a check, in one line.

    Args:
        subject: what was checked.
        found: what was found.
        fix: what to do; empty if there is nothing to do.
        known: whether it could be checked.
    """

    subject: str
    found: str
    fix: str = ""
    known: bool = True

    @property
    def state(self) -> str:
        """`OK`, `TO DO`, or `--` for what could not be checked."""
        return "TO DO" if self.fix else "OK" if self.known else "--"


@dataclass(frozen=True)
class Answer:
    """Exit code and output of a command; 127 if there is no such command, 124 if it does not answer."""

    code: int
    output: str
    error: str = ""

    @property
    def reason(self) -> str:
        """Why it failed, in one line."""
        printed = (self.error or self.output).strip() or f"exit code {self.code}"
        return printed.splitlines()[-1].strip()


def ask(*words: str) -> Answer:
    """Run a command and return its answer."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        return Answer(127, "", f"{words[0]}: not found")
    except subprocess.TimeoutExpired:
        return Answer(124, "", f"{words[0]}: no answer within {SECONDS} seconds")
    return Answer(done.returncode, done.stdout, done.stderr)


def minutes(walltime: str) -> float:
    """Minutes of `D-HH:MM:SS`, `HH:MM:SS` or `MM:SS`, as batch systems write them; infinite for another word."""
    days, _, rest = walltime.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in [*parts, days or "0"]):
        return float("inf")
    hours, minute, second = ([0, 0, 0] + [int(part) for part in parts])[-3:]
    return int(days or 0) * 1440 + hours * 60 + minute + second / 60
