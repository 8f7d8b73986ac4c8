"""The measured cost of tiny models: all figures are present and consistent; speed itself is not tested."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llm_sparsity.inference import sparse_layers, timing
from llm_sparsity.inference.measure import measure
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage.container import to_plain
from llm_sparsity.storage.files import read_json
from tests.unit.inference.conftest import Variant

Dense = Callable[[str], ModelFolder]
SETTINGS = {"batch_sizes": [1, 3], "sequence_length": 16, "repeats": 3}


def test_a_sparse_variant(variant: Variant, dense: Dense, tmp_path: Path) -> None:
    measure(variant("0.9"), dense("bert"), tmp_path, **SETTINGS)
    cost = read_json(tmp_path / "cost.json")
    rows = {(row["execution"], row["batch_size"]): row for row in cost["speed"]}
    assert {("dense", 1), ("dense", 3), ("sparse", 1), ("sparse", 3)} <= rows.keys()
    for row in rows.values():
        assert 0 < row["seconds_low"] <= row["seconds"] <= row["seconds_high"]
        assert 0 < row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert row["error"] <= 1e-4 and row["sequence_length"] == 16
    assert rows["dense", 1]["sparse_layers"] == 0 and rows["sparse", 1]["sparse_layers"] == 12
    assert cost["load_seconds"] > 0 and cost["device"] == "cpu" and cost["notes"] == []


def test_bytes(variant: Variant, dense: Dense, tmp_path: Path) -> None:
    sparse = variant("0.9")
    measure(sparse, dense("bert"), tmp_path, **SETTINGS)
    cost = read_json(tmp_path / "cost.json")
    to_plain(sparse.path, tmp_path / "plain")
    assert cost["bytes"] == (sparse.path / "model.safetensors").stat().st_size
    header = 8 + int.from_bytes((tmp_path / "plain" / "model.safetensors").read_bytes()[:8], "little")
    assert cost["plain_bytes"] == (tmp_path / "plain" / "model.safetensors").stat().st_size - header
    assert cost["bound_bytes"] < cost["bytes"] < cost["plain_bytes"]


def test_a_structured_variant_is_dense_and_smaller(variant: Variant, dense: Dense, tmp_path: Path) -> None:
    measure(variant("0.5", "structured"), dense("bert"), tmp_path, **SETTINGS)
    cost = read_json(tmp_path / "cost.json")
    assert {row["execution"] for row in cost["speed"]} == {"dense"}
    measure(dense("bert"), dense("bert"), tmp_path / "dense", **SETTINGS)
    assert cost["plain_bytes"] < read_json(tmp_path / "dense" / "cost.json")["plain_bytes"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_why_an_execution_cannot_run_is_noted(variant: Variant, dense: Dense, tmp_path: Path) -> None:
    measure(variant("2of4"), dense("bert"), tmp_path, **SETTINGS)
    assert read_json(tmp_path / "cost.json")["notes"] == [
        "2:4 kernels need a GPU of compute capability 8.0 or newer; there is none here"
    ]


def test_only_faster_layers_run_sparse_in_fastest(
    variant: Variant, dense: Dense, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(model: object, family: object, inputs: object) -> dict[str, float]:
        names = sparse_layers.layers_with_zeros(model, family)  # type: ignore[arg-type]
        return {name: 2.0 if number % 2 else 0.5 for number, name in enumerate(names)}

    monkeypatch.setattr(timing, "layer_speedups", half)
    measure(variant("0.9"), dense("bert"), tmp_path, **SETTINGS)
    layers = {row["execution"]: row["sparse_layers"] for row in read_json(tmp_path / "cost.json")["speed"]}
    assert layers == {"dense": 0, "sparse": 12, "fastest": 6}


def test_a_wrong_execution_is_not_timed(
    variant: Variant, dense: Dense, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(layer: object, x: torch.Tensor, out: torch.Tensor) -> None:
        out.zero_()

    monkeypatch.setattr(sparse_layers, "_multiply", wrong)
    with pytest.raises(RuntimeError, match="execution 'sparse': outputs differ from the dense ones by"):
        measure(variant("0.9"), dense("bert"), tmp_path, **SETTINGS)
    assert not (tmp_path / "cost.json").exists()


def test_a_sequence_longer_than_the_model_allows(dense: Dense, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"measure.sequence_length: found 600, but .* allows 64 tokens at most"):
        measure(dense("bert"), dense("bert"), tmp_path, **SETTINGS | {"sequence_length": 600})
