"""The Parsl task of a Snakemake job: run its command in the driver's folder and return the outcome.

Parsl imports this module on compute nodes; it uses the standard library only.
"""

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from snakemake_executor_plugin_parsl import guard

# SIGTERM goes to the whole process group: Snakemake alone would wait for its jobs. A fine-tuning saves its state on
# SIGTERM; ten seconds later everything is killed.
GROUP = """
trap 'trap "" TERM; kill -TERM 0; sleep 10; kill -KILL 0' TERM
sh -c "$1" &
wait $!
"""


@dataclass(frozen=True)
class Outcome:
    """Exit code of a command, its duration, and the host, manager and slot that ran it."""

    code: int
    host: str
    manager: str
    slot: str
    seconds: float


def run(command: str, folder: str, log: str) -> Outcome:
    """Run a shell command in `folder`. Its output is written to `log`, which is deleted on success."""
    guard.die_with_parent()  # a worker without a manager cannot return a result
    started = time.monotonic()
    path = Path(log)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as output:
        code = subprocess.run(
            [sys.executable, "-I", guard.__file__, "sh", "-c", GROUP, "sh", command],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False,
        ).returncode  # fmt: skip
    if code == 0:
        path.unlink()
    return Outcome(
        code=code,
        host=platform.node(),
        manager=os.environ.get("PARSL_WORKER_POOL_ID", ""),
        slot=f"{os.environ.get('PARSL_WORKER_BLOCK_ID')}/{os.environ.get('PARSL_WORKER_RANK')}",
        seconds=time.monotonic() - started,
    )
