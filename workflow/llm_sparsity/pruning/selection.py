"""Which scores are the lowest, and how many weights a sparsity removes."""

import itertools
import re
from collections.abc import Iterable
from decimal import Decimal

import torch
from torch import Tensor

SORTED = 1 << 22  # scores at a time


def removed_of(size: int, sparsity: str) -> int:
    """How many of `size` weights a sparsity removes: the nearest whole number, halves to even."""
    return round(Decimal(sparsity) * size)


def shares(sizes: Iterable[int], sparsity: str) -> list[int]:
    """How many weights go from each part of a tensor, so that from all of it exactly `removed_of` its size go."""
    ends = [removed_of(end, sparsity) for end in itertools.accumulate(sizes, initial=0)]
    return [after - before for before, after in itertools.pairwise(ends)]


def pattern_of(sparsity: str) -> tuple[int, int] | None:
    """(N, M) of a pattern "NofM"; None for a fraction."""
    found = re.fullmatch(r"(\d+)of(\d+)", sparsity)
    return (int(found[1]), int(found[2])) if found else None


def lowest(scores: Tensor, count: int | Tensor) -> Tensor:
    """Which scores are the `count` lowest of their row, the last dimension; of equal ones the earlier.

    Args:
        scores: any shape.
        count: for all rows, or a tensor that broadcasts against the rows, with a last dimension of 1.

    Returns:
        bool, in the shape of the scores.
    """
    if scores.dim() == 1 and isinstance(count, int):  # one long row: selecting is faster than sorting
        threshold = scores.kthvalue(count).values if count else torch.tensor(-torch.inf)
        gone = scores < threshold
        gone[torch.nonzero(scores == threshold).flatten()[: count - int(gone.sum())]] = True
        return gone
    ranks = (torch.arange(scores.shape[-1], device=scores.device) < count).expand_as(scores)
    gone = torch.empty_like(scores, dtype=torch.bool)
    rows = max(SORTED // scores[0].numel(), 1)  # at a time: positions are int64, twice the scores' bytes
    for mine, part, share in zip(gone.split(rows), scores.split(rows), ranks.split(rows), strict=True):
        mine.scatter_(-1, part.argsort(dim=-1, stable=True), share)
    return gone
