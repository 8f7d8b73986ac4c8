"""Matrices with 2 of 4 weights removed, on the sparse tensor cores of a GPU (Mishra et al. 2021, arXiv:2104.08378)."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter
from transformers.pytorch_utils import Conv1D

from llm_sparsity.inference.sparse_layers import layers_with_zeros
from llm_sparsity.models.structure import Structure


def with_sparse_tensor_cores(model: Module, structure: Structure) -> tuple[Module, list[str], dict[str, str]]:
    """A copy of a half-precision model on a GPU, whose 2:4 matrices run on sparse tensor cores through torch.

    It shares all other weights with the model.

    Returns:
        The copy, the names of its layers that run sparse, and for each other layer with zeros the reason why it does
        not: it has more than two weights in four, or torch's kernels do not support its shape.
    """
    model = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    sparse, refused = [], {}
    for name in layers_with_zeros(model, structure):
        try:
            model.set_submodule(name, _sparse_linear(model.get_submodule(name)))
            sparse.append(name)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError) as error:  # torch refuses shapes by RuntimeErrors
            refused[name] = " ".join(str(error).split())
    return model, sparse, refused


def _sparse_linear(dense: Any) -> Linear:
    """A Linear with the weights of a Linear, or of GPT-2's Conv1D, as a 2:4 matrix.

    Raises:
        ValueError: it is no 2:4 matrix.
        RuntimeError: from torch, if the kernels do not support its shape.
    """
    from torch.sparse import to_sparse_semi_structured

    weight = dense.weight.detach()
    if isinstance(dense, Conv1D):
        weight = weight.t().contiguous()
    if not is_two_of_four(weight):
        raise ValueError("more than two weights in four consecutive inputs")
    outputs, inputs = weight.shape
    layer = Linear(inputs, outputs, bias=False, device="meta")
    layer.weight = Parameter(to_sparse_semi_structured(weight), requires_grad=False)
    layer.bias = dense.bias
    return layer.eval()


def is_two_of_four(weight: Tensor) -> bool:
    """Whether each four consecutive inputs of each output have at most two weights: (outputs, inputs)."""
    if weight.shape[1] % 4:
        return False
    return bool((weight.unflatten(1, (-1, 4)).count_nonzero(dim=2) <= 2).all())


def unsupported_reason(device: torch.device) -> str | None:
    """Why 2:4 kernels cannot run on a device; None if they can."""
    if device.type != "cuda":
        return "2:4 kernels need a GPU of compute capability 8.0 or newer; there is none here"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"2:4 kernels need compute capability 8.0 or newer; this GPU has {major}.{minor}"
    return None
