"""Kernels for GPUs, run by Triton's interpreter on the CPU. RANDOM weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Linear
from transformers.pytorch_utils import Conv1D

from llm_sparsity.inference import gpu_kernels
from llm_sparsity.inference.gpu_layers import gpu_layers


def pruned(rows: int, columns: int, sparsity: float, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    kept = torch.rand(rows, columns, generator=generator) >= sparsity
    return (torch.randn(rows, columns, generator=generator) * kept).to(dtype)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.sampled_from([4, 20, 64, 100, 516]),
    sparsity=st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]),
    tokens=st.sampled_from([1, 2, 3, 8, 16]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    has_bias=st.booleans(),
)
def test_products_are_those_of_the_dense_matrix(
    rows: int, columns: int, sparsity: float, tokens: int, dtype: torch.dtype, has_bias: bool
) -> None:
    weight = pruned(rows, columns, sparsity, dtype)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
    bias = torch.arange(rows).to(dtype) if has_bias else None
    matrix = gpu_kernels.sparse_matrix(weight)
    assert torch.equal(gpu_kernels.dense(matrix), weight)
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    step = torch.finfo(dtype).eps
    bound = step * (exact.abs() + (x.double().abs() @ weight.double().abs().t()) * 1e-3) + 1e-7
    assert bool(((gpu_kernels.multiply(matrix, x, bias).double() - exact).abs() <= bound).all())


def test_four_bits_hold_each_place() -> None:
    """Runs of 15, 16, 17 and 600 zeros; a row of zeros; a weight at both ends."""
    weight = torch.zeros(5, 1024, dtype=torch.float16)
    for row, run in enumerate((15, 16, 17, 600)):
        weight[row, [0, run + 1, 1023]] = torch.tensor([1.0, 2.0, 3.0]).half()
    assert torch.equal(gpu_kernels.dense(gpu_kernels.sparse_matrix(weight)), weight)


def test_half_of_the_weights_take_five_eighths_of_the_bytes() -> None:
    weight = pruned(8, 4096, 0.5)
    stored = sum(tensor.nbytes for tensor in gpu_kernels.sparse_matrix(weight)[1:])
    assert 20 / 32 <= stored / weight.nbytes < 1.03 * 20 / 32


@pytest.mark.parametrize("shape", [(2, 3), (1, 1 << 16)])
def test_a_matrix_that_cannot_be_stored_says_why(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"{shape[1]:,} columns"):
        gpu_kernels.sparse_matrix(torch.zeros(shape, dtype=torch.float16))


def test_weights_of_other_dtypes_say_why() -> None:
    """T5's output layers stay in float32 in a model of float16."""
    with pytest.raises(ValueError, match="weights of float32, where 16 bits can be stored"):
        gpu_kernels.sparse_matrix(torch.zeros(4, 8))


def test_what_triton_needs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    assert gpu_kernels.unsupported_reason(torch.device("cpu")) is None
    monkeypatch.setattr(gpu_kernels, "multiply", fails)
    found = gpu_kernels.unsupported_reason(torch.device("cpu"))
    assert found is not None and "Failed to find C compiler); install a C compiler and Python's headers" in found


def test_a_full_row_of_odd_length_says_why() -> None:
    with pytest.raises(ValueError, match="too few zeros"):
        gpu_kernels.sparse_matrix(torch.ones(2, 7, dtype=torch.float16))


@pytest.mark.parametrize("tokens", [1, 17])
def test_layers_give_the_outputs_of_linear_and_conv1d(tokens: int) -> None:
    model = torch.nn.ModuleDict({"linear": Linear(20, 6), "conv": Conv1D(6, 20), "full": Linear(7, 2)}).half()
    with torch.no_grad():
        for layer in (model["linear"], model["conv"]):
            layer.weight.mul_(torch.rand(layer.weight.shape) >= 0.5)
    layers, refused = gpu_layers(model, ["linear", "conv", "full"])
    assert layers.keys() == {"linear", "conv"}
    assert "too few zeros" in refused["full"]
    x = torch.randn(2, tokens, 20).half()
    with torch.inference_mode():
        for name, layer in layers.items():
            torch.testing.assert_close(layer(x), model[name](x), rtol=5e-3, atol=5e-3)
