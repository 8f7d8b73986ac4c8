"""Global magnitude pruning: the smallest weights of the whole scope go (Han et al. 2015, arXiv:1506.02626).

The report's method, torch's `global_unstructured` with `L1Unstructured`.
"""

from torch import Generator, Tensor

POOL = "scope"
UNIT = (1, 1)


def score(weight: Tensor, generator: Generator) -> Tensor:
    """abs(weight), float32, same shape."""
    return weight.float().abs()
