"""Estimates with 95 % intervals."""

import math
from dataclasses import dataclass

import pandas as pd
from scipy.stats import t as student


@dataclass(frozen=True)
class Estimate:
    """A value, half the width of its 95 % interval, and the number of seeds it is from."""

    value: float
    margin: float = 0.0
    seeds: int = 1


def margin(values: "pd.Series[float]") -> float:
    """Half the width of the 95 % t-interval of a mean; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
