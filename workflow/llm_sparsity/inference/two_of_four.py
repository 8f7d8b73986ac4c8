"""Matrices with 2 of 4 weights removed, on the sparse tensor cores of a GPU (Mishra et al. 2021, arXiv:2104.08378)."""

import copy
from typing import Any

import torch
from torch.nn import Linear, Module, Parameter

from llm_sparsity.inference.sparse_layers import layers_with_zeros
from llm_sparsity.models.families import Family


def with_sparse_tensor_cores(model: Module, family: Family) -> Module:
    """A float16 copy of a model on a GPU, whose 2:4 matrices run on sparse tensor cores through torch.

    Raises:
        RuntimeError: from torch, if the kernels do not support the shape of a matrix.
    """
    from torch.sparse import to_sparse_semi_structured

    model = copy.deepcopy(model).half()
    for name in layers_with_zeros(model, family):
        layer: Any = model.get_submodule(name)
        if isinstance(layer, Linear) and bool((layer.weight.view(-1, 4).count_nonzero(dim=1) <= 2).all()):
            layer.weight = Parameter(to_sparse_semi_structured(layer.weight), requires_grad=False)
    return model


def unsupported_reason(device: torch.device) -> str | None:
    """Why 2:4 kernels cannot run on a device; None if they can."""
    if device.type != "cuda":
        return "2:4 kernels need a GPU of compute capability 8.0 or newer; there is none here"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"2:4 kernels need compute capability 8.0 or newer; this GPU has {major}.{minor}"
    return None
