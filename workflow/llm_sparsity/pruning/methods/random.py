"""Random pruning: removes weights at random, the control for every other method (Frankle & Carbin 2019,
arXiv:1803.03635).
"""

import torch
from torch import Generator, Tensor

COMPARISON = "scope"
GRANULARITY = (1, 1)
STRIPS = True


def score(weight: Tensor, generator: Generator) -> Tensor:
    """Uniform noise in [0, 1), float32, same shape."""
    return torch.rand(weight.shape, generator=generator)
