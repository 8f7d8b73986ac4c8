"""Estimates with 95 % intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd
from scipy.stats import t as student


@dataclass(frozen=True)
class Estimate:
    """A value, half the width of its 95 % interval, and the number of seeds it is from.

    Args:
        value: the estimate.
        margin: 0 for what is counted and has no seeds; NaN for a single seed, which has no interval.
        seeds: None for what has no seeds.
        spread: the part of the margin that is the seeds'.
        sampling: the part that is the examples'.
    """

    value: float
    margin: float = 0.0
    seeds: int | None = None
    spread: float = math.nan
    sampling: float = math.nan


@cache
def quantile(freedom: float = math.inf, comparisons: int = 1) -> float:
    """Half the width of a 95 % interval, in standard errors, by Student's t with so many degrees of freedom.

    Args:
        freedom: inf is the normal distribution.
        comparisons: number of intervals that all hold together with 95 %, by Bonferroni's correction.
    """
    return float(student.ppf(1 - 0.025 / comparisons, freedom))


def margin(values: "pd.Series[float]", comparisons: int = 1) -> float:
    """Half the width of the 95 % t-interval of a mean; NaN for a single value."""
    if len(values) < 2:
        return math.nan
    return quantile(len(values) - 1, comparisons) * float(values.std(ddof=1)) / math.sqrt(len(values))


def sampled_margin(values: "pd.Series[float]", errors: "pd.Series[float]") -> float:
    """As `margin`, where the standard error of each value over its examples is known, or NaN.

    Both errors are added in squares. Of a single value, the interval is that of its examples alone.
    """
    spread, sampling = margin(values), quantile() * float(errors.mean())
    if math.isnan(spread) or math.isnan(sampling):
        return spread if math.isnan(sampling) else sampling
    return math.hypot(spread, sampling)


def variance(values: "pd.Series[float]", errors: "pd.Series[float]", examples: int) -> float:
    """The variance that one example gives to a score: its sampling error is the root of this over `examples`.

    Args:
        values: of the score.
        errors: standard errors over the examples; missing for a share, whose variance is p (1 - p).
        examples: of the validation split.
    """
    mean, error = float(values.mean()), float((errors**2).mean())
    return mean * (1 - mean) if math.isnan(error) else error * examples


def paired_error(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """The standard error of the difference of two accuracies on the same examples.

    A half is added to the number of examples of each outcome, so that few disagreements, or none, leave an error
    (Agresti & Min 2005, doi:10.1002/sim.1781).

    Args:
        ours, theirs: whether each example is right.
    """
    gained, lost = (
        0.5 + sum(one and not other for one, other in zip(*pair, strict=True))
        for pair in ((ours, theirs), (theirs, ours))
    )
    examples = len(ours) + 2
    return math.sqrt(gained + lost - (gained - lost) ** 2 / examples) / examples


def combined(
    terms: Sequence[tuple[float, "pd.Series[float]", float]],
    examples: int,
    comparisons: int = 1,
    *,
    paired: float = math.nan,
) -> Estimate | None:
    """A weighted sum of scores on one validation split, such as a difference; None without a common seed.

    Two errors are added in squares: of the seeds (t-interval of the sums, one a seed), and of the split (weights count
    in squares). The second treats scores on the same examples as independent, unless the error of the sum is given:
    models that fail on the same examples differ by less chance.

    Args:
        terms: weight, score by seed, and `variance` of the score.
        examples: of the validation split.
        comparisons: see `quantile`.
        paired: the standard error of the sum over the examples; NaN: unknown.
    """
    sums = pd.concat([weight * score for weight, score, _ in terms], axis=1, join="inner").sum(axis=1)
    if sums.empty:
        return None
    split = sum(weight**2 * each for weight, _, each in terms) / examples
    sampling = quantile(comparisons=comparisons) * (math.sqrt(split) if math.isnan(paired) else paired)
    spread = margin(sums, comparisons)
    return Estimate(float(sums.mean()), math.hypot(spread, sampling), len(sums), spread, sampling)


def to_decide(found: Estimate, distance: float, examples: int, comparisons: int = 1) -> str:
    """What shrinks an interval to a distance, as text: a number of examples, or of seeds, or both.

    Args:
        found: an estimate of `combined`.
        distance: from the estimate to the edge that its interval crosses.
        examples: that the estimate is from.
        comparisons: that it is corrected for.
    """
    if math.isnan(found.spread):
        return "three seeds or more"
    if distance < 1e-3:
        return "no affordable number of examples: the difference lies on the edge"
    if found.spread < distance:
        return f"about {_examples(found, math.sqrt(distance**2 - found.spread**2), examples)} examples"
    if found.sampling < distance:
        return f"about {_seeds(found, math.sqrt(distance**2 - found.sampling**2), comparisons)} seeds"
    half = distance / math.sqrt(2)
    return f"about {_examples(found, half, examples)} examples and {_seeds(found, half, comparisons)} seeds"


def _examples(found: Estimate, width: float, examples: int) -> str:
    """The number of examples with which their half of an interval has a width, to two digits, rounded up."""
    count = examples * (found.sampling / width) ** 2
    digit = 10 ** max(math.floor(math.log10(count)) - 1, 0)
    return f"{math.ceil(count / digit) * digit:,}"


def _seeds(found: Estimate, width: float, comparisons: int) -> int:
    """The number of seeds with which their half of an interval has a width, if they vary as those seen."""
    seeds = found.seeds or 2
    deviation = found.spread * math.sqrt(seeds) / quantile(seeds - 1, comparisons)
    count = seeds
    while count < 999 and quantile(count - 1, comparisons) * deviation / math.sqrt(count) > width:
        count += 1
    return count
