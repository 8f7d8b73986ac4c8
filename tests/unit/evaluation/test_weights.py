"""Every number against numpy on all weights at once. Weights are RANDOM except in one test."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_sparsity.evaluation.weights import COLUMNS, GRID, QUANTILES, THRESHOLDS, weights
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.pruning.prune import prune
from llm_sparsity.storage.files import read_json, write_manifest
from llm_sparsity.study.sparsity import Sparsity
from tests.tiny import model_of, query
from tests.weights import load, save


def table_of(model: ModelFolder, output: Path) -> pd.DataFrame:
    weights(model, output)
    return pd.read_parquet(output / "weights.parquet")


def values(table: pd.DataFrame, level: str, statistic: str, **where: object) -> np.ndarray:
    rows = table[(table.level == level) & (table.statistic == statistic)]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows.value.to_numpy()


@pytest.mark.parametrize("kind", ["bert", "gpt2", "bart"])
def test_all_numbers_are_those_of_the_weights(
    kind: str,
    tiny_model: Callable[[str], Path],
    half_removed: Callable[[ModelFolder], ModelFolder],
    tmp_path: Path,
) -> None:
    model = half_removed(ModelFolder(tiny_model(kind)))
    table = table_of(model, tmp_path)
    tensors = {name: tensor.numpy().ravel() for name, tensor in load(model.path).items() if model.role(name)}
    assert list(table.columns) == COLUMNS
    assert set(table[table.level == "tensor"].name) == set(tensors)
    layers: dict[tuple[str, int], list[np.ndarray]] = {}
    for name, tensor in tensors.items():
        role = model.role(name)
        assert role
        layers.setdefault((role.stack, role.layer), []).append(tensor)
        expected = np.sort(tensor)[np.round(np.array(QUANTILES) * (len(tensor) - 1)).astype(int)]
        assert np.array_equal(values(table, "tensor", "quantile", name=name), expected)
    groups = [("overall", "", -1, np.concatenate(list(tensors.values())))]
    groups += [("layer", stack, layer, np.concatenate(parts)) for (stack, layer), parts in layers.items()]
    for level, stack, layer, found in groups:
        where = {"stack": stack, "layer": layer}
        double = found.astype(np.float64)
        for statistic, number in {
            "count": len(found), "zeros": (found == 0).sum(), "mean": double.mean(), "std": double.std(),
            "min": found.min(), "max": found.max(),
        }.items():  # fmt: skip
            assert values(table, level, statistic, **where) == pytest.approx([number], abs=1e-12), (level, statistic)
        below = [(np.abs(found) < np.float32(x)).mean() for x in THRESHOLDS]
        assert np.allclose(values(table, level, "share_below", **where), below, rtol=0, atol=1e-15)
        curve = [(np.abs(found) <= np.float32(x)).mean() for x in GRID]
        assert np.allclose(values(table, level, "cumulative", **where), curve, rtol=0, atol=1e-15)
    assert len(layers) == {"bert": 3, "gpt2": 3, "bart": 6}[kind]


def test_the_histogram_shows_the_bulk_and_its_middle_bin_is_zero(tmp_path: Path) -> None:
    bulk = torch.randn(200, 200, generator=torch.Generator().manual_seed(0)) * 0.02
    bulk[:100] = 0
    bulk[0, :7] = 50.0  # outliers
    table = table_of(ModelFolder(model_of({query(0): bulk}, tmp_path / "model")), tmp_path)
    bins = table[table.statistic == "histogram"]
    x, count = bins.x.to_numpy(), bins.value.to_numpy()
    assert count.sum() == 40_000 and count[-1] >= 7
    assert -0.1 < x[0] < -0.05
    middle = len(x) // 2
    assert x[middle] == pytest.approx(-x[middle + 1]) and count[middle] >= 20_000 - 7
    edges = np.append(x, -x[0])
    assert np.array_equal(count[1:-1], np.histogram(bulk.double().numpy(), edges)[0][1:-1])


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    scale=st.sampled_from([0.0, 1e-6, 0.02, 30.0]),
)
def test_shares_and_counts_agree_at_any_size(
    sizes: list[int], dtype: torch.dtype, scale: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("weights")
    generator = torch.Generator().manual_seed(sum(sizes))
    tensors = {query(i): (torch.randn(3, n, generator=generator) * scale).to(dtype) for i, n in enumerate(sizes)}
    table = table_of(ModelFolder(model_of(tensors, folder / "model")), folder)
    total = 3 * sum(sizes)
    assert values(table, "overall", "count") == [total] == values(table, "layer", "count").sum()
    assert values(table, "overall", "zeros") == [sum(int((t == 0).sum()) for t in tensors.values())]
    curve = values(table, "overall", "cumulative")
    assert (np.diff(curve) >= 0).all() and curve[0] >= values(table, "overall", "zeros")[0] / total - 1e-12
    assert values(table, "overall", "histogram").sum() == total


def test_the_same_bytes_each_time_and_few(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        weights(ModelFolder(tiny_model("bart")), tmp_path / name)
    assert (tmp_path / "a/weights.parquet").read_bytes() == (tmp_path / "b/weights.parquet").read_bytes()
    parts = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
             "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"]  # fmt: skip
    names = [f"encoder.layer.{layer}.{part}.weight" for layer in range(12) for part in parts]
    generator = torch.Generator().manual_seed(0)
    deep = model_of({name: torch.randn(8, 8, generator=generator) for name in names}, tmp_path / "deep")
    weights(ModelFolder(deep), tmp_path)
    assert (tmp_path / "weights.parquet").stat().st_size < 200_000


def test_counts_stay_exact_beyond_what_float32_can_count(tmp_path: Path) -> None:
    zeros = torch.zeros(4200, 4200, dtype=torch.float16)  # 17.6 million, more than 2^24
    zeros[0, 0] = 1
    table = table_of(ModelFolder(model_of({query(0): zeros}, tmp_path / "model")), tmp_path)
    assert values(table, "overall", "zeros") == [zeros.numel() - 1]
    assert values(table, "overall", "histogram").max() == zeros.numel() - 1


def test_the_same_numbers_whatever_the_dtype(tmp_path: Path) -> None:
    """float64 is not converted, so nothing may be computed in its place."""
    drawn = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    single, double = (
        table_of(ModelFolder(model_of({query(0): drawn.to(dtype)}, tmp_path / str(dtype))), tmp_path / str(dtype))
        for dtype in (torch.float32, torch.float64)
    )
    assert values(double, "overall", "min") == [float(drawn.min())]
    pd.testing.assert_frame_equal(single, double)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        model = model_of({query(0): torch.tensor([[1.0, bad]])}, tmp_path / str(bad))
        with pytest.raises(UserError, match=f"tensor {query(0)} has NaN or infinite weights"):
            weights(ModelFolder(model), tmp_path)
    assert not (tmp_path / "weights.parquet").exists()


def test_the_bytes_of_tied_tensors_count_once_as_in_a_variant(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_model("bart"), tmp_path / "model")
    tensors = load(tmp_path / "model")
    copies = {f"{stack}.embed_tokens.weight": tensors["shared.weight"] for stack in ("encoder", "decoder")}
    save(tmp_path / "model", tensors | copies, sparse=False)
    model = ModelFolder(tmp_path / "model")
    prune(model, {Sparsity("0"): tmp_path / "variant"}, method="magnitude", scope="linear")
    weights(model, tmp_path)
    variant = tmp_path / "variant/model/model.safetensors"
    assert read_json(tmp_path / "sizes.json")["container_bytes"] == variant.stat().st_size


def test_the_real_bart(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "models/g2p-bart-us", tmp_path / "model")
    write_manifest(tmp_path / "model", kind="model")
    model = ModelFolder(tmp_path / "model")
    table = table_of(model, tmp_path)
    tensors = load(model.path)
    pool = np.concatenate([tensors[name].float().numpy().ravel() for name in model.roles(sorted(tensors))])
    assert values(table, "overall", "count") == [len(pool)]
    assert values(table, "overall", "share_below") == pytest.approx(
        [(np.abs(pool) < np.float32(x)).mean() for x in THRESHOLDS]
    )
    assert (tmp_path / "weights.parquet").stat().st_size < 100_000
