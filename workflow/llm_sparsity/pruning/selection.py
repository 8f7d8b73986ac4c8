"""Exact selection of the lowest scores.

`thresholds` finds the scores below which weights are removed, without sorting scores or keeping them in memory. Scores
are non-negative float32, whose bits sort like integers: a histogram of the upper 16 bits gives the bin of the
threshold, a histogram of the lower 16 bits inside this bin gives its value. All sparsities share these two passes.
`lowest` selects from scores that are in memory.

Among equal scores the first ones are removed: tensors in the order of their names, weights in the order of their
positions.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_sparsity.pruning.scores import ScoredTensors
from llm_sparsity.study.sparsity import Sparsity

BINS = 1 << 16
INFINITY = 0x7F80  # the upper 16 bits of float32 infinity; those of NaN and of negative numbers are larger
SORTED = 1 << 22  # scores that are sorted at a time


@dataclass
class Threshold:
    """Removes all scores below `value`, and the first `ties` of the scores equal to it.

    Tensors whose scores are compared share one threshold, and use up its ties in the order of their names.
    """

    value: float
    ties: int

    def select(self, scores: Tensor) -> Tensor:
        """Select the scores to remove, and subtract the equal ones among them from `ties`.

        Args:
            scores: contiguous, any shape.

        Returns:
            bool, in the shape of the scores.
        """
        removed = scores < self.value
        if self.ties:
            equal = torch.nonzero((scores == self.value).view(-1)).flatten()[: self.ties]
            removed.view(-1)[equal] = True
            self.ties -= len(equal)
        return removed


def thresholds(
    tensors: ScoredTensors, sparsities: Sequence[Sparsity], min_density: float
) -> dict[tuple[Sparsity, str], Threshold]:
    """The threshold of each tensor at each sparsity.

    Args:
        tensors: the tensors of the scope.
        sparsities: fractions, no patterns.
        min_density: the fraction of every tensor that is kept. Where it forbids the rounded number, fewer are removed.

    Returns:
        (sparsity, name) -> threshold.
    """
    unit = math.prod(tensors.granularity or (1, 1))
    sizes = {name: math.prod(tensors.reader.shape(name)) // unit for name in tensors.roles}
    limits = {name: removable(size, min_density) for name, size in sizes.items()}
    across = tensors.method.COMPARISON == "scope"
    found: dict[tuple[Sparsity, str], Threshold] = {}
    for names in [list(sizes)] if across else [[name] for name in sizes]:
        size, limit = (sum(numbers[name] for name in names) for numbers in (sizes, limits))
        counts = [min(sparsity.count(size), limit) for sparsity in sparsities]
        for sparsity, count, threshold in zip(sparsities, counts, _solve(tensors, names, counts), strict=True):
            chosen = dict.fromkeys(names, threshold)
            if min_density and across:
                chosen = _limited(tensors, limits, count, threshold)
            found |= {(sparsity, name): threshold for name, threshold in chosen.items()}
    return found


def removable(size: int, min_density: float) -> int:
    """The largest number of `size` weights that may be removed if the fraction `min_density` of them is kept."""
    return math.floor(size * (1 - Decimal(str(min_density))))


def _solve(tensors: ScoredTensors, names: Sequence[str], counts: Sequence[int]) -> list[Threshold]:
    """For each count, the threshold that removes this number of scores from the named tensors together."""
    if not counts:
        return []
    upper = np.zeros(BINS, np.int64)
    for name in names:
        for bits in tensors.bits(name):
            upper += np.bincount(bits >> 16, minlength=BINS)
    if upper[INFINITY + 1 :].any():
        raise ValueError(f"{tensors.method.__name__}: scores must be non-negative numbers")
    bins = [_bin(upper, count) for count in counts]
    lower = {number: np.zeros(BINS, np.int64) for number, _ in bins}
    for name in names:
        for bits in tensors.bits(name):
            numbers = bits >> 16
            for number in lower:
                lower[number] += np.bincount(bits[numbers == number] & (BINS - 1), minlength=BINS)
    found = []
    for count, (number, rank) in zip(counts, bins, strict=True):
        low, ties = _bin(lower[number], rank)
        value = np.uint32(number << 16 | low).view(np.float32)
        found.append(Threshold(float(value) if count else 0.0, ties))
    return found


def _bin(histogram: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """The bin of the rank-th smallest value (the smallest has rank 1), and the rank of this value inside the bin."""
    ends = np.cumsum(histogram)
    number = int(np.searchsorted(ends, max(rank, 1)))
    return number, rank - int(ends[number] - histogram[number]) if rank else 0


def _limited(
    tensors: ScoredTensors, limits: Mapping[str, int], count: int, threshold: Threshold
) -> dict[str, Threshold]:
    """Change a common threshold so that no tensor loses more scores than its limit, and `count` in all still.

    A tensor that would exceed its limit gets a threshold of its own; the other tensors lose the difference.
    """
    found = dict.fromkeys(limits, threshold)
    free = list(limits)
    while over := [name for name, removed in _removed(tensors, free, threshold).items() if removed > limits[name]]:
        for name in over:
            [found[name]] = _solve(tensors, [name], [limits[name]])
        count -= sum(limits[name] for name in over)
        free = [name for name in free if name not in over]
        [threshold] = _solve(tensors, free, [count])
        found |= dict.fromkeys(free, threshold)
    return found


def _removed(tensors: ScoredTensors, names: Sequence[str], threshold: Threshold) -> dict[str, int]:
    """The number of scores that a threshold removes from each tensor."""
    removed, ties = dict.fromkeys(names, 0), threshold.ties
    for name in names:
        for scores in tensors.scores(name):
            equal = min(int((scores == threshold.value).sum()), ties)
            ties -= equal
            removed[name] += int((scores < threshold.value).sum()) + equal
    return removed


def lowest(scores: Tensor, count: int | Tensor) -> Tensor:
    """Select the `count` lowest scores of each row, the last dimension; among equal scores the first ones.

    Args:
        scores: any shape.
        count: one number for all rows, or a tensor that broadcasts against the rows and ends in a dimension of 1.

    Returns:
        bool, in the shape of the scores.
    """
    if scores.dim() == 1:
        return lowest(scores[None], count)[0]
    counts = torch.as_tensor(count, device=scores.device).expand(*scores.shape[:-1], 1)
    removed = torch.empty_like(scores, dtype=torch.bool)
    rows = max(SORTED // scores[0].numel(), 1)  # at a time: sorting takes memory
    for chosen, part, number in zip(removed.split(rows), scores.split(rows), counts.split(rows), strict=True):
        # On a CPU numpy sorts values many times faster than torch sorts them with their positions.
        ordered = torch.from_numpy(np.sort(part.numpy())) if part.device.type == "cpu" else part.sort().values
        highest = ordered.gather(-1, (number - 1).clamp(min=0)).masked_fill(number == 0, torch.nan)
        torch.le(part, highest, out=chosen)
        if (tied := chosen.sum(dim=-1) > number[..., 0]).any():
            first = torch.arange(part.shape[-1], device=part.device) < number[tied]
            chosen[tied] = first.scatter(-1, part[tied].argsort(stable=True), first)
    return removed


def shares(sizes: Iterable[int], sparsity: Sparsity) -> list[int]:
    """The number of weights to remove from each part of a tensor, so that they add up to `sparsity.count` of its size.

    Args:
        sizes: number of weights in each part.
        sparsity: a fraction, no pattern.
    """
    ends = [sparsity.count(end) for end in itertools.accumulate(sizes, initial=0)]
    return [after - before for before, after in itertools.pairwise(ends)]
