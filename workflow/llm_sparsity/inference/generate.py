"""Generate text, and say how fast."""

import sys
import time
from typing import Any, NamedTuple, TextIO

import torch
from transformers import TextStreamer

from llm_sparsity.inference.load import load
from llm_sparsity.inference.memory import memory_bytes
from llm_sparsity.inference.sparse_layers import SparseLinear
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder

WARM_UP = 2  # tokens that are generated first, while kernels are compiled and their ways measured


class Speed(NamedTuple):
    """How fast one execution was.

    prefill: tokens of the prompt in a second, an encoder included.
    decode: tokens generated in a second, after the first.
    bytes: of its weights in memory.
    seconds: to load it.
    layers: that run sparse.
    """

    prefill: float
    decode: float
    bytes: int
    seconds: float
    layers: int


def generate(folder: ModelFolder, execution: str, prompt: str, tokens: int, out: TextIO = sys.stdout) -> Speed:
    """Load a model, stream the text that follows a prompt, greedily, and time it.

    Args:
        folder: of a language model.
        execution: "dense" or "sparse".
        prompt: the text before.
        tokens: to generate.
        out: where prompt and text go.

    Raises:
        UserError: the model generates no text, or has no positions for so many tokens.
    """
    if folder.structure.architecture == "encoder":
        raise UserError(f"{folder}: {folder.model_type} is an encoder, which generates no text; choose a decoder")
    ids = folder.tokenizer(prompt, return_tensors="pt").input_ids
    if not ids.numel():
        raise UserError(f"--prompt: found {prompt!r}, which has no token; write a word")
    folder.check_length("prompt and --tokens together", ids.shape[1] + tokens)
    start = time.perf_counter()
    model = load(folder, execution)
    took = time.perf_counter() - start
    if not model.can_generate():
        raise UserError(f"{folder}: {type(model).__name__} generates no text; choose a causal language model")
    print(f"--- {execution}: {prompt}", end="", file=out, flush=True)
    options: dict[str, Any] = {"do_sample": False, "num_beams": 1, "pad_token_id": folder.tokenizer.pad_token_id}
    with torch.inference_mode():
        model.generate(ids, max_new_tokens=min(WARM_UP, tokens), **options)
        streamer = Clock(folder.tokenizer, out)
        model.generate(ids, max_new_tokens=tokens, streamer=streamer, **options)
    times = streamer.times
    return Speed(
        prefill=ids.shape[1] / (times[1] - times[0]),
        decode=(len(times) - 2) / (times[-1] - times[1]) if len(times) > 2 else float("nan"),
        bytes=memory_bytes(model),
        seconds=took,
        layers=sum(isinstance(module, SparseLinear) for module in model.modules()),
    )


class Clock(TextStreamer):
    """Streams text to a file, and notes the time when it is made, before the prompt is read, and that of each token."""

    def __init__(self, tokenizer: Any, out: TextIO) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.out, self.times = out, [time.perf_counter()]  # an encoder reads the prompt before `put` gets one

    def put(self, value: Any) -> None:
        """Called with the prompt, then with each token."""
        if not self.next_tokens_are_prompt:
            self.times.append(time.perf_counter())
        super().put(value)  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called with each finished word."""
        print(text, end="\n" if stream_end else "", file=self.out, flush=True)
