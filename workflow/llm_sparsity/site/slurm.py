"""Slurm jobs of a killed driver. They outlive it: those that the next driver starts again would have two writers."""

import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from llm_sparsity.jobs.errors import UserError

PATIENCE = 300  # seconds in which cancelled jobs must have ended; Slurm kills them after its KillWait, 30 by default
PAUSE = 1.0  # seconds between two looks


def cancel_left_over(jobs: Iterable[tuple[str, Sequence[str]]], patience: float = PATIENCE) -> None:
    """Cancel the Slurm jobs of this folder that make what `jobs` will make, and wait until they have ended.

    A driver holds the locks of its jobs' outputs when it calls this, so those jobs have no living driver.
    snakemake-executor-plugin-slurm writes a job's rule and wildcards into its comment.

    Args:
        jobs: rule and wildcards of each.
        patience: seconds to wait.

    Raises:
        UserError: jobs do not end.
    """
    comments = {_comment(rule, wildcards) for rule, wildcards in jobs}
    left = _queued(comments)
    if not left:
        return
    print(f"slurm: cancelling jobs of a killed driver: {', '.join(left)}", file=sys.stderr)
    subprocess.run(["scancel", *left], check=False, capture_output=True, timeout=patience)
    deadline = time.monotonic() + patience
    while left := _queued(comments):
        if time.monotonic() > deadline:
            raise UserError(f"Slurm jobs {' '.join(left)} do not end; wait for them, or cancel them with scancel")
        time.sleep(PAUSE)


def _comment(rule: str, wildcards: Sequence[str]) -> str:
    return f"rule_{rule}_wildcards_{'_'.join(wildcards).replace('/', '_')}" if wildcards else f"rule_{rule}"


def _queued(comments: set[str]) -> list[str]:
    """Ids of this user's unfinished jobs that run in this folder and have one of the comments."""
    listed = subprocess.run(
        ["squeue", "--me", "--noheader", "--format=%i|%Z|%k"], capture_output=True, text=True, check=False, timeout=60
    )  # without an answer of Slurm, submitting fails next, with its message
    jobs = [line.split("|", 2) for line in listed.stdout.splitlines()]
    return [number for number, folder, comment in jobs if comment in comments and Path(folder) == Path.cwd()]
