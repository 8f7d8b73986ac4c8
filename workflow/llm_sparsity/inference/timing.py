"""How long inference takes: functions that take turns, so that a busy moment of the machine affects all of them."""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


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


def on_device(function: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """A function to be timed, so that its time is that of the device.

    On a GPU its kernels are recorded as a CUDA graph: starting them one by one from Python takes longer than the
    kernels of a small model. A function that cannot be recorded is called, and a warning says so.
    """
    if device.type != "cuda":
        return function
    for _ in range(2):  # kernels are compiled and chosen at first use
        function()
    torch.cuda.synchronize(device)
    run, graph = function, torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            function()
        run = graph.replay
    except RuntimeError as error:
        warnings.warn(f"timed without a CUDA graph: {error}", stacklevel=2)

    def finished() -> None:
        run()
        torch.cuda.synchronize(device)

    return finished


def quartiles(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    """The median of values as `name`, their quartiles as `name`_low and `name`_high."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {name: float(median), f"{name}_low": float(low), f"{name}_high": float(high)}
