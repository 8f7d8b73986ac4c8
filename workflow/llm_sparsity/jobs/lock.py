"""A lock that one process of several holds, on a file system that machines share, whatever kills its owner.

The owner touches the file every few seconds. It counts as dead when its process is gone (seen on the same host only),
or when the file has not changed for a while by the waiting process's own clock: the clocks of two machines, and clocks
that jump, are never compared. A file that is made with O_EXCL is a lock on shared file systems too.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_sparsity.jobs.errors import UserError

PATIENCE = 60.0  # seconds without a heartbeat after which a lock's owner counts as dead
BEAT = 5.0  # seconds between heartbeats


@contextmanager
def locked(path: Path, patience: float = PATIENCE) -> Iterator[Callable[[], None]]:
    """Hold a lock file; wait for its owner while that lives. Gives a function that fails once the lock is lost.

    Args:
        path: the file; its folder exists.
        patience: seconds without a heartbeat after which the owner counts as dead.

    Raises:
        UserError: from the function given: another process took the lock over.
    """
    owner = json.dumps({"host": _host(), "pid": os.getpid(), "started": _started(os.getpid())})
    seen, since, told = None, time.monotonic(), False
    while True:
        try:
            with path.open("x") as file:
                file.write(owner)
            break
        except FileExistsError:
            pass
        try:
            found = (path.read_text(), path.stat().st_mtime_ns)
        except FileNotFoundError:
            continue
        if found != seen:
            seen, since = found, time.monotonic()
        if _is_dead(found[0]) or time.monotonic() - since > patience:
            _take_over(path, found[0])
            continue
        if not told:
            print(f"{path}: held by {found[0]}; waiting for it to end", file=sys.stderr)
            told = True
        time.sleep(min(1.0, patience / 4))

    def assert_held() -> None:
        try:
            if path.read_text() == owner:
                return
        except FileNotFoundError:
            pass
        raise UserError(f"{path}: taken over by another copy of this job while this one stood still; it is left to it")

    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT):
            try:
                assert_held()
                os.utime(path)
            except (UserError, OSError):
                return  # the next save finds out

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield assert_held
    finally:
        done.set()
        thread.join()
        try:
            assert_held()
            path.unlink()
        except UserError:
            pass


def _take_over(path: Path, dead: str) -> None:
    """Remove a dead owner's lock; of two that try, one finds the other's new lock in its hands and gives it back."""
    mine = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        path.rename(mine)
    except FileNotFoundError:
        return
    if mine.read_text() == dead:
        mine.unlink()
    else:
        mine.rename(path)


def _host() -> str:
    """This machine, and since which start: process numbers mean nothing elsewhere."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}".strip()


def _started(pid: int) -> str | None:
    """When a process of this machine started, in ticks since the machine did; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _is_dead(owner: str) -> bool:
    """Whether a lock's owner is known to be gone; only its own machine can know."""
    try:
        found = json.loads(owner)
    except ValueError:
        return False  # being written
    return found["host"] == _host() and found["started"] is not None and _started(found["pid"]) != found["started"]
