"""Progress of a run: jobs of each rule, the cells that run now, and the estimated time of the end."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import fmean

CELLS = 2  # running cells that a line names


@dataclass
class Job:
    """A job that runs.

    Args:
        rule: its rule.
        cell: what it works on, such as "minilm/magnitude-linear-0.5".
        threads: cores that it takes.
        minutes: planned duration; 0: unknown.
        begun: when it started, of `time.monotonic`; None: it may still wait in a queue.
    """

    rule: str
    cell: str = ""
    threads: int = 1
    minutes: float = 0.0
    begun: float | None = field(default_factory=time.monotonic)

    @property
    def kind(self) -> tuple[str, float]:
        """Jobs of the same rule and planned duration are expected to take equally long."""
        return self.rule, self.minutes

    def spent(self) -> float:
        """Core-seconds so far."""
        return 0.0 if self.begun is None else (time.monotonic() - self.begun) * self.threads


class Progress:
    """Counts jobs and estimates when the last one ends.

    Args:
        total: number of jobs of each rule.
        planned: mean minutes of the jobs of a rule, as far as they are known; only their ratios matter.
        queued: whether started jobs may wait, for a node or a GPU.

    Attributes:
        running: job id -> job.
        done, failed: number of jobs of each rule.
    """

    def __init__(
        self, total: Mapping[str, int], planned: Mapping[str, float] | None = None, *, queued: bool = False
    ) -> None:
        self.total, self.planned, self.queued = Counter(total), dict(planned or {}), queued
        self.running: dict[int, Job] = {}
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.begun = time.monotonic()
        self._spent: dict[tuple[str, float], list[float]] = {}  # kind -> core-seconds of each ended job

    def start(self, number: int, job: Job) -> None:
        """Record that a job started, or was submitted."""
        self.running[number] = job
        self.total[job.rule] = max(self.total[job.rule], self._started(job.rule))  # it may start again

    def end(self, number: int, seconds: float | None) -> None:
        """Record that a job ended: its duration in seconds, None if it failed."""
        job = self.running.pop(number)
        if seconds is None:
            self.failed[job.rule] += 1
        else:
            self.done[job.rule] += 1
            self._spent.setdefault(job.kind, []).append(seconds * job.threads)

    def left(self, cores: float | None = None) -> float | None:
        """Seconds until the last job ends; None while nothing is known.

        A job is expected to take as long as those of its kind, else its planned minutes, scaled by what ended jobs
        took of theirs. If started jobs may wait, nobody knows which work and how many: planned minutes are expected to
        end as fast as they did so far.

        Args:
            cores: that work on jobs at a time; default: as many as did so far, on average.
        """
        if not self._spent or cores == 0:
            return None
        if self.queued:
            ended = sum(count * self.planned.get(rule, 0.0) for rule, count in self.done.items())
            rest = (self.total - self.done - self.failed).items()
            minutes = sum(count * self.planned.get(rule, 0.0) for rule, count in rest)
            return (time.monotonic() - self.begun) * minutes / ended if ended else None
        if cores is None:
            spent = sum(map(sum, self._spent.values())) + sum(job.spent() for job in self.running.values())
            cores = max(spent / max(time.monotonic() - self.begun, 1e-9), 1e-9)
        running = [(self._rest(job), job.threads) for job in self.running.values()]
        waiting = sum(
            (self.total[rule] - self._started(rule)) * self._expected((rule, self.planned.get(rule, 0.0)))
            for rule in self.total
        )
        longest = max((seconds / threads for seconds, threads in running), default=0.0)
        return max((sum(seconds for seconds, _ in running) + waiting) / cores, longest / 2)

    def line(self, left: float | None) -> str:
        """One line: jobs that have ended, the end, and for each rule that runs its count and its cells.

        Args:
            left: seconds until the last job ends, see `left`.
        """
        failed = f", {self.failed.total()} failed" if self.failed else ""
        parts = [f"{self.done.total()} of {self.total.total()} jobs{failed}{ending(left)}"]
        for rule in dict.fromkeys(job.rule for job in self.running.values()):
            cells = [job.cell for job in self.running.values() if job.rule == rule and job.cell]
            named = ", ".join(cells[:CELLS]) + (f" and {len(cells) - CELLS} more" if len(cells) > CELLS else "")
            count = f" {self.done[rule]}/{self.total[rule]}" if self.total[rule] > 1 else ""
            parts.append(f"{rule}{count}{': ' if named else ''}{named}")
        return " | ".join(parts)

    def _started(self, rule: str) -> int:
        """Number of jobs of a rule that have started."""
        return self.done[rule] + self.failed[rule] + sum(job.rule == rule for job in self.running.values())

    def _rest(self, job: Job) -> float:
        """Core-seconds that a running job is expected to go on; a late one a tenth of what it has taken."""
        return max(self._expected(job.kind) - job.spent(), job.spent() / 10)

    def _expected(self, kind: tuple[str, float]) -> float:
        """Core-seconds that a job of a kind is expected to take."""
        if found := self._spent.get(kind):
            return fmean(found)
        rule, minutes = kind
        if not minutes and self.planned:
            return 0.0  # the plan leaves out what takes no time
        known = {one: spent for one, spent in self._spent.items() if one[1] or not minutes}
        known = {one: spent for one, spent in known.items() if one[0] == rule} or known or self._spent
        jobs = sum(map(len, known.values()))
        asked = sum(one[1] * len(spent) for one, spent in known.items())
        return sum(map(sum, known.values())) * (minutes / asked if minutes and asked else 1 / jobs)


def ending(left: float | None) -> str:
    """The end of a run, as a part of a line; "" if it is not known."""
    if left is None:
        return ""
    about = f"{left / 3600:.1f} h" if left > 5400 else f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
    return f", about {about} left ({datetime.now() + timedelta(seconds=left):%H:%M})"
