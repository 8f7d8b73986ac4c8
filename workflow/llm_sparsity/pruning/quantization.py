"""Quantisation: the matrices of a scope become whole numbers and scales, which the container stores in their bits.

Vectors, as of norms, stay as they are: they hold few weights, each of which scales a whole feature. A model is read
back with the products of codes and scales, so it is evaluated and measured as any other. The step comes last: nothing
changes the values afterwards.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from llm_sparsity.pruning.pruner import PrunedTensor, Pruner, tensor_row
from llm_sparsity.pruning.scores import STRIP, ScoredTensors
from llm_sparsity.storage.container import Reader
from llm_sparsity.storage.quantized import Quantized
from llm_sparsity.study.sparsity import Sparsity


class QuantisingPruner(Pruner):
    """Quantises the matrices of the scope, one at a time.

    Args:
        tensors: their method is the step.
        before: the weights to quantise.
        sparsity: of the model, for the results.
    """

    def __init__(self, tensors: ScoredTensors, before: Reader, sparsity: Sparsity, **_: Any) -> None:
        self._tensors, self._before, self._sparsity = tensors, before, sparsity

    def results(self, names: Sequence[str]) -> Iterator[PrunedTensor]:
        """Yield every tensor, in the order of the names."""
        for name in names:
            weight = self._before.tensor(name)
            if name not in self._tensors.roles:
                yield PrunedTensor(self._sparsity, name, weight, None)
                continue
            stored: Tensor | Quantized = weight if weight.dim() < 2 else self._tensors.method.quantize(weight)
            values = stored.values() if isinstance(stored, Quantized) else stored
            row = tensor_row(weight, weight.numel(), 0, weight.numel() - int(values.count_nonzero()))
            yield PrunedTensor(self._sparsity, name, stored, row | {"threshold": ""})


step = QuantisingPruner


def nearest(weight: Tensor, *, bits: int, group: int) -> Quantized:
    """Round a tensor to the nearest multiples of a scale for each group: the largest weight of it gets the last code.

    Args:
        weight: floating point, finite, with at least one dimension.
        bits: of a code.
        group: weights of a row that share a scale; the last group of a row is shorter if `group` does not divide it.
    """
    columns = weight.shape[-1]
    strips = weight.reshape(-1, columns).split(max(STRIP // columns, 1))
    codes, scales = zip(*(_rounded(strip, 2 ** (bits - 1) - 1, group) for strip in strips), strict=True)
    return Quantized(torch.cat(codes).view(weight.shape), torch.cat(scales), bits, group, weight.dtype)


def _rounded(weight: Tensor, last: int, group: int) -> tuple[Tensor, Tensor]:
    """The codes of some rows in [-last, last], and their scales."""
    rows, columns = weight.shape
    groups = pad(weight.float(), (0, -columns % group)).view(rows, -1, group)
    scales = (groups.abs().amax(dim=2) / last).bfloat16()
    # The largest numbers of a dtype: a scale that was rounded up would make them infinite.
    above = scales.double() * last > torch.finfo(weight.dtype).max
    scales = torch.where(above, (scales.view(torch.int16) - 1).view(torch.bfloat16), scales)
    codes = (groups / scales.float()[..., None]).nan_to_num_(0.0).round_().clamp_(-last, last)  # 0 / 0 of a group of 0
    return codes.view(rows, -1)[:, :columns].to(torch.int8), scales
