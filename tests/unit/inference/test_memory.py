"""Bytes of weights and activations."""

import pytest
import torch
from torch.sparse import SparseSemiStructuredTensorCUTLASS

from llm_sparsity.inference.memory import CLEAR_REFS, inference_bytes, memory_bytes
from llm_sparsity.inference.sparse_layers import SparseLinear


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="this system does not report a process's peak memory")
def test_memory_is_that_of_weights_and_activations() -> None:
    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8 << 20))  # 32 MiB

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.repeat(32 << 20).sum()  # 128 MiB

    memory = inference_bytes(Wide(), lambda model: model(torch.ones(1)), torch.device("cpu"))
    assert memory is not None
    assert 150 << 20 < memory < 240 << 20


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
def test_2of4_matrices_take_their_values_and_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that such a matrix lies at address 0 and is as large as the dense one."""

    def matrix() -> torch.nn.Parameter:
        parts = {"packed": torch.zeros(32, 32), "meta": torch.zeros(32, 4, dtype=torch.int16)}
        others = dict.fromkeys(("packed_t", "meta_t", "compressed_swizzled_bitmask"))
        whole = SparseSemiStructuredTensorCUTLASS(torch.Size([32, 64]), **parts, **others)
        return torch.nn.Parameter(whole, requires_grad=False)

    model = torch.nn.Module()
    model.first, model.second, model.bias = matrix(), matrix(), torch.nn.Parameter(torch.zeros(32))
    monkeypatch.setattr("llm_sparsity.inference.memory._process_peak", lambda *_: 5)
    assert (
        inference_bytes(model, lambda model: model(), torch.device("cpu"))
        == 2 * (4 * 32 * 32 + 2 * 32 * 4) + 4 * 32 + 5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sparse_layer_takes_the_bytes_of_its_bias_too(dtype: torch.dtype) -> None:
    dense = torch.nn.Linear(64, 100, dtype=dtype)
    biased = SparseLinear(dense)
    dense.bias = None
    in_each_dtype = 100 * sum({4, dtype.itemsize})
    assert memory_bytes(biased) == memory_bytes(biased.matrix) + in_each_dtype
    assert biased.bias is not None
    assert biased.bias.shape == (100,)
    assert SparseLinear(dense).bias is None
