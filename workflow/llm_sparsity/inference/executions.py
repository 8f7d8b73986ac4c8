"""How a variant is executed:

    dense    every weight is multiplied, zeros too: the cost of a mask alone
    sparse   every layer with zeros holds its remaining weights only, see sparse_layers.py and gpu_layers.py
    fastest  for each batch, layers that are faster sparse run sparse, the others dense; left out if it equals one of
             the two above
    2of4     on a GPU: 2:4 matrices on sparse tensor cores

An execution with no sparse layer is the dense one, so it is left out.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from llm_sparsity.inference.sparse_layers import layers_with_zeros, sparse_layers, with_layers
from llm_sparsity.inference.timing import on_device, take_turns
from llm_sparsity.inference.two_of_four import unsupported_reason, with_sparse_tensor_cores
from llm_sparsity.inference.workloads import Workload
from llm_sparsity.models.folder import ModelFolder

LAYER_REPEATS = 5  # timed calls of a layer
GAIN = 1.05  # from which on a layer runs sparse in `fastest`: a smaller one may be noise
SHOWN = 3  # names in a note


class Execution(NamedTuple):
    """A model, and the names of its layers that run sparse."""

    model: Module
    layers: list[str]


class Executions:
    """The executions of a variant.

    Args:
        variant: the model, on the device it is timed on.
        folder: its folder.

    Attributes:
        notes: what cannot run sparse, and why.
    """

    def __init__(self, variant: Module, folder: ModelFolder) -> None:
        self._variant, self._folder = variant, folder
        self._device = next(variant.parameters()).device
        self.notes: list[str] = []

    def of(self, workload: Workload) -> dict[str, Execution]:
        """The executions of one batch, by name."""
        found = {"dense": Execution(self._variant, [])}
        if self._layers:
            found |= self._sparse(workload)
        if self._two_of_four:
            found["2of4"] = self._two_of_four
        return found

    @cached_property
    def _layers(self) -> Mapping[str, Module]:
        structure = self._folder.structure
        names = layers_with_zeros(self._variant, structure)
        if self._device.type == "cpu":
            return dict(sparse_layers(self._variant, structure, names))
        from llm_sparsity.inference import gpu_kernels, gpu_layers  # Triton comes with torch's builds for GPUs

        if names and (reason := gpu_kernels.unsupported_reason(self._device)):
            self.notes.append(reason)
            return {}
        layers, refused = gpu_layers.gpu_layers(self._variant, names)
        self._note("sparse", layers, refused)
        return layers

    def _sparse(self, workload: Workload) -> dict[str, Execution]:
        shapes = _input_shapes(self._variant, list(self._layers), workload)
        gains = speedups(self._variant, {name: self._layers[name] for name in shapes}, shapes)
        faster = [name for name, gain in gains.items() if gain > GAIN]
        chosen = {"sparse": list(gains), "fastest": faster if len(faster) < len(gains) else []}
        return {
            name: Execution(with_layers(self._variant, {layer: self._layers[layer] for layer in layers}), layers)
            for name, layers in chosen.items()
            if layers
        }

    def _note(self, name: str, layers: Collection[str], refused: Mapping[str, str]) -> None:
        """Note which layers of an execution run dense, and why."""
        for reason in dict.fromkeys(refused.values()):
            names = [name for name, why in refused.items() if why == reason]
            shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            total = len(layers) + len(refused)
            self.notes.append(f"{name}: {len(names)} of {total} layers run dense ({shown}): {reason}")

    @cached_property
    def _two_of_four(self) -> Execution | None:
        if (self._folder.pruned or {}).get("sparsity") != "2of4":
            return None
        if reason := unsupported_reason(self._device):
            self.notes.append(reason)
            return None
        model, layers, refused = with_sparse_tensor_cores(self._variant, self._folder.structure)
        self._note("2of4", layers, refused)
        if not layers:
            self.notes.append("2of4: left out, as no layer runs on sparse tensor cores")
            return None
        return Execution(model, layers)


def speedups(model: Module, layers: Mapping[str, Module], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """The speed-up of each sparse layer over the dense one, for random inputs; rather too low than too high.

    All dense layers take turns with all sparse ones, so that weights come from memory where those of a model do.

    Args:
        model: the dense model.
        layers: the sparse layers, by name.
        shapes: name -> shape of the inputs.
    """
    like, generator = next(model.parameters()), torch.Generator().manual_seed(0)
    inputs = {shape: torch.randn(shape, generator=generator).to(like) for shape in shapes.values()}
    both = [model.get_submodule(name) for name in layers], layers.values()
    calls: list[Callable[[], Any]] = [
        partial(layer, inputs[shapes[name]]) for side in both for name, layer in zip(layers, side, strict=True)
    ]
    with torch.inference_mode():
        seconds = take_turns(on_device(calls, like.device), LAYER_REPEATS)
    dense, sparse = seconds.reshape(LAYER_REPEATS, 2, -1).swapaxes(0, 1)
    # The smaller of two estimates: the ratio of the fastest calls, and the median ratio of the turns. What slows down a
    # few calls changes neither.
    gains = np.minimum(dense.min(axis=0) / sparse.min(axis=0), np.median(dense / sparse, axis=0))
    return dict(zip(layers, gains.tolist(), strict=True))


def _input_shapes(model: Module, names: Iterable[str], workload: Workload) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the input, for those of the named layers that the model uses."""
    shapes: dict[str, tuple[int, ...]] = {}

    def remember(name: str) -> Callable[[Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: shapes.update({name: tuple(arguments[0].shape)})

    hooks = [model.get_submodule(name).register_forward_pre_hook(remember(name)) for name in names]
    workload(model)
    for hook in hooks:
        hook.remove()
    return shapes
