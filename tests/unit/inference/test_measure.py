"""What a variant costs, measured on tiny models: that the figures are there and mean what they say, never how fast."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llm_sparsity.inference import measure as stage
from llm_sparsity.inference import sparse_layers as execution
from llm_sparsity.inference.measure import measure
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.pruning.prune import prune
from llm_sparsity.storage.container import to_plain
from llm_sparsity.storage.files import read_json

SETTINGS = {"batch_sizes": [1, 3], "sequence_length": 16, "repeats": 3}


@pytest.fixture
def variant(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    def make(sparsity: str, method: str = "magnitude", scope: str = "linear", kind: str = "bert") -> Path:
        prune(tiny_model(kind), {sparsity: tmp_path / sparsity}, method=method, scope=scope)
        return tmp_path / sparsity / "model"

    return make


def test_a_sparse_variant(variant: Callable[..., Path], tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    measure(variant("0.9"), tiny_model("bert"), tmp_path, **SETTINGS)
    cost = read_json(tmp_path / "cost.json")
    rows = {(row["execution"], row["batch_size"]): row for row in cost["speed"]}
    assert {("dense", 1), ("dense", 3), ("sparse", 1), ("sparse", 3)} <= rows.keys()
    for row in rows.values():
        assert 0 < row["seconds_low"] <= row["seconds"] <= row["seconds_high"]
        assert 0 < row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert row["error"] <= 1e-4 and row["sequence_length"] == 16
    assert rows["dense", 1]["sparse_layers"] == 0 and rows["sparse", 1]["sparse_layers"] == 12
    assert cost["load_seconds"] > 0 and cost["device"] == "cpu" and cost["notes"] == []


def test_bytes(variant: Callable[..., Path], tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    sparse = variant("0.9")
    measure(sparse, tiny_model("bert"), tmp_path, **SETTINGS)
    cost = read_json(tmp_path / "cost.json")
    to_plain(sparse, tmp_path / "plain")
    assert cost["bytes"] == (sparse / "model.safetensors").stat().st_size
    header = 8 + int.from_bytes((tmp_path / "plain" / "model.safetensors").read_bytes()[:8], "little")
    assert cost["plain_bytes"] == (tmp_path / "plain" / "model.safetensors").stat().st_size - header
    assert cost["bound_bytes"] < cost["bytes"] < cost["plain_bytes"]


def test_the_bound_of_known_weights(tmp_path: Path) -> None:
    from tests.tiny import model_of, query

    # 1.0 and 2.0 are the float16 0x3C00 and 0x4000: one byte is always 0, the other is one of two, equally often.
    weight = torch.tensor([[0.0, 1.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]])
    plain, bound = stage._sizes(model_of({query(0): weight}, tmp_path))
    positions = 8 * -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert (plain, bound) == (32, round((positions + 2) / 8))


def test_a_structured_variant_is_dense_and_smaller(
    variant: Callable[..., Path], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    measure(variant("0.5", "structured"), tiny_model("bert"), tmp_path, **SETTINGS)
    cost = read_json(tmp_path / "cost.json")
    assert {row["execution"] for row in cost["speed"]} == {"dense"}
    measure(tiny_model("bert"), tiny_model("bert"), tmp_path / "dense", **SETTINGS)
    dense = read_json(tmp_path / "dense" / "cost.json")
    assert cost["plain_bytes"] < dense["plain_bytes"]


@pytest.mark.skipif(not stage.RESET.exists(), reason="this system does not tell a process's peak memory")
def test_memory_is_weights_and_what_is_held_at_once() -> None:
    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8 << 20))  # 32 MiB

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.repeat(32 << 20).sum()  # 128 MiB

    memory = stage._memory(Wide(), {"x": torch.ones(1)}, torch.device("cpu"))
    assert memory is not None
    assert 150 << 20 < memory < 240 << 20


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_cannot_be_run_is_noted(
    variant: Callable[..., Path], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    measure(variant("2of4"), tiny_model("bert"), tmp_path, **SETTINGS)
    assert read_json(tmp_path / "cost.json")["notes"] == [
        "2:4 kernels need a GPU of compute capability 8.0 or newer; there is none here"
    ]


def test_only_layers_that_gain_run_sparse_in_fastest(
    variant: Callable[..., Path], tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(model: object, kind: object, inputs: object) -> dict[str, float]:
        names = execution.holding_zeros(model, kind)  # type: ignore[arg-type]
        return {name: 2.0 if number % 2 else 0.5 for number, name in enumerate(names)}

    monkeypatch.setattr(execution, "gains", half)
    measure(variant("0.9"), tiny_model("bert"), tmp_path, **SETTINGS)
    layers = {row["execution"]: row["sparse_layers"] for row in read_json(tmp_path / "cost.json")["speed"]}
    assert layers == {"dense": 0, "sparse": 12, "fastest": 6}


def test_a_wrong_execution_is_not_timed(
    variant: Callable[..., Path], tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(layer: object, x: torch.Tensor, out: torch.Tensor) -> None:
        out.zero_()

    monkeypatch.setattr(execution, "_multiply", wrong)
    with pytest.raises(RuntimeError, match="the outputs of an execution are off by"):
        measure(variant("0.9"), tiny_model("bert"), tmp_path, **SETTINGS)
    assert not (tmp_path / "cost.json").exists()


def test_a_sequence_that_the_model_has_no_positions_for(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"measure.sequence_length: found 600, but .* allows 64 tokens at most"):
        measure(tiny_model("bert"), tiny_model("bert"), tmp_path, **SETTINGS | {"sequence_length": 600})
