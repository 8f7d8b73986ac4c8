"""Progress of a run, and the estimated time of its end."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median


@dataclass
class Started:
    """A job that was submitted to a pool."""

    kind: tuple[str, int]  # its rule and its `runtime`, minutes


class Progress:
    """Counts jobs and estimates when the last one ends.

    Args:
        total: jobs that will be submitted to the pools.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.open: dict[int, Started] = {}
        self.done = self.failed = 0
        self.seconds: dict[tuple[str, int], list[float]] = {}
        self.begun = time.monotonic()

    def start(self, job: int, rule: str, minutes: int) -> None:
        """Record that a job was submitted."""
        self.open[job] = Started((rule, minutes))

    def end(self, job: int, seconds: float | None) -> None:
        """Record that a job ended: its duration in seconds, None if it failed."""
        started = self.open.pop(job)
        if seconds is None:
            self.failed += 1
        else:
            self.done += 1
            self.seconds.setdefault(started.kind, []).append(seconds)

    def left(self, slots: int) -> float | None:
        """Seconds until the last job ends, from the median duration of jobs of the same kind.

        None while no job has ended or there is no slot.
        """
        if not self.seconds or not slots:
            return None
        asked = sum(kind[1] * 60 * len(seconds) for kind, seconds in self.seconds.items())
        ratio = sum(map(sum, self.seconds.values())) / asked if asked else 0.0
        mean = sum(map(sum, self.seconds.values())) / self.done

        def estimate(kind: tuple[str, int]) -> float:
            if kind in self.seconds:
                return median(self.seconds[kind])
            return kind[1] * 60 * ratio or mean

        known = [estimate(job.kind) for job in self.open.values()]
        unseen = max(0, self.total - self.done - self.failed - len(self.open)) * mean
        return max((sum(known) + unseen) / slots, max(known, default=0.0) / 2)

    def line(self, pool: Mapping[str, int]) -> str:
        """One line about jobs, slots, pilots and the estimated end."""
        running = pool["busy"]
        parts = [
            f"{max(0, len(self.open) - running)} queued, {running} running, {self.done} of {self.total} done, "
            f"{self.failed} failed, {pool['lost']} preempted or lost",
            f"{pool['pilots']} pilots up, {pool['waiting']} in the queue, {running} of {pool['slots']} slots busy",
        ]
        left = self.left(pool["slots"])
        if left is not None:
            end = datetime.now() + timedelta(seconds=left)
            parts.append(f"ends about {end:%H:%M} (in {max(1, round(left / 60))} min)")
        return "parsl: " + " | ".join(parts)
