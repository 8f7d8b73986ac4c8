"""Block pruning: the 16x16 blocks with the smallest weights go (Gray et al. 2017, "GPU Kernels for Block-Sparse
Weights"; Lagunas et al. 2021, arXiv:2109.04838, for transformers).

Blocks keep a matrix's shape like single zeros do, and let a kernel use what it has loaded several times.
"""

from torch import Generator, Tensor

POOL = "scope"
UNIT = (16, 16)


def score(weight: Tensor, generator: Generator) -> Tensor:
    """The mean of abs(weight) in each block: float32, (rows / 16, columns / 16)."""
    rows, columns = UNIT
    blocks = weight.float().abs().reshape(weight.shape[0] // rows, rows, weight.shape[1] // columns, columns)
    return blocks.mean(dim=(1, 3))
