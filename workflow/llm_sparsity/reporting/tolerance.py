"""How small a model may get within a tolerance of the dense model.

Every option is compared with its dense model by the interval of their difference. Along a sweep (a method, scope and
recipe) sparsities are tested from the lowest up, and the first that is not inside ends it: a single high point that is
good by luck wins nothing. Choosing among sweeps is corrected for, see `options.comparisons`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from llm_sparsity.reporting.intervals import Estimate, to_decide
from llm_sparsity.reporting.options import Option, comparisons
from llm_sparsity.reporting.wording import in_points, percent

POINTS, TIMES = -0.02, 1.1  # the tolerances: of a difference of scores, of a ratio of perplexities


def tolerance(metric: str) -> str:
    """What "as good as dense" means: "2 points", or "10 %"."""
    return f"{-100 * POINTS:g} points" if in_points(metric) else percent(round(TIMES - 1, 9))


def inside(metric: str, change: Estimate) -> bool | None:
    """Whether the interval of a change is inside the tolerance; None: it crosses the edge, or there is none."""
    worst, best, limit = change.value + change.margin, change.value - change.margin, TIMES
    if in_points(metric):
        worst, best, limit = -best, -worst, -POINTS
    return True if worst <= limit else False if best > limit else None


@dataclass(frozen=True)
class Verdict:
    """What a study says about one model on one task.

    Args:
        option: the option that the verdict is about.
        change: of its quality, with its interval.
        decided: whether the interval says that the option is (True) or is not (False) inside the tolerance; None: open.
        comparisons: for which the interval is corrected, see `options.comparisons`.
    """

    option: Option
    change: Estimate
    decided: bool | None
    comparisons: int

    @property
    def near(self) -> bool:
        """Whether the change itself is inside the tolerance."""
        return inside(self.option.metric, replace(self.change, margin=0.0)) is True

    @property
    def lacking(self) -> str:
        """What would decide an open verdict: numbers of examples or seeds."""
        distance = abs(self.change.value - (POINTS if in_points(self.option.metric) else TIMES))
        return to_decide(self.change, distance, self.option.count, self.comparisons, self.option.nouns)


def verdict(options: Iterable[Option]) -> Verdict | None:
    """The verdict on the options of one model on one task: of the smallest option inside the tolerance; else of the
    best one. None if nothing can be compared.
    """
    pruned = [option for option in options if not option.is_dense]
    tests = comparisons(pruned)
    judged = [
        Verdict(option, change, inside(option.metric, change), tests)
        for option in pruned
        if (change := option.change(tests))
    ]
    proven = _furthest(judged, lambda found: found.decided is True)
    near = _furthest(judged, lambda found: found.near and found.decided is None)
    undecided, outside = ([found for found in judged if found.decided is decided] for decided in (None, False))
    return proven or near or max(undecided or outside, key=lambda found: found.option.rank, default=None)


def _furthest(judged: list[Verdict], good: Callable[[Verdict], bool]) -> Verdict | None:
    """The smallest good option that has none but good ones below it in its sweep.

    A pattern is no point of a sweep: it needs good fractions below it, but no fraction needs it.
    """

    def reached(found: Verdict) -> bool:
        below = (
            each
            for each in judged
            if each.option.sweep == found.option.sweep
            and not each.option.sparsity.is_pattern
            and each.option.sparsity < found.option.sparsity
        )
        return good(found) and all(map(good, below))

    return max(filter(reached, judged), key=_removed, default=None)


def _removed(found: Verdict) -> tuple[float, float]:
    """How much an option saves: bytes, or weights where the bytes are not known or equal."""
    share = found.option.share
    return (0.0 if math.isnan(share) else 1 - round(share, 3)), found.option.sparsity.fraction
