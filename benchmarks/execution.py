"""Inference of pruned models on a CPU: whole models, end to end, beside torch's own sparse product.

    PYTHONPATH=workflow python benchmarks/execution.py            MiniLM's and roberta-base's shapes
    PYTHONPATH=workflow python benchmarks/execution.py --write    the same, and writes the table to BENCHMARKS.md

RANDOM weights, pruned in the scope linear: the seconds depend on shapes, sparsity and execution only. All models take
turns in one process; a figure is the median of each turn's ratio to the dense model. Peers: dense execution of the same
zeros (the cost of a mask alone), and torch's CSR product, with inputs in its fastest layout.
"""

import argparse
import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from table import machine, table, write
from torch import Tensor
from torch.nn import Linear, Module

from llm_sparsity.inference.memory import keep_freed_memory
from llm_sparsity.inference.sparse_layers import layers_with_zeros, with_sparse_layers
from llm_sparsity.inference.timing import take_turns
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_base
from llm_sparsity.pruning.prune import prune
from llm_sparsity.storage.files import write_manifest
from llm_sparsity.study.sparsity import Sparsity

SHAPES = {
    "MiniLM": transformers.BertConfig(
        hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12
    ),
    "roberta-base": transformers.RobertaConfig(vocab_size=50265, max_position_embeddings=514),
}
VARIANTS = [("random", "0.5"), ("random", "0.8"), ("random", "0.9"), ("random", "0.95"), ("block", "0.5"),
            ("block", "0.9"), ("structured", "0.5")]  # fmt: skip
TOKENS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table to BENCHMARKS.md")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--repeats", type=int, default=3, help="turns (default 3)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="sequences in a batch (default 1 8)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, config in SHAPES.items():
            path, output = Path(folder) / name, Path(folder) / "out"
            torch.manual_seed(0)
            transformers.AutoModel.from_config(config).save_pretrained(path)
            write_manifest(path, kind="model")
            dense = ModelFolder(path)
            for method, sparsity in VARIANTS:
                prune(dense, {Sparsity(sparsity): output}, method=method, scope="linear")
                for batch in args.batches:
                    row = _row(dense, ModelFolder(output / "model"), batch, args.repeats)
                    rows.append([name, method, sparsity, str(batch), *row])
                    print(*rows[-1], flush=True)
    text = (
        f"Speed-up over the dense model (its milliseconds are beside it), whole base model, sequences of {TOKENS} "
        f"tokens, float32. {machine(args.threads)}.\n\n"
        + table(
            ["shape", "method", "sparsity", "batch", "dense model, ms", "dense execution", "torch CSR", "this, sparse"],
            rows,
            texts=2,
        )
    )
    print(text)
    if args.write:
        write("execution", text)


def _row(dense: ModelFolder, pruned: ModelFolder, batch: int, repeats: int) -> list[str]:
    """Milliseconds of the dense model, and the speed-up of each execution of the pruned one."""
    inputs = {"input_ids": torch.randint(1000, (batch, TOKENS))}
    models = [load_base(dense), load_base(pruned)]
    names = layers_with_zeros(models[1], pruned.family)
    if names:
        models += [_with_csr(models[1], names), with_sparse_layers(models[1], pruned.family, names)]
    with torch.inference_mode():
        outputs = [model(**inputs)[0] for model in models[1:]]
        for output in outputs:
            torch.testing.assert_close(output, outputs[0], rtol=1e-3, atol=1e-4)
        seconds = take_turns([partial(model, **inputs) for model in models], repeats)
    ratios = np.median(seconds[:, :1] / seconds[:, 1:], axis=0)
    found = [f"{1e3 * np.median(seconds[:, 0]):.1f}", *(f"{ratio:.2f}" for ratio in ratios)]
    return found + ["-"] * (4 - len(found))


def _with_csr(model: Module, names: list[str]) -> Module:
    model = copy.deepcopy(model)
    for name in names:
        layer: Any = model.get_submodule(name)
        model.set_submodule(name, Csr(layer))
    return model


class Csr(Module):
    """torch's CSR matrix times activations as (inputs, tokens): its fastest form on a CPU."""

    def __init__(self, dense: Linear) -> None:
        super().__init__()
        self.weight, self.bias = dense.weight.detach().to_sparse_csr(), dense.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return (self.weight @ x.flatten(0, -2).t()).t().add(self.bias).unflatten(0, x.shape[:-1])


if __name__ == "__main__":
    main()
