from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.families import family_of
from llm_sparsity.models.folder import ModelFolder

SMALL: dict[str, tuple[type, dict[str, Any]]] = {
    "bert": (tf.BertForMaskedLM, {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}),
    "roberta": (tf.RobertaForMaskedLM, {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}),
    "electra": (tf.ElectraForMaskedLM, {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}),
    "distilbert": (tf.DistilBertForMaskedLM, {"dim": 32, "n_layers": 3, "n_heads": 4}),
    "gpt2": (tf.GPT2LMHeadModel, {"n_embd": 32, "n_layer": 3, "n_head": 4}),
    "llama": (tf.LlamaForCausalLM, {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}),
    "mistral": (tf.MistralForCausalLM, {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}),
    "qwen2": (tf.Qwen2ForCausalLM, {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}),
    "qwen3": (tf.Qwen3ForCausalLM, {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}),
    "opt": (tf.OPTForCausalLM, {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 64}),
    "gpt_neox": (tf.GPTNeoXForCausalLM, {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}),
    "bart": (tf.BartForConditionalGeneration, {"d_model": 32, "encoder_layers": 3, "decoder_layers": 2}),
}
# Matrices in each layer, attention and feed-forward, as the architecture's paper has them.
MATRICES = {
    "bert": (4, 2), "roberta": (4, 2), "electra": (4, 2), "distilbert": (4, 2), "gpt2": (2, 2),
    "llama": (4, 3), "mistral": (4, 3), "qwen2": (4, 3), "qwen3": (4, 3), "opt": (4, 2), "gpt_neox": (2, 2),
}  # fmt: skip


def meta(kind: str) -> Any:
    """A real transformers model of a family, without weights."""
    model_class, config = SMALL[kind]
    with torch.device("meta"):
        return model_class(model_class.config_class(**config))


@pytest.mark.parametrize("kind", SMALL)
def test_every_weight_outside_the_heads_has_one_role(kind: str) -> None:
    known = family_of(kind)
    for name, tensor in meta(kind).state_dict().items():
        heads = ("lm_head", "cls.", "vocab_", "generator_", "embed_out", "final_logits_bias")
        if name.startswith(heads):
            assert known.role(name) is None, name
        elif name.endswith(".weight"):
            assert known.role(name), name
        elif name.endswith("bias"):
            assert known.role(name) is None
        role = known.role(name)
        if role and role.part in ("attention", "mlp"):
            assert tensor.dim() == 2
            assert role.layer >= 0


@pytest.mark.parametrize("kind", MATRICES)
def test_linear_is_exactly_the_matrices_of_the_layers(kind: str) -> None:
    known = family_of(kind)
    roles = [role for name in meta(kind).state_dict() if (role := known.role(name)) and role.layer >= 0]
    for layer in range(3):
        parts = [role.part for role in roles if role.layer == layer and role.in_scope("linear")]
        assert (parts.count("attention"), parts.count("mlp")) == MATRICES[kind]


def test_encoder_and_decoder_of_bart_are_apart() -> None:
    known = family_of("bart")
    roles = {name: role for name in meta("bart").state_dict() if (role := known.role(name))}
    assert sum(role.in_scope("encoder") for role in roles.values()) == 3 * 6
    assert sum(role.in_scope("decoder") for role in roles.values()) == 2 * 10
    assert not any(role.in_scope("encoder") and role.in_scope("decoder") for role in roles.values())


def test_conv1d_is_what_gpt2_stores_transposed() -> None:
    known = family_of("gpt2")
    model = meta("gpt2")
    for name, module in model.named_modules():
        assert known.is_transposed(f"{name}.weight") == isinstance(module, tf.pytorch_utils.Conv1D)


def test_tied_copies_are_counted_once() -> None:
    known = family_of("bart")
    names = ["model.shared.weight", "model.encoder.embed_tokens.weight", "model.encoder.layers.0.fc1.weight"]
    assert known.without_aliases(names) == [names[0], names[2]]
    assert known.without_aliases(names[1:]) == names[1:]


def test_the_real_bart_has_roles(shared: Path) -> None:
    folder = ModelFolder(shared / "models/g2p-bart-us")
    with folder.open() as reader:
        unassigned = [n for n in reader.names if n.endswith("weight") and not folder.role(n)]
    assert not [name for name in unassigned if "lm_head" not in name and "embed_tokens" not in name]


def test_an_unknown_family_names_the_place_to_add_it() -> None:
    with pytest.raises(
        UserError, match=r"'mamba' is not known; known: bert, .*FAMILIES in workflow/llm_sparsity/models/families\.py"
    ):
        family_of("mamba")
