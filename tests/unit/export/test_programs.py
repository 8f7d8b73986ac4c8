"""Exported folders against what other programs need, and models of every known type. Weights are RANDOM."""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
import transformers

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.export import outputs as alone
from llm_sparsity.export.cell import find_cell
from llm_sparsity.export.export import export
from llm_sparsity.export.plain import load_plain
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_classifier
from llm_sparsity.pruning.prune import prune
from llm_sparsity.study.sparsity import Sparsity
from llm_sparsity.training.finetune import finetune
from llm_sparsity.training.settings import FinetuneSettings
from tests import weights, zoo
from tests.kill import SETTINGS
from tests.marks import slow_but
from tests.tiny import save_mood_task

# What convert_hf_to_gguf.py of llama.cpp asks config.json for; of several names, any.
KEYS = {
    "gpt2": ["n_layer|num_hidden_layers", "n_ctx|n_positions", "n_embd", "n_head", "layer_norm_epsilon"],
    "llama": [
        "num_hidden_layers", "max_position_embeddings", "hidden_size", "intermediate_size", "num_attention_heads",
        "num_key_value_heads", "rms_norm_eps", "rope_theta", "vocab_size",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", slow_but(["llama"], KEYS))
def test_the_converter_of_llama_cpp_knows_every_name(kind: str, study: Path, tmp_path: Path) -> None:
    export(find_cell(study / "results" / kind / "magnitude-linear-0.5"), tmp_path / "out", check=False)
    config = json.loads((tmp_path / "out/config.json").read_text())
    for names in KEYS[kind]:
        assert any(config.get(name) is not None for name in names.split("|")), names
    architecture = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    known = gguf.get_tensor_name_map(architecture, 2)
    for name in weights.load(tmp_path / "out"):
        assert known.get_name(name, try_suffixes=(".weight", ".bias")) is not None, name


def test_programs_of_transformers_4_find_the_rotary_base(tmp_path: Path, study: Path) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    zoo.save("llama", tmp_path / "source", study / "resources/models/llama", rope_parameters=rope)
    exported = export(find_cell(tmp_path / "source"), tmp_path / "out", check=False)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["rope_theta"] == 5e5
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").rope_parameters == rope
    assert exported.model_class == "LlamaForCausalLM"


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_experts_of_a_trained_mixture_have_the_names_of_the_hub(
    kind: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    source = zoo.save(kind, tmp_path / "source", tiny_model("llama"))
    settings = FinetuneSettings.from_dict(SETTINGS | {"epochs": 1})
    task = TaskFolder(save_mood_task(tmp_path / "task"))
    finetune(ModelFolder(source), task, tmp_path / "run", tmp_path / "work", settings, code="x")
    trained = ModelFolder(tmp_path / "run/model")
    export(find_cell(tmp_path / "run"), tmp_path / "out", check=False)
    fused, theirs, found = (weights.load(tmp_path / each) for each in ("run/model", "source", "out"))
    assert any(name.endswith("gate_up_proj") for name in fused)  # as transformers' class has them
    assert found.keys() == theirs.keys() - {"lm_head.weight"} | {"score.weight"}
    inputs = trained.tokenizer("the film is good", return_tensors="pt")["input_ids"]
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():  # the last bit of a product may depend on where a tensor lies in memory
        torch.testing.assert_close(plain(inputs).logits, load_classifier(trained, labels=2, seed=1)(inputs).logits)


def test_experts_count_in_the_density(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """All experts of a layer are one row."""
    zoo.save("mixtral", tmp_path / "resources/models/x", tiny_model("llama"))
    variant = tmp_path / "results/x/uniform-mlp-0.5"
    prune(ModelFolder(tmp_path / "resources/models/x"), {Sparsity("0.5"): variant}, method="uniform", scope="mlp")
    exported = export(find_cell(variant), tmp_path / "out", check=False)
    experts = [row for row in exported.densities if "experts" in row.matrix]
    assert {row.left / row.size for row in experts} == {0.5}
    stored = weights.load(variant / "model")
    assert sum(row.size for row in experts) == sum(w.numel() for n, w in stored.items() if ".experts." in n)
    assert len({row.matrix for row in experts}) == 3
    assert len(experts) == 3 * len({row.layer for row in exported.densities if row.layer >= 0})


@pytest.mark.slow
@pytest.mark.parametrize("kind", zoo.EVERY)
def test_a_model_of_any_type_computes_the_same(kind: str, study: Path, tmp_path: Path) -> None:
    zoo.save(kind, tmp_path / "resources/models/x", study / "resources/models/bert")
    dense, variant = ModelFolder(tmp_path / "resources/models/x"), tmp_path / "results/x/uniform-linear-0.5"
    prune(dense, {Sparsity("0.5"): variant}, method="uniform", scope="linear")
    exported = export(find_cell(variant), tmp_path / "out", check=False)
    assert exported.model_class == zoo.ZOO[kind][0]
    model_class = getattr(transformers, exported.model_class)
    found, info = model_class.from_pretrained(tmp_path / "out", dtype=torch.float32, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert all("pooler" in name for name in info["missing_keys"])
    folder = exported.cell.folder
    expected = alone.outputs(load_plain(folder, exported.cell.facts), folder.tokenizer)
    theirs = alone.outputs(found, transformers.AutoTokenizer.from_pretrained(tmp_path / "out"))
    assert all(torch.allclose(theirs[name], expected[name], atol=1e-5) for name in expected)
    assert {row.layer for row in exported.densities} >= {0}
