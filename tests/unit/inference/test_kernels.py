"""Compiled kernels compute what their numpy references compute."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from numba.core.caching import CompileResultCacheImpl

from llm_sparsity.inference import kernels
from llm_sparsity.inference.sparse_layers import TILE_WIDTHS, transposed

SIGNATURE = "float32(float32)"


@pytest.mark.parametrize(("rows", "width"), [(rows, width) for rows, widths in TILE_WIDTHS.items() for width in widths])
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_a_product_is_that_of_the_reference(rows: int, width: int, density: float) -> None:
    generator = np.random.default_rng(0)
    groups, inputs, sequences, before, after = 6, 24, 2, 3, 2
    kept = generator.random((groups, inputs)) < density
    ends = np.concatenate([[0], kept.sum(1).cumsum()]).astype(np.int32)
    columns = kept.nonzero()[1].astype(np.int32)
    values = generator.standard_normal(len(columns) * rows, np.float32)
    bias = generator.standard_normal(groups * rows, np.float32)
    x = generator.standard_normal((sequences, inputs, before + width + after), np.float32)
    out = np.full((sequences, groups * rows, before + width + after), np.nan, np.float32)
    kernels.multiply(rows, width)(ends, columns, values, bias, x, out, 1, before)
    expected = kernels.multiply_reference(ends, columns, values, bias, x[1])[:, before : before + width]
    np.testing.assert_allclose(out[1, :, before : before + width], expected, rtol=1e-5, atol=1e-5)
    assert np.isnan(out).sum() == out.size - expected.size, "a kernel writes its own tile only"


def test_the_reference_by_hand() -> None:
    # weight = [[0, 2, 0], [1, 0, -3]]
    ends, columns = np.array([0, 1, 3], np.int32), np.array([1, 0, 2], np.int32)
    values, bias = np.array([2, 1, -3], np.float32), np.array([10, 20], np.float32)
    x = np.array([[1], [2], [3]], np.float32)
    assert kernels.multiply_reference(ends, columns, values, bias, x).tolist() == [[14], [12]]


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (16, 48), (64, 32), (128, 384)])
def test_a_transposed_matrix(rows: int, columns: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, rows, columns), np.float32)
    out = np.zeros((2, columns, rows), np.float32)
    kernels.transpose()(x, out, 1)
    assert np.array_equal(out[1], x[1].T) and not out[0].any()


@pytest.mark.parametrize("shape", [(1, 16, 32), (3, 32, 16), (2, 15, 16), (2, 16, 15), (1, 1, 1)])
def test_sequences_are_transposed_whatever_their_shape(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape)
    for view in (x, x.mT.contiguous().mT):
        found = transposed(view)
        assert found.is_contiguous() and torch.equal(found, x.mT)


def test_kernels_are_cached_on_disk() -> None:
    kernels._compiled(kernels._transpose, "void(float32[:,:,::1], float32[:,:,::1], intp)")
    again = kernels._compiled(kernels._transpose, "void(float32[:,:,::1], float32[:,:,::1], intp)")
    assert sum(again.stats.cache_hits.values()) == 1  # type: ignore[attr-defined]


def double(x: float) -> float:
    return x + x


def test_without_a_writable_cache_folder_kernels_are_compiled_all_the_same() -> None:
    with patch.object(CompileResultCacheImpl, "_locator_classes", []):
        assert kernels._compiled(double, SIGNATURE)(2.0) == 4.0  # type: ignore[func-returns-value]


def test_a_full_disk_does_not_stop_a_kernel() -> None:
    with patch("numba.core.caching.IndexDataCacheFile.save", side_effect=OSError(28, "No space left on device")):
        assert kernels._compiled(double, SIGNATURE)(2.0) == 4.0  # type: ignore[func-returns-value]
