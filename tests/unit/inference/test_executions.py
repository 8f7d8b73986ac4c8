"""Layers with zeros are timed; which executions a variant has: test_measure.py."""

import numpy as np
import pytest
import torch

from llm_sparsity.inference import executions
from llm_sparsity.inference.executions import Executions, speedups
from llm_sparsity.inference.sparse_layers import SparseLinear, layers_with_zeros, sparse_layers
from llm_sparsity.inference.workloads import Workload
from llm_sparsity.models.loading import load_base
from tests.unit.inference.conftest import Variant


def test_speedups_are_of_the_layers_named(variant: Variant) -> None:
    folder = variant("0.5", scope="layers.1")
    model = load_base(folder)
    layers = dict(sparse_layers(model, folder.structure, layers_with_zeros(model, folder.structure)))
    shapes = {name: (2, 9, layer.in_features) for name, layer in layers.items()}
    found = speedups(model, layers, shapes)
    assert len(found) == 6 and all("layer.1." in name and speedup > 0 for name, speedup in found.items())


def test_a_sparse_execution_holds_no_dense_weight(variant: Variant) -> None:
    folder = variant("0.5")
    model = load_base(folder)
    ways = Executions(model, folder).of(Workload("prefill", torch.randint(6, 20, (2, 9)), 9))
    sparse = ways["sparse"].model
    assert all(isinstance(sparse.get_submodule(name), SparseLinear) for name in ways["sparse"].layers)
    held = {id(weight) for weight in sparse.parameters()}
    assert not held & {id(model.get_submodule(name).weight) for name in ways["sparse"].layers}
    assert len(ways["sparse"].layers) == 12 and ways["dense"].layers == []


def test_a_layer_gains_in_most_turns_and_at_best(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one quick call of the sparse layer nor a busy moment of the dense one makes it the faster one."""
    folder = variant("0.5", scope="layers.1")
    model = load_base(folder)
    layers = dict(sparse_layers(model, folder.structure, layers_with_zeros(model, folder.structure)))
    shapes = {name: (2, 9, layer.in_features) for name, layer in layers.items()}
    dense, sparse = np.full((5, 6), 10.0), np.full((5, 6), 5.0)
    sparse[:, 0] = [12, 12, 8, 12, 12]
    sparse[:, 1], dense[2:, 1] = 10, 30
    monkeypatch.setattr(executions, "take_turns", lambda *_: np.hstack([dense, sparse]))
    assert list(speedups(model, layers, shapes).values()) == pytest.approx([10 / 12, 1, 2, 2, 2, 2])
