"""4-bit integers: rounds each weight of a matrix to the nearest multiple of its group's scale, -7 to 7 times; a
group is 32 neighbours in a row, and the largest of them gives the scale (the baseline of Frantar et al. 2022,
arXiv:2210.17323).
"""

from torch import Tensor

from llm_sparsity.pruning.quantization import nearest
from llm_sparsity.storage.quantized import Quantized

GRANULARITY = (1, 1)
BITS = 4
GROUP = 32  # smaller than that of 8 bits: a coarse code needs a closer scale


def quantize(weight: Tensor) -> Quantized:
    """Codes and scales of a tensor; zeros stay zeros."""
    return nearest(weight, bits=BITS, group=GROUP)
