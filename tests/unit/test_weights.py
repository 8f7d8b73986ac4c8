from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from llm_sparsity.checkpoint import load
from llm_sparsity.files import sha256
from llm_sparsity.models import family
from llm_sparsity.weights import COLUMNS, weights


@pytest.fixture
def described(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> Callable[[str], tuple[pd.DataFrame, dict[str, torch.Tensor]]]:
    def describe(kind: str) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
        folder = tiny_model(kind)
        weights(folder, tmp_path / "weights.parquet")
        known = family(folder)
        names = {name: weight for name, weight in load(folder).items() if known.place(name)}
        return pd.read_parquet(tmp_path / "weights.parquet"), names

    return describe


def value(table: pd.DataFrame, **where: object) -> float:
    for column, wanted in where.items():
        table = table[table[column] == wanted]
    assert len(table) == 1
    return float(table.value.iloc[0])


def test_the_numbers_are_those_of_all_weights(
    described: Callable[[str], tuple[pd.DataFrame, dict[str, torch.Tensor]]],
) -> None:
    table, tensors = described("bert")
    everything = torch.cat([weight.flatten() for weight in tensors.values()])
    assert list(table) == COLUMNS
    assert value(table, level="overall", statistic="count") == len(everything)
    assert value(table, level="overall", statistic="mean") == pytest.approx(float(everything.mean()), abs=1e-6)
    assert value(table, level="overall", statistic="std") == pytest.approx(float(everything.std()), rel=1e-3)
    assert value(table, level="overall", statistic="max") == float(everything.max())
    for x in (0.001, 0.01, 0.1):
        share = float((everything.abs() < x).double().mean())
        assert value(table, level="overall", statistic="share_below", x=x) == pytest.approx(share)
    histogram = table[(table.level == "overall") & (table.statistic == "histogram")]
    assert histogram.value.sum() == len(everything)


def test_each_tensor_and_layer_is_there(
    described: Callable[[str], tuple[pd.DataFrame, dict[str, torch.Tensor]]],
) -> None:
    table, tensors = described("bert")
    assert set(table[table.level == "tensor"].name) == set(tensors)
    name, weight = next(iter(tensors.items()))
    assert value(table, level="tensor", name=name, statistic="count") == weight.numel()
    curve = table[(table.level == "layer") & (table.name == "encoder 0") & (table.statistic == "cumulative")]
    assert curve.value.is_monotonic_increasing
    assert curve.value.iloc[-1] == 1


def test_encoder_and_decoder_layers_are_apart(
    described: Callable[[str], tuple[pd.DataFrame, dict[str, torch.Tensor]]],
) -> None:
    table, _ = described("bart")
    layers = table[(table.level == "layer") & (table.layer >= 0)]
    assert set(layers.name) == {"encoder 0", "encoder 1", "decoder 0", "decoder 1"}


def test_the_same_weights_give_the_same_bytes(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("1", "2"):
        weights(tiny_model("gpt2"), tmp_path / name)
    assert sha256(tmp_path / "1") == sha256(tmp_path / "2")


def test_the_real_bart(shared: Path, tmp_path: Path) -> None:
    weights(shared / "models/g2p-bart-us", tmp_path / "weights.parquet")
    table = pd.read_parquet(tmp_path / "weights.parquet")
    assert set(table["stack"]) == {"", "encoder", "decoder"}
    assert value(table, level="overall", statistic="count") > 700_000
