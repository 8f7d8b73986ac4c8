import shutil
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune as torch_prune

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_causal, load_model
from llm_sparsity.pruning import prune as stage
from llm_sparsity.pruning import unstructured
from llm_sparsity.storage.files import read_json, read_manifest, write_manifest
from llm_sparsity.study.sparsity import Sparsity
from tests.marks import slow
from tests.tiny import model_of, query
from tests.unit.pruning.helpers import prune, rows_of
from tests.weights import load, save

SINGLE = ("magnitude", "random", "uniform")  # methods that remove single weights


def pruned(model: Path, sparsity: str, output: Path, method: str = "magnitude", scope: str = "linear", seed: int = 0):
    prune(model, {sparsity: output}, method=method, scope=scope, seed=seed)
    return load(output / "model")


@settings(max_examples=20, deadline=None)
@given(
    rows=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    sparsity=st.integers(1, 99),
    values=st.sampled_from(["gaussian", "few", "equal", "zeros"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    method=st.sampled_from(SINGLE),
)
def test_the_removed_count_is_the_count_asked_for(
    rows: list[int],
    sparsity: int,
    values: str,
    dtype: torch.dtype,
    method: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("prune")
    generator = torch.Generator().manual_seed(sparsity)
    tensors = {}
    for layer, row in enumerate(rows):
        weight = torch.randn(row, 8, generator=generator)
        weight = {"gaussian": weight, "few": weight.round(), "equal": weight.sign(), "zeros": weight * 0}[values]
        tensors[query(layer)] = weight.to(dtype)
    level = f"0.{sparsity:02d}"
    after = pruned(model_of(tensors, folder / "model"), level, folder / "out", method)
    kept = {name: int(weight.count_nonzero()) for name, weight in after.items()}
    before = {name: int(weight.count_nonzero()) for name, weight in tensors.items()}
    sizes = {name: weight.numel() for name, weight in tensors.items()}
    assert all(weight.dtype == dtype for weight in after.values())
    assert all(torch.equal(after[n][after[n] != 0], tensors[n][after[n] != 0]) for n in tensors)
    if method == "random":  # may draw weights that are zero already
        assert sum(kept.values()) <= sum(before.values())
    elif method == "uniform":
        for name, size in sizes.items():
            assert size - kept[name] == max(Sparsity(level).count(size), size - before[name])
    else:
        size = sum(sizes.values())
        assert size - sum(kept.values()) == max(Sparsity(level).count(size), size - sum(before.values()))


@pytest.mark.parametrize("kind", ["bert", slow("roberta"), "gpt2", slow("llama"), "bart"])
@pytest.mark.parametrize("sparsity", ["0.1", "0.9", slow("0.99")])
def test_the_mask_is_that_of_torch(kind: str, sparsity: str, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_model(kind)
    after = pruned(folder, sparsity, tmp_path, scope="all")
    model = transformers.AutoModel.from_pretrained(folder)
    role = ModelFolder(folder).role
    modules = {id(m.weight): m for n, m in model.named_modules() if hasattr(m, "weight") and role(f"{n}.weight")}
    chosen = [(module, "weight") for module in modules.values()]
    size = sum(module.weight.numel() for module, _ in chosen)
    torch_prune.global_unstructured(chosen, torch_prune.L1Unstructured, amount=round(Decimal(sparsity) * size))
    for name, module in model.named_modules():
        if hasattr(module, "weight_mask"):
            found = next((key for key in after if key.endswith(f"{name}.weight")), None)
            if found:
                assert torch.equal(after[found], module.weight)


def test_equal_weights_are_removed_by_position(tmp_path: Path) -> None:
    ones = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    model = model_of({query(1): ones, query(0): ones}, tmp_path / "model")
    after = pruned(model, "0.625", tmp_path / "out")
    assert after[query(0)].tolist() == [[0, 0, 0, 0]]
    assert after[query(1)].tolist() == [[0, -1, 1, -1]]


def test_no_negative_zero_is_left(tmp_path: Path) -> None:
    weight = torch.tensor([[-0.1, 0.2, -0.0, 0.4]])
    after = pruned(model_of({query(0): weight}, tmp_path / "model"), "0.5", tmp_path / "out")[query(0)]
    assert after.view(torch.int32).tolist()[0][:1] == [0]
    assert after.view(torch.int32).tolist()[0][2] == 0


def test_all_sparsities_at_once_equal_one_by_one(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    levels = ["0.1", "0.5", "0.9", "2of4"]
    for method in SINGLE:
        prune(tiny_model("bert"), {level: tmp_path / method / level for level in levels}, method=method, scope="linear")
        for level in levels:
            pruned(tiny_model("bert"), level, tmp_path / "single" / method / level, method)
            for file in ("sparsity.csv", "model/manifest.json"):
                one, many = (tmp_path / part / method / level / file for part in ("single", "."))
                assert one.read_text() == many.read_text()


@pytest.mark.parametrize(("method", "expected"), [
    # 2x4, by hand: half of [[1, 8, 3, 4], [5, 6, 7, 2]]
    ("magnitude", [[0, 8, 0, 0], [5, 6, 7, 0]]),
    ("uniform", [[0, 8, 0, 0], [5, 6, 7, 0]]),
])  # fmt: skip
def test_two_by_four_by_hand(method: str, expected: list[list[int]], tmp_path: Path) -> None:
    weight = torch.tensor([[1.0, 8, 3, 4], [5, 6, 7, 2]])
    assert (
        pruned(model_of({query(0): weight}, tmp_path / "model"), "0.5", tmp_path / "out", method)[query(0)].tolist()
        == expected
    )


def test_magnitude_compares_tensors_and_uniform_does_not(tmp_path: Path) -> None:
    model = model_of(
        {query(0): torch.tensor([[1.0, 2, 3, 4]]), query(1): torch.tensor([[5.0, 6, 7, 8]])}, tmp_path / "model"
    )
    after = pruned(model, "0.5", tmp_path / "magnitude")
    assert [after[query(n)].tolist() for n in (0, 1)] == [[[0, 0, 0, 0]], [[5, 6, 7, 8]]]
    after = pruned(model, "0.5", tmp_path / "uniform", "uniform")
    assert [after[query(n)].tolist() for n in (0, 1)] == [[[0, 0, 3, 4]], [[0, 0, 7, 8]]]


def test_random_depends_on_seed_and_name_alone(tmp_path: Path) -> None:
    weight = torch.ones(20, 8)
    both = model_of({query(0): weight, query(1): weight}, tmp_path / "both")
    first = pruned(both, "0.5", tmp_path / "1", "random")
    assert torch.equal(first[query(1)], pruned(both, "0.5", tmp_path / "2", "random")[query(1)])
    assert not torch.equal(first[query(1)], first[query(0)])
    assert not torch.equal(first[query(1)], pruned(both, "0.5", tmp_path / "3", "random", seed=1)[query(1)])


def test_n_of_m_along_the_input(tmp_path: Path) -> None:
    weight = torch.tensor([[1.0, -8, 3, 4], [5, 6, -7, 2]])
    after = pruned(model_of({query(0): weight}, tmp_path / "linear"), "2of4", tmp_path / "out")
    assert after[query(0)].tolist() == [[0, -8, 0, 4], [0, 6, -7, 0]]
    name = "h.0.attn.c_attn.weight"  # Conv1D: (in, out)
    after = pruned(model_of({name: weight.t().contiguous()}, tmp_path / "conv", "gpt2"), "2of4", tmp_path / "out2")
    assert after[name].t().tolist() == [[0, -8, 0, 4], [0, 6, -7, 0]]


def test_n_of_m_that_does_not_divide(tmp_path: Path) -> None:
    model = model_of({query(0): torch.ones(4, 6)}, tmp_path / "model")
    with pytest.raises(UserError, match=f"4 does not divide the input dimension of tensor {query(0)}, which is 4x6"):
        pruned(model, "2of4", tmp_path / "out")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bad: float, tmp_path: Path) -> None:
    model = model_of({query(0): torch.tensor([[1.0, bad]])}, tmp_path / "model")
    with pytest.raises(UserError, match=f"tensor {query(0)} has NaN or infinite weights"):
        pruned(model, "0.5", tmp_path / "out", "random")
    assert not (tmp_path / "out").exists()


def test_a_scope_without_tensors(tmp_path: Path) -> None:
    model = model_of({query(0): torch.ones(2, 4)}, tmp_path / "model")
    with pytest.raises(UserError, match=r"scope mlp: .* has no such tensors"):
        pruned(model, "0.5", tmp_path / "out", scope="mlp")


@pytest.mark.parametrize("scope", ["all", "linear", "attention", "mlp", "embeddings"])
def test_only_the_scope_is_touched(scope: str, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_model("bert")
    before, after = load(folder), pruned(folder, "0.9", tmp_path, scope=scope)
    opened = ModelFolder(folder)
    assert after.keys() == before.keys()
    for name in before:
        if not opened.in_scope(name, scope):
            assert torch.equal(before[name], after[name])
    assert not torch.equal(
        torch.cat([w.flatten() for w in before.values()]), torch.cat([w.flatten() for w in after.values()])
    )


def test_the_table_and_the_manifest_agree_with_the_weights(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    after = pruned(tiny_model("bert"), "0.9", tmp_path)
    rows = {row["name"]: row for row in rows_of(tmp_path)}
    for name, row in rows.items():
        assert int(row["zeros"]) == int((after[name] == 0).sum())
        assert row["shape"] == "x".join(map(str, after[name].shape))
    facts = read_json(tmp_path / "model/manifest.json")["pruned"]
    assert facts["removed"] == Sparsity("0.9").count(facts["size"])
    assert facts["measured_sparsity"] == pytest.approx(0.9, abs=1e-4)


def test_a_model_in_float16_stays_so(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = transformers.AutoModel.from_pretrained(tiny_model("bert"), dtype=torch.float16)
    shutil.copytree(tiny_model("bert"), tmp_path / "half")
    model.save_pretrained(tmp_path / "half")
    after = pruned(tmp_path / "half", "0.5", tmp_path / "out")
    assert {weight.dtype for weight in after.values()} == {torch.float16}


def test_the_real_bart(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "models/g2p-bart-us", tmp_path / "model")
    write_manifest(tmp_path / "model", kind="model")
    pruned(tmp_path / "model", "0.9", tmp_path / "out", scope="all")
    facts = read_json(tmp_path / "out/model/manifest.json")
    assert facts["pruned"]["removed"] == Sparsity("0.9").count(facts["pruned"]["size"])
    assert facts["files"]["model.safetensors"]["bytes"] < 0.12 * (tmp_path / "model/model.safetensors").stat().st_size
    assert np.isclose(facts["pruned"]["measured_sparsity"], 0.9, atol=1e-3)


def edited(model: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a model folder with changed tensors."""
    tensors = load(model)
    change(tensors)
    shutil.copytree(model, folder)
    save(folder, tensors, sparse=False)
    return folder


@pytest.mark.parametrize("method", ["magnitude", "uniform", "random"])
def test_a_ladder_is_the_same_as_one_by_one(tiny_model: Callable[[str], Path], tmp_path: Path, method: str) -> None:
    levels = ["0.9", "2of4", "0.1", "0.5"]
    prune(tiny_model("gpt2"), {level: tmp_path / "ladder" / level for level in levels}, method=method, scope="linear")
    for level in levels:
        single = tmp_path / "single" / level
        prune(tiny_model("gpt2"), {level: single}, method=method, scope="linear")
        for path in sorted(single.rglob("*")):
            if path.is_file():
                twin = tmp_path / "ladder" / level / path.relative_to(single)
                assert path.read_bytes() == twin.read_bytes(), path


def test_conv1d_patterns_run_along_the_input(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    prune(tiny_model("gpt2"), {"2of4": tmp_path}, method="magnitude", scope="linear")
    before, after = load(tiny_model("gpt2")), load(tmp_path / "model")
    name = next(name for name in after if name.endswith("h.0.attn.c_attn.weight"))
    assert after[name].shape == (32, 96)  # (in, out)
    groups = after[name].t().reshape(96, 8, 4)
    assert bool(((groups != 0).sum(2) == 2).all())
    dense = before[name].t().reshape(96, 8, 4).abs()
    assert bool((groups.abs().sum(2) == dense.topk(2, dim=2).values.sum(2)).all())
    assert not bool(((after[name].reshape(32, 24, 4) != 0).sum(2) == 2).all())
    prune(tiny_model("gpt2"), {"2of4": tmp_path / "embeddings"}, method="magnitude", scope="embeddings")
    embedding = load(tmp_path / "embeddings/model")["transformer.wte.weight"]  # (tokens, features): not transposed
    assert bool(((embedding.reshape(len(embedding), 8, 4) != 0).sum(2) == 2).all())


def test_pattern_that_does_not_divide_is_refused_before_anything_is_written(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"3of5: 5 does not divide the input dimension of tensor encoder\.layer\.0"):
        prune(tiny_model("bert"), {"0.5": tmp_path / "a", "3of5": tmp_path / "b"}, method="magnitude", scope="linear")
    with pytest.raises(UserError, match=r"LayerNorm\.weight, which is 32; choose scope linear"):
        prune(tiny_model("bert"), {"2of4": tmp_path / "a"}, method="magnitude", scope="all")
    assert list(tmp_path.iterdir()) == []


def test_tied_tensors_count_once(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = edited(
        tiny_model("bart"), tmp_path / "bart",
        lambda tensors: tensors.update(
            {f"{stack}.embed_tokens.weight": tensors["shared.weight"].clone() for stack in ("encoder", "decoder")}
        ),
    )  # fmt: skip
    prune(model, {"0.5": tmp_path / "copies"}, method="magnitude", scope="all")
    prune(tiny_model("bart"), {"0.5": tmp_path / "once"}, method="magnitude", scope="all")
    assert load(tmp_path / "copies/model").keys() == load(tmp_path / "once/model").keys()
    result = load_model(transformers.AutoModel, ModelFolder(tmp_path / "copies/model"))
    assert result.encoder.embed_tokens.weight.data_ptr() == result.decoder.embed_tokens.weight.data_ptr()
    assert torch.equal(result.encoder.embed_tokens.weight, load(tmp_path / "once/model")["shared.weight"])
    assert rows_of(tmp_path / "copies") == rows_of(tmp_path / "once")


def test_the_files_of_a_pruned_model(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    prune(tiny_model("roberta"), {"0.3": tmp_path}, method="magnitude", scope="linear", seed=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "sparsity.csv"]
    dense, manifest = read_manifest(tiny_model("roberta")), read_manifest(tmp_path / "model")
    assert manifest["source"] == dense["source"] and manifest["model_type"] == "roberta"
    assert manifest["files"].keys() == dense["files"].keys()
    rows = rows_of(tmp_path)
    tensors = load(tmp_path / "model")
    size = sum(int(row["size"]) for row in rows)
    zeros = sum(int((tensors[row["name"]] == 0).sum()) for row in rows)
    assert manifest["pruned"] == {
        "method": "magnitude", "scope": "linear", "sparsity": "0.3", "seed": 4, "min_density": 0.0,
        "size": size, "removed": Sparsity("0.3").count(size), "measured_sparsity": zeros / size,
    }  # fmt: skip
    model = ModelFolder(tiny_model("roberta"))
    assert [row["name"] for row in rows] == sorted(name for name in tensors if model.in_scope(name, "linear"))
    assert len({row["threshold"] for row in rows}) == 1
    first = rows[0]
    assert first["name"] == "roberta.encoder.layer.0.attention.output.dense.weight"
    assert (first["stack"], first["layer"], first["part"]) == ("encoder", "0", "attention")
    assert (first["shape"], first["dtype"], first["size"]) == ("32x32", "float32", "1024")
    # The weights at or below the threshold are the zeros, and there are no others.
    threshold = float(first["threshold"])
    original = load(tiny_model("roberta"))
    for row in rows:
        assert torch.equal(tensors[row["name"]] == 0, original[row["name"]].abs() <= threshold)


def test_zeros_of_both_signs_are_removed_first_and_stored_as_0(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[query(0)][:4] = -0.0
        tensors[query(0)][4:8] = 0.0

    model = edited(tiny_model("bert"), tmp_path / "zeros", change)
    prune(model, {"0.001": tmp_path / "few", "0.5": tmp_path / "half"}, method="magnitude", scope="linear")
    for level in ("few", "half"):
        tensor = load(tmp_path / level / "model")[query(0)]
        assert bool((tensor[:8] == 0).all()) and not bool(torch.signbit(tensor[tensor == 0]).any())
    rows = {row["name"]: row for row in rows_of(tmp_path / "few")}
    size = sum(int(row["size"]) for row in rows.values())
    # All removed weights were zero before; ties are broken by position, so they are the first ones.
    removed = {name: int(row["removed"]) for name, row in rows.items()}
    assert removed[query(0)] == sum(removed.values()) == Sparsity("0.001").count(size)
    assert int(rows[query(0)]["zeros"]) == 256
    assert float(rows[query(0)]["threshold"]) == 0
    manifest = read_manifest(tmp_path / "few/model")["pruned"]
    assert manifest["removed"] == Sparsity("0.001").count(size) and manifest["measured_sparsity"] == 256 / size


def test_a_failure_leaves_no_model(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unstructured, "_remove", fail)
    with pytest.raises(OSError, match="No space"):
        prune(tiny_model("bert"), {"0.5": tmp_path / "out"}, method="magnitude", scope="linear")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_no_older_manifest_describes_the_weights_of_an_interrupted_run(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    prune(tiny_model("bert"), {"0.5": tmp_path}, method="magnitude", scope="linear")
    monkeypatch.setattr("llm_sparsity.pruning.prune.copy_companions", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prune(tiny_model("bert"), {"0.9": tmp_path}, method="magnitude", scope="linear")
    assert not (tmp_path / "model/manifest.json").exists()


def test_a_model_without_one_of_its_tensors_is_not_written(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = unstructured.UnstructuredPruner.results

    def fewer(self: unstructured.UnstructuredPruner, names: list[str]) -> Any:
        return results(self, names[1:])

    monkeypatch.setattr(unstructured.UnstructuredPruner, "results", fewer)
    with pytest.raises(RuntimeError, match=r"sparsity 0.5: tensor .* are missing or unknown; this is a bug"):
        prune(tiny_model("bert"), {"0.5": tmp_path / "out"}, method="magnitude", scope="linear")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_shard_at_a_time_and_from_a_sparse_model(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_model(transformers.AutoModel, ModelFolder(tiny_model("bert")))
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    write_manifest(tmp_path / "shards", kind="model")
    shutil.copytree(tiny_model("bert"), tmp_path / "sparse")
    save(tmp_path / "sparse", load(tiny_model("bert")), sparse=True)
    for source in ("shards", "sparse"):
        prune(tmp_path / source, {"0.6": tmp_path / f"{source}-out"}, method="magnitude", scope="all")
    prune(tiny_model("bert"), {"0.6": tmp_path / "plain-out"}, method="magnitude", scope="all")
    expected = (tmp_path / "plain-out/model/model.safetensors").read_bytes()
    for source in ("shards", "sparse"):
        assert (tmp_path / f"{source}-out/model/model.safetensors").read_bytes() == expected
    assert not list((tmp_path / "shards-out/model").glob("*index*"))


def test_a_real_model(shared: Path, tmp_path: Path) -> None:
    """g2p-bart: real weights, tied embeddings, both stacks."""
    model = tmp_path / "g2p"
    shutil.copytree(shared / "models/g2p-bart-us", model)
    write_manifest(model, kind="model")
    levels = ["0.1", "0.5", "0.9", "0.95", "0.99"]
    prune(model, {level: tmp_path / level for level in levels}, method="magnitude", scope="all")
    dense = load(model)
    names = [row["name"] for row in rows_of(tmp_path / "0.5")]
    assert {name for name in dense if name.endswith(".weight")} >= set(names)
    pool = torch.cat([dense[name].flatten().abs() for name in names])
    sizes = []
    for level in levels:
        result = load(tmp_path / level / "model")
        count = Sparsity(level).count(len(pool))
        threshold = pool.kthvalue(count).values
        removed = torch.cat([result[name].flatten() == 0 for name in names])
        assert int(removed.sum()) == count
        assert bool(removed[pool < threshold].all()) and not bool(removed[pool > threshold].any())
        sizes.append((tmp_path / level / "model/model.safetensors").stat().st_size)
    # The sparser, the smaller; from .5 on smaller than the mask and the survivors would be uncompressed.
    stored = sum(tensor.nbytes for tensor in dense.values())
    assert sizes == sorted(sizes, reverse=True) and sizes[1] < 0.55 * stored and sizes[4] < 0.1 * stored


@pytest.mark.parametrize(("kind", "embeddings"), [("llama", "model.embed_tokens"), ("gpt2", "transformer.wte")])
def test_an_output_layer_stored_beside_its_embeddings_stays_tied(
    kind: str, embeddings: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    model = edited(
        tiny_model(kind),
        tmp_path / "both",
        lambda tensors: tensors.update({"lm_head.weight": tensors[f"{embeddings}.weight"].clone()}),
    )
    for name, folder in (("both", model), ("once", tiny_model(kind))):
        prune(folder, {"0.9": tmp_path / "out" / name}, method="magnitude", scope="all")
    assert rows_of(tmp_path / "out/both") == rows_of(tmp_path / "out/once")
    result = load_causal(ModelFolder(tmp_path / "out/both/model"))
    assert result.lm_head.weight is result.get_input_embeddings().weight
    assert torch.equal(result.lm_head.weight, load(tmp_path / "out/once/model")[f"{embeddings}.weight"])


def test_a_tied_gpt_neox_stays_tied(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Its output layer has a name of its own, `embed_out`, and its file may hold both."""
    shutil.copytree(tiny_model("gpt2"), tmp_path / "neox")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.GPTNeoXConfig(**sizes, vocab_size=24, tie_word_embeddings=True)
    transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "neox")
    model = edited(
        tmp_path / "neox",
        tmp_path / "both",
        lambda tensors: tensors.update({"embed_out.weight": tensors["gpt_neox.embed_in.weight"].clone()}),
    )
    prune(model, {"0.9": tmp_path / "out"}, method="magnitude", scope="all")
    result = load(tmp_path / "out/model")
    assert torch.equal(result["embed_out.weight"], result["gpt_neox.embed_in.weight"])
    net = load_causal(ModelFolder(tmp_path / "out/model"))
    assert net.get_output_embeddings().weight is net.get_input_embeddings().weight


def test_a_list_of_layers_is_a_scope(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    before = load(tiny_model("bart"))
    after = pruned(tiny_model("bart"), "0.5", tmp_path, scope="layers.1")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".layers.1." in name and name.endswith("weight") for name in changed)
    assert any(name.startswith("encoder") for name in changed) and any(name.startswith("decoder") for name in changed)


@pytest.mark.parametrize(("scope", "layer"), [("layers.1.2", 2), ("layers.7", 7), ("layers.0.1.12.30", 12)])
def test_a_layer_beyond_the_depth_is_refused(
    scope: str, layer: int, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its variant would say layers 1 and 2, and be layer 1 alone."""
    with pytest.raises(UserError, match=rf"^scope {scope}: .* has no layer {layer}, only 0 to 1; choose among them$"):
        pruned(tiny_model("bart"), "0.5", tmp_path / "out", scope=scope)
    assert not (tmp_path / "out").exists()


def test_dtypes_may_differ_but_not_be_quantised(tmp_path: Path) -> None:
    tensors = {query(0): torch.tensor([[1.0, 4.0]]), query(1): torch.tensor([[2.0, 3.0]], dtype=torch.bfloat16)}
    after = pruned(model_of(tensors, tmp_path / "mixed"), "0.5", tmp_path / "out")
    assert after[query(0)].tolist() == [[0, 4]] and after[query(1)].tolist() == [[0, 3]]
    assert after[query(1)].dtype == torch.bfloat16
    tensors[query(1)] = torch.tensor([[2, 3]], dtype=torch.int8)
    with pytest.raises(UserError, match=r"tensor .*layer.1.* is int8, a quantised weight; prune the model before"):
        pruned(model_of(tensors, tmp_path / "int8"), "0.5", tmp_path / "no")


def test_a_pruned_model_is_pruned_again(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    stage.prune(tiny_model("llama"), {0.5: tmp_path / "once"}, method="magnitude", scope="linear")
    stage.prune(tmp_path / "once/model", {0.9: tmp_path / "twice"}, method="magnitude", scope="linear")
    stage.prune(tiny_model("llama"), {0.9: tmp_path / "at once"}, method="magnitude", scope="linear")
    stage.prune(tmp_path / "once/model", {0: tmp_path / "quantised"}, method="int8", scope="linear")
    manifests = {name: read_manifest(tmp_path / name / "model")["pruned"] for name in ("twice", "at once", "quantised")}
    assert manifests["twice"] == manifests["at once"]
    assert manifests["quantised"]["method"] == "int8" and manifests["quantised"]["measured_sparsity"] >= 0.5
    twice, at_once = (load(tmp_path / name / "model") for name in ("twice", "at once"))
    assert all(torch.equal(twice[name], at_once[name]) for name in at_once)


@pytest.mark.parametrize(
    ("outputs", "more", "message"),
    [
        ({}, {}, "outputs: found {}; give a folder for each sparsity"),
        ([0.5], {}, "outputs: found [0.5]; give a folder for each sparsity"),
        ({0.5: "a", "0.50": "b"}, {}, "outputs: 0.5, 0.50 name one sparsity twice"),
        ({0.5: "a", 0.9: "x/../a"}, {}, "is given for two sparsities; give each its own folder"),
        ({0.5: "."}, {}, "holds the model itself, in model/; name another folder"),
        ({0.5: "file"}, {}, "/file is a file; name a folder"),
        ({0.5: "file/below"}, {}, "/file is a file; name a folder"),
        ({0.5: "a"}, {"seed": "a"}, "seed: found 'a'; give a whole number"),
        ({0.5: "a"}, {"min_density": float("nan")}, "min_density: found nan; give a fraction in [0, 1)"),
        ({0.5: "a"}, {"min_density": -1}, "min_density: found -1; give"),
        ({0.5: "a"}, {"layerwise": "OWL"}, "layerwise: found 'OWL'; give uniform or owl"),
        (
            {0.5: "a"},
            {"calibration": {"samples": 8}},
            "calibration: found {'samples': 8}; give samples, sequence_length",
        ),
        (
            {0.5: "a"},
            {"calibration": {"samples": 8.0, "sequence_length": 8, "seed": 0}},
            "calibration.samples: found 8.0; give a whole number, 1 or more",
        ),
    ],
)
def test_arguments_without_a_meaning(
    outputs: Any, more: dict[str, Any], message: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_model("bert"), tmp_path / "model")
    (tmp_path / "file").write_text("")
    if isinstance(outputs, dict):
        outputs = {level: tmp_path / name for level, name in outputs.items()}
    before = (tmp_path / "model/manifest.json").read_bytes()
    with pytest.raises(UserError) as error:
        stage.prune(tmp_path / "model", outputs, **{"method": "magnitude", "scope": "linear", **more})
    assert message in str(error.value)
    assert (tmp_path / "model/manifest.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model"]


def test_numbers_of_other_libraries_are_numbers(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Of NumPy, whose types JSON does not know, and fractions."""
    numbers: list[Any] = [(1, 0.25), (np.int64(1), np.float32(0.25)), (1, Fraction(1, 4))]
    made = []
    for seed, density in numbers:
        output = tmp_path / str(len(made))
        prune(tiny_model("bert"), {0.5: output}, method="random", scope="linear", seed=seed, min_density=density)
        made.append(read_json(output / "model/manifest.json")["pruned"])
    assert made[0] == made[1] == made[2]


def test_a_checkpoint_that_is_not_whole_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny_model("llama"), tmp_path / "model")
    tensors = load(tmp_path / "model")
    del tensors[next(name for name in tensors if "up_proj" in name)]
    save(tmp_path / "model", tensors, sparse=False)
    with pytest.raises(UserError, match="1 missing"):
        stage.prune(tmp_path / "model", {0.5: tmp_path / "out"}, method="magnitude", scope="linear")
    assert not (tmp_path / "out").exists()
