"""Workloads of tiny models with RANDOM weights."""

from typing import Any

import pytest
import torch
import transformers as tf

from llm_sparsity.inference.workloads import decode, prefill, why_not_decoded

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "head_dim": 8}
GROUPED = SIZES | {"num_key_value_heads": 2}
STATES = {"mamba_n_heads": 4, "mamba_d_ssm": 32, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1}


def made(kind: str, **values: Any) -> Any:
    """A decoder with RANDOM weights."""
    torch.manual_seed(0)
    return tf.AutoModel.from_config(tf.AutoConfig.for_model(kind, vocab_size=24, **values)).eval()


def test_decode_repeats_with_a_sliding_window() -> None:
    """The outputs stay those of the last token of the whole sequence, however often it is computed."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    model = tf.MistralModel(tf.MistralConfig(**sizes, vocab_size=24, num_key_value_heads=2, sliding_window=8)).eval()
    batch = prefill(model, 2, 16)
    expected, step = batch(model)[:, -1:], decode(batch)
    step(model)
    read = [layer.keys.data_ptr() for layer in step._caches[model].layers]
    for _ in range(3):
        torch.testing.assert_close(step(model), expected)
    assert read == [layer.keys.data_ptr() for layer in step._caches[model].layers], "a recorded graph reads these again"


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}, "the one of MambaModel is none"),
        ("openai-gpt", {"n_embd": 32, "n_layer": 1, "n_head": 4}, "the one of OpenAIGPTModel is none"),
        ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}, "the one of RwkvModel is none"),
        (
            "minimax",
            GROUPED | {"num_local_experts": 2, "block_size": 8, "layer_types": ["linear_attention", "full_attention"]},
            "the one of MiniMaxModel is MiniMaxCache",
        ),
        ("falcon_h1", GROUPED | STATES, "the cache of FalconH1Model holds a recurrent state"),
        ("lfm2", GROUPED | {"layer_types": ["conv", "full_attention"]}, ""),
        ("gemma2", GROUPED | {"sliding_window": 8}, ""),
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 4}, ""),
    ],
)
def test_decoding_needs_a_cache_that_gives_up_a_token(kind: str, values: dict[str, Any], reason: str) -> None:
    model = made(kind, **values)
    found = why_not_decoded(model)
    assert (reason in found) if reason else (found == "")
    if not reason:  # and the outputs stay those of the last token of the whole sequence
        batch = prefill(model, 2, 16)
        expected, step = batch(model)[:, -1:], decode(batch)
        for _ in range(3):
            torch.testing.assert_close(step(model), expected)
        assert batch.cached_bytes(model) == 0 < step.cached_bytes(model)
