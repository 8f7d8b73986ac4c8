"""How a variant is executed:

    dense    every weight is multiplied, zeros too: the cost of a mask alone
    sparse   every layer with zeros multiplies its remaining weights only, even where that is slower
    fastest  for each batch, layers that are faster sparse run sparse, the others dense; left out if it equals one of
             the two above
    2of4     on a GPU: 2:4 matrices on sparse tensor cores

An execution with no sparse layer is the dense one, so it is left out.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from llm_sparsity.inference import timing
from llm_sparsity.inference.sparse_layers import with_sparse_layers
from llm_sparsity.inference.two_of_four import unsupported_reason, with_sparse_tensor_cores
from llm_sparsity.models.folder import ModelFolder

SHOWN = 3  # names in a note


class Execution(NamedTuple):
    """A model, and the names of its layers that run sparse."""

    model: Module
    layers: list[str]


def executions(
    variant: Module, folder: ModelFolder, inputs: Mapping[str, Tensor], device: torch.device
) -> tuple[dict[str, Execution], list[str]]:
    """The executions of a variant for one batch, by name, and notes about what cannot run sparse.

    Args:
        variant: the model, on the device.
        folder: its folder.
        inputs: arguments of the model, int64, (batch, tokens).
        device: the device.
    """
    found, notes = {"dense": Execution(variant, [])}, list[str]()
    if device.type == "cpu":
        speedups = timing.layer_speedups(variant, folder.family, inputs)
        faster = [name for name, speedup in speedups.items() if speedup > 1]
        chosen = {"sparse": list(speedups), "fastest": faster if len(faster) < len(speedups) else []}
        for name, layers in chosen.items():
            if layers:
                found[name] = Execution(with_sparse_layers(variant, folder.family, layers), layers)
    if (folder.pruned or {}).get("sparsity") == "2of4":
        execution, notes = _two_of_four(variant, folder, device)
        found |= {"2of4": execution} if execution else {}
    return found, notes


def _two_of_four(variant: Module, folder: ModelFolder, device: torch.device) -> tuple[Execution | None, list[str]]:
    if reason := unsupported_reason(device):
        return None, [reason]
    model, layers, refused = with_sparse_tensor_cores(variant, folder.family)
    notes = []
    for reason in dict.fromkeys(refused.values()):
        names = [name for name, why in refused.items() if why == reason]
        shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        notes.append(f"2of4: {len(names)} of {len(layers) + len(refused)} layers run dense ({shown}): {reason}")
    if not layers:
        return None, [*notes, "2of4: left out, as no layer runs on sparse tensor cores"]
    return Execution(model, layers), notes
