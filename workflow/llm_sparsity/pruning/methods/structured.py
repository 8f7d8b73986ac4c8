"""Structured pruning: whole attention heads and feed-forward neurons are cut out, so that the model becomes smaller and
faster on any hardware (heads: Michel et al. 2019, arXiv:1905.10650; neurons, the filters of a transformer: Li et al.
2017, arXiv:1608.08710).

What goes is what has the smallest weights, taken over all matrices that shrink together (Fang et al. 2023,
arXiv:2301.12900): a head's query, key, value and output, a neuron's inputs and outputs. With grouped queries a group
of heads goes as one. Every layer loses the same share of its heads and of its neurons, so that none is emptied.
"""

import torch
from torch import Tensor

POOL = "layer"
UNIT = None


def score(weight: Tensor) -> Tensor:
    """What one matrix adds to the score of each head or neuron: its sum of squares.

    Args:
        weight: (query, key and value or 1, heads or neurons, their weights).

    Returns:
        float64, (heads or neurons,).
    """
    return weight.to(torch.float64).square().sum(dim=(0, 2))
