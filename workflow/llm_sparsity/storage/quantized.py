"""Quantised tensors: whole numbers, and a scale for each group of them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

STRIP = 1 << 18  # values that are multiplied at a time, which bounds the memory of their scales


@dataclass(frozen=True)
class Quantized:
    """A tensor whose values are a code times the scale of its group.

    Groups are of neighbours in the last dimension; the last group of a row is shorter if `group` does not divide it.

    codes: int8, in the shape of the tensor, which has at least one dimension.
    scales: bfloat16, (rows, groups of a row).
    bits: of a stored code, 8 or 4; codes are in [-2^(bits - 1), 2^(bits - 1)).
    group: number of codes that share a scale.
    dtype: of the values.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    group: int
    dtype: torch.dtype

    def values(self) -> Tensor:
        """The tensor: products in float32, rounded to `dtype`."""
        values = torch.empty(self.codes.shape, dtype=self.dtype)
        columns = self.codes.shape[-1]
        rows, group = max(STRIP // columns, 1), min(self.group, columns)
        whole, codes = values.view(-1, columns), self.codes.reshape(-1, columns)
        for out, part, scales in zip(whole.split(rows), codes.split(rows), self.scales.split(rows), strict=True):
            wide = scales.float().repeat_interleave(group, dim=1)[:, :columns]
            out.copy_(part.float().mul_(wide).add_(0.0))  # -0.0 becomes 0.0
        return values


def scales_shape(shape: tuple[int, ...], group: int) -> tuple[int, int]:
    """(rows, groups of a row) of a tensor's scales."""
    return math.prod(shape[:-1]), -(-shape[-1] // group)
