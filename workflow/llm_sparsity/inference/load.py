"""A model folder as a transformers model that runs: `generate`, `forward` and pipelines work as ever."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from llm_sparsity.inference.sparse_layers import has_zeros, is_prunable, replace_layers, sparse_layers
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.checkpoint import stored_names
from llm_sparsity.models.classes import held_class, named_class
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_model

EXECUTIONS = ("dense", "sparse")


def load(folder: Path | str | ModelFolder, execution: str = "sparse", *, dtype: torch.dtype | None = None) -> Any:
    """Load a model, dense or pruned, to run it on a CPU.

    Args:
        folder: a model folder, such as `results/{model}/{variant}/model`.
        execution: "sparse", where each layer with zeros holds its remaining weights only (see sparse_layers.py), or
            "dense".
        dtype: of weights and activations, float32 or bfloat16. Default: bfloat16 if the folder's weights are, else
            float32, to which float16 is converted.

    Returns:
        The transformers model that config.json names, in evaluation mode; without its head if the folder holds none.
        Saving it writes its dense weights.

    Raises:
        UserError: another execution; the folder is not that of a model, or damaged.
    """
    if execution not in EXECUTIONS:
        raise UserError(f"execution: found {execution!r}; expected one of {', '.join(EXECUTIONS)}")
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise UserError(f"dtype: found {dtype}; a CPU runs torch.float32 or torch.bfloat16")
    folder = ModelFolder.of(folder)
    if dtype is None:
        dtype = torch.bfloat16 if stored_dtype(folder) == torch.bfloat16 else torch.float32
    made = held_class(folder, [named_class(folder)])
    return load_model(made, folder, dtype=dtype) if execution == "dense" else _load_sparse(made, folder, dtype)


def _load_sparse(made: Any, folder: ModelFolder, dtype: torch.dtype) -> Any:
    """Read the matrices of layers last, one at a time: memory holds no more than one that is dense and has zeros."""
    structure = folder.structure

    def is_late(name: str) -> bool:
        return structure.matrix(name) is not None and name.endswith(".weight") and not structure.is_fused(name)

    model = load_model(made, folder, dtype=dtype, values=lambda name: not is_late(name))
    with folder.open() as reader:
        stored = stored_names(model, reader.names)

        def with_zeros() -> Iterator[str]:
            for name in [name for name, _ in model.named_modules()]:
                layer, weight = model.get_submodule(name), f"{name}.weight"
                if weight in stored and is_late(weight):
                    layer.weight.data = reader.tensor(stored[weight]).to(layer.weight.dtype)
                if is_prunable(name, layer, structure) and has_zeros(layer):
                    yield name

        replace_layers(model, sparse_layers(model, structure, with_zeros()))
    return model


def stored_dtype(folder: ModelFolder) -> torch.dtype:
    """The dtype of a checkpoint's largest tensor; the norms of half-precision models are often float32."""
    with folder.open() as reader:
        largest = max(reader.names, key=lambda name: math.prod(reader.shape(name)))
        return reader.dtype(largest)
