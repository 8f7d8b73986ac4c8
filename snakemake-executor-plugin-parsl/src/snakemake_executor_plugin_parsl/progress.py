"""The status line: jobs, pilots and the estimated time of the end."""

import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import fmean

USUAL = 600  # seconds; the start of a process dominates a few short jobs, which say little about long ones


@dataclass
class Job:
    """A job that has not ended.

    Args:
        seconds: planned duration; 0: unknown.
        chain: planned duration of the longest chain of jobs that starts with this one, seconds.
    """

    seconds: float
    chain: float


class Progress:
    """Counts jobs and estimates when the last one ends.

    Attributes:
        left: jobs that have not ended, submitted or not, by any key.
    """

    def __init__(self) -> None:
        self.left: dict[Hashable, Job] = {}
        self.done = self.failed = 0
        self._planned = self._took = 0.0
        self._seconds: list[float] = []  # of each job that has ended

    @property
    def pace(self) -> float:
        """Measured by planned duration of the jobs that have ended; near 1 until USUAL seconds of plan have run."""
        return (self._took + USUAL) / (self._planned + USUAL)

    def end(self, keys: list[Hashable], seconds: float | None) -> None:
        """Record that jobs, which ran one after the other, ended after a number of seconds; None: they failed."""
        jobs = [self.left.pop(key, Job(0, 0)) for key in keys]
        if seconds is None:
            self.failed += len(jobs)
            return
        self.done += len(jobs)
        self._seconds += [seconds / len(jobs)] * len(jobs)
        if planned := sum(job.seconds for job in jobs):
            self._planned += planned
            self._took += seconds

    def seconds_left(self, slots: int, begun: Mapping[Hashable, float]) -> float | None:
        """Seconds until the last job ends: what is left divided by slots, or the longest chain. None: unknown.

        Args:
            slots: jobs that run at a time.
            begun: when jobs started that run now, of `time.monotonic`.
        """
        known = self._seconds or [job.seconds for job in self.left.values() if job.seconds]
        if not slots or not known or not self.left:
            return None
        usual = fmean(known)
        rests, chains = [], []
        for key, job in self.left.items():
            whole = job.seconds * self.pace or usual
            spent = time.monotonic() - begun[key] if key in begun else 0.0
            rest = max(whole - spent, spent / 10)  # a late one takes a tenth of what it has taken
            rests.append(rest)
            chains.append(rest + max(0.0, job.chain - job.seconds) * self.pace)
        return max(sum(rests) / slots, *chains)


def line(progress: Progress, begun: Mapping[Hashable, float], submitted: int, pools: Mapping[str, int]) -> str:
    """One line about jobs, slots, pilots and the estimated end.

    Args:
        progress: of the jobs of pools.
        begun: see `Progress.seconds_left`.
        submitted: number of jobs that wait for a slot or run.
        pools: see `Pools.counts`.
    """
    running = len(begun)
    total = len(progress.left) + progress.done + progress.failed
    parts = [
        f"{max(0, submitted - running)} queued, {running} running, {progress.done} of {total} done, "
        f"{progress.failed} failed, {pools['lost']} preempted or lost",
        f"{pools['pilots']} pilots up, {pools['waiting']} in the queue, {pools['busy']} of {pools['slots']} slots busy",
    ]
    if (left := progress.seconds_left(pools["slots"], begun)) is not None:
        end = datetime.now() + timedelta(seconds=left)
        parts.append(f"ends about {end:%H:%M} (in {max(1, round(left / 60))} min)")
    return "parsl: " + " | ".join(parts)
