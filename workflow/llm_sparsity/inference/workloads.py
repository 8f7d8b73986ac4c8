"""What a model is timed on: a batch of sequences, read at once or continued by a token each."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from llm_sparsity.inference.timing import on_device, take_turns

COPIED = 1 << 28  # bytes copied to measure memory, far more than caches hold
REPEATS = 5


@dataclass(frozen=True)
class Workload:
    """One batch. Called with a model, it gives the model's outputs.

    phase: "prefill", all tokens of each sequence at once, as in classification and before text is generated; or
        "decode", the last token of each sequence alone, as while text is generated.
    ids: the tokens that are computed, int64 (sequences, tokens).
    length: tokens of a sequence.
    cache: in decode, keys and values of the tokens before.
    """

    phase: str
    ids: Tensor
    length: int
    cache: Any = None

    def __call__(self, model: Module) -> Tensor:
        """The model's outputs, (sequences, tokens, width)."""
        with torch.inference_mode():
            if self.cache is None:
                outputs: Tensor = model(input_ids=self.ids)[0]
            else:
                outputs = model(input_ids=self.ids, past_key_values=self.cache, use_cache=True)[0]
                self.cache.crop(-1)  # without the token that was computed
        return outputs


def prefill(model: Any, size: int, length: int) -> Workload:
    """Sequences of random tokens, the same ones every time; the first ten tokens of a vocabulary tend to be special."""
    tokens, generator = model.config.vocab_size, torch.Generator().manual_seed(0)
    ids = torch.randint(min(10, tokens - 1), tokens, (size, length), generator=generator)
    return Workload("prefill", ids.to(model.device), length)


def decode(model: Any, batch: Workload) -> Workload:
    """The last token of each sequence of a batch, after keys and values of the others, which a decoder computes."""
    with torch.inference_mode():
        cache = model(input_ids=batch.ids[:, :-1], use_cache=True).past_key_values
    for layer in cache.layers:
        if hasattr(layer, "activate_past_recording"):  # a sliding window, which else forgets what `crop` goes back to
            layer.activate_past_recording()
    return Workload("decode", batch.ids[:, -1:], batch.length, cache)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes that a plain copy reads and writes in a second."""
    source = torch.zeros(COPIED // 4, device=device)
    target = torch.zeros_like(source)

    copy = on_device(lambda: target.copy_(source), device)
    return float(2 * COPIED / take_turns([copy], REPEATS).min())
