import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.loading import (
    check_length,
    family,
    in_scope,
    load_causal,
    load_classifier,
    load_tokenizer,
    max_length,
)

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


def folder_of(kind: str, tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    return tmp_path


@pytest.mark.parametrize("kind", SMALL)
def test_every_weight_outside_the_heads_has_one_place(kind: str, tmp_path: Path) -> None:
    known = family(folder_of(kind, tmp_path))
    for name, tensor in meta(kind).state_dict().items():
        heads = ("lm_head", "cls.", "vocab_", "generator_", "embed_out", "final_logits_bias")
        if name.startswith(heads):
            assert known.place(name) is None, name
        elif name.endswith(".weight"):
            assert known.place(name), name
        elif name.endswith("bias"):
            assert known.place(name) is None
        place = known.place(name)
        if place and place.part in ("attention", "mlp"):
            assert tensor.dim() == 2
            assert place.layer >= 0


@pytest.mark.parametrize("kind", MATRICES)
def test_linear_is_exactly_the_matrices_of_the_layers(kind: str, tmp_path: Path) -> None:
    known = family(folder_of(kind, tmp_path))
    places = [place for name in meta(kind).state_dict() if (place := known.place(name)) and place.layer >= 0]
    for layer in range(3):
        parts = [place.part for place in places if place.layer == layer and in_scope(place, "linear")]
        assert (parts.count("attention"), parts.count("mlp")) == MATRICES[kind]


def test_encoder_and_decoder_of_bart_are_apart(tmp_path: Path) -> None:
    known = family(folder_of("bart", tmp_path))
    places = {name: place for name in meta("bart").state_dict() if (place := known.place(name))}
    assert sum(in_scope(place, "encoder") for place in places.values()) == 3 * 6
    assert sum(in_scope(place, "decoder") for place in places.values()) == 2 * 10
    assert not any(in_scope(place, "encoder") and in_scope(place, "decoder") for place in places.values())


def test_conv1d_is_what_gpt2_stores_transposed(tmp_path: Path) -> None:
    known = family(folder_of("gpt2", tmp_path))
    model = meta("gpt2")
    for name, module in model.named_modules():
        assert known.is_transposed(f"{name}.weight") == isinstance(module, tf.pytorch_utils.Conv1D)


def test_tied_copies_are_counted_once(tmp_path: Path) -> None:
    known = family(folder_of("bart", tmp_path))
    names = ["model.shared.weight", "model.encoder.embed_tokens.weight", "model.encoder.layers.0.fc1.weight"]
    assert known.without_aliases(names) == [names[0], names[2]]
    assert known.without_aliases(names[1:]) == names[1:]


def test_the_real_bart_has_places(shared: Path) -> None:
    from llm_sparsity.storage.container import Reader

    folder = shared / "models/g2p-bart-us"
    known = family(folder)
    with Reader(folder) as reader:
        unplaced = [n for n in reader.names if n.endswith("weight") and not known.place(n)]
    assert not [name for name in unplaced if "lm_head" not in name and "embed_tokens" not in name]


def test_an_unknown_family_names_the_place_to_add_it(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"'mamba' is not known; known: bert, .*FAMILIES in workflow/llm_sparsity/models.py"
    ):
        family(folder_of("mamba", tmp_path))


def test_the_head_depends_on_the_seed_alone(tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model("bert")
    torch.manual_seed(1)
    first = load_classifier(folder, labels=2, seed=0).classifier.weight
    torch.manual_seed(2)
    second = load_classifier(folder, labels=2, seed=0).classifier.weight
    assert torch.equal(first, second)
    assert not torch.equal(first, load_classifier(folder, labels=2, seed=1).classifier.weight)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_classifier(folder, labels=2, seed=0)
    assert torch.equal(torch.rand(1), expected)  # the caller's generator is left alone


def test_a_decoder_classifies_at_the_last_token_that_is_no_padding(tiny_model: Callable[[str], Path]) -> None:
    model = load_classifier(tiny_model("gpt2"), labels=2, seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    pad = model.config.pad_token_id
    with torch.no_grad():
        short = model(torch.tensor([[7, 8, 9]])).logits
        padded = model(
            torch.tensor([[7, 8, 9, pad, pad]]), attention_mask=torch.tensor([[1, 1, 1, 0, 0]])
        ).logits  # fmt: skip
    torch.testing.assert_close(short, padded)


def test_describing_a_family_imports_nothing_heavy(root: Path) -> None:
    code = "import sys, llm_sparsity.models; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(root / "workflow")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_a_decoder_gets_a_padding_token(tiny_model: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(tiny_model("gpt2"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert load_classifier(tiny_model("gpt2"), labels=2, seed=0).config.pad_token_id == tokenizer.pad_token_id


def test_the_output_layer_of_a_causal_model_stays_tied(tiny_model: Callable[[str], Path]) -> None:
    model = load_causal(tiny_model("llama"))
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(("kind", "longest"), [("bert", 64), ("roberta", 65), ("gpt2", 64), ("bart", 64)])
def test_the_longest_sequence(kind: str, longest: int, tiny_model: Callable[[str], Path]) -> None:
    assert max_length(tiny_model(kind)) == longest
    check_length(tiny_model(kind), "max_length", longest)
    with pytest.raises(UserError, match=f"max_length: found {longest + 1}, but .* allows {longest} tokens"):
        check_length(tiny_model(kind), "max_length", longest + 1)
