"""What a result's seconds and bytes of memory depend on: machine and versions. It goes to runtime.json alone."""

import resource
import sys
from importlib.metadata import version
from platform import python_version
from typing import Any

import torch


def machine(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """What a result's seconds depend on: device, threads, versions, and the peak of memory in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    libraries = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": processes,
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": peak,
        "versions": {**libraries, "python": python_version()},
    }
