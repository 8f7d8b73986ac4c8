"""Heads and neurons that are removed, and blocks that are set to zero, on models of many types."""

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_base
from llm_sparsity.storage.files import read_json, read_manifest, write_manifest
from tests.marks import slow_but
from tests.tiny import model_of, query
from tests.unit.pruning.helpers import prune, rows_of
from tests.weights import load, save, to_plain
from tests.zoo import EVERY, WHOLE, ZOO, make

KNOWN = list(ZOO)[:13]


def random_model(kind: str, folder: Path) -> Path:
    """A transformers model with RANDOM weights, as a folder."""
    make(kind, vocab_size=40).save_pretrained(folder)
    write_manifest(folder, kind="model")
    return folder


def empty_every_second(folder: Path, scope: str) -> None:
    """Zero the weights of every second head and neuron of a scope: they have the lowest scores and no effect."""
    model, tensors = ModelFolder(folder), load(folder)
    for name, tensor in tensors.items():
        axis, role = model.structure.axis(name), model.role(name)
        if axis and role and role.in_scope(scope):
            sizes = axis.sizes(tensor.shape[axis.dim])
            units = model.structure.groups[role.stack] if role.part == "attention" else sizes[0]
            tensors[name] = tensor.clone()
            for part in tensors[name].movedim(axis.dim, 0).split(sizes):
                part.unflatten(0, (units, -1))[::2] = 0
    save(folder, tensors, sparse=False)
    write_manifest(folder, kind="model")


def output_of(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.tensor([[5, 7, 11, 13, 17, 2], [3, 1, 4, 1, 5, 9]])
    with torch.inference_mode():
        return model.eval()(input_ids=tokens).last_hidden_state


def unchanged_output(kind: str, scope: str, folder: Path) -> None:
    """Check that a model without the heads and neurons that have no effect has the output of the whole one."""
    model = random_model(kind, folder / "model")
    empty_every_second(model, scope)
    prune(model, {"0.5": folder / "out"}, method="structured", scope=scope)
    cut, dense = load_base(ModelFolder(folder / "out" / "model")), load_base(ModelFolder(model))
    torch.testing.assert_close(output_of(cut), output_of(dense), rtol=1e-5, atol=1e-5)
    pruned = read_manifest(folder / "out" / "model")["pruned"]
    assert pruned["removed"] == pruned["size"] / 2
    assert sum(p.numel() for p in dense.parameters()) - sum(p.numel() for p in cut.parameters()) >= pruned["removed"]


@pytest.mark.parametrize("scope", ["linear", "layers.1"])
@pytest.mark.parametrize("kind", slow_but(("bert", "gpt2", "llama", "bart"), KNOWN))
def test_removing_units_without_effect_keeps_the_output(kind: str, scope: str, tmp_path: Path) -> None:
    unchanged_output(kind, scope, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["attention", "mlp"])
@pytest.mark.parametrize("kind", EVERY)
def test_any_type_loses_units_or_is_refused_in_a_line(kind: str, scope: str, tmp_path: Path) -> None:
    if scope not in WHOLE.get(kind, {}):
        unchanged_output(kind, scope, tmp_path)
        return
    with pytest.raises(UserError, match=rf"^method structured: .*{WHOLE[kind][scope]}") as error:
        prune(random_model(kind, tmp_path / "model"), {"0.5": tmp_path / "out"}, method="structured", scope=scope)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.parametrize("kind", slow_but(("bert", "gpt2", "llama", "bart"), KNOWN))
def test_plain_transformers_loads_models_whose_configuration_can_express_them(kind: str, tmp_path: Path) -> None:
    grouped = kind in ("llama", "mistral", "qwen2", "qwen3")
    folder = random_model(kind, tmp_path / "model")
    prune(folder, {"0.5": tmp_path / "out"}, method="structured", scope="linear" if grouped else "mlp")
    to_plain(tmp_path / "out" / "model", tmp_path / "plain")
    plain = transformers.AutoModel.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(output_of(plain), output_of(load_base(ModelFolder(tmp_path / "out" / "model"))))


def test_heads_with_the_smallest_weights_are_removed(tmp_path: Path) -> None:
    """Two heads of one weight each: the first has 1 + 4 + 1 + 1 = 7, the second 0 + 0 + 9 + 0 = 9 as sum of squares."""
    part = "encoder.layer.0.attention."
    tensors = {
        query(0): torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
        f"{part}self.query.bias": torch.tensor([50.0, 60.0]),
        f"{part}self.key.weight": torch.tensor([[0.0, 2.0], [0.0, 0.0]]),
        f"{part}self.key.bias": torch.tensor([0.0, 0.0]),
        f"{part}self.value.bias": torch.tensor([0.0, 0.0]),
        f"{part}self.value.weight": torch.tensor([[1.0, 0.0], [3.0, 0.0]]),
        f"{part}output.dense.weight": torch.tensor([[1.0, 0.0], [0.0, -0.0]]),
        f"{part}output.dense.bias": torch.tensor([7.0, 8.0]),
    }
    model = model_of(tensors, tmp_path / "model")
    (model / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 2, "num_attention_heads": 2}))
    prune(model, {"0.5": tmp_path / "out"}, method="structured", scope="attention")
    after = load(tmp_path / "out" / "model")
    assert after[query(0)].tolist() == [[0, 0]]
    assert after[f"{part}self.query.bias"].tolist() == [60]
    assert after[f"{part}self.value.weight"].tolist() == [[3, 0]]
    assert after[f"{part}output.dense.weight"].tolist() == [[0], [0]]
    assert after[f"{part}output.dense.bias"].tolist() == [7, 8]


def test_the_last_head_stays(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"remove all 4 heads of encoder.0.attention; choose one below 0.8750$"):
        prune(tiny_model("bert"), {"0.88": tmp_path}, method="structured", scope="attention")
    assert not (tmp_path / "model" / "model.safetensors").exists()
    prune(tiny_model("bert"), {"0.8749": tmp_path}, method="structured", scope="attention")
    assert {row["shape"] for row in rows_of(tmp_path)} == {"8x32", "32x8"}  # one head of four


def test_a_sparsity_between_whole_heads_prints_the_one_reached(
    tiny_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prune(tiny_model("bert"), {"0.3": tmp_path}, method="structured", scope="attention")
    assert "sparsity 0.3: 0.2500 reached, because only whole heads and neurons are removed" in capsys.readouterr().out
    assert read_manifest(tmp_path / "model")["pruned"]["measured_sparsity"] == 0.25


def test_parts_without_heads_or_neurons_are_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method structured removes heads and neurons, tensor .* has none; choose"):
        prune(tiny_model("bert"), {"0.5": tmp_path}, method="structured", scope="all")
    with pytest.raises(UserError, match="a pattern is of single weights"):
        prune(tiny_model("bert"), {"2of4": tmp_path}, method="structured", scope="linear")


def test_the_configuration_has_the_new_sizes(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    prune(tiny_model("llama"), {"0.5": tmp_path / "a"}, method="structured", scope="linear")
    after = read_json(tmp_path / "a" / "model" / "config.json")
    assert (after["num_attention_heads"], after["num_key_value_heads"], after["head_dim"]) == (2, 1, 8)
    assert after["intermediate_size"] == 32
    prune(tiny_model("llama"), {"0.5": tmp_path / "b"}, method="structured", scope="layers.0")
    assert read_json(tmp_path / "b" / "model" / "config.json")["intermediate_size"] == 64  # layer 1 keeps its width


def test_infinities_of_a_configuration_stay(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    mamba = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4, "attn_layer_indices": [1]}
    config = transformers.BambaConfig(vocab_size=26, intermediate_size=64, **sizes, **mamba)
    transformers.BambaForCausalLM(config).save_pretrained(tmp_path / "model")
    prune(tmp_path / "model", {"0.5": tmp_path / "out"}, method="structured", scope="mlp")
    assert ModelFolder(tmp_path / "out/model").model_config.time_step_limit[1] == math.inf
    after = read_json(tmp_path / "out/model/config.json")
    assert after == read_json(tmp_path / "model/config.json") | {"intermediate_size": 32}


def test_the_smallest_blocks_are_removed(tmp_path: Path) -> None:
    sizes = torch.tensor([[3.0, -1.0], [-2.0, 4.0]])
    weight = sizes.repeat_interleave(16, 0).repeat_interleave(16, 1)
    prune(model_of({query(0): weight}, tmp_path / "model"), {"0.5": tmp_path / "out"}, method="block", scope="linear")
    after = load(tmp_path / "out/model")[query(0)]
    assert after[::16, ::16].tolist() == [[3, 0], [0, 4]]
    assert torch.equal(after, after[::16, ::16].repeat_interleave(16, 0).repeat_interleave(16, 1))


def test_equal_blocks_are_removed_by_position(tmp_path: Path) -> None:
    model = model_of({query(0): torch.ones(32, 32)}, tmp_path / "model")
    prune(model, {"0.7": tmp_path / "out"}, method="block", scope="linear")
    assert load(tmp_path / "out" / "model")[query(0)][::16, ::16].tolist() == [[0, 0], [0, 1]]
    assert read_manifest(tmp_path / "out" / "model")["pruned"]["measured_sparsity"] == 0.75


def test_a_matrix_that_blocks_do_not_divide_is_named(tmp_path: Path) -> None:
    model = model_of({query(0): torch.ones(32, 20)}, tmp_path / "model")
    with pytest.raises(UserError, match=r"blocks of 16x16 do not divide tensor .*query.weight, which is 32x20"):
        prune(model, {"0.5": tmp_path / "out"}, method="block", scope="linear")


def test_every_method_declares_its_granularity() -> None:
    from llm_sparsity.study.methods import METHODS

    for method in METHODS:
        rule = importlib.import_module(f"llm_sparsity.pruning.methods.{method}")
        assert rule.GRANULARITY is None or len(rule.GRANULARITY) == 2
        assert hasattr(rule, "observe") or rule.COMPARISON in ("scope", "tensor", "layer")
        assert "arXiv" in rule.__doc__


@pytest.mark.parametrize("with_manifest", [True, False])
def test_heads_that_are_gone_are_not_removed_by_halves(with_manifest: bool, tmp_path: Path) -> None:
    """BERT's configuration tells no width of a head but that of all: of two heads left, four halves would be made."""
    model = random_model("bert", tmp_path / "model")
    prune(model, {"0.5": tmp_path / "once"}, method="structured", scope="attention")
    if not with_manifest:
        (tmp_path / "once/model/manifest.json").unlink()
    with pytest.raises(UserError, match=r"has lost heads already, and how many does not stand in config\.json; prune"):
        prune(tmp_path / "once/model", {"0.5": tmp_path / "twice"}, method="structured", scope="attention")
    prune(tmp_path / "once/model", {"0.5": tmp_path / "neurons"}, method="structured", scope="mlp")
    assert load_base(ModelFolder(tmp_path / "neurons/model"))
