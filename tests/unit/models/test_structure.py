"""What tensors are for, in models of many types. All weights are RANDOM, models tiny."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from torch.nn import Conv1d, Embedding, Linear
from transformers.pytorch_utils import Conv1D

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.derivation import derive
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import check_checkpoint, load_base
from llm_sparsity.models.structure import Structure
from tests.zoo import ZOO, architecture, make, save, table

# Matrices in each layer, attention and feed-forward, as the papers have them; experts count as they are packed.
MATRICES = {
    "bert": (4, 2), "roberta": (4, 2), "electra": (4, 2), "distilbert": (4, 2), "gpt2": (2, 2), "llama": (4, 3),
    "mistral": (4, 3), "qwen2": (4, 3), "qwen3": (4, 3), "opt": (4, 2), "gpt_neox": (2, 2), "albert": (4, 2),
    "bloom": (2, 2), "deberta-v2": (4, 2), "falcon": (2, 2), "gemma3_text": (4, 3), "gptj": (4, 2), "mixtral": (4, 2),
    "modernbert": (2, 2), "mpnet": (4, 2), "mpt": (2, 2), "phi3": (2, 2), "qwen2_moe": (4, 5), "xlnet": (5, 2),
}  # fmt: skip
# What belongs to no scope: poolers, routers, and vectors with several dimensions.
LEFT_OUT = r"pooler|\.gate\.weight|router|shared_expert_gate|seg_embed|mask_emb"

Saved = Callable[[str], ModelFolder]


@pytest.fixture
def saved(tiny_model: Callable[[str], Path], tmp_path: Path) -> Saved:
    """A type of model, saved as transformers saves it, with a tokenizer of its architecture."""

    def make(kind: str) -> ModelFolder:
        tokenizer = {"encoder": "bert", "decoder": "gpt2", "encoder-decoder": "bart"}[architecture(kind)]
        return ModelFolder(save(kind, tmp_path / kind, tiny_model(tokenizer)))

    return make


def structure(kind: str, **values: Any) -> Structure:
    return derive(make(kind, **values).config)


def counted(model: Any) -> int:
    """The weights that a person would count as matrices of layers: what stands in a numbered module and multiplies."""
    total = 0
    for path, module in model.base_model.named_modules():
        if re.search(r"\.\d+(\.|$)", f".{path}") and not isinstance(module, Embedding | Conv1d):
            for name, weight in module.named_parameters(recurse=False):
                matrix = isinstance(module, Linear | Conv1D) or weight.dim() == 3
                if matrix and weight.dim() > 1 and not re.search(LEFT_OUT, f"{path}.{name}"):
                    total += weight.numel()
    return total


@pytest.mark.parametrize("kind", ZOO)
def test_any_type_of_model(kind: str, saved: Saved) -> None:
    """Each tensor of the file has a place and one role; `linear` is what a person counts; the model loads back."""
    folder, model = saved(kind), make(kind)
    assert folder.structure.architecture == architecture(kind)
    check_checkpoint(folder)
    with folder.open() as reader:
        names, shapes = reader.names, {name: reader.shape(name) for name in reader.names}
    linear = folder.roles(names, "linear")
    assert sum(math.prod(shapes[name]) for name in linear) == counted(model)
    assert folder.roles(names, "attention").keys() | folder.roles(names, "mlp").keys() == linear.keys()
    assert all(role.layer >= 0 for role in linear.values())
    for name in set(names) - folder.roles(names).keys():  # what is never pruned
        in_body = folder.structure.body_name(name) and folder.structure.body_name(name) not in folder.structure.tied
        assert not in_body or len(shapes[name]) == 1 or re.search(f"{LEFT_OUT}|bias", name), name
        assert in_body or not re.search(r"\.\d+\.", name), name
    expected, found = model.base_model.state_dict(), load_base(folder).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in found if "pooler" not in name and name in expected)
    assert [name for name in found if name not in expected and "pooler" not in name] == []


@pytest.mark.parametrize("kind", MATRICES)
def test_matrices_of_each_layer(kind: str) -> None:
    known = structure(kind)
    for layer in range(len(known.layers)):
        parts = [role.part for role in known.roles.values() if role.layer == layer and role.in_scope("linear")]
        assert (parts.count("attention"), parts.count("mlp")) == MATRICES[kind]


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_encoder_and_decoder_are_apart(kind: str) -> None:
    known = structure(kind)
    assert sum(role.in_scope("encoder") for role in known.roles.values()) == 2 * 6
    assert sum(role.in_scope("decoder") for role in known.roles.values()) == 2 * 10
    assert not any(role.in_scope("encoder") and role.in_scope("decoder") for role in known.roles.values())
    assert (
        len({matrix.block for matrix in known.matrices.values()}) == 2 * 2 + 2 * 3
    )  # the decoder attends to itself and to the encoder


def test_conv1d_is_what_gpt2_stores_transposed() -> None:
    known, model = structure("gpt2"), make("gpt2")
    for name, module in model.named_modules():
        assert known.is_transposed(f"{name}.weight") == isinstance(module, Conv1D)


@pytest.mark.parametrize(
    ("kind", "tables"),
    [
        ("t5", ["encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "shared"]),
        ("mpnet", ["embeddings.position_embeddings", "encoder.relative_attention_bias"]),
        ("deberta-v2", ["embeddings.word_embeddings", "encoder.rel_embeddings"]),
        ("electra", ["embeddings_project"]),
        ("albert", ["encoder.embedding_hidden_mapping_in"]),
        ("opt", ["decoder.project_in", "decoder.project_out"]),
    ],
)
def test_tables_and_projections_outside_layers_are_embeddings(kind: str, tables: list[str]) -> None:
    known = structure(kind)
    for name in tables:
        role = known.role(f"{name}.weight")
        assert role
        assert (role.part, role.layer) == ("embeddings", -1)


def test_layers_that_share_weights_are_counted_once() -> None:
    known = structure("albert", num_hidden_layers=6)
    assert (len(known.layers), known.repeats) == (1, 6)
    assert structure("bert").repeats == structure("t5").repeats == 1


def test_a_name_may_be_that_of_a_file_or_of_any_model() -> None:
    known = structure("mixtral")
    role = known.role("layers.1.mlp.experts.gate_up_proj")
    assert role
    assert (role.layer, role.part) == (1, "mlp")
    for name in ("model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.block_sparse_moe.experts.3.w1.weight"):
        assert known.role(name) == role
    assert known.is_fused("model.layers.1.block_sparse_moe.experts.3.w1.weight")
    assert known.role("lm_head.weight") is known.role("model.layers.1.block_sparse_moe.gate.weight") is None
    assert known.is_output_layer("lm_head.weight")
    assert structure("gpt_neox").is_output_layer("embed_out.weight")  # as in the files of all its checkpoints


def test_tied_copies_are_counted_once() -> None:
    known = structure("bart")
    names = ["model.shared.weight", "model.encoder.embed_tokens.weight", "model.encoder.layers.0.fc1.weight"]
    assert known.without_copies(names) == [names[0], names[2]]
    assert known.without_copies(names[1:]) == names[1:]


def test_the_real_bart_has_roles(shared: Path) -> None:
    folder = ModelFolder(shared / "models/g2p-bart-us")
    with folder.open() as reader:
        unassigned = [n for n in reader.names if n.endswith("weight") and not folder.role(n)]
    assert not [name for name in unassigned if "lm_head" not in name and "embed_tokens" not in name]


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        ("llama", {}, ""),
        ("gpt_neox", {}, ""),
        ("modernbert", {}, ""),
        ("phi3", {}, ""),
        ("phi3", {"num_key_value_heads": 4}, ""),
        ("codegen", {}, "the layout of h.0.attn.qkv_proj, .* is not known"),
        ("gpt_bigcode", {}, "the layout of h.0.attn.c_attn, .* is not known"),
        ("gpt_bigcode", {"multi_query": False}, "the layout of h.0.attn.c_attn, .* is not known"),
        ("falcon", {}, "the layout of .*query_key_value"),
        ("falcon", {"multi_query": False}, ""),
        ("t5", {}, "relative_attention_bias has a value for each head"),
        ("gpt_oss", {}, "sinks belongs to several heads"),
        ("xlnet", {}, "packs several matrices"),
        ("stablelm", {"qk_layernorm": True}, "norms.0.weight belongs to several heads"),
        ("bert", {"num_attention_heads": 8}, ""),
    ],
)
def test_heads_are_told_apart_or_the_reason_is_given(kind: str, values: dict[str, Any], reason: str) -> None:
    known = structure(kind, **values)
    found = {each.why_whole for each in known.matrices.values() if ".0.attention" in each.block}
    assert len(found) == 1 or kind == "t5"
    assert re.search(reason, min(found)) if reason else found == {""}


def test_a_model_of_images_and_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"'gemma3' reads more than text \(vision_config\); choose its text model"):
        derive(tf.Gemma3Config())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (tf.ViTConfig(), "reads pixel_values; choose a model of text"),
        (tf.WhisperConfig(), "reads input_features; choose a model of text"),
        (tf.CanineConfig(), "'canine' has no table of input embeddings; choose another"),
    ],
)
def test_a_model_of_no_text_or_without_embeddings_is_refused(config: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        derive(config)


def test_lists_of_attention_and_of_feed_forward_may_lie_side_by_side() -> None:
    known = derive(tf.XLMConfig(emb_dim=32, n_layers=2, n_heads=4, vocab_size=26))
    parts = [(role.layer, role.part) for role in known.roles.values() if role.is_matrix]
    assert parts.count((1, "attention")) == 4
    assert parts.count((1, "mlp")) == 2
    assert not known.is_chain
    assert derive(tf.T5Config(num_layers=1)).is_chain


def test_a_model_without_layers_is_refused() -> None:
    config = tf.FNetConfig(hidden_size=32, num_hidden_layers=0, intermediate_size=64)
    with pytest.raises(UserError, match="'fnet': FNetModel has no list of layers with matrices"):
        derive(config)


@pytest.mark.slow
def test_the_table_of_types_is_made_from_the_code(root: Path) -> None:
    assert table() in (root / "docs/models.md").read_text(), "run PYTHONPATH=workflow python -m tests.zoo"


def test_a_file_of_experts_has_its_own_names(saved: Saved) -> None:
    """Pruned by expert, as the file has them."""
    folder = saved("qwen3_moe")
    stored = load_file(folder.path / "model.safetensors")
    expert = "model.layers.0.mlp.experts.2.up_proj.weight"
    with folder.open() as reader:
        assert reader.names == sorted(stored)
        assert torch.equal(reader.tensor(expert), stored[expert])
    loaded = load_base(folder).get_parameter("layers.0.mlp.experts.gate_up_proj")
    assert torch.equal(loaded[2, 16:], stored[expert])
