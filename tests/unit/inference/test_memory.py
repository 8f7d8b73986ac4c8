"""Bytes of weights and activations."""

import pytest
import torch

from llm_sparsity.inference.memory import CLEAR_REFS, inference_bytes


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="this system does not report a process's peak memory")
def test_memory_is_that_of_weights_and_activations() -> None:
    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8 << 20))  # 32 MiB

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.repeat(32 << 20).sum()  # 128 MiB

    memory = inference_bytes(Wide(), {"x": torch.ones(1)}, torch.device("cpu"))
    assert memory is not None
    assert 150 << 20 < memory < 240 << 20
