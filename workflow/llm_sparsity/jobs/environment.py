"""The environment of a run: device, threads, versions, peak memory. Only runtime.json holds it."""

import resource
import sys
from importlib.metadata import version
from platform import python_version
from typing import Any

import torch


def environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """The facts that measured times depend on, and the peak memory of this process in bytes.

    Args:
        device: the device that computes. For a GPU the peak is of its memory, for the CPU the resident set.
        processes: number of processes of the run.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts KiB
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    names = ["torch", "transformers", "accelerate", *({"numba"} & sys.modules.keys())]  # numba compiles sparse layers
    libraries = {name: version(name) for name in names}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": processes,
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": peak,
        "versions": {**libraries, "python": python_version()},
    }
