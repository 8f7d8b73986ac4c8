"""Workloads of tiny models with RANDOM weights."""

import torch
import transformers as tf

from llm_sparsity.inference.workloads import decode, prefill


def test_decode_repeats_with_a_sliding_window() -> None:
    """The outputs stay those of the last token of the whole sequence, however often it is computed."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    model = tf.MistralModel(tf.MistralConfig(**sizes, vocab_size=24, num_key_value_heads=2, sliding_window=8)).eval()
    batch = prefill(model, 2, 16)
    expected, step = batch(model)[:, -1:], decode(batch)
    for _ in range(3):
        torch.testing.assert_close(step(model), expected)
