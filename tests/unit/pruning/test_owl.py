"""OWL: shares of outliers, sparsities of layers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.pruning import owl
from llm_sparsity.storage.files import read_manifest
from llm_sparsity.study.sparsity import Sparsity
from tests.unit.pruning.helpers import calibrated, rows_of
from tests.weights import load, save


def test_outliers_by_hand() -> None:
    weight = torch.tensor([[1.0, -1], [1, 100]])
    # Scores 2 1 2 100, mean 26.25: none is five times that; beside 20 small ones of another matrix one is.
    assert owl.outlier_share([(weight, torch.tensor([4.0, 1]))]) == 0
    assert owl.outlier_share([(weight, torch.tensor([4.0, 1])), (torch.ones(4, 5), torch.ones(5))]) == 1 / 24


def test_the_mean_is_the_sparsity_asked_for() -> None:
    shares, sizes = {"a": 0.0, "b": 0.02, "c": 0.04}, {"a": 100, "b": 300, "c": 100}
    found = owl.layer_fractions(shares, sizes, Sparsity("0.7"))
    assert found == pytest.approx({"a": 0.78, "b": 0.7, "c": 0.62})  # 0.16 between the extremes
    assert sum(found[layer] * sizes[layer] for layer in sizes) == pytest.approx(0.7 * 500)
    assert set(owl.layer_fractions(dict.fromkeys(sizes, 0.01), sizes, Sparsity("0.5")).values()) == {0.5}


def test_layers_with_outliers_keep_more(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_model("llama").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    tensors = load(model)
    name = next(name for name in tensors if "layers.1.mlp.up_proj" in name)
    tensors[name][::4, ::4] *= 50
    save(model, tensors, sparse=False)
    for method in ("wanda", "sparsegpt"):
        calibrated(model, text, tmp_path / method, "0.6", method, layerwise="owl")
        rows = rows_of(tmp_path / method)
        levels = {row["layer"]: float(row["sparsity"]) for row in rows if row["part"] == "mlp"}
        assert levels["0"] == pytest.approx(0.68, abs=0.001) and levels["1"] == pytest.approx(0.52, abs=0.001)
        facts = read_manifest(tmp_path / method / "model")["pruned"]
        assert facts["layerwise"] == "owl" and facts["measured_sparsity"] == pytest.approx(0.6, abs=1e-3)
    with pytest.raises(UserError, match=r"sparsity 0.97: layerwise owl would remove 1.05\d* of layers.0"):
        calibrated(model, text, tmp_path / "much", "0.97", "wanda", layerwise="owl")
    assert not list((tmp_path / "much").rglob("*.safetensors"))


def test_a_pattern_has_no_layerwise_sparsities(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sparsity 2of4: a pattern removes the same fraction of every layer, but"):
        calibrated(tiny_model("llama"), text, tmp_path, "2of4", "wanda", layerwise="owl")
