"""Kernels on torch's threads."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

LIBRARIES = Path(torch.__file__).parent / "lib"
SHARE = 1 << 18  # bytes that a thread is worth waking for


def run(kernel: Any, job: NDArray[np.int64], size: int) -> None:
    """Call a kernel on torch's number of threads, without Python's lock.

    Waking the others takes a few microseconds: they are the threads of torch's own OpenMP, which stay awake for a while
    after each operation. Where torch has another library, they are Python's.

    Args:
        kernel: one of `kernels`.
        job: its argument.
        size: bytes that it reads and writes, about; small jobs have fewer threads.
    """
    count, address = min(torch.get_num_threads(), max(1, size // SHARE)), job.ctypes.data
    if count == 1:
        kernel.ctypes(address)
    elif start := _openmp():
        start(kernel.address, address, count, 0)
    else:
        list(_pool(count).map(lambda _: kernel.ctypes(address), range(count)))


@cache
def _openmp() -> Any:
    """GOMP_parallel(function, argument, threads, flags) of the library that torch has loaded; None if it has none."""
    for path in sorted(LIBRARIES.glob("libgomp*")):
        start = ctypes.CDLL(str(path)).GOMP_parallel
        start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        start.restype = None
        return start
    return None


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)
