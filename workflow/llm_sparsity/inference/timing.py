"""How long inference takes: functions that take turns, so that a busy moment of the machine affects all of them."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from llm_sparsity.inference.sparse_layers import SparseLinear, layers_with_zeros, sparse_layer
from llm_sparsity.models.families import Family

LAYER_REPEATS = 5  # timed calls of a layer


def take_turns(functions: Sequence[Callable[[], Any]], repeats: int) -> NDArray[np.float64]:
    """Time functions in turns, after one turn of warm-up.

    Returns:
        Seconds of each call, (repeats, functions).
    """
    seconds = np.empty((repeats + 1, len(functions)))
    for turn in range(repeats + 1):
        for number, function in enumerate(functions):
            start = time.perf_counter()
            function()
            seconds[turn, number] = time.perf_counter() - start
    return seconds[1:]


def inference_seconds(
    models: Sequence[Module], inputs: Mapping[str, Tensor], repeats: int, device: torch.device
) -> NDArray[np.float64]:
    """Seconds of each model's inference, (repeats, models)."""

    def infer(model: Module) -> None:
        model(**inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with torch.inference_mode():
        return take_turns([partial(infer, model) for model in models], repeats)


def quartiles(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    """The median of values as `name`, their quartiles as `name`_low and `name`_high."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {name: float(median), f"{name}_low": float(low), f"{name}_high": float(high)}


def layer_speedups(model: Module, family: Family, inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """The speed-up of sparse execution, layer by layer.

    Args:
        model: on the CPU, float32.
        family: names the layers that can be pruned.
        inputs: arguments of the model, int64, (batch, tokens).

    Returns:
        Name -> dense seconds divided by sparse seconds, for each layer with zeros that the model uses.
    """
    return {
        name: _speedup(model.get_submodule(name), sparse_layer(model, family, name), shape)
        for name, shape in _input_shapes(model, layers_with_zeros(model, family), inputs).items()
    }


def _speedup(dense: Module, sparse: SparseLinear, shape: tuple[int, ...]) -> float:
    """The median dense time of a layer, divided by the median sparse time."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        seconds = take_turns([lambda: dense(x), lambda: sparse(x)], LAYER_REPEATS)
    return float(np.median(seconds[:, 0]) / np.median(seconds[:, 1]))


def _input_shapes(model: Module, names: Iterable[str], inputs: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the input, for those of the named layers that the model uses."""
    shapes: dict[str, tuple[int, ...]] = {}

    def remember(name: str) -> Callable[[Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: shapes.update({name: tuple(arguments[0].shape)})

    hooks = [model.get_submodule(name).register_forward_pre_hook(remember(name)) for name in names]
    with torch.inference_mode():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return shapes
