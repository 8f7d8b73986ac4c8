"""Run a pruned model so that what was removed is not computed.

On a processor, `Sparse` layers multiply by the surviving weights alone. Their kernel is compiled for the processor when
it is first needed (llvmlite): for every output it adds up weight times activation over 128 tokens at once, in vector
registers, so that one survivor costs a few instructions wherever it stands. Where rows share their survivors (block
pruning), four of them are computed together and every activation is loaded once for all four. torch's own CSR product
takes three to five times as long (benchmarks/execution.py), and the packages that were faster are no longer kept.

On a GPU of compute capability 8.0 or newer, matrices with 2 of 4 weights removed run on its sparse tensor cores,
through torch (Mishra et al. 2021, arXiv:2104.08378).

For inference only: no gradients flow through these layers.
"""

import copy
import ctypes
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Linear, Module, Parameter
from transformers.activations import GELUActivation
from transformers.pytorch_utils import Conv1D

from llm_sparsity.inference import kernels
from llm_sparsity.models.loading import Family

TOGETHER = 4  # rows at once where they share their survivors
WIDTHS = {1: (128, 64, 16, 1), TOGETHER: (64, 16, 1)}  # rows at once -> tokens at once: most, then what is left
ALONE = 64  # tokens from which on a sequence is not worked on together with others
BY_CHANCE = 0.001  # the share of zeros up to which a layer counts as dense


def sparse(model: Module, kind: Family, names: Iterable[str]) -> Module:
    """A copy of a model (CPU, float32) whose layers of these names run sparse; it shares all other weights with it."""
    model = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    for name in names:
        model.set_submodule(name, _sparse_layer(model, kind, name))
    for name, module in list(model.named_modules()):
        if isinstance(module, GELUActivation):
            model.set_submodule(name, InMemoryOrder(module))
    return model


def gains(model: Module, kind: Family, inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """What sparse execution gains, layer by layer, on inputs like these.

    Args:
        model: on the CPU, float32.
        kind: its family, which names the layers that can be pruned.
        inputs: arguments of the model, int64, (batch, tokens).

    Returns:
        For each layer that holds zeros: its name -> its dense time divided by its sparse time.
    """
    return {
        name: _gain(model.get_submodule(name), _sparse_layer(model, kind, name), shape)
        for name, shape in _input_shapes(model, holding_zeros(model, kind), inputs).items()
    }


def holding_zeros(model: Module, kind: Family) -> list[str]:
    """The names of the linear layers that can be pruned and hold zeros: more than the few that chance makes."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, Linear | Conv1D)
        and kind.place(f"{name}.weight")
        and module.weight.count_nonzero() < (1 - BY_CHANCE) * module.weight.numel()
    ]


def _sparse_layer(model: Module, kind: Family, name: str) -> "Sparse":
    slot = kind.slot(f"{name}.bias")  # which matrices that make heads or neurons have, the others not
    return Sparse(model.get_submodule(name), keep_layout=slot is not None and slot.block.endswith(".mlp"))


def two_of_four(model: Module, kind: Family) -> Module:
    """A copy of a model on a GPU, float16, whose 2:4 matrices run on sparse tensor cores.

    Raises:
        RuntimeError: from torch, for a matrix whose shape the kernels do not take.
    """
    from torch.sparse import to_sparse_semi_structured

    model = copy.deepcopy(model).half()
    for name in holding_zeros(model, kind):
        layer: Any = model.get_submodule(name)
        if isinstance(layer, Linear) and bool((layer.weight.view(-1, 4).count_nonzero(dim=1) <= 2).all()):
            layer.weight = Parameter(to_sparse_semi_structured(layer.weight), requires_grad=False)
    return model


def two_of_four_missing(device: torch.device) -> str | None:
    """Why 2:4 kernels cannot run here; None where they can."""
    if device.type != "cuda":
        return "2:4 kernels need a GPU of compute capability 8.0 or newer; there is none here"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"2:4 kernels need compute capability 8.0 or newer; this GPU has {major}.{minor}"
    return None


class Sparse(Module):
    """A linear layer that computes with its survivors alone, on a CPU, in float32.

    It works on activations as (inputs, tokens), a tile of tokens for each sequence.

    Args:
        dense: a Linear, or GPT-2's Conv1D.
        keep_layout: give the outputs as a transposed view of (outputs, tokens) instead of copying them back: right
            where element-wise functions and another sparse layer follow, as behind a feed-forward block's first matrix.
    """

    def __init__(self, dense: Any, keep_layout: bool = False) -> None:
        super().__init__()
        weight = dense.weight.detach()
        if isinstance(dense, Conv1D):
            weight = weight.t()
        self.out_features, self.in_features = weight.shape
        self.keep_layout = keep_layout
        present = weight != 0
        grouped = present.unflatten(0, (-1, TOGETHER)) if self.out_features % TOGETHER == 0 else None
        self.rows = TOGETHER if grouped is not None and bool((grouped == grouped[:, :1]).all()) else 1
        pattern = present[:: self.rows]
        ends = torch.cat([torch.zeros(1, dtype=torch.int32), pattern.sum(1).cumsum(0).int()])
        columns = pattern.nonzero()[:, 1].int()
        values = weight.reshape(-1, self.rows, self.in_features).transpose(1, 2)[pattern]
        bias = torch.zeros(self.out_features) if dense.bias is None else dense.bias.detach()
        for name, tensor in (("ends", ends), ("columns", columns), ("values", values), ("bias", bias)):
            self.register_buffer(name, tensor.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(..., tokens, inputs) float32 -> (..., tokens, outputs)."""
        shape = x.shape
        tall = x if x.dim() == 3 and shape[1] >= ALONE else x.reshape(1, -1, shape[-1])
        tall = _transposed(tall)  # no copy where the layer before kept its layout
        out = torch.empty(len(tall), self.out_features, tall.shape[2])
        _multiply(self, tall, out)
        out = out.transpose(1, 2) if self.keep_layout else _transposed(out)
        return out.reshape(*shape[:-1], self.out_features)


class InMemoryOrder(Module):
    """An element-wise function, given its inputs in the order in which a sparse layer left them.

    torch's fast GELU takes no transposed view.
    """

    def __init__(self, function: Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The function of each element; any shape."""
        found: Tensor = self.function(x) if x.dim() < 2 or x.is_contiguous() else self.function(x.mT).mT
        return found


def _multiply(layer: Any, x: Tensor, out: Tensor) -> None:
    """out = weight @ x + bias for every sequence: x (sequences, inputs, tokens), out (sequences, outputs, tokens)."""
    tokens = x.shape[2]
    known = [layer.ends.data_ptr(), layer.columns.data_ptr(), layer.values.data_ptr(), layer.bias.data_ptr()]
    calls = []
    for sequence in range(len(x)):
        at = 0
        for width in WIDTHS[layer.rows]:
            while at + width <= tokens:
                strip = x[sequence, 0, at:].data_ptr(), out[sequence, 0, at:].data_ptr()
                calls.append((kernels.multiply(layer.rows, width), *known, *strip, len(layer.ends) - 1, tokens))
                at += width
    _spread(calls)


def _transposed(x: Tensor) -> Tensor:
    """(sequences, rows, columns) -> (sequences, columns, rows), contiguous."""
    sequences, rows, columns = x.shape
    turned = x.transpose(1, 2)
    if turned.is_contiguous() or not x.is_contiguous() or rows % kernels.TILE or columns % kernels.TILE:
        return turned.contiguous()
    out, turn = torch.empty(sequences, columns, rows), kernels.transpose()
    _spread([(turn, x[each].data_ptr(), out[each].data_ptr(), rows, columns) for each in range(sequences)])
    return out


def _spread(calls: Sequence[tuple[Any, ...]]) -> None:
    """Make calls (compiled function, its arguments) over torch's threads: they do not hold Python's lock."""
    if torch.get_num_threads() == 1 or len(calls) == 1:
        for function, *arguments in calls:
            function(*arguments)
    else:
        list(_pool(torch.get_num_threads()).map(lambda call: call[0](*call[1:]), calls))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def _input_shapes(model: Module, names: Iterable[str], inputs: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what it gets, for those of the layers that are used."""
    shapes: dict[str, tuple[int, ...]] = {}

    def remember(name: str) -> Callable[[Module, tuple[Tensor, ...]], None]:
        return lambda _, given: shapes.update({name: tuple(given[0].shape)})

    hooks = [model.get_submodule(name).register_forward_pre_hook(remember(name)) for name in names]
    with torch.inference_mode():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return shapes


def _gain(dense: Module, layer: Sparse, shape: tuple[int, ...]) -> float:
    """The median dense time of a layer, divided by the median sparse time."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        seconds = take_turns([lambda: dense(x), lambda: layer(x)], 5)
    return float(np.median(seconds[:, 0]) / np.median(seconds[:, 1]))


def take_turns(functions: Sequence[Callable[[], Any]], repeats: int) -> NDArray[np.float64]:
    """Seconds of each call, (repeats, functions): they take turns, so that a busy moment of the machine hits all."""
    seconds = np.empty((repeats + 1, len(functions)))
    for turn in range(repeats + 1):
        for number, function in enumerate(functions):
            begun = time.perf_counter()
            function()
            seconds[turn, number] = time.perf_counter() - begun
    return seconds[1:]  # the first turn warms up


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, as allocators for servers do: else every large activation is mapped anew, and
    what is timed is the system's page faults.
    """
    with suppress(AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
