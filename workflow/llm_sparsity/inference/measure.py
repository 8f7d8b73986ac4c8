"""What a variant really costs: bytes on disk, seconds to load, memory and seconds of inference.

The base model is run, which is what all tasks share, on sequences of random tokens. Executions:

    dense    every weight is multiplied, zeros too: what a mask alone gives
    sparse   every layer that holds zeros multiplies its survivors only, faster or not
    fastest  the layers where sparse is faster run sparse, the others dense; left out where it is one of the two above
    2of4     on a GPU: 2:4 matrices on sparse tensor cores; everything is then compared in float16

Each is timed beside the dense model that the variant was made from: all take turns, and the speed-up is the median of
the ratios of each turn, told with their quartiles. Before a time counts, the execution's outputs are compared with
those of the dense execution of the same variant.
"""

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from llm_sparsity.inference import sparse_layers as execution
from llm_sparsity.jobs.environment import machine
from llm_sparsity.models.loading import check_length, family, load_base
from llm_sparsity.storage.container import Reader, narrowest
from llm_sparsity.storage.files import read_manifest, weight_bytes, write_json

TOLERANCE = {
    torch.float32: 1e-4,
    torch.float16: 2e-2,
}  # largest difference of outputs, as a share of the largest output
RESET = Path("/proc/self/clear_refs")  # writing 5 makes the present the peak of this process's memory
LOADS = 3  # how often loading is timed


def measure(
    model: Path, dense: Path, output: Path, *, batch_sizes: list[int], sequence_length: int, repeats: int
) -> None:
    """Measure one variant.

    Args:
        model: folder of a variant.
        dense: folder of the dense model that it was made from.
        output: gets cost.json.
        batch_sizes: sequences at once; each is measured.
        sequence_length: tokens in a sequence.
        repeats: rounds in which everything runs once.

    Raises:
        UserError: sequences longer than the model allows.
        RuntimeError: an execution's outputs differ from the dense ones by more than `TOLERANCE`.
    """
    check_length(model, "measure.sequence_length", sequence_length)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    execution.keep_freed_memory()
    loads = execution.take_turns([lambda: load_base(model)], LOADS)
    reference, net = (_prepared(folder, device) for folder in (dense, model))
    batches = {size: _inputs(net, size, sequence_length, device) for size in batch_sizes}
    executions, layers, notes = _executions(net, model, batches[batch_sizes[0]], device)
    rows = []
    for size, inputs in batches.items():
        errors = {name: _error(executed, net, inputs) for name, executed in executions.items()}
        memory = {name: _memory(executed, inputs, device) for name, executed in executions.items()}
        seconds = _seconds([reference, *executions.values()], inputs, repeats, device)
        for number, name in enumerate(executions, 1):
            rows.append(
                {
                    "execution": name,
                    "batch_size": size,
                    "sequence_length": sequence_length,
                    **_quartiles("seconds", seconds[:, number]),
                    **_quartiles("speedup", seconds[:, 0] / seconds[:, number]),
                    "error": errors[name],
                    "sparse_layers": len(layers.get(name, ())),
                    "memory_bytes": memory[name],
                }
            )
    plain, bound = _sizes(model)
    write_json(
        output / "cost.json",
        {
            "bytes": weight_bytes(read_manifest(model)),
            "plain_bytes": plain,
            "bound_bytes": bound,
            "load_seconds": float(np.median(loads)),
            "speed": rows,
            "notes": notes,
            **machine(device),
        },
    )


def _prepared(folder: Path, device: torch.device) -> Any:
    """A base model ready to be timed: float32 on a CPU, float16 on a GPU."""
    net = load_base(folder).to(device)
    net.config.use_cache = False
    return net.half() if device.type == "cuda" else net


def _inputs(net: Any, size: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """A batch of random tokens, (size, length), the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(10, net.config.vocab_size, (size, length), generator=generator).to(device)}


def _executions(
    net: Module, model: Path, inputs: Mapping[str, Tensor], device: torch.device
) -> tuple[dict[str, Module], dict[str, list[str]], list[str]]:
    """The executions of a variant, the layers that each runs sparse, and what could not be run and why."""
    kind = family(model)
    executions, layers, notes = {"dense": net}, {}, []
    if device.type == "cpu":
        gains = execution.gains(net, kind, inputs)
        faster = [name for name, gain in gains.items() if gain > 1]
        layers = {"sparse": list(gains)} | ({"fastest": faster} if 0 < len(faster) < len(gains) else {})
        executions |= {name: execution.sparse(net, kind, chosen) for name, chosen in layers.items() if chosen}
    if read_manifest(model).get("pruned", {}).get("sparsity") == "2of4":
        reason = execution.two_of_four_missing(device)
        if reason:
            notes.append(reason)
        else:
            executions["2of4"] = execution.two_of_four(net, kind)
    return executions, layers, notes


def _error(executed: Module, dense: Module, inputs: Mapping[str, Tensor]) -> float:
    """The largest difference of two executions' outputs, as a share of the largest output."""
    with torch.inference_mode():
        expected, found = (net(**inputs)[0] for net in (dense, executed))
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE[expected.dtype]:
        raise RuntimeError(f"the outputs of an execution are off by {error:.1e}; this is a fault of the program")
    return error


def _seconds(nets: list[Module], inputs: Mapping[str, Tensor], repeats: int, device: torch.device) -> Any:
    """Seconds of each model's inference, (repeats, models)."""

    def run(net: Module) -> None:
        net(**inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with torch.inference_mode():
        return execution.take_turns([partial(run, net) for net in nets], repeats)


def _quartiles(name: str, values: Any) -> dict[str, float]:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {name: float(median), f"{name}_low": float(low), f"{name}_high": float(high)}


def _memory(net: Module, inputs: Mapping[str, Tensor], device: torch.device) -> int | None:
    """Bytes of the weights as this execution holds them, and of the activations at their most; None where the system
    does not tell (Linux and CUDA do).
    """
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in [*net.parameters(), *net.buffers()]}
    with torch.inference_mode():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            net(**inputs)
            return sum(tensors.values()) + torch.cuda.max_memory_allocated(device) - before
        if not RESET.exists():
            return None
        with suppress(AttributeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)  # memory that was freed goes back, to be seen when it is taken again
        RESET.write_text("5")
        before = _resident("VmRSS")
        net(**inputs)
        return sum(tensors.values()) + max(0, _resident("VmHWM") - before)  # the kernel counts in batches of pages


def _resident(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most since the last reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def _sizes(model: Path) -> tuple[int, int]:
    """Bytes of the weights as plain safetensors, and the least that an ideal coder of their statistics could take.

    The bound: where the survivors are, at the entropy of a coin with their density; and each byte of their values at
    the entropy of that byte's distribution in the tensor (Shannon 1948). Nothing between neighbours is assumed.
    """
    plain, bits = 0, 0.0
    with Reader(model) as reader:
        for name in reader.names:
            flat = reader.tensor(name).reshape(-1)
            plain += flat.nbytes
            flat = flat.to(narrowest(flat))
            values = flat[flat != 0].contiguous().view(torch.uint8).view(-1, flat.element_size())
            bits += flat.numel() * _entropy(torch.tensor([len(values), flat.numel() - len(values)]))
            bits += sum(len(values) * _entropy(torch.bincount(plane, minlength=256)) for plane in values.t())
    return plain, round(bits / 8)


def _entropy(counts: Tensor) -> float:
    """Bits a symbol."""
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum())
