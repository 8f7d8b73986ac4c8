"""How far a run is, in one line."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median


@dataclass
class Started:
    """A job that was handed to a pool."""

    kind: tuple[str, int]  # its rule and the minutes it asked for


class Progress:
    """Counts jobs and guesses when the last one ends.

    Args:
        total: jobs that the pools will get.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.open: dict[int, Started] = {}
        self.done = self.failed = 0
        self.seconds: dict[tuple[str, int], list[float]] = {}
        self.begun = time.monotonic()

    def start(self, job: int, rule: str, minutes: int) -> None:
        """A job was handed over."""
        self.open[job] = Started((rule, minutes))

    def end(self, job: int, seconds: float | None) -> None:
        """A job has ended, after so many seconds; None: it has failed."""
        started = self.open.pop(job)
        if seconds is None:
            self.failed += 1
        else:
            self.done += 1
            self.seconds.setdefault(started.kind, []).append(seconds)

    def left(self, slots: int) -> float | None:
        """Seconds until the last job ends, if jobs go on as those of their kind did; None: nothing to go by."""
        if not self.seconds or not slots:
            return None
        asked = sum(kind[1] * 60 * len(seconds) for kind, seconds in self.seconds.items())
        ratio = sum(map(sum, self.seconds.values())) / asked if asked else 0.0
        mean = sum(map(sum, self.seconds.values())) / self.done

        def guess(kind: tuple[str, int]) -> float:
            if kind in self.seconds:
                return median(self.seconds[kind])
            return kind[1] * 60 * ratio or mean

        known = [guess(job.kind) for job in self.open.values()]
        unseen = max(0, self.total - self.done - self.failed - len(self.open)) * mean
        return max((sum(known) + unseen) / slots, max(known, default=0.0) / 2)

    def line(self, pool: Mapping[str, int]) -> str:
        """One line: jobs, slots, pilots, the end."""
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
