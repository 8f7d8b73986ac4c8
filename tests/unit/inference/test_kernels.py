"""Kernels are compiled once, cached, and write nothing but their outputs. What they compute: test_packed.py."""

from unittest.mock import patch

import llvmlite.binding as llvm
import numpy as np
import pytest
import torch
from numba.core.caching import CompileResultCacheImpl

from llm_sparsity.inference import kernels
from llm_sparsity.inference.kernels import Job
from llm_sparsity.inference.packed import transposed


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (16, 48), (64, 32), (128, 384)])
def test_a_transposed_matrix(rows: int, columns: int) -> None:
    x = torch.randn(2, rows, columns)
    assert torch.equal(transposed(x), x.mT)


@pytest.mark.parametrize("shape", [(1, 16, 32), (3, 32, 16), (2, 15, 16), (2, 16, 15), (1, 1, 1)])
def test_sequences_are_transposed_whatever_their_shape(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape)
    for view in (x, x.mT.contiguous().mT):
        found = transposed(view)
        assert found.is_contiguous() and torch.equal(found, x.mT)


def test_packing_by_hand() -> None:
    dense = torch.tensor([[0.0, -2.0, -0.0], [1.0, 0.0, 3.0]])
    masks, values, starts = np.zeros((2, 1), np.uint64), np.zeros(4, np.uint32), np.zeros(3, np.int64)
    kernels.pack(32)(dense.view(torch.int32).numpy().view(np.uint32), masks, values, starts)
    assert masks.tolist() == [[0b010], [0b101]] and starts.tolist() == [0, 1, 3]
    assert values.view(np.float32)[:3].tolist() == [-2, 1, 3]


def test_each_chunk_is_taken_once() -> None:
    """Two calls with one job share its chunks: the second finds none left and writes nothing."""
    out, x = np.full((16, 16), np.nan, np.float32), np.ones((16, 16), np.float32)
    job = np.zeros(len(Job), np.int64)
    job[Job.X], job[Job.OUT], job[Job.SEQUENCES] = x.ctypes.data, out.ctypes.data, 1
    job[Job.TOKENS] = job[Job.INPUTS] = 16
    kernels.transpose().ctypes(job.ctypes.data)
    assert (out == 1).all() and job[Job.NEXT] > 0
    out[:] = np.nan
    kernels.transpose().ctypes(job.ctypes.data)
    assert np.isnan(out).all()


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({}, ("portable",)),
        ({"avx2": True, "fma": True}, ("avx2", "portable")),
        ({"avx2": True, "fma": True, "avx512f": True}, ("avx2", "portable")),  # without AVX512_VBMI2
    ],
)
def test_instructions_are_those_of_the_processor(features: dict[str, bool], expected: tuple[str, ...]) -> None:
    with patch.object(llvm, "get_host_cpu_features", return_value=features):
        assert kernels.instructions.__wrapped__() == expected


def test_kernels_are_cached_on_disk() -> None:
    kernels.expand.__wrapped__("portable", 32)
    again = kernels.expand.__wrapped__("portable", 32)
    assert again.cache_hits == 1


def nothing(job: int) -> None:
    """A kernel."""


def test_without_a_writable_cache_folder_kernels_are_compiled_all_the_same() -> None:
    with patch.object(CompileResultCacheImpl, "_locator_classes", []):
        kernels._compiled(nothing).ctypes(0)


def test_a_full_disk_does_not_stop_a_kernel() -> None:
    with patch("numba.core.caching.IndexDataCacheFile.save", side_effect=OSError(28, "No space left on device")):
        kernels._compiled(nothing).ctypes(0)
