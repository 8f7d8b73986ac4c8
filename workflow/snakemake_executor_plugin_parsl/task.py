"""What a worker does with one Snakemake job: run its command, in the driver's folder, and say how it went.

Parsl imports this module on the compute node: standard library only.
"""

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from snakemake_executor_plugin_parsl import guard

# The whole family of processes ends with the worker: Snakemake alone, asked to end, waits for its jobs. A fine-tune
# saves what it has when it is asked.
FAMILY = """
trap 'trap "" TERM; kill -TERM 0; sleep 10; kill -KILL 0' TERM
sh -c "$1" &
wait $!
"""


@dataclass(frozen=True)
class Outcome:
    """How a command went, and where."""

    code: int
    host: str
    manager: str
    slot: str
    seconds: float


def run(command: str, folder: str, log: str) -> Outcome:
    """Run a shell command in `folder`; what it prints is kept in `log` unless it succeeds."""
    guard.die_with_parent()  # a worker whose manager is gone cannot hand in a result
    started = time.monotonic()
    path = Path(log)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as output:
        code = subprocess.run(
            [sys.executable, "-I", guard.__file__, "sh", "-c", FAMILY, "sh", command],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False,
        ).returncode  # fmt: skip
    if code == 0:
        path.unlink()
    place = os.environ
    return Outcome(
        code=code,
        host=platform.node(),
        manager=place.get("PARSL_WORKER_POOL_ID", ""),
        slot=f"{place.get('PARSL_WORKER_BLOCK_ID')}/{place.get('PARSL_WORKER_RANK')}",
        seconds=time.monotonic() - started,
    )
