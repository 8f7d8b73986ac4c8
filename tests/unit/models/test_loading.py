from collections.abc import Callable
from pathlib import Path

import torch

from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_causal, load_classifier


def test_the_head_depends_on_the_seed_alone(tiny_model: Callable[[str], Path]) -> None:
    folder = ModelFolder(tiny_model("bert"))
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
    model = load_classifier(ModelFolder(tiny_model("gpt2")), labels=2, seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    pad = model.config.pad_token_id
    with torch.no_grad():
        short = model(torch.tensor([[7, 8, 9]])).logits
        padded = model(
            torch.tensor([[7, 8, 9, pad, pad]]), attention_mask=torch.tensor([[1, 1, 1, 0, 0]])
        ).logits  # fmt: skip
    torch.testing.assert_close(short, padded)


def test_a_decoder_gets_a_padding_token(tiny_model: Callable[[str], Path]) -> None:
    folder = ModelFolder(tiny_model("gpt2"))
    assert folder.tokenizer.pad_token_id == folder.tokenizer.eos_token_id
    assert load_classifier(folder, labels=2, seed=0).config.pad_token_id == folder.tokenizer.pad_token_id


def test_the_output_layer_of_a_causal_model_stays_tied(tiny_model: Callable[[str], Path]) -> None:
    model = load_causal(ModelFolder(tiny_model("llama")))
    assert model.lm_head.weight is model.model.embed_tokens.weight
