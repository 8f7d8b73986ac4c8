"""What a model is timed on: a batch of sequences, read at once or continued by a token each."""

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Module
from transformers import DynamicCache

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
    before: in decode, the tokens before, int64 (sequences, tokens). Their keys and values are computed once for each
        model: one without some of its heads has fewer.
    """

    phase: str
    ids: Tensor
    length: int
    before: Tensor | None = None
    _caches: WeakKeyDictionary[Module, Any] = field(default_factory=WeakKeyDictionary, repr=False)

    def __call__(self, model: Module) -> Tensor:
        """The model's outputs, (sequences, tokens, width)."""
        with torch.inference_mode():
            if self.before is None:
                outputs: Tensor = model(input_ids=self.ids)[0]
            else:
                cache = self._cache(model, self.before)
                before = [_state(layer) for layer in cache.layers]
                outputs = model(input_ids=self.ids, past_key_values=cache, use_cache=True)[0]
                # Without the token that was computed. The tensors stay the same: a recorded graph reads them again.
                for layer, state in zip(cache.layers, before, strict=True):
                    vars(layer).update(state)
        return outputs

    def cached_bytes(self, model: Module) -> int:
        """Bytes of the keys and values that a model continues from, once it has run; 0 in prefill."""
        layers = self._caches[model].layers if self.before is not None else []
        cached = (getattr(layer, kind, None) for layer in layers for kind in ("keys", "values"))
        return sum(tensor.nbytes for tensor in cached if tensor is not None)

    def _cache(self, model: Module, before: Tensor) -> Any:
        if model not in self._caches:
            cache = model(input_ids=before, use_cache=True).past_key_values
            for layer in cache.layers:
                if hasattr(layer, "activate_past_recording"):  # else convolutions overwrite their state
                    layer.activate_past_recording()
            self._caches[model] = cache
        return self._caches[model]


def _state(layer: Any) -> dict[str, Any]:
    """What a layer of a cache holds: tensors and dictionaries of tensors, which it replaces and never overwrites."""
    return {name: dict(held) if isinstance(held, dict) else held for name, held in vars(layer).items()}


def prefill(model: Any, size: int, length: int) -> Workload:
    """Sequences of random tokens, the same ones every time; the first ten tokens of a vocabulary tend to be special."""
    tokens, generator = model.config.vocab_size, torch.Generator().manual_seed(0)
    ids = torch.randint(min(10, tokens - 1), tokens, (size, length), generator=generator)
    return Workload("prefill", ids.to(model.device), length)


def decode(batch: Workload) -> Workload:
    """The last token of each sequence of a batch, after keys and values of the others."""
    return Workload("decode", batch.ids[:, -1:], batch.length, batch.ids[:, :-1])


def why_not_decoded(model: Any) -> str:
    """Why the decoding of a model cannot be timed; "" if it can.

    The last token is computed many times, and taken back from the cache each time. Keys and values can be cut off; a
    recurrent state cannot go back, and a model without a common cache keeps what it has read in a place of its own.
    """
    with torch.inference_mode():
        cache = getattr(model(input_ids=prefill(model, 1, 2).ids, use_cache=True), "past_key_values", None)
    if type(cache) is not DynamicCache:
        found = "none" if cache is None else type(cache).__name__
        return f"a cache of keys and values is needed, and the one of {type(model).__name__} is {found}"
    # Releases of transformers without the attribute have caches of other types for recurrent states.
    if not getattr(cache, "is_croppable", True):
        return f"the cache of {type(model).__name__} holds a recurrent state, which cannot be taken back by a token"
    return ""


def copy_bandwidth(device: torch.device) -> float:
    """Bytes that a plain copy reads and writes in a second."""
    source = torch.zeros(COPIED // 4, device=device)
    target = torch.zeros_like(source)

    copy = on_device([lambda: target.copy_(source)], device)
    return float(2 * COPIED / take_turns(copy, REPEATS).min())
