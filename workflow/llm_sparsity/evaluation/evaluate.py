"""Perplexity of a causal language model on a text, without training.

Protocol: the rows of the task are joined by blank lines, tokenised as one text (with the tokenizer's special tokens)
and cut into non-overlapping windows of `sequence_length` tokens; an incomplete last window is dropped. A token is
predicted from the preceding tokens of its window, so the first token of a window is not predicted. Perplexity is the
exponential of the mean negative log-likelihood (nats) over all predicted tokens. With the hub's raw test split of
WikiText-2 and sequence_length 2048 this is the protocol of the pruning papers (Frantar & Alistarh 2023,
arXiv:2301.00774; Sun et al. 2023, arXiv:2306.11695). Weights and activations are float32, on a GPU too, as in the
evaluation that ends fine-tuning.
"""

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPast

from llm_sparsity.data import tokens
from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.evaluation.perplexity import overflow_note, perplexity
from llm_sparsity.jobs.environment import environment
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_causal, loading_dtype
from llm_sparsity.storage.files import write_csv, write_json

CHUNK = 256  # tokens whose logits are computed at a time: 50 MB for a vocabulary of 49,000
TRIED = 16  # tokens of which the model makes all logits itself, to find out how


def evaluate(
    model: ModelFolder,
    task: TaskFolder,
    output: Path,
    *,
    sequence_length: int,
    max_tokens: int | None,
    batch_size: int,
) -> None:
    """Measure the perplexity of a model on the test split of a task.

    Args:
        model: a causal language model, dense or pruned.
        task: a language-model task.
        output: folder to write; gets metrics.json, predictions.csv and runtime.json.
        sequence_length: window length in tokens.
        max_tokens: use only the first `max_tokens` tokens of the text; None for all.
        batch_size: windows in a forward pass.

    Raises:
        UserError: the text is shorter than a window, a window is longer than the model allows, or the loss is not
            finite.
    """
    begin = time.perf_counter()
    model.check_length("sequence_length", sequence_length)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ids = tokens.windows(model.tokenizer, task, "test", sequence_length, key="sequence_length", max_tokens=max_tokens)
    windows = torch.from_numpy(ids.astype("int64"))
    net = load_causal(model, loading_dtype(model, device)).to(device, torch.float32)
    setup = time.perf_counter() - begin

    begin = time.perf_counter()
    losses = nll(net, windows, batch_size)
    total = sum(itertools.chain(*losses))
    seconds = time.perf_counter() - begin
    if not math.isfinite(total):
        raise UserError(f"{model}: the loss on {task.name} is {total}; a weight is damaged or overflows, make it again")

    predicted = len(windows) * (sequence_length - 1)
    settings = {"sequence_length": sequence_length, "max_tokens": max_tokens, "batch_size": batch_size}
    times = {"setup_seconds": setup, "eval_seconds": seconds, "tokens_per_second": predicted / seconds}
    write_json(output / "runtime.json", {**times, **environment(device)})
    metrics = {"perplexity": perplexity(total / predicted), "nll": total / predicted}
    facts = {"metrics": metrics, **overflow_note(metrics), "tokens": predicted, "settings": settings}
    write_csv(output / "predictions.csv", [{"nll": sum(window) / (sequence_length - 1)} for window in losses])
    write_json(output / "metrics.json", facts)


@torch.inference_mode()
def nll(net: Any, windows: Tensor, batch_size: int) -> list[list[float]]:
    """The negative log-likelihood of all tokens but the first of each window, in nats.

    Args:
        net: a causal language model of transformers.
        windows: token ids, (windows, length), int64, on the CPU.
        batch_size: windows in a forward pass.

    Returns:
        For each window, the sums over `CHUNK` tokens.
    """
    found, head = [], _logits_function(net, windows[:1, :TRIED].to(net.device))
    for batch in tqdm(windows.split(batch_size), desc="perplexity", unit="batch"):
        inputs = batch.to(net.device)
        outputs = net.base_model(input_ids=inputs, use_cache=False)[0]
        for hidden, ids in zip(outputs[:, :-1], inputs[:, 1:], strict=True):
            # Logits are made for a chunk at a time: those of a whole window may not fit into memory.
            chunks = zip(hidden.split(CHUNK), ids.split(CHUNK), strict=True)
            found.append([float(cross_entropy(head(part).float(), aims, reduction="sum")) for part, aims in chunks])
    return found


def _logits_function(net: Any, ids: Tensor) -> Callable[[Tensor], Tensor]:
    """What makes logits (tokens, words) of hidden states (tokens, width): the output layer, where it alone does.

    Granite scales its logits, Gemma 2 caps them: then it is the model's own forward pass, given the hidden states.

    Args:
        net: a causal language model of transformers.
        ids: to try it on, (1, tokens).

    Raises:
        UserError: the model does more than that.
    """
    head, body = net.get_output_embeddings(), net.base_model

    def forward(hidden: Tensor) -> Tensor:
        body.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=hidden[None])
        try:
            logits: Tensor = net(input_ids=ids[:, :1], use_cache=False).logits[0]
        finally:
            del body.forward
        return logits

    hidden, logits = body(input_ids=ids, use_cache=False)[0][0], net(input_ids=ids, use_cache=False).logits[0]
    for function in (head, forward):
        if torch.allclose(function(hidden), logits, rtol=1e-4, atol=1e-5, equal_nan=True):
            return function
    raise UserError(f"{type(net).__name__} makes its logits of more than the hidden states; choose another model")
