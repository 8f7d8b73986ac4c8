"""Linear layers that multiply by their remaining weights, on a CPU. They hold no dense matrix (see packed.py).

Which way is fastest depends on the matrix, its zeros, the number of tokens and the machine. So a layer measures: the
first time that its kind of layer gets a number of tokens, the ways take turns, and the fastest one is remembered.

For inference only: no gradients flow through these layers.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module
from transformers.activations import GELUActivation
from transformers.pytorch_utils import Conv1D

from llm_sparsity.inference.packed import Packed, transposed
from llm_sparsity.inference.ways import Ways
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.roles import READ
from llm_sparsity.models.structure import Structure

APART = 64  # sequences with this many tokens or more are tiled on their own, not as one batch
CHANCE_ZEROS = 0.001  # a layer with at most this share of zeros counts as dense


def sparse_layers(model: Module, structure: Structure, names: Iterable[str]) -> Iterator[tuple[str, "SparseLinear"]]:
    """The name and the sparse version of each named layer, one after the other.

    A feed-forward block's first matrix keeps its layout for the activation.
    """
    kinds: dict[object, Ways] = {}
    for name in names:
        matrix = structure.matrix(f"{name}.weight")
        opens_mlp = matrix is not None and matrix.block.endswith(".mlp") and not matrix.ends_block
        layer = SparseLinear(model.get_submodule(name), keep_layout=opens_mlp)
        layer.ways = kinds.setdefault(layer.kind, Ways())
        layer.ways.layers.append(layer)
        yield name, layer


def with_layers(model: Module, layers: Mapping[str, Module]) -> Module:
    """A copy of a model in which layers are replaced, by name. It shares all other weights with the model."""
    shared = [*model.parameters(), *layers.values()]
    model = copy.deepcopy(model, {id(part): part for part in shared})
    replace_layers(model, layers.items())
    return model


def replace_layers(model: Module, layers: Iterable[tuple[str, Module]]) -> None:
    """Replace layers of a model, by name, each as soon as it is made."""
    for name, layer in layers:
        model.set_submodule(name, layer)
    for name, module in list(model.named_modules()):
        if isinstance(module, GELUActivation):
            model.set_submodule(name, InMemoryOrder(module))
        if isinstance(module, Conv1D):
            module.register_forward_pre_hook(_contiguous)


def _contiguous(_: Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Make inputs contiguous for a dense Conv1D, which views them; a sparse layer before it may keep its layout."""
    return tuple(x.contiguous() for x in inputs)


def layers_with_zeros(model: Module, structure: Structure) -> list[str]:
    """The names of the prunable linear layers with more than `CHANCE_ZEROS` zeros."""
    return [
        name for name, module in model.named_modules() if is_prunable(name, module, structure) and has_zeros(module)
    ]


def is_prunable(name: str, module: Module, structure: Structure) -> bool:
    """Whether a module of a model is a linear layer that can be pruned, and that the model calls."""
    is_called = isinstance(module, Linear | Conv1D) and not re.search(READ, name)
    return is_called and bool(structure.role(f"{name}.weight"))


def has_zeros(layer: Any) -> bool:
    """Whether more than `CHANCE_ZEROS` of a layer's weights are zeros."""
    return bool(layer.weight.count_nonzero() < (1 - CHANCE_ZEROS) * layer.weight.numel())


class SparseLinear(Module):
    """A linear layer that multiplies by its nonzero weights only, on a CPU.

    Sums are float32. Activations of another dtype than float32 or bfloat16 are converted, and outputs back.

    Args:
        dense: a Linear, or GPT-2's Conv1D.
        keep_layout: where it skips zeros, return a transposed view of (outputs, tokens) instead of a contiguous copy.
            This is faster where element-wise functions and another sparse layer follow.
        path: set of instructions, see `Packed`.
    """

    def __init__(self, dense: Any, keep_layout: bool = False, path: str | None = None) -> None:
        super().__init__()
        weight = dense.weight.detach()
        self.is_transposed, self.has_bias = isinstance(dense, Conv1D), dense.bias is not None
        self.matrix = Packed(weight.t() if self.is_transposed else weight, path)
        self.out_features, self.in_features = self.matrix.outputs, self.matrix.inputs
        self.keep_layout, self.source_dtype = keep_layout, weight.dtype
        bias = dense.bias.detach().clone() if self.has_bias else torch.zeros(self.out_features)
        self._bias = {dtype: bias.to(dtype) for dtype in (torch.float32, self.matrix.dtype)}
        self.ways = Ways([self])

    @property
    def kind(self) -> tuple[object, ...]:
        """Layers of one kind take as long as each other."""
        matrix = self.matrix
        return matrix.outputs, matrix.inputs, matrix.dtype, matrix.rows, round(matrix.density, 1), self.keep_layout

    @property
    def weight(self) -> Tensor:
        """The dense matrix without its values: code of models, such as T5's, asks for its dtype."""
        return torch.empty(self.out_features, self.in_features, dtype=self.source_dtype, device="meta")

    @property
    def bias(self) -> Tensor | None:
        """(outputs,), float32; None if the dense layer has none."""
        return self._bias[torch.float32] if self.has_bias else None

    @property
    def held(self) -> list[Tensor]:
        """What it holds beside the matrix, though not as parameters: the bias, in each dtype that it needs."""
        return [*self._bias.values()]

    # Kernels get addresses, which tensors that are traced do not have.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        """(..., tokens, inputs) -> (..., tokens, outputs)."""
        if x.device.type != "cpu":
            raise UserError(f"a sparse layer runs on a CPU, not on {x.device}: load the model with execution='dense'")
        # Kernels write to memory, of which autograd knows nothing; torch refuses its own products with `out`.
        out: Tensor = getattr(self, self.ways.fastest(x))(x.detach())
        return out

    def product(self, x: Tensor) -> Tensor:
        """`forward`, by one read of mask and values."""
        return self._shaped(self.matrix.product(self._flat(x), self._bias[torch.float32]), x)

    def gathered(self, x: Tensor) -> Tensor:
        """`forward`, by one read of mask and values; zeros are not multiplied."""
        return self._shaped(self.matrix.gathered(self._flat(x), self._bias[torch.float32]), x)

    def expanded(self, x: Tensor) -> Tensor:
        """`forward`, by dense products of a few rows at a time."""
        return self._shaped(self.matrix.expanded(self._flat(x), self._bias[self.matrix.dtype]), x)

    def skipped(self, x: Tensor) -> Tensor:
        """`forward`, by remaining weights only."""
        sequences = x if x.dim() == 3 and x.shape[1] >= APART else x.reshape(1, -1, self.in_features)
        sequences = transposed(sequences.float())  # no copy where the layer before kept its layout
        out = self.matrix.skipped(sequences, self._bias[torch.float32])
        out = out.transpose(1, 2) if self.keep_layout else transposed(out)
        return out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _flat(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.in_features).to(self.matrix.dtype)

    def _shaped(self, out: Tensor, x: Tensor) -> Tensor:
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Save what the dense layer would, so that a saved model is an ordinary one."""
        weight = self.matrix.dense().to(self.source_dtype)
        destination[f"{prefix}weight"] = weight.t().contiguous() if self.is_transposed else weight
        if self.has_bias:
            destination[f"{prefix}bias"] = self._bias[self.matrix.dtype].to(self.source_dtype)

    def _load_from_state_dict(self, state_dict: Any, *_: Any) -> None:
        if state_dict:  # torch passes on what begins with the layer's name
            raise UserError("a sparse layer takes no weights: load the model with execution='dense'")


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
