"""Bytes of weights, plain and at the bound."""

import math
from pathlib import Path

import torch

from llm_sparsity.inference.sizes import plain_and_bound_bytes
from llm_sparsity.models.folder import ModelFolder
from tests.tiny import model_of, query


def test_the_bound_of_known_weights(tmp_path: Path) -> None:
    # 1.0 and 2.0 are the float16 0x3C00 and 0x4000: one byte is always 0, the other is one of two, equally often.
    weight = torch.tensor([[0.0, 1.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]])
    model_of({query(0): weight}, tmp_path)
    positions = 8 * -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert plain_and_bound_bytes(ModelFolder(tmp_path)) == (32, round((positions + 2) / 8))
