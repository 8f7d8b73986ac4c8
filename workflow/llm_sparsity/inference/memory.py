"""How much memory inference takes, and how glibc is to treat it."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from llm_sparsity.inference.sparse_layers import SparseLinear

CLEAR_REFS = Path("/proc/self/clear_refs")  # writing 5 resets the peak of this process's memory (Linux)
STATUS = Path("/proc/self/status")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, as allocators for servers do.

    By default it maps every large activation anew, and the timings are those of page faults.
    """
    with suppress(AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def inference_bytes(model: Module, run: Callable[[Module], object], device: torch.device) -> int | None:
    """Bytes of a model's weights plus the peak of its activations.

    Args:
        model: the model.
        run: a function of it, whose peak is measured.
        device: of the model.

    Returns:
        Bytes; None where the system does not report peaks (Linux and CUDA do).
    """
    weights = memory_bytes(model)
    peak = _cuda_peak if device.type == "cuda" else _process_peak
    activations = peak(partial(run, model), device)
    return None if activations is None else weights + activations


def memory_bytes(model: Module) -> int:
    """Bytes of memory of a model's parameters, buffers and the biases of sparse layers; shared ones count once."""
    held = [bias for module in model.modules() if isinstance(module, SparseLinear) for bias in module.held]
    tensors = [part for tensor in [*model.parameters(), *model.buffers(), *held] for part in _parts(tensor)]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that hold a tensor's data: of a 2:4 matrix, its values and their positions."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _parts(getattr(tensor, name))
    else:
        yield tensor


def _cuda_peak(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def _process_peak(run: Callable[[], object], _: torch.device) -> int | None:
    if not CLEAR_REFS.exists():
        return None
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)  # give freed memory back, else its reuse would not show
    CLEAR_REFS.write_text("5")
    before = _status_bytes("VmRSS")
    run()
    return max(0, _status_bytes("VmHWM") - before)  # the kernel counts in batches of pages


def _status_bytes(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or the peak since the last reset (VmHWM)."""
    lines = STATUS.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
