"""Layer-wise magnitude pruning: each tensor loses the same fraction, its smallest weights (Zhu & Gupta 2017,
arXiv:1710.01878). No layer can collapse.
"""

from torch import Generator, Tensor

POOL = "tensor"
UNIT = (1, 1)


def score(weight: Tensor, generator: Generator) -> Tensor:
    """abs(weight), float32, same shape."""
    return weight.float().abs()
