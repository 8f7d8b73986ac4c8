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
    """

    value: float
    margin: float = 0.0
    seeds: int | None = None


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


def combined(terms: Sequence[tuple[float, "pd.Series[float]"]], examples: int, comparisons: int = 1) -> Estimate | None:
    """A weighted sum of accuracies on one validation split, such as a difference; None without a common seed.

    Two errors are added in squares: of the seeds (t-interval of the sums, one a seed), and of the split (binomial;
    weights count in squares). The second is unpaired: accuracies on the same examples are treated as independent, as
    predictions are not kept. Models that fail on the same examples differ by less chance than this interval says.

    Args:
        terms: weight, and accuracy by seed.
        examples: of the validation split.
        comparisons: see `quantile`.
    """
    sums = pd.concat([weight * accuracy for weight, accuracy in terms], axis=1, join="inner").sum(axis=1)
    if sums.empty:
        return None
    means = [(weight, float(accuracy.mean())) for weight, accuracy in terms]
    split = sum(weight**2 * mean * (1 - mean) for weight, mean in means) / examples
    sampling = quantile(comparisons=comparisons) * math.sqrt(split)
    return Estimate(float(sums.mean()), math.hypot(margin(sums, comparisons), sampling), len(sums))
