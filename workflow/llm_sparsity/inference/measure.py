"""The cost of a variant: bytes on disk, seconds to load, memory and seconds of inference.

The base model, which all tasks share, runs on sequences of random tokens. Executions:

    dense    every weight is multiplied, zeros too: the cost of a mask alone
    sparse   every layer with zeros multiplies its remaining weights only, even where that is slower
    fastest  layers that are faster sparse run sparse, the others dense; left out if it equals one of the two above
    2of4     on a GPU: 2:4 matrices on sparse tensor cores; everything is then compared in float16

Each execution takes turns with the dense model that the variant was made from. The speed-up is the median of the ratios
of each turn, with quartiles. The outputs of each execution are compared with those of the variant's dense execution
before it is timed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from llm_sparsity.inference import timing
from llm_sparsity.inference.memory import inference_bytes, keep_freed_memory
from llm_sparsity.inference.sizes import plain_and_bound_bytes
from llm_sparsity.inference.sparse_layers import with_sparse_layers
from llm_sparsity.inference.two_of_four import unsupported_reason, with_sparse_tensor_cores
from llm_sparsity.jobs.environment import environment
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_base
from llm_sparsity.storage.files import write_json

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}  # largest error, as a share of the largest output
LOADS = 3  # how often loading is timed


def measure(
    model: ModelFolder,
    dense: ModelFolder,
    output: Path,
    *,
    batch_sizes: Sequence[int],
    sequence_length: int,
    repeats: int,
) -> None:
    """Measure one variant and write `output`/cost.json.

    Args:
        model: a variant.
        dense: the dense model that it was made from.
        output: folder to write.
        batch_sizes: sequences in a batch; each size is measured.
        sequence_length: tokens in a sequence.
        repeats: timed turns.

    Raises:
        UserError: sequences longer than the model allows.
        RuntimeError: the outputs of an execution differ from the dense ones by more than `TOLERANCE`.
    """
    model.check_length("measure.sequence_length", sequence_length)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory()
    loads = timing.take_turns([lambda: load_base(model)], LOADS)
    reference, variant = (_prepared(folder, device) for folder in (dense, model))
    batches = [_random_tokens(variant, size, sequence_length, device) for size in batch_sizes]
    executions, sparse_layers, notes = _executions(variant, model, batches[0], device)
    rows = [
        {**row, "sparse_layers": len(sparse_layers.get(row["execution"], ()))}
        for inputs in batches
        for row in _measured(reference, executions, inputs, repeats, device)
    ]
    plain, bound = plain_and_bound_bytes(model)
    write_json(
        output / "cost.json",
        {
            "bytes": model.weight_bytes,
            "plain_bytes": plain,
            "bound_bytes": bound,
            "load_seconds": float(np.median(loads)),
            "speed": rows,
            "notes": notes,
            **environment(device),
        },
    )


def _prepared(folder: ModelFolder, device: torch.device) -> Any:
    """A base model ready to be timed: float32 on a CPU, float16 on a GPU."""
    model = load_base(folder).to(device)
    model.config.use_cache = False
    return model.half() if device.type == "cuda" else model


def _random_tokens(model: Any, size: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """A batch of random tokens, (size, length), the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(10, model.config.vocab_size, (size, length), generator=generator).to(device)}


def _executions(
    variant: Module, folder: ModelFolder, inputs: Mapping[str, Tensor], device: torch.device
) -> tuple[dict[str, Module], dict[str, list[str]], list[str]]:
    """The executions of a variant, the sparse layers of each, and why others cannot run."""
    executions, layers, notes = {"dense": variant}, {}, []
    if device.type == "cpu":
        speedups = timing.layer_speedups(variant, folder.family, inputs)
        faster = [name for name, speedup in speedups.items() if speedup > 1]
        layers = {"sparse": list(speedups)} | ({"fastest": faster} if 0 < len(faster) < len(speedups) else {})
        executions |= {
            name: with_sparse_layers(variant, folder.family, chosen) for name, chosen in layers.items() if chosen
        }
    if (folder.pruned or {}).get("sparsity") == "2of4":
        if reason := unsupported_reason(device):
            notes.append(reason)
        else:
            executions["2of4"] = with_sparse_tensor_cores(variant, folder.family)
    return executions, layers, notes


def _measured(
    reference: Module,
    executions: Mapping[str, Module],
    inputs: Mapping[str, Tensor],
    repeats: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """One row per execution: error, memory, seconds and speed-up over the reference, for one batch."""
    errors = {name: _error(name, executed, executions["dense"], inputs) for name, executed in executions.items()}
    memory = {name: inference_bytes(executed, inputs, device) for name, executed in executions.items()}
    seconds = timing.inference_seconds([reference, *executions.values()], inputs, repeats, device)
    size, length = inputs["input_ids"].shape
    return [
        {
            "execution": name,
            "batch_size": size,
            "sequence_length": length,
            **timing.quartiles("seconds", seconds[:, number]),
            **timing.quartiles("speedup", seconds[:, 0] / seconds[:, number]),
            "error": errors[name],
            "memory_bytes": memory[name],
        }
        for number, name in enumerate(executions, 1)
    ]


def _error(name: str, executed: Module, dense: Module, inputs: Mapping[str, Tensor]) -> float:
    """The largest difference between the outputs of two executions, as a share of the largest output."""
    with torch.inference_mode():
        expected, found = (model(**inputs)[0] for model in (dense, executed))
    error = float((found - expected).abs().max() / expected.abs().max())
    limit = TOLERANCE[expected.dtype]
    if not error <= limit:  # NaN counts as an error
        raise RuntimeError(
            f"execution {name!r}: outputs differ from the dense ones by {error:.1e} of the largest output, more than "
            f"{limit:g}; this is a bug in llm_sparsity.inference, please report it"
        )
    return error
