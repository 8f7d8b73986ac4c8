"""Perplexity of a causal language model, without training.

Protocol: the task's rows are joined by blank lines, tokenised as one text (with what the tokenizer sets before a text)
and cut into non-overlapping windows of `sequence_length`; the rest is left out. Each window is predicted from its own
tokens only, so its first token is not predicted. Perplexity is the exponential of the mean negative log-likelihood
(nats) over all predicted tokens. With the hub's raw test split of WikiText-2 as rows and sequence_length 2048 this is
the protocol of the pruning papers (Frantar & Alistarh 2023, arXiv:2301.00774; Sun et al. 2023, arXiv:2306.11695).
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from llm_sparsity.data import tokens as encoded
from llm_sparsity.jobs.environment import machine
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.loading import check_length, load_causal, load_tokenizer
from llm_sparsity.storage.files import write_json
from llm_sparsity.training.objective import perplexity

CHUNK = 256  # tokens whose logits are held at once: 50 MB for a vocabulary of 49,000


def evaluate(
    model: Path, task: Path, output: Path, *, sequence_length: int, max_tokens: int | None, batch_size: int
) -> None:
    """Measure one variant on one text.

    Args:
        model: folder of a variant.
        task: folder of a prepared language-model task.
        output: gets metrics.json and runtime.json.
        sequence_length: tokens in a window.
        max_tokens: use at most the first so many tokens; None for all.
        batch_size: windows at once.

    Raises:
        UserError: the text is shorter than a window, a window is longer than the model allows, or the loss is not
            finite.
    """
    begun = time.perf_counter()
    check_length(model, "sequence_length", sequence_length)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = encoded.windows(
        load_tokenizer(model), task, "test", sequence_length, key="sequence_length", max_tokens=max_tokens
    )
    windows = torch.from_numpy(found.astype("int64"))
    net: Any = load_causal(model).to(device)
    head = net.get_output_embeddings()
    setup = time.perf_counter() - begun

    begun = time.perf_counter()
    total = 0.0
    with torch.inference_mode():
        for batch in tqdm(windows.split(batch_size), desc="perplexity", unit="batch"):
            inputs = batch.to(device)
            hidden = net.base_model(input_ids=inputs, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
            targets = inputs[:, 1:].flatten()
            for states, words in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
                total += float(cross_entropy(head(states).float(), words, reduction="sum"))
    seconds = time.perf_counter() - begun
    if not math.isfinite(total):
        raise UserError(f"{model}: the loss on {task.name} is {total}; a weight is damaged or overflows, make it again")

    predicted = len(windows) * (sequence_length - 1)
    nll = total / predicted
    settings = {"sequence_length": sequence_length, "max_tokens": max_tokens, "batch_size": batch_size}
    times = {"setup_seconds": setup, "eval_seconds": seconds, "tokens_per_second": predicted / seconds}
    write_json(output / "runtime.json", {**times, **machine(device)})
    metrics = {"perplexity": perplexity(nll), "nll": nll}
    write_json(output / "metrics.json", {"metrics": metrics, "tokens": predicted, "settings": settings})
