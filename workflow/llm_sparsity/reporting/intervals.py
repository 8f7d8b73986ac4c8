"""Estimates with 95 % intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd
from scipy.stats import t as student

from llm_sparsity.reporting.tables import by_seed
from llm_sparsity.study.methods import is_calibrated

MOST_SEEDS = 999  # that are counted; nobody runs more


@dataclass(frozen=True)
class Estimate:
    """A value, half the width of its 95 % interval, and the number of seeds it is from.

    Args:
        value: the estimate.
        margin: 0 for what is counted; NaN for a single seed, which has no interval.
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


def share_error(share: float, examples: int) -> float:
    """The standard error of a share of examples, such as accuracy.

    Two of each outcome are added, so that a perfect score has an error too (Agresti & Coull 1998,
    doi:10.1080/00031305.1998.10480550).
    """
    adjusted = (share * examples + 2) / (examples + 4)
    return math.sqrt(adjusted * (1 - adjusted) / (examples + 4))


@dataclass(frozen=True)
class Score:
    """A score of one cell.

    Args:
        values: by seed.
        kind: of the seeds: "fine-tuning"; "calibration", of what was not trained; "" for what no seed changes.
        variance: that one example gives to it: its sampling error is the root of this over the number of examples.
        paired: the standard error of its difference to the dense model on the same examples, see `paired`; 0 for the
            dense model. NaN, as `variance`: unknown.
    """

    values: "pd.Series[float]"
    kind: str
    variance: float
    paired: float

    @classmethod
    def of(cls, rows: pd.DataFrame, metric: str, examples: int) -> "Score":
        """The score of the rows of a cell, see `tables.judged`."""
        seeded, drawn = bool(rows.seeded.any()), any(map(is_calibrated, rows.method.unique()))
        values, squared = by_seed(rows if seeded else rows.drop(columns="seed")), float((rows.stderr**2).mean())
        if math.isnan(squared) and metric == "accuracy":
            squared = share_error(float(values.mean()), examples) ** 2
        return cls(
            values, "fine-tuning" if seeded else "calibration" * drawn, squared * examples, float(rows.paired.mean())
        )


def combined(
    terms: Sequence[tuple[float, Score]], examples: int, comparisons: int = 1, freedom: float = math.inf
) -> Estimate | None:
    """A weighted sum of scores on the same examples, such as a difference; None without a common seed.

    Two errors are added in squares: of the seeds (t-interval of the sums, one a seed), and of the examples.

    Args:
        terms: weight and score.
        examples: on which all were scored.
        comparisons: see `quantile`.
        freedom: degrees of freedom of the examples' error.
    """
    value, spread, counts = 0.0, 0.0, []
    for kind in dict.fromkeys(score.kind for _, score in terms):
        mine = [weight * score.values for weight, score in terms if score.kind == kind]
        sums = pd.concat(mine, axis=1, join="inner").dropna().sum(axis=1)
        if sums.empty:
            return None
        value += float(sums.mean())
        if kind:
            spread = math.hypot(spread, margin(sums, comparisons))
            counts.append(len(sums))
    sampling = quantile(freedom, comparisons) * _sampling_error(terms, examples)
    return Estimate(value, math.hypot(spread, sampling), min(counts, default=None), spread, sampling)


def _sampling_error(terms: Sequence[tuple[float, Score]], examples: int) -> float:
    """The standard error of a weighted sum over the examples.

    Of a difference to the dense model it is known. Of two others it is at most the sum of theirs, and at most that of
    scores on different examples: models that fail on the same ones differ by less chance.
    """
    apart = math.sqrt(sum(weight**2 * score.variance for weight, score in terms) / examples) if examples else math.nan
    if abs(sum(weight for weight, _ in terms)) > 1e-9 or len({score.kind == "fine-tuning" for _, score in terms}) > 1:
        return apart  # no difference, or one to two dense models: before training, and trained
    together = sum(abs(weight) * score.paired for weight, score in terms)
    if math.isnan(apart) or math.isnan(together):
        return apart if math.isnan(together) else together
    return together if sum(score.paired > 0 for _, score in terms) == 1 else min(apart, together)


def to_decide(
    found: Estimate, distance: float, examples: int, comparisons: int = 1, nouns: tuple[str, str] = ("example", "seed")
) -> str:
    """What shrinks an interval to a distance, as text: a number of examples, or of seeds, or both.

    Args:
        found: an estimate of `combined`.
        distance: from the estimate to the edge that its interval crosses.
        examples: that the estimate is from.
        comparisons: that it is corrected for.
        nouns: of an example and of a seed.
    """
    example, seed = nouns
    if math.isnan(found.spread):
        return f"three {seed}s or more"
    if math.isnan(found.sampling):
        return f"more {example}s"
    if distance < 1e-3:
        return f"no affordable number of {example}s: the difference lies on the edge"

    def of_examples(width: float) -> str:
        count = examples * (found.sampling / width) ** 2
        digit = 10 ** max(math.floor(math.log10(count)) - 1, 0)  # two digits, rounded up
        return f"{math.ceil(count / digit) * digit:,} {example}s"

    def of_seeds(width: float) -> str:
        count = _seeds(found, width, comparisons)
        return f"{'about' if count < MOST_SEEDS else 'more than'} {count} {seed}s"

    if found.spread < distance:
        return f"about {of_examples(math.sqrt(distance**2 - found.spread**2))}"
    if found.sampling < distance:
        return of_seeds(math.sqrt(distance**2 - found.sampling**2))
    half = distance / math.sqrt(2)
    return f"about {of_examples(half)} and {of_seeds(half)}"


def _seeds(found: Estimate, width: float, comparisons: int) -> int:
    """The number of seeds with which their half of an interval has a width, if they vary as those seen; at most
    `MOST_SEEDS`.
    """
    seeds = found.seeds or 2
    deviation = found.spread * math.sqrt(seeds) / quantile(seeds - 1, comparisons)
    count = seeds
    while count < MOST_SEEDS and quantile(count - 1, comparisons) * deviation / math.sqrt(count) > width:
        count += 1
    return count
