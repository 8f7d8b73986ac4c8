"""One driver at a time in a folder of pools: a living one is not disturbed, the pilots of a dead one are deleted.

Each driver has a file, `driver-{host}-{pid}.json`, with the ids of its pilots, whose time it renews every few seconds.
Login nodes share the folder but not their processes or clocks, so a driver on another node lives if that time moves.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from parsl.executors import HighThroughputExecutor
from parsl.jobs.states import JobState, JobStatus
from parsl.providers.cluster_provider import ClusterProvider

BEAT = 5  # seconds between two renewals
STALE = 60  # seconds in which a driver on another node shows that it lives, even if its file system is slow
MARGIN = 20  # seconds from the end of a pilot to that of the last of its processes


class Driver:
    """The file of this driver.

    Args:
        folder: that of the pools' logs, shared by all drivers.
        say: prints one line to the user.

    Raises:
        ValueError: another driver is alive.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.say = say
        self.file = folder / f"driver-{platform.node()}-{os.getpid()}.json"
        self._lock = threading.Lock()
        self._pilots: dict[str, list[str]] = {}
        self._write()
        try:
            for other in set(folder.glob("driver-*.json")) - {self.file}:
                found = _read(other)
                if self._is_alive(other, found):
                    raise ValueError(
                        f"{other}: process {found.get('pid', '?')} on {found.get('host', '?')} runs jobs of this "
                        "folder; wait until it has ended, or end it there by Ctrl-C"
                    )
        except BaseException:
            self.file.unlink()
            raise
        self._ended = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def record(self, executor: HighThroughputExecutor) -> None:
        """Write down the id of each pilot that a pool submits from now on."""
        submit = executor.provider.submit

        def recorded(*args: Any, **keywords: Any) -> Any:
            pilot = submit(*args, **keywords)
            self._pilots.setdefault(executor.label, []).append(str(pilot))
            self._write()
            return pilot

        executor.provider.submit = recorded

    def take_over(self, executors: Mapping[str, HighThroughputExecutor]) -> None:
        """Delete the pilots of dead drivers and wait until they have ended, so that no file has two writers.

        Args:
            executors: every pool of the configuration file, by label.
        """
        silent = max(executor.heartbeat_threshold for executor in executors.values()) + MARGIN
        for other in set(self.file.parent.glob("driver-*.json")) - {self.file}:
            found = _read(other)
            pilots = {label: ids for label, ids in found.get("pilots", {}).items() if ids}
            here = found.get("host") == platform.node()  # clocks of two machines differ
            left = silent - self._age(other) if here else silent
            if not pilots or left <= 0 or self._end_pilots(found, pilots, executors, time.monotonic() + left):
                other.unlink(missing_ok=True)

    def _end_pilots(
        self, found: Mapping[str, Any], pilots: Mapping[str, list[str]],
        executors: Mapping[str, HighThroughputExecutor], deadline: float,
    ) -> bool:  # fmt: skip
        """Delete pilots; whether they have ended, by the batch system, or where none can be asked, by the deadline."""
        self.say(f"parsl: process {found['pid']} on {found['host']} was killed; waiting until its pilots have ended")
        asked = {label: executors[label].provider for label in pilots if label in executors}
        asked = {label: provider for label, provider in asked.items() if isinstance(provider, ClusterProvider)}
        for label, provider in asked.items():
            provider.resources |= {pilot: _resource(pilot) for pilot in pilots[label]}
            provider.cancel(pilots[label])

        def ended() -> bool:
            return all(
                status.terminal for label, provider in asked.items() for status in provider.status(pilots[label])
            )

        while time.monotonic() < deadline and not (len(asked) == len(pilots) and ended()):
            time.sleep(1)
        if not (all_ended := ended()):
            left = ", ".join(pilot for label in asked for pilot in pilots[label])
            self.say(f"parsl: pilots of that process may still run; see to it that they end: {left}")
        for label, provider in asked.items():
            for pilot in pilots[label]:
                del provider.resources[pilot]
        return all_ended

    def end(self, *, clean: bool) -> None:
        """Stop renewing the file. If all pilots have ended, remove it; otherwise the next driver sees to them."""
        self._ended.set()
        with self._lock:
            if clean:
                self.file.unlink(missing_ok=True)

    def _write(self) -> None:
        with self._lock:
            new = self.file.with_suffix(".new")
            new.write_text(
                json.dumps(
                    {"host": platform.node(), "pid": os.getpid(), "began": _began(os.getpid()), "pilots": self._pilots}
                )
            )
            new.replace(self.file)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with self._lock, suppress(OSError):  # a file system that does not answer for once is asked again
                if self.file.exists():
                    os.utime(self.file)

    def _age(self, other: Path) -> float:
        """Seconds from another driver's last renewal to now; wrong by the difference of two nodes' clocks."""
        os.utime(self.file)
        return _time(self.file) - _time(other)

    def _is_alive(self, other: Path, found: Mapping[str, Any]) -> bool:
        if found.get("host") == platform.node():
            return _began(found["pid"]) == str(found["began"])
        first, began = _time(other), time.monotonic()
        patience = STALE if self._age(other) < STALE else 3 * BEAT
        while time.monotonic() < began + patience:
            if _time(other) != first:
                return other.exists()
            time.sleep(BEAT / 10)
        return False


def _resource(pilot: str) -> dict[str, Any]:
    """What a provider keeps of a pilot; this one it has not submitted."""
    return {"job_id": pilot, "status": JobStatus(JobState.PENDING), "job_stdout_path": None, "job_stderr_path": None}


def _read(file: Path) -> dict[str, Any]:
    """A driver's file; empty if it is gone."""
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _time(file: Path) -> float:
    """Time of the last change. The file is opened, as a network file system may otherwise answer from memory."""
    try:
        with file.open() as opened:
            return os.fstat(opened.fileno()).st_mtime
    except FileNotFoundError:
        return 0.0
    except PermissionError:
        raise ValueError(f"{file}: another user's, not readable; ask for `chmod g+r`, or work elsewhere") from None


def _began(pid: int) -> str:
    """When a process of this machine started, "" if there is none: another one may have got its number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        return "" if Path("/proc").is_dir() else str(pid)
