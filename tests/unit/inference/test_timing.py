"""Functions take turns; layers with zeros are timed."""

import numpy as np
import torch

from llm_sparsity.inference.timing import layer_speedups, quartiles, take_turns
from llm_sparsity.models.loading import load_base
from tests.unit.inference.conftest import Variant


def test_functions_take_turns() -> None:
    calls: list[str] = []
    seconds = take_turns([lambda: calls.append("a"), lambda: calls.append("b")], 3)
    assert "".join(calls) == "abababab"  # the first turn warms up
    assert seconds.shape == (3, 2) and (seconds >= 0).all()


def test_quartiles() -> None:
    assert quartiles("seconds", np.arange(5.0)) == {"seconds": 2, "seconds_low": 1, "seconds_high": 3}


def test_speedups_are_of_layers_with_zeros(variant: Variant) -> None:
    folder = variant("0.5", scope="layers.1")
    found = layer_speedups(load_base(folder), folder.family, {"input_ids": torch.randint(6, 20, (2, 9))})
    assert len(found) == 6 and all("layer.1." in name and speedup > 0 for name, speedup in found.items())
