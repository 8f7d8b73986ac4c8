"""How small a model may get within a tolerance of the dense model.

Every option is compared with its dense model by the interval of their difference. Along a sweep (a method, scope and
recipe) sparsities are tested from the lowest up, and the first that is not inside ends it: a single high point that is
good by luck wins nothing. Choosing among sweeps is corrected for, see `options.comparisons`.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from llm_sparsity.reporting.intervals import Estimate, to_decide
from llm_sparsity.reporting.options import Option, comparisons
from llm_sparsity.reporting.wording import in_points, name_of, percent
from llm_sparsity.study.sparsity import Sparsity

Cell = tuple[tuple[str, str, str], Sparsity]  # a sweep and a sparsity of it
POINTS, TIMES = 0.02, 1.1  # the tolerances: of a loss of score, of a ratio of perplexities


def tolerance(metric: str) -> str:
    """What "as good as dense" means: "2 points", or "10 %"."""
    return f"{100 * POINTS:g} points" if in_points(metric) else percent(round(TIMES - 1, 9))


def inside(metric: str, change: Estimate) -> bool | None:
    """Whether the interval of a change is inside the tolerance; None: it crosses the edge, or there is none."""
    over = _over(metric, change)
    return None if math.isnan(change.margin) or abs(over) < change.margin else over <= 0


def _over(metric: str, change: Estimate) -> float:
    """How far a change lies beyond the tolerance; negative inside."""
    return -change.value - POINTS if in_points(metric) else change.value - math.log(TIMES)


@dataclass(frozen=True)
class Verdict:
    """What a study says about one model on one task.

    Args:
        option: the option that the verdict is about.
        change: of its quality, with its interval.
        decided: whether the interval says that the option is (True) or is not (False) inside the tolerance; None: open.
        comparisons: for which the interval is corrected, see `options.comparisons`.
        contradicted: why an option whose interval is inside the tolerance is left open, in words.
    """

    option: Option
    change: Estimate
    decided: bool | None
    comparisons: int
    contradicted: str = ""

    @property
    def near(self) -> bool:
        """Whether the change itself is inside the tolerance."""
        return inside(self.option.metric, replace(self.change, margin=0.0)) is True

    @property
    def lacking(self) -> str:
        """What would decide an open verdict: numbers of examples or seeds."""
        distance = abs(_over(self.option.metric, self.change))
        return to_decide(self.change, distance, self.option.count, self.comparisons, self.option.nouns)


def verdict(options: Iterable[Option], diverged: Collection[Cell] = ()) -> Verdict | None:
    """The verdict on the options of one model on one task: of the smallest option inside the tolerance; else of the
    best one. None if nothing can be compared.

    An option inside the tolerance with one outside below it in its sweep leaves the question open: one of the two is
    chance, or something that the study does not explain.

    Args:
        options: of one model on one task.
        diverged: cells without a score, which are outside.
    """
    pruned = [option for option in options if not option.is_dense]
    tests = comparisons(pruned)
    judged = [
        Verdict(option, change, inside(option.metric, change), tests)
        for option in pruned
        if (change := option.change(tests))
    ]
    proven = _furthest(judged, lambda found: found.decided is True, diverged)
    near = _furthest(judged, lambda found: found.near and found.decided is None, diverged)
    alone, undecided, outside = ([found for found in judged if found.decided is each] for each in (True, None, False))
    if not (proven or near) and alone:
        best = max(alone, key=_removed)
        return replace(best, decided=None, contradicted=_contradiction(best, judged, diverged))
    return proven or near or max(undecided or outside, key=lambda found: found.option.rank, default=None)


def _contradiction(good: Verdict, judged: list[Verdict], diverged: Collection[Cell]) -> str:
    """The largest sparsity below an option in its sweep that is not inside the tolerance, in words."""
    option = good.option
    milder = [found for found in judged if _is_below(option, (found.option.sweep, found.option.sparsity))]
    verbs = {False: "does not", None: "may not"}
    names = {
        found.option.sparsity: f"{name_of(found.option)} {verbs[found.decided]}"
        for found in milder
        if not found.decided
    }
    names |= {cell[1]: f"the same at {cell[1].label} diverged" for cell in diverged if _is_below(option, cell)}
    return names[max(names)]


def _is_below(option: Option, cell: Cell) -> bool:
    """Whether a cell is one of a smaller fraction in the sweep of an option.

    A pattern is no point of a sweep: it needs good fractions below it, but no fraction needs it.
    """
    sweep, sparsity = cell
    return sweep == option.sweep and not sparsity.is_pattern and sparsity < option.sparsity


def _furthest(judged: list[Verdict], good: Callable[[Verdict], bool], diverged: Collection[Cell]) -> Verdict | None:
    """The smallest good option that has none but good ones below it in its sweep."""

    def reached(found: Verdict) -> bool:
        option = found.option
        below = (each for each in judged if _is_below(option, (each.option.sweep, each.option.sparsity)))
        return good(found) and all(map(good, below)) and not any(_is_below(option, cell) for cell in diverged)

    return max(filter(reached, judged), key=_removed, default=None)


def _removed(found: Verdict) -> tuple[float, float]:
    """How much an option saves: bytes, or weights where the bytes are not known or equal."""
    share = found.option.share
    return (0.0 if math.isnan(share) else 1 - round(share, 3)), found.option.sparsity.fraction
