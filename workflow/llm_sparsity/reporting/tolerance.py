"""How small a model may get within a tolerance of the dense model.

Every option is compared with its dense model by the interval of their difference. Along a sweep (a method, scope and
recipe) sparsities are tested from the lowest up, and the first that is not inside ends it: a single high point that is
good by luck wins nothing. Choosing among sweeps is corrected for, see `intervals.quantile`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llm_sparsity.reporting.intervals import Estimate, to_decide
from llm_sparsity.reporting.options import POINTS, Option
from llm_sparsity.reporting.wording import in_points


@dataclass(frozen=True)
class Verdict:
    """What a study says about one model on one task.

    Args:
        option: the option that the verdict is about.
        change: of its quality, with the interval of all that were compared.
        decided: whether the interval says that the option is (True) or is not (False) inside the tolerance; None: open.
        comparisons: sweeps among which it was chosen, for which the interval is corrected.
    """

    option: Option
    change: Estimate
    decided: bool | None
    comparisons: int

    @property
    def lacking(self) -> str:
        """What would decide an open verdict: numbers of examples or seeds."""
        if not in_points(self.option.metric):
            return "more draws of the calibration text" if self.option.recipe == "" else "more seeds"
        return to_decide(self.change, abs(self.change.value - POINTS), self.option.count, self.comparisons)


def verdict(options: Iterable[Option]) -> Verdict | None:
    """The verdict on the options of one model on one task: of the smallest option inside the tolerance; else of the
    best one. None if nothing can be compared.
    """
    pruned = [option for option in options if not option.is_dense]
    sweeps = len({option.sweep for option in pruned})
    judged = [
        Verdict(option, change, option.inside(change), sweeps) for option in pruned if (change := option.change(sweeps))
    ]
    proven = _furthest(judged, lambda found: found.decided is True)
    near = _furthest(judged, lambda found: found.option.near(found.change) and found.decided is None)
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
