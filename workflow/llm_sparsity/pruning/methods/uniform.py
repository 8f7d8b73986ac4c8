"""Layerwise magnitude pruning: removes the same fraction of every tensor, its weights with the smallest absolute values
(Zhu & Gupta 2017, arXiv:1710.01878).

No layer can lose all its weights.
"""

from torch import Generator, Tensor

COMPARISON = "tensor"
GRANULARITY = (1, 1)
STRIPS = True


def score(weight: Tensor, generator: Generator) -> Tensor:
    """abs(weight), float32, same shape."""
    return weight.float().abs()
