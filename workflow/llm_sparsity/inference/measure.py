"""The cost of a variant: bytes on disk, seconds to load, memory and seconds of inference.

The base model, which all tasks share, runs on sequences of random tokens, in float32 on a CPU. On a GPU it runs in the
checkpoint's dtype, a float32 one in float16, which sparse tensor cores need.

Each execution (see executions.py) takes turns with the dense model that the variant was made from. The speed-up is the
median of the ratios of each turn, with quartiles. The outputs of each execution are compared with those of the
variant's dense execution before it is timed.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from llm_sparsity.inference import outputs, timing
from llm_sparsity.inference.executions import Execution, executions
from llm_sparsity.inference.memory import inference_bytes, keep_freed_memory
from llm_sparsity.inference.sizes import weight_sizes
from llm_sparsity.jobs.environment import environment
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_base
from llm_sparsity.storage.files import write_json

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
        UserError: sequences longer than the model allows; weights or outputs that are NaN or infinite.
        RuntimeError: the outputs of an execution differ from the dense ones, see `outputs.error`.
    """
    model.check_length("measure.sequence_length", sequence_length)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = weight_sizes(model)
    keep_freed_memory()
    dtype = dtype_of(model, device)
    loads = timing.take_turns([lambda: load_base(model, dtype)], LOADS)
    reference, variant = (_prepared(folder, device) for folder in (dense, model))
    rows, notes = [], []
    for size in batch_sizes:
        inputs = _random_tokens(variant, size, sequence_length, device)
        outputs.check_finite(reference, dense, inputs)
        outputs.check_finite(variant, model, inputs)
        ways, found = executions(variant, model, inputs, device)
        rows += _measured(reference, ways, inputs, repeats, device)
        notes += found
    write_json(
        output / "cost.json",
        {
            "bytes": model.weight_bytes,
            **sizes,
            "load_seconds": float(np.median(loads)),
            "dtype": str(variant.dtype).removeprefix("torch."),
            "speed": rows,
            "notes": list(dict.fromkeys(notes)),
            **environment(device),
        },
    )


def _prepared(folder: ModelFolder, device: torch.device) -> Any:
    """A base model ready to be timed."""
    model = load_base(folder, dtype_of(folder, device))
    model.config.use_cache = False
    return model.to(device)


def dtype_of(folder: ModelFolder, device: torch.device) -> torch.dtype:
    """The dtype to measure in: that of the checkpoint's largest tensor on a GPU, but float16 for float32."""
    if device.type == "cpu":
        return torch.float32
    with folder.open() as reader:
        largest = max(reader.names, key=lambda name: math.prod(reader.shape(name)))
        dtype = reader.dtype(largest)
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float16


def _random_tokens(model: Any, size: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """A batch of random tokens, (size, length), the same ones every time; the first ten tokens tend to be special."""
    tokens, generator = model.config.vocab_size, torch.Generator().manual_seed(0)
    drawn = torch.randint(min(10, tokens - 1), tokens, (size, length), generator=generator)
    return {"input_ids": drawn.to(device)}


def _measured(
    reference: Module,
    ways: Mapping[str, Execution],
    inputs: Mapping[str, Tensor],
    repeats: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """One row per execution: error, memory, seconds and speed-up over the reference, for one batch."""
    models = {name: way.model for name, way in ways.items()}
    errors = {name: outputs.error(name, executed, models["dense"], inputs) for name, executed in models.items()}
    memory = {name: inference_bytes(executed, inputs, device) for name, executed in models.items()}
    seconds = timing.inference_seconds([reference, *models.values()], inputs, repeats, device)
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
            "sparse_layers": len(way.layers),
            "layers": way.layers,
        }
        for number, (name, way) in enumerate(ways.items(), 1)
    ]
