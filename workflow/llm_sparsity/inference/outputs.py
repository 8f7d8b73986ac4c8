"""Whether models have sound outputs, and whether two executions have the same."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder

# Largest error, as a share of the largest output.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
WIDER = {torch.float32: torch.float64, torch.float16: torch.float32, torch.bfloat16: torch.float32}
Run = Callable[[Module], Tensor]
ROUNDINGS = 10  # an execution may err by so many times the rounding error of the dense one


def check_finite(model: Module, folder: ModelFolder, run: Run) -> None:
    """Check that a model's outputs are finite.

    Args:
        model: the model.
        folder: its folder, for the message.
        run: model -> outputs, see `workloads`.

    Raises:
        UserError: they are not; the message names the first layer whose outputs are not.
    """
    if run(model).isfinite().all():
        return
    found: list[str] = []

    def remember(name: str) -> Any:
        def hook(module: Module, _: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(first, Tensor) and not first.isfinite().all():
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(remember(name)) for name, module in model.named_modules() if name]
    run(model)
    for hook in hooks:
        hook.remove()
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    raise UserError(
        f"{folder}: the outputs of {f'layer {found[0]}' if found else 'the model'} are NaN or infinite in {dtype}; "
        "use a checkpoint whose activations are finite, or leave speed out: `measure: false`"
    )


def error(name: str, executed: Module, dense: Module, run: Run) -> float:
    """The largest difference between the outputs of two executions, as a share of the largest output.

    Args:
        name: of the execution, for the message.
        executed: its model.
        dense: the dense execution, with finite outputs.
        run: model -> outputs, see `workloads`.

    Raises:
        RuntimeError: it is larger than `TOLERANCE` and than `ROUNDINGS` times the dense execution's own rounding error,
            which can be large: where a softmax or a norm divides by small differences.
    """
    expected, found = (run(model) for model in (dense, executed))
    difference, limit = _difference(found, expected), TOLERANCE[expected.dtype]
    if not difference <= limit:  # NaN counts as an error
        limit = max(limit, ROUNDINGS * _difference(expected, run(_wider(dense, WIDER[expected.dtype]))))
        if not difference <= limit:
            raise RuntimeError(
                f"execution {name!r}: outputs differ from the dense ones by {difference:.1e} of the largest output, "
                f"more than {limit:g}; this is a bug in llm_sparsity.inference, please report it"
            )
    return difference


def _wider(model: Module, dtype: torch.dtype) -> Module:
    """A copy of a model that computes in a wider dtype."""
    wider = copy.deepcopy(model).to(dtype)
    if isinstance(wider, PreTrainedModel):
        wider.set_experts_implementation("eager")  # grouped products of experts know no float64
    return wider


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest expected value; of outputs that are all zero, itself."""
    largest = expected.abs().max().double()
    difference = (found.double() - expected.double()).abs().max()
    return float(difference / largest if largest else difference)
