"""Processes, for the locks and temporary files that they leave: whose one is, and whether its owner has ended."""

import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process: name and boot id of its machine, its number there, and its start time, None if it is not known."""

    host: str
    pid: int
    started: str | None

    @property
    def has_ended(self) -> bool:
        """Whether it has certainly ended; False if it cannot be seen, on another machine or hidden on this one."""
        if self.host != _host() or self.started is None or _is_hidden(self.pid):
            return False
        return _started(self.pid) != self.started


def this_process() -> str:
    """This process as the owner of a lock: a `Process` as JSON."""
    return json.dumps(Process(_host(), os.getpid(), _started(os.getpid()))._asdict())


def read(owner: str) -> Process | None:
    """The process that the text of a lock names; None if the text is cut off, as on a full disk."""
    try:
        found = json.loads(owner)
        return Process(str(found["host"]), int(found["pid"]), found["started"])
    except (ValueError, TypeError, KeyError):
        return None


def is_dead(owner: str) -> bool:
    """Whether the owner of a lock has certainly ended."""
    found = read(owner)
    return found is not None and found.has_ended


def runs(pid: int) -> bool:
    """Whether a process of this machine has not ended."""
    if sys.platform == "linux":
        return _started(pid) is not None or _is_hidden(pid)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return True


def _host() -> str:
    """Name and boot id of this machine, and its namespace of processes, within which a process id is meaningful."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [socket.gethostname(), boot.read_text().strip() if boot.exists() else ""]
    with suppress(OSError):  # two containers may share the name and the boot, but count processes each for itself
        parts.append(str(space.readlink()))
    return " ".join(filter(None, parts))


def _is_hidden(pid: int) -> bool:
    """Whether a process is another user's, and /proc shows only one's own, as with the mount option hidepid."""
    if Path(f"/proc/{pid}").exists():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        pass
    return False


def _started(pid: int) -> str | None:
    """Start time of a process of this machine, in clock ticks since boot; None if it has ended or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
