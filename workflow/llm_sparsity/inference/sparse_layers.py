"""Linear layers that multiply by their remaining weights only, on a CPU.

For every output, a kernel adds up weight times activation for 128 tokens at once, in vector registers, so a remaining
weight costs a few instructions wherever it stands. Where four rows keep the same columns (block pruning), their outputs
are computed together and every activation is loaded once for all four. torch's CSR product takes three to five times as
long (benchmarks/execution.py); the packages that were faster are no longer maintained.

For inference only: no gradients flow through these layers.
"""

import copy
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module
from transformers.activations import GELUActivation
from transformers.pytorch_utils import Conv1D

from llm_sparsity.inference import kernels
from llm_sparsity.models.families import Family

TILE_WIDTHS = {1: (128, 64, 16, 1), kernels.ROWS_TOGETHER: (64, 16, 1)}  # rows together -> tokens in a tile
TILED_SEPARATELY = 64  # sequences with this many tokens or more are tiled on their own, not as one batch
CHANCE_ZEROS = 0.001  # a layer with at most this share of zeros counts as dense


def with_sparse_layers(model: Module, family: Family, names: Iterable[str]) -> Module:
    """A copy of a model (CPU, float32) whose named layers are sparse. It shares all other weights with the model."""
    model = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    for name in names:
        model.set_submodule(name, sparse_layer(model, family, name))
    for name, module in list(model.named_modules()):
        if isinstance(module, GELUActivation):
            model.set_submodule(name, InMemoryOrder(module))
    return model


def sparse_layer(model: Module, family: Family, name: str) -> "SparseLinear":
    """The sparse version of one layer. A feed-forward block's first matrix keeps its layout for the activation."""
    axis = family.axis(f"{name}.bias")  # only matrices whose outputs are heads or neurons have one
    return SparseLinear(model.get_submodule(name), keep_layout=axis is not None and axis.block.endswith(".mlp"))


def layers_with_zeros(model: Module, family: Family) -> list[str]:
    """The names of the prunable linear layers with more than `CHANCE_ZEROS` zeros."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, Linear | Conv1D)
        and family.role(f"{name}.weight")
        and module.weight.count_nonzero() < (1 - CHANCE_ZEROS) * module.weight.numel()
    ]


class SparseLinear(Module):
    """A linear layer that multiplies by its nonzero weights only, on a CPU, in float32.

    It works on activations as (inputs, tokens), a tile of tokens at a time.

    Args:
        dense: a Linear, or GPT-2's Conv1D.
        keep_layout: return a transposed view of (outputs, tokens) instead of a contiguous copy. This is faster where
            element-wise functions and another sparse layer follow.
    """

    def __init__(self, dense: Any, keep_layout: bool = False) -> None:
        super().__init__()
        weight = dense.weight.detach()
        if isinstance(dense, Conv1D):
            weight = weight.t()
        self.out_features, self.in_features = weight.shape
        self.keep_layout = keep_layout
        kept = weight != 0
        self.rows = kernels.ROWS_TOGETHER if _rows_agree(kept) else 1
        pattern = kept[:: self.rows]  # (groups of rows, inputs)
        ends = torch.cat([torch.zeros(1, dtype=torch.int32), pattern.sum(1).cumsum(0).int()])
        columns = pattern.nonzero()[:, 1].int()
        values = weight.reshape(-1, self.rows, self.in_features).transpose(1, 2)[pattern].flatten()
        bias = torch.zeros(self.out_features) if dense.bias is None else dense.bias.detach()
        for name, tensor in (("ends", ends), ("columns", columns), ("values", values), ("bias", bias)):
            self.register_buffer(name, tensor.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(..., tokens, inputs) float32 -> (..., tokens, outputs)."""
        shape = x.shape
        sequences = x if x.dim() == 3 and shape[1] >= TILED_SEPARATELY else x.reshape(1, -1, shape[-1])
        sequences = transposed(sequences)  # no copy where the layer before kept its layout
        out = torch.empty(len(sequences), self.out_features, sequences.shape[2])
        _multiply(self, sequences, out)
        out = out.transpose(1, 2) if self.keep_layout else transposed(out)
        return out.reshape(*shape[:-1], self.out_features)


class InMemoryOrder(Module):
    """An element-wise function that accepts the transposed views of sparse layers.

    torch's fast GELU needs contiguous inputs.
    """

    def __init__(self, function: Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The function of each element; any shape."""
        out: Tensor = self.function(x) if x.dim() < 2 or x.is_contiguous() else self.function(x.mT).mT
        return out


def transposed(x: Tensor) -> Tensor:
    """(sequences, rows, columns) -> (sequences, columns, rows), contiguous."""
    sequences, rows, columns = x.shape
    view = x.transpose(1, 2)
    if view.is_contiguous() or not x.is_contiguous() or rows % kernels.TILE or columns % kernels.TILE:
        return view.contiguous()
    out = torch.empty(sequences, columns, rows)
    arrays = x.detach().numpy(), out.numpy()
    _run([(kernels.transpose(), *arrays, sequence) for sequence in range(sequences)])
    return out


def _rows_agree(kept: Tensor) -> bool:
    """Whether the rows of every group of `ROWS_TOGETHER` keep the same columns."""
    if len(kept) % kernels.ROWS_TOGETHER:
        return False
    groups = kept.unflatten(0, (-1, kernels.ROWS_TOGETHER))
    return bool((groups == groups[:, :1]).all())


def _multiply(layer: Any, x: Tensor, out: Tensor) -> None:
    """out = weight @ x + bias for every sequence: x (sequences, inputs, tokens), out (sequences, outputs, tokens)."""
    tensors = layer.ends, layer.columns, layer.values, layer.bias, x.detach(), out
    arrays = [tensor.numpy() for tensor in tensors]
    tiles, token = [], 0
    for width in TILE_WIDTHS[layer.rows]:
        while token + width <= x.shape[2]:
            tiles.append((kernels.multiply(layer.rows, width), token))
            token += width
    _run([(kernel, *arrays, sequence, token) for sequence in range(len(x)) for kernel, token in tiles])


def _run(calls: Sequence[tuple[Any, ...]]) -> None:
    """Call kernels, each with its arguments, on torch's number of threads."""
    if torch.get_num_threads() == 1 or len(calls) == 1:
        for kernel, *arguments in calls:
            kernel(*arguments)
    else:
        list(_threads(torch.get_num_threads()).map(lambda call: call[0](*call[1:]), calls))


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)
