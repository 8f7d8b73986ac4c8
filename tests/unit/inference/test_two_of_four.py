"""2:4 kernels need a GPU; without one the reason is reported."""

import torch

from llm_sparsity.inference.two_of_four import unsupported_reason


def test_a_cpu_has_no_2of4_kernels() -> None:
    assert "compute capability 8.0" in str(unsupported_reason(torch.device("cpu")))
