"""Perplexity from losses."""

import math
from collections.abc import Mapping

LARGEST_NLL = 700  # nats; its exponential is close to the largest float


def perplexity(nll: float) -> float | None:
    """The exponential of a mean negative log-likelihood in nats; None if no float is as large, above 700."""
    return math.exp(nll) if nll < LARGEST_NLL else None


def overflow_note(metrics: Mapping[str, float | None]) -> dict[str, str]:
    """The entry `note` of metrics.json that says why a perplexity is null; empty if it is a number."""
    if metrics.get("perplexity", 0) is not None:
        return {}
    return {"note": f"perplexity: null, as the loss is above {LARGEST_NLL} nats a token and no float is as large"}
