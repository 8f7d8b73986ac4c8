"""Global magnitude pruning: removes the weights with the smallest absolute values in the whole scope (Han et al. 2015,
arXiv:1506.02626).

The same as torch's `global_unstructured` with `L1Unstructured`.
"""

from torch import Generator, Tensor

COMPARISON = "scope"
GRANULARITY = (1, 1)
STRIPS = True


def score(weight: Tensor, generator: Generator) -> Tensor:
    """abs(weight), float32, same shape."""
    return weight.float().abs()
