"""The steps `int8` and `int4`: by hand, their error, and whole models with random weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_model
from llm_sparsity.pruning.quantization import nearest
from llm_sparsity.pruning.steps import int4, int8
from llm_sparsity.storage.container import copy_companions
from llm_sparsity.storage.files import read_manifest, weight_bytes, write_manifest
from tests.marks import slow
from tests.unit.pruning.helpers import prune, rows_of
from tests.weights import load, save


def test_by_hand() -> None:
    weight = torch.tensor([[7.0, -3.4, 0.5, 0.0, 1.75, -0.9]])
    found = nearest(weight, bits=4, group=4)
    assert found.scales.tolist() == [[1.0, 0.25]]
    assert found.codes.tolist() == [[7, -3, 0, 0, 7, -4]]  # 0.5 is rounded to even
    assert found.values().tolist() == [[7.0, -3.0, 0.0, 0.0, 1.75, -1.0]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 9), columns=st.integers(1, 200), bits=st.sampled_from([4, 8]),
    group=st.sampled_from([32, 64, 128]), scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_no_value_is_further_than_half_a_step(
    seed: int, rows: int, columns: int, bits: int, group: int, scale: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, columns, generator=generator) * scale).to(dtype)
    weight[torch.rand(rows, columns, generator=generator) < 0.3] = 0
    found = nearest(weight, bits=bits, group=group)
    steps = found.scales.float().repeat_interleave(group, dim=1)[:, :columns]
    assert found.values().dtype == dtype
    last = 2 ** (bits - 1) - 1
    slack = last * 2**-8 + 2**-8 * 2**bits  # the scale is a bfloat16, as may be the value
    assert ((found.values().float() - weight.float()).abs() <= steps * (0.5 + slack) + 1e-37).all()
    assert (found.codes[weight == 0] == 0).all()
    assert int(found.codes.abs().max()) <= last


def test_eight_bits_are_closer_than_four() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    errors = [float((step.quantize(weight).values() - weight).norm() / weight.norm()) for step in (int8, int4)]
    assert errors[0] < 0.007 < errors[1] < 0.12


@pytest.mark.parametrize("kind", ["llama", slow("gpt2"), slow("bert"), "bart"])
@pytest.mark.parametrize(
    ("method", "level"), [("int8", "0"), ("int4", "0"), ("magnitude+int4", "0.5"), ("magnitude+int8", "2of4")]
)
def test_a_model_is_quantised(
    kind: str, method: str, level: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    model = tiny_model(kind)
    prune(model, {level: tmp_path}, method=method, scope="linear")
    before, after, opened = load(model), load(tmp_path / "model"), ModelFolder(model)
    for name, weight in after.items():
        assert weight.shape == before[name].shape and weight.dtype == before[name].dtype
        if opened.in_scope(name, "linear"):
            zeros = (weight == 0).float().mean()
            assert zeros >= (0.0 if level == "0" else 0.2)
            assert not torch.equal(weight, before[name])
        else:
            assert torch.equal(weight, before[name])
    for row in rows_of(tmp_path):
        assert int(row["zeros"]) == int((after[row["name"]] == 0).sum()) >= int(row["removed"])
        assert row["error"] == row["block_error"] == ""
    manifest = read_manifest(tmp_path / "model")
    assert manifest["pruned"]["method"] == method and manifest["pruned"]["sparsity"] == level
    assert (manifest["pruned"]["removed"] == 0) == (level == "0")
    assert weight_bytes(manifest) < weight_bytes(read_manifest(model))
    auto = transformers.AutoModel
    ids = {"input_ids": torch.tensor([[1, 2, 3]])} | (
        {"decoder_input_ids": torch.tensor([[1]])} if kind == "t5" else {}
    )
    assert bool(load_model(auto, ModelFolder(tmp_path / "model"))(**ids).last_hidden_state.isfinite().all())


def test_tied_embeddings_stay_tied_and_other_tensors_are_quantised(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    prune(tiny_model("llama"), {"0": tmp_path}, method="int8", scope="all")
    names = {row["name"] for row in rows_of(tmp_path)}
    assert any("embed" in name for name in names)
    before, after = load(tiny_model("llama")), load(tmp_path / "model")
    norms = {name for name, weight in before.items() if weight.dim() < 2}
    assert norms
    assert norms <= names
    assert all(torch.equal(before[name], after[name]) for name in norms)
    model = load_model(transformers.AutoModelForCausalLM, ModelFolder(tmp_path / "model"))
    assert bool(model(input_ids=torch.tensor([[1, 2]])).logits.isfinite().all())


@pytest.mark.parametrize("scope", ["all", "embeddings", "linear"])
@pytest.mark.parametrize(
    ("kind", "renamed"),
    [
        ("llama", {"model.embed_tokens.weight": "lm_head.weight"}),  # a tied pair, of which the file holds the other
        ("bert", {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}),  # as of 2018
    ],
)
def test_names_of_the_file_are_not_those_of_the_model(
    kind: str, renamed: dict[str, str], scope: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    plain, other = tiny_model(kind), tmp_path / "other"
    copy_companions(plain, other)
    tensors = load(plain)
    for old, new in renamed.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    assert tensors.keys() != load(plain).keys()
    save(other, tensors, sparse=False)
    write_manifest(other, kind="model")
    for model, output in ((plain, "plain"), (other, "renamed")):
        prune(model, {"0": tmp_path / output}, method="int8", scope=scope)
    assert rows_of(tmp_path / "renamed") == rows_of(tmp_path / "plain")
    found, expected = (load(tmp_path / output / "model") for output in ("renamed", "plain"))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_a_method_has_removed_of_vectors_is_told(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Every tensor of the scope has a row, whether it is quantised or not."""
    prune(tiny_model("bert"), {"0.5": tmp_path / "alone"}, method="uniform", scope="all")
    prune(tiny_model("bert"), {"0.5": tmp_path / "both"}, method="uniform+int8", scope="all")
    rows = [
        {row["name"]: (row["size"], row["removed"]) for row in rows_of(tmp_path / kind)} for kind in ("alone", "both")
    ]
    assert rows[0] == rows[1]
    alone, both = (read_manifest(tmp_path / kind / "model")["pruned"] for kind in ("alone", "both"))
    assert (alone["size"], alone["removed"]) == (both["size"], both["removed"])
    assert both["measured_sparsity"] >= alone["measured_sparsity"]


def test_a_narrower_model_is_quantised(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    prune(tiny_model("bert"), {"0.5": tmp_path / "narrow"}, method="structured", scope="linear")
    prune(tiny_model("bert"), {"0.5": tmp_path / "both"}, method="structured+int8", scope="linear")
    narrow, both = load(tmp_path / "narrow/model"), load(tmp_path / "both/model")
    for row, quantised in zip(rows_of(tmp_path / "narrow"), rows_of(tmp_path / "both"), strict=True):
        assert (row["size"], row["removed"], row["shape"]) == (
            quantised["size"],
            quantised["removed"],
            quantised["shape"],
        )
        assert int(quantised["zeros"]) >= int(row["zeros"])
        torch.testing.assert_close(both[row["name"]], narrow[row["name"]], atol=2e-3, rtol=0.01)
    config = (tmp_path / "both/model/config.json").read_bytes()
    assert config == (tmp_path / "narrow/model/config.json").read_bytes()


@pytest.mark.parametrize("method", ["int8+wanda", "int8+int4", "int4+swaps", "wanda+int8+swaps"])
def test_chains_that_make_no_sense_are_one_line(method: str, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^method .*(comes first|put it last)[^\n]*$"):
        prune(tiny_model("bert"), {"0.5": tmp_path}, method=method, scope="linear")


def test_nothing_is_removed_without_a_method(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^sparsity 0.5: method int8 removes nothing; give sparsity 0, or a method bef"
    ):
        prune(tiny_model("bert"), {"0.5": tmp_path}, method="int8", scope="linear")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("bits", "group"), [(8, 64), (4, 32)])
def test_the_largest_numbers_stay_finite(bits: int, group: int, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    values = nearest(torch.tensor([[largest, -largest, largest / 3]], dtype=dtype), bits=bits, group=group).values()
    assert values.isfinite().all()
    assert values[0, 0] == -values[0, 1] > 0.98 * largest
