"""What is compiled for this processor; the products themselves are tested as layers, in test_execution.py."""

import pytest
import torch

from llm_sparsity.inference import kernels
from llm_sparsity.inference import sparse_layers as execution


def test_every_kernel_compiles() -> None:
    """LLVM refuses a module that is not well formed."""
    for rows, widths in execution.WIDTHS.items():
        for width in widths:
            assert kernels.multiply(rows, width)


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (16, 48), (64, 32), (128, 384)])
def test_a_transposed_matrix(rows: int, columns: int) -> None:
    x = torch.randn(rows, columns)
    out = torch.zeros(columns, rows)
    kernels.transpose()(x.data_ptr(), out.data_ptr(), rows, columns)
    assert torch.equal(out, x.t())


@pytest.mark.parametrize("shape", [(1, 16, 32), (3, 32, 16), (2, 15, 16), (2, 16, 15), (1, 1, 1)])
def test_sequences_are_transposed_whatever_their_shape(shape: tuple[int, int, int]) -> None:
    x = torch.randn(shape)
    for given in (x, x.mT.contiguous().mT):
        found = execution._transposed(given)
        assert found.is_contiguous() and torch.equal(found, x.mT)
