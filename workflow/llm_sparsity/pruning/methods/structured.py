"""Structured pruning: removes whole attention heads and feed-forward neurons, so that the model becomes smaller and
faster on any hardware (heads: Michel et al. 2019, arXiv:1905.10650; neurons: Li et al. 2017, arXiv:1608.08710).

The heads and neurons with the smallest weights are removed. A head's score sums over its query, key, value and output,
a neuron's over its inputs and outputs (Fang et al. 2023, arXiv:2301.12900). With grouped queries, a group of heads is
one unit. Every layer loses the same fraction of its heads and of its neurons, so no layer loses all of them.
"""

import torch
from torch import Tensor

COMPARISON = "layer"
GRANULARITY = None


def score(weight: Tensor) -> Tensor:
    """The sum of squares of one matrix for each head or neuron; the scores of all matrices of a block are added.

    Args:
        weight: (heads or neurons, weights of each).

    Returns:
        float64, (heads or neurons,).
    """
    return weight.to(torch.float64).square().sum(dim=1)
