"""Progress of a run: jobs of each rule, the cells that run now, and the estimated time of the end."""

import os
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean

CELLS = 2  # running cells that a line names
BAR = re.compile(rb"\d+%\|[^\r\n]*?<(?:(\d+):)?(\d+):(\d+)")  # of tqdm:  33%|###   | 115/345 [03:58<10:29, 2.74s/step]
LAST = 4096  # bytes of a log in which the last bar is looked for


@dataclass
class Job:
    """A job that runs.

    Args:
        rule: its rule.
        cell: what it works on, such as "minilm/magnitude-linear-0.5".
        threads: cores that it takes.
        minutes: planned duration; 0: unknown.
        begun: when it started, of `time.monotonic`; None: it may still wait in a queue.
        log: what it writes, perhaps with progress bars of tqdm.
    """

    rule: str
    cell: str = ""
    threads: int = 1
    minutes: float = 0.0
    begun: float | None = field(default_factory=time.monotonic)
    log: Path | None = None

    @property
    def kind(self) -> tuple[str, float]:
        """Jobs of the same rule and planned duration are expected to take equally long."""
        return self.rule, self.minutes

    def spent(self) -> float:
        """Core-seconds so far."""
        return 0.0 if self.begun is None else (time.monotonic() - self.begun) * self.threads

    def told(self) -> float | None:
        """Core-seconds that its last progress bar says are left; None: it has none yet."""
        if self.log is None or not self.log.is_file():
            return None
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST))
            bars = BAR.findall(file.read())
        if not bars:
            return None
        hours, minutes, seconds = (int(number or 0) for number in bars[-1])
        return float(3600 * hours + 60 * minutes + seconds) * self.threads


Known = Mapping[tuple[str, float], list[float]]  # kind of job -> core-seconds of each


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
        self._spent: dict[tuple[str, float], list[float]] = {}  # of ended jobs

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

        A job is expected to take as long as those of its kind that have ended, else as its progress bar or that of
        another of its kind says, else its planned minutes, scaled by what others take of theirs. If started jobs may
        wait, nobody knows which work and how many: planned minutes are expected to end as fast as they did so far.

        Args:
            cores: that work on jobs at a time; default: as many as did so far, on average.
        """
        if cores == 0:
            return None
        if self.queued:
            ended = sum(count * self.planned.get(rule, 0.0) for rule, count in self.done.items())
            others = (self.total - self.done - self.failed).items()
            minutes = sum(count * self.planned.get(rule, 0.0) for rule, count in others)
            return (time.monotonic() - self.begun) * minutes / ended if ended else None
        told = {number: job.told() for number, job in self.running.items()}
        known = self._known(told)
        if not known:
            return None
        if cores is None:
            spent = sum(map(sum, self._spent.values())) + sum(job.spent() for job in self.running.values())
            cores = max(spent / max(time.monotonic() - self.begun, 1e-9), 1e-9)
        rest = {number: self._rest(job, told[number], known) for number, job in self.running.items()}
        waiting = sum(
            (self.total[rule] - self._started(rule)) * self._expected((rule, self.planned.get(rule, 0.0)), known)
            for rule in self.total
        )
        # One that does not tell may have done half.
        alone = [rest[n] / job.threads / (2 if told[n] is None else 1) for n, job in self.running.items()]
        return max((sum(rest.values()) + waiting) / cores, *alone, 0.0)

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

    def _known(self, told: Mapping[int, float | None]) -> Known:
        """What ended jobs took, and where none of a kind has ended, what running ones take as far as they tell it.

        Args:
            told: running job -> core-seconds that its progress bar says are left.
        """
        known = {kind: list(spent) for kind, spent in self._spent.items()}
        for number, job in self.running.items():
            if job.kind not in self._spent and (rest := told[number]) is not None:
                known.setdefault(job.kind, []).append(job.spent() + rest)
        return known

    def _rest(self, job: Job, told: float | None, known: Known) -> float:
        """Core-seconds that a running job is expected to go on; a late one a tenth of what it has taken."""
        expected = self._expected(job.kind, known) - job.spent()
        if told is not None:
            expected = max(expected, told) if job.kind in self._spent else told
        return max(expected, job.spent() / 10)

    def _expected(self, kind: tuple[str, float], known: Known) -> float:
        """Core-seconds that a job of a kind is expected to take."""
        if found := known.get(kind):
            return fmean(found)
        rule, minutes = kind
        if not minutes and self.planned:
            return 0.0  # the plan leaves out what takes no time
        like: Known = {one: spent for one, spent in known.items() if one[1] or not minutes}
        like = {one: spent for one, spent in like.items() if one[0] == rule} or like or known
        jobs = sum(map(len, like.values()))
        asked = sum(one[1] * len(spent) for one, spent in like.items())
        return sum(map(sum, like.values())) * (minutes / asked if minutes and asked else 1 / jobs)


def ending(left: float | None) -> str:
    """The end of a run, as a part of a line; "" if it is not known."""
    if left is None:
        return ""
    about = f"{left / 3600:.1f} h" if left > 5400 else f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
    return f", about {about} left ({datetime.now() + timedelta(seconds=left):%H:%M})"
