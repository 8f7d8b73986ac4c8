"""8-bit integers: rounds each weight of a matrix to the nearest multiple of its group's scale, -127 to 127 times; a
group is 64 neighbours in a row, and the largest of them gives the scale (the baseline of Dettmers et al. 2022,
arXiv:2208.07339).
"""

from torch import Tensor

from llm_sparsity.pruning.quantization import nearest
from llm_sparsity.storage.quantized import Quantized

GRANULARITY = (1, 1)
BITS = 8
GROUP = 64


def quantize(weight: Tensor) -> Quantized:
    """Codes and scales of a tensor; zeros stay zeros."""
    return nearest(weight, bits=BITS, group=GROUP)
