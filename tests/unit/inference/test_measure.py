"""The measured cost of tiny models with RANDOM weights: figures are present and consistent; speed is not tested."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llm_sparsity.inference import executions, sparse_layers
from llm_sparsity.inference.measure import dtype_of, measure
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_base
from llm_sparsity.pruning.prune import prune
from llm_sparsity.storage.files import read_json, write_manifest
from llm_sparsity.study.sparsity import Sparsity
from tests import zoo
from tests.marks import slow
from tests.unit.inference.conftest import Variant
from tests.weights import load, save, to_plain

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
        assert row["error"] <= 1e-4 and row["sequence_length"] == 16 and row["memory_bytes"]
    assert rows["dense", 1]["sparse_layers"] == 0 and rows["sparse", 1]["sparse_layers"] == 12
    assert cost["load_seconds"] > 0 and cost["device"] == "cpu" and cost["notes"] == []
    assert cost["dtype"] == "float32" and cost["versions"]["numba"] == version("numba")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_is_measured_in_both_phases(
    kind: str, variant: Variant, dense: Dense, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_sparsity.inference.measure.inference_bytes", lambda *_: 1000)
    heads = {"gpt2": 4, "llama": 2}[kind]  # of keys, and of values, 8 wide, in each of two layers
    measure(variant("0.5", kind=kind), dense(kind), tmp_path, batch_sizes=[1, 2], sequence_length=16, repeats=2)
    cost = read_json(tmp_path / "cost.json")
    rows = {(row["execution"], row["phase"], row["batch_size"]): row for row in cost["speed"]}
    both = {(phase, size) for phase in ("prefill", "decode") for size in (1, 2)}
    assert {key[1:] for key in rows if key[0] == "sparse"} == both == {key[1:] for key in rows if key[0] == "dense"}
    for (_, phase, size), row in rows.items():
        tokens = size * (16 if phase == "prefill" else 1)
        assert row["tokens_per_second"] == pytest.approx(tokens / row["seconds"])
        assert (row["limit"] is None) == (row["bytes_per_second"] is None) == (phase == "prefill")
        cached = 0 if phase == "prefill" else size * 15 * 2 * heads * 8 * 2 * 4
        assert row["memory_bytes"] == 1000 + cached
    dense_row, sparse_row = rows["dense", "decode", 1], rows["sparse", "decode", 1]
    assert dense_row["limit"] == 1 and sparse_row["limit"] == pytest.approx(32 / (0.5 * 32 + 1), rel=0.01)
    assert dense_row["bytes_per_second"] * dense_row["seconds"] == pytest.approx(
        sparse_row["bytes_per_second"] * sparse_row["seconds"] * sparse_row["limit"]
    )
    assert all(row["copy_bytes_per_second"] > 0 for row in cost["speed"])


def test_a_mixture_of_experts_has_no_limit(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """With its attention at 90 %, 7.62 would be that of the attention alone: a token reads two of four experts, too."""
    dense = ModelFolder(zoo.save("mixtral", tmp_path / "dense", tiny_model("llama")))
    prune(dense, {Sparsity("0.9"): tmp_path / "out"}, method="magnitude", scope="attention")
    sparse = ModelFolder(tmp_path / "out/model")
    measure(sparse, dense, tmp_path, batch_sizes=[1], sequence_length=8, repeats=1)
    rows = read_json(tmp_path / "cost.json")["speed"]
    assert {(row["execution"], row["phase"]) for row in rows} >= {("dense", "decode"), ("sparse", "decode")}
    assert all(row["limit"] is row["bytes_per_second"] is None and row["seconds"] > 0 for row in rows)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_without_some_heads_decodes(kind: str, variant: Variant, dense: Dense, tmp_path: Path) -> None:
    """Its keys and values are narrower than the dense model's."""
    pruned = variant("0.5", kind=kind, method="structured")
    measure(pruned, dense(kind), tmp_path, batch_sizes=[2], sequence_length=16, repeats=1)
    rows = {row["phase"]: row for row in read_json(tmp_path / "cost.json")["speed"]}
    assert rows.keys() == {"prefill", "decode"}
    assert rows["decode"]["limit"] == pytest.approx(2, rel=0.05)  # half of the dense model's matrices are read


def test_an_encoder_has_no_decode(variant: Variant, dense: Dense, tmp_path: Path) -> None:
    measure(variant("0.5"), dense("bert"), tmp_path, batch_sizes=[1], sequence_length=8, repeats=1)
    assert {row["phase"] for row in read_json(tmp_path / "cost.json")["speed"]} == {"prefill"}


def test_a_decoder_without_a_common_cache_is_measured_in_prefill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = transformers.MambaConfig(hidden_size=32, num_hidden_layers=1, state_size=4, vocab_size=26)
    transformers.MambaModel(config).save_pretrained(tmp_path / "mamba")
    write_manifest(tmp_path / "mamba", kind="model")
    mamba = ModelFolder(tmp_path / "mamba")
    measure(mamba, mamba, tmp_path, batch_sizes=[1, 2], sequence_length=8, repeats=1)
    rows = read_json(tmp_path / "cost.json")["speed"]
    assert [(row["phase"], row["batch_size"]) for row in rows] == [("prefill", 1), ("prefill", 2)]
    said = [line for line in capsys.readouterr().out.splitlines() if "decoding is left out" in line]
    assert len(said) == 1 and "MambaModel" in said[0]


def test_bytes(variant: Variant, dense: Dense, tmp_path: Path) -> None:
    sparse = variant("0.9")
    measure(sparse, dense("bert"), tmp_path, **SETTINGS)
    cost = read_json(tmp_path / "cost.json")
    to_plain(sparse.path, tmp_path / "plain")
    assert cost["bytes"] == (sparse.path / "model.safetensors").stat().st_size
    header = 8 + int.from_bytes((tmp_path / "plain" / "model.safetensors").read_bytes()[:8], "little")
    assert cost["plain_bytes"] == (tmp_path / "plain" / "model.safetensors").stat().st_size - header
    assert cost["bound_bytes"] < cost["bytes"] == cost["container_bytes"] < cost["plain_bytes"]


def test_the_bytes_of_tied_tensors_count_once(dense: Dense, tmp_path: Path) -> None:
    plain = dense("bart")
    shutil.copytree(plain.path, tmp_path / "m")
    tensors = load(plain.path)
    save(tmp_path / "m", tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"]}, sparse=False)
    measure(ModelFolder(tmp_path / "m"), plain, tmp_path, batch_sizes=[1], sequence_length=8, repeats=1)
    assert read_json(tmp_path / "cost.json")["plain_bytes"] == sum(tensor.nbytes for tensor in tensors.values())


def test_a_structured_variant_is_dense_and_smaller(variant: Variant, dense: Dense, tmp_path: Path) -> None:
    measure(variant("0.5", "structured"), dense("bert"), tmp_path, **SETTINGS)
    cost = read_json(tmp_path / "cost.json")
    assert {row["execution"] for row in cost["speed"]} == {"dense"}
    measure(dense("bert"), dense("bert"), tmp_path / "dense", **SETTINGS)
    assert cost["plain_bytes"] < read_json(tmp_path / "dense" / "cost.json")["plain_bytes"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_why_an_execution_cannot_run_is_noted(variant: Variant, dense: Dense, tmp_path: Path) -> None:
    measure(variant("2of4"), dense("bert"), tmp_path, **SETTINGS)
    assert read_json(tmp_path / "cost.json")["notes"] == [
        "2:4 kernels need a GPU of compute capability 8.0 or newer; there is none here"
    ]


def test_fastest_is_chosen_for_each_batch(
    variant: Variant, dense: Dense, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one sequence a layer gains, with two the others do, with three all gain, with four none."""

    def gains(model: Any, layers: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
        size, names = next(iter(shapes.values()))[0], list(layers)
        first = {1: 2.0, 2: 0.5, 3: 2.0, 4: 1.0}[size]
        others = {1: 0.5, 2: 2.0, 3: 2.0, 4: 1.0}[size]
        return {name: others if number else first for number, name in enumerate(names)}

    monkeypatch.setattr(executions, "speedups", gains)
    sparse = variant("0.9")
    measure(sparse, dense("bert"), tmp_path, batch_sizes=[1, 2, 3, 4], sequence_length=8, repeats=1)
    rows = read_json(tmp_path / "cost.json")["speed"]
    names = sparse_layers.layers_with_zeros(load_base(sparse), sparse.structure)
    assert {(row["batch_size"], row["execution"]): row["layers"] for row in rows} == {
        **{(size, "dense"): [] for size in (1, 2, 3, 4)},
        **{(size, "sparse"): names for size in (1, 2, 3, 4)},
        (1, "fastest"): names[:1],
        (2, "fastest"): names[1:],
    }
    assert all(row["sparse_layers"] == len(row["layers"]) for row in rows)


def test_a_wrong_execution_is_not_timed(
    variant: Variant, dense: Dense, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(layer: sparse_layers.SparseLinear, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*x.shape[:-1], layer.out_features)

    monkeypatch.setattr(sparse_layers.SparseLinear, "forward", wrong)
    with pytest.raises(RuntimeError, match="execution 'sparse': outputs differ from the dense ones by"):
        measure(variant("0.9"), dense("bert"), tmp_path, **SETTINGS)
    assert not (tmp_path / "cost.json").exists()


def test_a_sequence_longer_than_the_model_allows(dense: Dense, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"measure.sequence_length: found 600, but .* allows 64 tokens at most"):
        measure(dense("bert"), dense("bert"), tmp_path, **SETTINGS | {"sequence_length": 600})


def changed(folder: ModelFolder, output: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> ModelFolder:
    """A copy of a model with changed tensors."""
    shutil.copytree(folder.path, output)
    save(output, {name: change(name, tensor) for name, tensor in load(folder.path).items()}, sparse=False)
    return ModelFolder(output)


@pytest.mark.parametrize("kind", ["bert", slow("gpt2"), "llama", slow("bart")])
def test_a_model_that_is_all_zero(kind: str, dense: Dense, tmp_path: Path) -> None:
    zero = changed(dense(kind), tmp_path / "zero", lambda _, tensor: torch.zeros_like(tensor))
    measure(zero, dense(kind), tmp_path, batch_sizes=[1], sequence_length=8, repeats=1)
    cost = read_json(tmp_path / "cost.json")
    rows = {row["execution"]: row for row in cost["speed"]}
    assert rows["sparse"]["sparse_layers"] > 0
    assert rows["dense"]["error"] == rows["sparse"]["error"] == cost["bound_bytes"] == 0
    assert all(math.isfinite(row["speedup"]) and row["seconds"] > 0 for row in cost["speed"])


def test_a_model_without_zeros_has_the_dense_execution_alone(dense: Dense, tmp_path: Path) -> None:
    full = changed(dense("bert"), tmp_path / "full", lambda _, tensor: torch.where(tensor == 0, 0.5, tensor))
    measure(full, dense("bert"), tmp_path, batch_sizes=[2], sequence_length=8, repeats=1)
    assert [row["execution"] for row in read_json(tmp_path / "cost.json")["speed"]] == ["dense"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bias_that_is_not_finite_is_refused_by_name(value: float, dense: Dense, tmp_path: Path) -> None:
    name = "encoder.layer.1.output.dense.bias"
    broken = changed(dense("bert"), tmp_path / "m", lambda known, t: t.fill_(value) if known.endswith(name) else t)
    with pytest.raises(UserError, match=f"{name} has NaN or infinite weights"):
        measure(broken, dense("bert"), tmp_path, **SETTINGS)
    with pytest.raises(UserError, match=r"outputs of layer encoder\.layer\.1\.output\.dense are NaN or infinite"):
        measure(dense("bert"), broken, tmp_path, **SETTINGS)
    assert not (tmp_path / "cost.json").exists()


def test_infinite_activations_are_refused_by_layer(dense: Dense, tmp_path: Path) -> None:
    name = "encoder.layer.0.intermediate.dense"
    large = changed(dense("bert"), tmp_path / "m", lambda known, t: t.fill_(3e38) if f"{name}.weight" in known else t)
    with pytest.raises(UserError, match=f"outputs of layer {name} are NaN or infinite in float32"):
        measure(large, dense("bert"), tmp_path, **SETTINGS)


def test_a_model_of_few_tokens(dense: Dense, tmp_path: Path) -> None:
    def few(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[:5].clone() if name.endswith("word_embeddings.weight") else tensor

    small = changed(dense("bert"), tmp_path / "m", few)
    config = small.config | {"vocab_size": 5}
    (small.path / "config.json").write_text(json.dumps(config))
    measure(ModelFolder(small.path), ModelFolder(small.path), tmp_path, **SETTINGS)
    assert (tmp_path / "cost.json").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_of_measuring(dtype: torch.dtype, dense: Dense, tmp_path: Path) -> None:
    """Most of the weights decide; the norms of half-precision models are often float32."""

    def cast(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if "LayerNorm" in name else tensor.to(dtype)

    folder = changed(dense("bert"), tmp_path / "m", cast)
    assert dtype_of(folder, torch.device("cpu")) == torch.float32
    half = torch.float16 if dtype == torch.float32 else dtype
    assert dtype_of(folder, torch.device("cuda")) == half
