"""Whole models pruned by calibrated methods, beside slow references."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_model
from llm_sparsity.pruning import calibration
from llm_sparsity.storage.container import Reader
from llm_sparsity.storage.files import read_manifest, write_manifest
from llm_sparsity.study.sparsity import Sparsity
from tests.marks import slow_but
from tests.unit.pruning.helpers import DRAW, calibrated, drawn, prune, rows_of
from tests.unit.pruning.references import SLOW, Array
from tests.weights import load, save

KINDS = ["llama", "gpt2", "bert", "roberta", "distilbert", "bart"]


def slow_model(folder: Path, tokens: torch.Tensor, level: str, method: str) -> dict[str, Array]:
    """The whole model in memory, run from its beginning for every block; name in the file -> pruned (out, in)."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    opened = ModelFolder(folder)
    with Reader(folder) as reader:
        names = {name.removeprefix(f"{model.base_model_prefix}."): name for name in reader.names}
    layers: dict[tuple[str, int], dict[str, Any]] = {}
    for path, module in model.named_modules():
        name = names.get(f"{path}.weight", "")
        if (role := opened.role(name)) and role.in_scope("linear"):
            layers.setdefault((role.stack, role.layer), {})[name] = module
    pruned: dict[str, Array] = {}
    for stack in ("encoder", "decoder"):
        for (_, _), modules in sorted(item for item in layers.items() if item[0][0] == stack):
            seen: dict[str, list[Any]] = {name: [] for name in modules}
            hooks = [
                module.register_forward_hook(lambda _, args, __, into=seen[name]: into.append(args[0].flatten(0, -2)))
                for name, module in modules.items()
            ]
            with torch.no_grad():
                model(input_ids=tokens)
            for hook in hooks:
                hook.remove()
            for name, module in modules.items():
                weight = module.weight.detach().double().numpy()
                weight = weight.T if opened.structure.is_transposed(name) else weight
                pruned[name] = SLOW[method](weight, torch.cat(seen[name]).double().numpy(), level)
                result = pruned[name].T if opened.structure.is_transposed(name) else pruned[name]
                module.weight.data = torch.from_numpy(result.copy()).float()
    return pruned


@pytest.mark.parametrize("kind", slow_but(("llama", "bart"), KINDS))
@pytest.mark.parametrize(("method", "level"), [("wanda", "0.5"), ("wanda", "2of4"), ("sparsegpt", "0.3")])
def test_block_by_block_is_the_same_as_the_whole_model_at_once(
    kind: str, method: str, level: str, tiny_model: Callable[[str], Path], text: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(calibration, "TOKENS", 64)  # two sequences at once
    model = tiny_model(kind)
    result = calibrated(model, text, tmp_path, level, method)
    expected = slow_model(model, drawn(model, text), level, method)
    before, opened = load(model), ModelFolder(model)
    assert {name for name in result if opened.in_scope(name, "linear")} == set(expected)
    differing = total = 0
    for name, weight in result.items():
        if name not in expected:
            assert torch.equal(weight, before[name])
            continue
        assert weight.shape == before[name].shape and weight.dtype == before[name].dtype
        oriented = (weight.t() if opened.structure.is_transposed(name) else weight).double().numpy()
        differing += int(((oriented == 0) != (expected[name] == 0)).sum())
        total += weight.numel()
        assert np.linalg.norm(oriented - expected[name]) < 0.02 * np.linalg.norm(expected[name]), name
    assert differing <= 0.001 * total  # near ties
    loaded = load_model(transformers.AutoModel, ModelFolder(tmp_path / "model"))
    assert bool(loaded(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state.isfinite().all())


OTHERS: dict[str, Any] = {
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    },
    "gpt_neox": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "mistral": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "qwen2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "qwen3": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4},  # its layers return lists
    "electra": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "embedding_size": 16},
    "mbart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
}


@pytest.mark.parametrize("kind", slow_but(("electra", "mbart"), OTHERS))
def test_every_other_family_runs_block_by_block_too(
    kind: str, tiny_model: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    tokenizer = {"electra": "bert", "mbart": "bart"}.get(kind, "llama")
    common = {"vocab_size": 26, "pad_token_id": 0, "bos_token_id": 4, "eos_token_id": 5}
    shared = {"num_key_value_heads": 2} if kind in ("mistral", "qwen2", "qwen3") else {}
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(kind, **OTHERS[kind], **common, **shared)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    for path in tiny_model(tokenizer).glob("token*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_manifest(tmp_path, kind="model")
    result = calibrated(tmp_path, text, tmp_path / "out", "0.5", "wanda")
    expected = slow_model(tmp_path, drawn(tmp_path, text), "0.5", "wanda")
    opened = ModelFolder(tmp_path)
    assert {name for name in result if opened.in_scope(name, "linear")} == set(expected)
    oriented = {name: result[name].t() if opened.structure.is_transposed(name) else result[name] for name in expected}
    differing = sum(int(((oriented[name].numpy() == 0) != (weight == 0)).sum()) for name, weight in expected.items())
    assert differing <= 0.001 * sum(weight.size for weight in expected.values())


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "admm"])
def test_several_sparsities_are_the_same_as_one_by_one(
    method: str, tiny_model: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    levels = ["0.5", "2of4", "0.25"]
    outputs = {level: tmp_path / "together" / level for level in levels}
    prune(tiny_model("llama"), outputs, method=method, scope="linear", calibration=DRAW, text=text)
    for level in levels:
        single = tmp_path / "single" / level
        calibrated(tiny_model("llama"), text, single, level, method)
        for path in sorted(path for path in single.rglob("*") if path.is_file()):
            assert path.read_bytes() == (outputs[level] / path.relative_to(single)).read_bytes(), path


@pytest.mark.parametrize(
    ("kind", "scope"), [("bart", "encoder"), ("bart", "decoder"), ("bert", "mlp"), ("gpt2", "layers.0")]
)
def test_only_the_scope_is_touched(
    kind: str, scope: str, tiny_model: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    model = tiny_model(kind)
    before, after = load(model), calibrated(model, text, tmp_path, "0.5", "sparsegpt", scope)
    opened = ModelFolder(model)
    assert before.keys() == after.keys()
    for name, weight in after.items():
        inside = opened.in_scope(name, scope)
        assert int((weight == 0).sum()) == weight.numel() // 2 if inside else torch.equal(weight, before[name])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_error_of_every_matrix(kind: str, tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    """Beside whole models, whose blocks before the matrix are pruned; six sequences of 32 tokens are one batch."""
    folder = tiny_model(kind)
    opened = ModelFolder(folder)
    after = calibrated(folder, text, tmp_path, "0.5", "sparsegpt")
    rows = rows_of(tmp_path)
    for layer in (0, 1):
        model = load_model(transformers.AutoModelForCausalLM, opened)
        inputs: dict[str, torch.Tensor] = {}
        mine = {row["name"]: float(row["error"]) for row in rows if int(row["layer"]) == layer}
        modules = {name: model.get_submodule(name.removesuffix(".weight")) for name in mine}
        for row in rows:
            if int(row["layer"]) < layer:
                model.get_submodule(row["name"].removesuffix(".weight")).weight.data = after[row["name"]]
        for name, module in modules.items():
            module.register_forward_pre_hook(lambda _, given, name=name, inputs=inputs: inputs.update({name: given[0]}))
        with torch.no_grad():
            model(input_ids=drawn(folder, text))
        assert mine
        for name, error in mine.items():
            dense, small = modules[name].weight.data, after[name]
            if not opened.structure.is_transposed(name):
                dense, small = dense.t(), small.t()
            expected = ((inputs[name] @ (small - dense)).norm() / (inputs[name] @ dense).norm()).item()
            assert error == pytest.approx(expected, rel=1e-3)


def test_the_table_and_the_manifest(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    after = calibrated(tiny_model("llama"), text, tmp_path, "0.7", "wanda")
    rows = rows_of(tmp_path)
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
    for row in rows:
        assert int(row["zeros"]) == int((after[row["name"]] == 0).sum()) == Sparsity("0.7").count(int(row["size"]))
        assert 0 < float(row["block_error"]) < 1
    facts = read_manifest(tmp_path / "model")["pruned"]
    assert facts["calibration"] == {"task": text.name, **DRAW} and facts["layerwise"] == "uniform"
    again = tmp_path / "again"
    calibrated(tiny_model("llama"), text, again, "0.7", "wanda")
    assert (again / "model/model.safetensors").read_bytes() == (tmp_path / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_the_error_of_a_matrix_that_is_zero(
    method: str, tiny_model: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    """So are the inputs of the output projection after it."""
    shutil.copytree(tiny_model("llama"), tmp_path / "model")
    tensors = load(tmp_path / "model")
    name = "model.layers.1.self_attn.{}_proj.weight"
    tensors[name.format("v")].zero_()
    save(tmp_path / "model", tensors, sparse=False)
    calibrated(tmp_path / "model", text, tmp_path / "out", "0.5", method)
    errors = {row["name"]: float(row["error"]) for row in rows_of(tmp_path / "out")}
    assert errors[name.format("v")] == errors[name.format("o")] == 0
    assert errors[name.format("q")] > 0


def test_a_model_in_float16_stays_so(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    for path in tiny_model("llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    halves = {name: weight.half() for name, weight in load(tiny_model("llama")).items()}
    save(tmp_path, halves, sparse=False)
    after = calibrated(tmp_path, text, tmp_path / "out", "0.5", "sparsegpt")
    assert {weight.dtype for weight in after.values()} == {torch.float16}


@pytest.mark.parametrize(("part", "function"), [("methods.wanda", "prune"), ("steps.swaps", "repair")])
def test_a_method_or_a_step_that_keeps_too_many_weights_is_refused(
    part: str, function: str, tiny_model: Callable[[str], Path], text: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(f"llm_sparsity.pruning.{part}.{function}", lambda dense, *_: dense)
    word = part.partition(".")[2]
    said = rf"^method {word}: sets 0 weights of \S+ to zero, expected \d+; correct its `{function}`$"
    with pytest.raises(UserError, match=said):
        calibrated(tiny_model("llama"), text, tmp_path, "0.5", "wanda+swaps")
    assert not list(tmp_path.rglob("*.safetensors"))
