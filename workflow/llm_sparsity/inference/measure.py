"""The cost of a variant: bytes on disk, seconds to load, memory and seconds of inference.

The base model, which all tasks share, runs on sequences of random tokens, in float32 on a CPU. On a GPU it runs in the
checkpoint's dtype, a float32 one in float16, which sparse tensor cores need, and as a CUDA graph.

Each execution (see executions.py) takes turns with the dense model that the variant was made from. The speed-up is the
median of the ratios of each turn, with quartiles. The outputs of each execution are compared with those of the
variant's dense execution before it is timed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Linear, Module
from transformers.pytorch_utils import Conv1D

from llm_sparsity.inference import outputs, timing, workloads
from llm_sparsity.inference.executions import Execution, Executions
from llm_sparsity.inference.load import stored_dtype
from llm_sparsity.inference.memory import inference_bytes, keep_freed_memory
from llm_sparsity.inference.workloads import Workload
from llm_sparsity.jobs.environment import environment
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_base
from llm_sparsity.models.roles import ROUTERS
from llm_sparsity.models.structure import Structure
from llm_sparsity.storage.files import write_json
from llm_sparsity.storage.sizes import weight_sizes

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
    with model.open() as reader:
        sizes = weight_sizes(reader, model.structure.without_copies(reader.names), model)
    keep_freed_memory()
    dtype = dtype_of(model, device)
    loads = timing.take_turns([lambda: load_base(model, dtype)], LOADS)
    reference, variant = (_prepared(folder, device) for folder in (dense, model))
    executions, rows = Executions(variant, model), []
    copied = workloads.copy_bandwidth(device)
    decodes = _decodes(reference, model.structure, sequence_length)
    for size in batch_sizes:
        for workload in _workloads(reference, size, sequence_length, decodes):
            outputs.check_finite(reference, dense, workload)
            outputs.check_finite(variant, model, workload)
            for row in _measured(reference, executions.of(workload), workload, repeats):
                rows.append(row | {"copy_bytes_per_second": copied})
    where = environment(device)
    del where["peak_memory_bytes"]  # each execution's `memory_bytes` was measured, which resets the peak
    write_json(
        output / "cost.json",
        {
            "bytes": model.weight_bytes,
            **sizes,
            "load_seconds": float(np.median(loads)),
            "dtype": str(variant.dtype).removeprefix("torch."),
            "speed": rows,
            "notes": list(dict.fromkeys(executions.notes)),
            **where,
        },
    )


def _prepared(folder: ModelFolder, device: torch.device) -> Any:
    """A base model ready to be timed."""
    model = load_base(folder, dtype_of(folder, device))
    model.config.use_cache = False
    return model.to(device)


def dtype_of(folder: ModelFolder, device: torch.device) -> torch.dtype:
    """The dtype to measure in: float32 on a CPU; on a GPU that of the checkpoint, but float16 for float32."""
    if device.type == "cpu":
        return torch.float32
    dtype = stored_dtype(folder)
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float16


def _decodes(reference: Any, structure: Structure, length: int) -> bool:
    """Whether decoding is timed: of decoders whose cache allows it; prints why it is left out of others."""
    if structure.architecture != "decoder" or length < 2:
        return False
    if reason := workloads.why_not_decoded(reference):
        print(f"decoding is left out: {reason}", flush=True)
    return not reason


def _workloads(reference: Any, size: int, length: int, decodes: bool) -> Iterator[Workload]:
    """The batches of a size: read at once, and if the model decodes, also continued by a token."""
    yield (batch := workloads.prefill(reference, size, length))
    if decodes:
        yield workloads.decode(batch)


def _measured(
    reference: Module, executions: Mapping[str, Execution], workload: Workload, repeats: int
) -> list[dict[str, Any]]:
    """One row per execution: error, memory, seconds and speed-up over the reference, for one batch."""
    models, device = {name: execution.model for name, execution in executions.items()}, workload.ids.device
    errors = {name: outputs.error(name, executed, models["dense"], workload) for name, executed in models.items()}
    memory = {name: inference_bytes(executed, workload, device) for name, executed in models.items()}
    calls = timing.on_device([partial(workload, each) for each in (reference, *models.values())], device)
    seconds = timing.take_turns(calls, repeats)
    rows = []
    for number, (name, execution) in enumerate(executions.items(), 1):
        took = timing.quartiles("seconds", seconds[:, number])
        rows.append(
            {
                "execution": name,
                "phase": workload.phase,
                "batch_size": len(workload.ids),
                "sequence_length": workload.length,
                **took,
                **timing.quartiles("speedup", seconds[:, 0] / seconds[:, number]),
                "tokens_per_second": workload.ids.numel() / took["seconds"],
                **_reading(reference, models["dense"], execution, workload, took["seconds"]),
                "error": errors[name],
                "memory_bytes": None if (used := memory[name]) is None else used + workload.cached_bytes(models[name]),
                "sparse_layers": len(execution.layers),
                "layers": execution.layers,
            }
        )
    return rows


def _reading(
    reference: Module, dense: Module, execution: Execution, workload: Workload, seconds: float
) -> dict[str, float | None]:
    """In decode, which reads each matrix once: how fast it does, and the speed-up that reading less allows at best.

    A sparse matrix of b bits with a share s of zeros is read as (1 - s) b + 1 bits a weight: a mask, and the other
    weights. The limit is the bytes of the reference's matrices over those that are read. Neither is known of a mixture
    of experts: which ones are read depends on the tokens of the batch.
    """
    if workload.phase != "decode" or _has_routers(dense):
        return {"bytes_per_second": None, "limit": None}
    matrices = _matrices(dense)
    sparse = [matrices[name] for name in execution.layers]
    saved = sum(w.nbytes - int(w.count_nonzero()) * w.itemsize - w.numel() / 8 for w in sparse)
    read = _bytes(matrices) - saved
    return {"bytes_per_second": read / seconds, "limit": _bytes(_matrices(reference)) / read}


def _has_routers(model: Module) -> bool:
    """Whether a model is a mixture of experts."""
    return any(re.search(ROUTERS, name) for name, _ in model.named_modules())


def _matrices(model: Module) -> dict[str, Tensor]:
    """The weights of linear layers, by the layer's name."""
    modules: Any = model.named_modules()
    return {name: module.weight for name, module in modules if isinstance(module, Linear | Conv1D)}


def _bytes(matrices: Mapping[str, Tensor]) -> int:
    return sum(weight.nbytes for weight in matrices.values())
