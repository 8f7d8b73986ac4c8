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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from llm_sparsity.data import tokens
from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.evaluation.metrics import overflow_note, perplexity
from llm_sparsity.jobs.environment import environment
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_causal, loading_dtype
from llm_sparsity.storage.files import write_csv, write_json

CHUNK = 256  # tokens whose logits are computed at a time: 50 MB for a vocabulary of 49,000


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
    head, found = net.get_output_embeddings(), []
    body = net.base_model
    if not _gives_logits(head, net, windows[:1, :CHUNK].to(net.device)):
        # Scaled or capped logits, as Granite's and Gemma 2's, come from the model's own forward pass alone.
        head, body, batch_size = torch.nn.Identity(), net, 1
    for batch in tqdm(windows.split(batch_size), desc="perplexity", unit="batch"):
        inputs = batch.to(net.device)
        outputs = body(input_ids=inputs, use_cache=False)[0]
        for hidden, ids in zip(outputs[:, :-1], inputs[:, 1:], strict=True):
            # The head is applied to a chunk at a time: the logits of a whole window may not fit into memory.
            chunks = zip(hidden.split(CHUNK), ids.split(CHUNK), strict=True)
            found.append([float(cross_entropy(head(part).float(), aims, reduction="sum")) for part, aims in chunks])
    return found


def _gives_logits(head: Any, net: Any, ids: Tensor) -> bool:
    """Whether a model's logits are what its output layer makes of its hidden states, and nothing else."""
    logits = net(input_ids=ids, use_cache=False).logits
    return torch.allclose(head(net.base_model(input_ids=ids, use_cache=False)[0]), logits, rtol=1e-4, atol=1e-5)
