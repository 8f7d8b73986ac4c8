"""Processes that leave nothing behind: `python guard.py interchange|pilot|job COMMAND ARGUMENTS...`.

- `interchange`: without its driver it would keep starting jobs, so it ends with it. It has a session of its own, as
  Ctrl-C is for the driver, which deletes the pilots in order.
- `pilot`: a manager on a node. It gets a temporary folder of its own, which is removed with all that killed processes
  leave there. A batch system kills what is left once the batch job's script has ended, so a pilot lasts until its jobs
  have saved their state.
- `job`: without its pilot it would keep writing, so it ends with it. Then, and on SIGTERM, all its processes get
  SIGTERM, at which they may save their state, and ten seconds later SIGKILL.

It runs as a script, with the standard library only.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SAVE = 10  # seconds for a job to save its state
LONGEST = 60  # characters of a temporary folder in which the name of a socket stays within its 107


def die_with_parent() -> None:
    """Let the kernel send SIGTERM to this process when its parent ends for any reason. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


def own_session() -> None:
    """Start a session that ends with the parent of this process."""
    parent = os.getppid()
    os.setsid()
    die_with_parent()
    if os.getppid() != parent:  # the parent ended before the kernel was asked
        sys.exit(1)


def outlast(seconds: float) -> None:
    """Wait until all descendants have ended, but no longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.05)
        except ChildProcessError:
            return


def run_pilot(command: list[str]) -> int:
    """Run a manager in a temporary folder of its own and wait for its jobs, which have sessions of their own."""
    usual = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="pilot-", dir=usual if len(usual) <= LONGEST else "/tmp")
    try:
        manager = subprocess.Popen(command, env={**os.environ, "TMPDIR": folder})
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: manager.terminate())
        code = manager.wait()
        outlast(SAVE + 2)
        return code if code >= 0 else 128 - code
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_job(command: list[str]) -> int:
    """Run the command of a job, and end all its processes on SIGTERM."""

    def end(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        outlast(SAVE)
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    own_session()
    code = subprocess.Popen(command).wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    kind, *words = sys.argv[1:]
    if kind == "interchange":
        own_session()
        os.execvp(words[0], words)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphaned descendants become children of this process
    sys.exit(run_pilot(words) if kind == "pilot" else run_job(words))
