"""The Parsl task of a Snakemake job: run its command in the driver's folder and return the outcome.

Parsl imports this module on compute nodes; it uses the standard library only.
"""

import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from snakemake_executor_plugin_parsl import guard

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Outcome:
    """Exit code of a command, the host and manager that ran it, its duration, whether memory ran out, and why else the
    command was not run.
    """

    code: int
    host: str
    manager: str
    seconds: float
    out_of_memory: bool = False
    reason: str = ""


def run(command: str, folder: str, log: str) -> Outcome:
    """Run a shell command in `folder`. Its output is written to `log`, which is deleted on success.

    What the node refuses, such as a file on a full disk, fails this job alone.
    """
    guard.die_with_parent()  # a worker without a manager cannot return a result
    started, kills = time.monotonic(), memory_kills()
    path, code, reason = Path(log), 1, ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as output:
            code = subprocess.run(
                [sys.executable, "-I", guard.__file__, "job", "sh", "-c", command],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False,
            ).returncode  # fmt: skip
        if code == 0:
            path.unlink(missing_ok=True)
    except OSError as error:
        reason = str(error)
    return Outcome(
        code=code,
        host=platform.node(),
        manager=os.environ.get("PARSL_WORKER_POOL_ID", ""),
        seconds=time.monotonic() - started,
        out_of_memory=code != 0 and memory_kills() > kills,
        reason=reason if code else "",
    )


def memory_kills(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Processes that the kernel has killed in the control group of this process because memory ran out; 0: unknown."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        _, controllers, path = line.split(":", 2)
        version_1 = "memory" in controllers.split(",")
        file = cgroups / ("memory" if version_1 else "") / path.lstrip("/")
        file /= "memory.oom_control" if version_1 else "memory.events"
        try:
            if found := re.search(r"^oom_kill (\d+)", file.read_text(), re.MULTILINE):
                return int(found.group(1))
        except OSError:
            continue
    return 0
