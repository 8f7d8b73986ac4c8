"""How long inference takes: functions that take turns, so that a busy moment of the machine affects all of them."""

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
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


def on_device(functions: list[Callable[[], Any]], device: torch.device) -> list[Callable[[], Any]]:
    """Functions to be timed in turns, so that their times are those of the device.

    On a GPU the kernels of each are recorded as a CUDA graph: starting them one by one from Python takes longer than
    the kernels of a small model. If one cannot be recorded, all are called, as the ratio of a call to a graph would be
    that of Python, and a warning says so. The graphs share their memory: nothing reads their outputs.

    Raises:
        torch.OutOfMemoryError: the memory of the GPU is full.
    """
    if device.type != "cuda":
        return functions
    for function in functions:
        for _ in range(2):  # kernels are compiled and chosen at first use
            function()
    torch.cuda.synchronize(device)
    graphs, pool = [torch.cuda.CUDAGraph() for _ in functions], torch.cuda.graph_pool_handle()
    runs: list[Callable[[], Any]] = [graph.replay for graph in graphs]
    try:
        for graph, function in zip(graphs, functions, strict=True):
            with torch.cuda.graph(graph, pool=pool):
                function()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        warnings.warn(f"timed without CUDA graphs: {error}", stacklevel=2)
        runs = functions
    return [partial(_finished, run, device) for run in runs]


def _finished(run: Callable[[], Any], device: torch.device) -> None:
    run()
    torch.cuda.synchronize(device)


def quartiles(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    """The median of values as `name`, their quartiles as `name`_low and `name`_high."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {name: float(median), f"{name}_low": float(low), f"{name}_high": float(high)}
