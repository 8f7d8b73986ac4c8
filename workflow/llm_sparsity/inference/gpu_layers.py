"""Linear layers that multiply by their remaining weights only, on a GPU, in half precision.

For up to 16 tokens, as in generating text, the time of a layer is that of reading its weights, and `gpu_kernels` reads
the remaining ones alone. More tokens are bound by arithmetic: the layer writes its dense matrix, and torch multiplies.

For inference only: no gradients flow through these layers.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers.pytorch_utils import Conv1D

from llm_sparsity.inference import gpu_kernels


class GpuSparseLinear(Module):
    """A linear layer that stores and reads its remaining weights only.

    Args:
        dense: a Linear, or GPT-2's Conv1D, on a GPU in float16 or bfloat16.

    Raises:
        ValueError: the matrix cannot be stored, see `gpu_kernels.sparse_matrix`.
    """

    values: Tensor
    gaps: Tensor
    bases: Tensor
    ends: Tensor
    bias: Tensor | None

    def __init__(self, dense: Any) -> None:
        super().__init__()
        weight = dense.weight.detach()
        matrix = gpu_kernels.sparse_matrix(weight.t() if isinstance(dense, Conv1D) else weight)
        self.shape = matrix.shape
        for name, tensor in list(matrix._asdict().items())[1:]:
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if dense.bias is None else dense.bias.detach())

    @property
    def matrix(self) -> gpu_kernels.SparseMatrix:
        """(outputs, inputs)."""
        return gpu_kernels.SparseMatrix(self.shape, self.values, self.gaps, self.bases, self.ends)

    @property
    def weight(self) -> Tensor:
        """The dense matrix without its values: code of models, such as T5's, asks for its dtype."""
        return torch.empty(self.shape, dtype=self.values.dtype, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        tokens = x.reshape(-1, self.shape[1])
        if len(tokens) > gpu_kernels.TOKENS:
            return torch.nn.functional.linear(x, gpu_kernels.dense(self.matrix), self.bias)
        return gpu_kernels.multiply(self.matrix, tokens, self.bias).reshape(*x.shape[:-1], self.shape[0])


def gpu_layers(model: Module, names: Iterable[str]) -> tuple[dict[str, GpuSparseLinear], dict[str, str]]:
    """The sparse versions of named layers of a half-precision model on a GPU.

    Returns:
        The layers, by name, and the reason for each that cannot be stored.
    """
    layers, refused = {}, {}
    for name in names:
        try:
            layers[name] = GpuSparseLinear(model.get_submodule(name))
        except ValueError as error:
            refused[name] = str(error)
    return layers, refused
