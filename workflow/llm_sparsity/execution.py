"""Run a pruned model so that what was removed is not computed.

On a processor, `Sparse` layers multiply by the surviving weights alone. Their kernel is compiled for the processor when
it is first needed (llvmlite): for every output it adds up weight times activation over 64 tokens at once, in vector
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

import llvmlite.binding as llvm
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Linear, Module, Parameter
from transformers.pytorch_utils import Conv1D

from llm_sparsity.models import Family

WIDTHS = (64, 16, 1)  # tokens at once: most, then what is left
TOGETHER = 4  # rows at once where they share their survivors
BY_CHANCE = 0.001  # the share of zeros up to which a layer counts as dense


def sparse(model: Module, kind: Family, names: Iterable[str]) -> Module:
    """A copy of a model (CPU, float32) whose layers of these names run sparse; it shares all other weights with it."""
    model = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    for name in names:
        model.set_submodule(name, _sparse_layer(model, kind, name))
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
    place = kind.place(f"{name}.weight")
    return Sparse(model.get_submodule(name), keep_layout=place is not None and place.part == "mlp")


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
            where element-wise functions and another sparse layer follow, as in a feed-forward block.
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
        tall = x if x.dim() == 3 and shape[1] >= WIDTHS[0] else x.reshape(1, -1, shape[-1])
        tall = tall.transpose(1, 2).contiguous()  # no copy where the layer before kept its layout
        out = torch.empty(len(tall), self.out_features, tall.shape[2])
        _multiply(self, tall, out)
        out = out.transpose(1, 2)
        if not self.keep_layout:
            out = out.contiguous()
        return out.reshape(*shape[:-1], self.out_features)


def _multiply(layer: Any, x: Tensor, out: Tensor) -> None:
    """out = weight @ x + bias for every sequence: x (sequences, inputs, tokens), out (sequences, outputs, tokens)."""
    tokens = x.shape[2]
    strips = []
    for sequence in range(len(x)):
        at = 0
        for width in WIDTHS:
            while at + width <= tokens:
                strips.append((width, x[sequence, 0, at:].data_ptr(), out[sequence, 0, at:].data_ptr()))
                at += width
    known = [layer.ends.data_ptr(), layer.columns.data_ptr(), layer.values.data_ptr(), layer.bias.data_ptr()]

    def run(strip: tuple[int, int, int]) -> None:
        width, source, target = strip
        _kernel(layer.rows, width)(*known, source, target, len(layer.ends) - 1, tokens)

    if torch.get_num_threads() == 1 or len(strips) == 1:
        for strip in strips:
            run(strip)
    else:
        list(_pool(torch.get_num_threads()).map(run, strips))


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


@cache
def _kernel(rows: int, width: int) -> Any:
    """The compiled kernel for so many rows at once and so many tokens at once, as a function of pointers."""
    engine = _engine()
    name = f"multiply_{rows}_{width}"
    module = llvm.parse_assembly(_assembly(name, rows, width))
    module.triple = llvm.get_default_triple()
    machine = _machine()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    engine.add_module(module)
    engine.finalize_object()
    types = [ctypes.c_void_p] * 6 + [ctypes.c_int64] * 2
    return ctypes.CFUNCTYPE(None, *types)(engine.get_function_address(name))


@cache
def _machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, codemodel="jitdefault", jit=True
    )


@cache
def _engine() -> Any:
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())


def _assembly(name: str, rows: int, width: int) -> str:
    """The kernel in LLVM's language.

    For each group of `rows` outputs: accumulators begin at the bias; for each survivor of the group, in order, the
    activations of `width` tokens are loaded once, and every row adds its weight times them.
    """
    vector = f"<{width} x float>"

    def each(line: str) -> str:
        return "\n".join(line.replace("#", str(row)) for row in range(rows))

    def splat(scalar: str, result: str) -> str:
        return (
            f"  {result}.one = insertelement {vector} poison, float {scalar}, i64 0\n"
            f"  {result} = shufflevector {vector} {result}.one, {vector} poison, <{width} x i32> zeroinitializer"
        )

    return f"""
define void @{name}(ptr %ends, ptr %columns, ptr %values, ptr %bias, ptr %x, ptr %out, i64 %groups, i64 %tokens) {{
entry:
  br label %group
group:
  %g = phi i64 [ 0, %entry ], [ %g.next, %store ]
  %g.next = add i64 %g, 1
  %first.row = mul i64 %g, {rows}
{
        each(f'''  %row.# = add i64 %first.row, #
  %bias.at.# = getelementptr float, ptr %bias, i64 %row.#
  %bias.# = load float, ptr %bias.at.#
{splat("%bias.#", "%start.#")}''')
    }
  %begin.at = getelementptr i32, ptr %ends, i64 %g
  %end.at = getelementptr i32, ptr %ends, i64 %g.next
  %begin.32 = load i32, ptr %begin.at
  %end.32 = load i32, ptr %end.at
  %begin = sext i32 %begin.32 to i64
  %end = sext i32 %end.32 to i64
  %none = icmp eq i64 %begin, %end
  br i1 %none, label %store, label %survivor
survivor:
  %k = phi i64 [ %begin, %group ], [ %k.next, %survivor ]
{each(f"  %sum.# = phi {vector} [ %start.#, %group ], [ %more.#, %survivor ]")}
  %column.at = getelementptr i32, ptr %columns, i64 %k
  %column.32 = load i32, ptr %column.at
  %column = sext i32 %column.32 to i64
  %x.offset = mul i64 %column, %tokens
  %x.at = getelementptr float, ptr %x, i64 %x.offset
  %activations = load {vector}, ptr %x.at, align 4
  %first.value = mul i64 %k, {rows}
{
        each(f'''  %index.# = add i64 %first.value, #
  %value.at.# = getelementptr float, ptr %values, i64 %index.#
  %value.# = load float, ptr %value.at.#
{splat("%value.#", "%weight.#")}
  %more.# = call {vector} @llvm.fma.v{width}f32({vector} %weight.#, {vector} %activations, {vector} %sum.#)''')
    }
  %k.next = add i64 %k, 1
  %last = icmp eq i64 %k.next, %end
  br i1 %last, label %store, label %survivor
store:
{each(f'''  %result.# = phi {vector} [ %start.#, %group ], [ %more.#, %survivor ]''')}
{
        each(f'''  %out.offset.# = mul i64 %row.#, %tokens
  %out.at.# = getelementptr float, ptr %out, i64 %out.offset.#
  store {vector} %result.#, ptr %out.at.#, align 4''')
    }
  %finished = icmp eq i64 %g.next, %groups
  br i1 %finished, label %exit, label %group
exit:
  ret void
}}
declare {vector} @llvm.fma.v{width}f32({vector}, {vector}, {vector})
"""
