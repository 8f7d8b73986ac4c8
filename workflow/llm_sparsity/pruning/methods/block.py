"""Block pruning: removes the 16x16 blocks with the smallest mean absolute weights (Gray et al. 2017, "GPU Kernels for
Block-Sparse Weights"; for transformers Lagunas et al. 2021, arXiv:2109.04838).

Matrices keep their shapes. A kernel can reuse the values that it has loaded for all weights of a block.
"""

from torch import Generator, Tensor

COMPARISON = "scope"
GRANULARITY = (16, 16)
STRIPS = True


def score(weight: Tensor, generator: Generator) -> Tensor:
    """The mean of abs(weight) in each block: float32, (rows / 16, columns / 16)."""
    rows, columns = GRANULARITY
    blocks = weight.float().abs().reshape(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns)
    return blocks.mean(dim=(1, 3))
