"""Wanda: a weight counts as much as its size times the norm of its input, and competes inside its output's row (Sun et
al. 2023, arXiv:2306.11695). The weights that stay are as they were.
"""

import torch
from torch import Tensor

from llm_sparsity.pruning.selection import lowest, pattern_of, shares

UNIT = (1, 1)


def observe(inputs: Tensor) -> Tensor:
    """The sum of squares of each input feature: (tokens, in) -> (in,)."""
    return inputs.square().sum(dim=0)


def prepare(squares: Tensor) -> Tensor:
    """The norm of each input feature, (in,)."""
    return squares.sqrt()


def prune(weight: Tensor, norms: Tensor, sparsity: str) -> Tensor:
    """Zero the lowest abs(weight) * norm: of each row its share, or of every M in a row all but N.

    Args:
        weight: (out, in), float32.
        norms: (in,).
        sparsity: "0.5" or "2of4". Where a fraction does not divide a row, rows differ by one weight.
    """
    rows, columns = weight.shape
    scores = (weight * norms).abs_()
    if pattern := pattern_of(sparsity):
        kept, group = pattern
        gone = lowest(scores.reshape(rows, -1, group), group - kept).reshape(rows, columns)
    else:
        counts = torch.tensor(shares([columns] * rows, sparsity), device=weight.device)
        gone = lowest(scores, counts[:, None])
    return weight.masked_fill(gone, 0)
