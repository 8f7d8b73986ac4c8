"""Wanda: removes the weights with the smallest products of absolute value and input norm, the same fraction of every
output's row (Sun et al. 2023, arXiv:2306.11695).

The weights that are kept do not change.
"""

import torch
from torch import Tensor

from llm_sparsity.pruning.selection import lowest, shares
from llm_sparsity.study.sparsity import Sparsity

GRANULARITY = (1, 1)


def observe(inputs: Tensor) -> Tensor:
    """The sum of squares of each input feature: (tokens, in) -> (in,)."""
    return inputs.square().sum(dim=0)


def prepare(squares: Tensor) -> Tensor:
    """The norm of each input feature, (in,)."""
    return squares.sqrt()


def prune(weight: Tensor, norms: Tensor, sparsity: Sparsity) -> Tensor:
    """Set the weights with the lowest abs(weight) * norm to zero, the same fraction of each row, or M - N of every M.

    Args:
        weight: (out, in), float32.
        norms: from `prepare`, (in,).
        sparsity: a fraction or a pattern. If a fraction does not divide a row, the counts of rows differ by one.
    """
    rows, columns = weight.shape
    scores = (weight * norms).abs_()
    if sparsity.pattern:
        kept, group = sparsity.pattern
        removed = lowest(scores.reshape(rows, -1, group), group - kept).reshape(rows, columns)
    else:
        counts = torch.tensor(shares([columns] * rows, sparsity), device=weight.device)
        removed = lowest(scores, counts[:, None])
    return weight.masked_fill(removed, 0)
