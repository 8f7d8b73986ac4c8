"""Inference of pruned models on a CPU: whole models, end to end, beside torch's own sparse product.

    PYTHONPATH=workflow python benchmarks/execution.py            MiniLM's and roberta-base's shapes
    PYTHONPATH=workflow python benchmarks/execution.py --write    the same, and the table goes into BENCHMARKS.md

RANDOM weights, pruned in the scope linear at random: only shapes, sparsity and execution decide the seconds. Everything
takes turns in one process; a figure is the median of the ratios to the dense model of each turn. Peers: dense execution
of the same zeros (what a mask alone gives), and torch's CSR product, fed in the layout that it is fastest in.
"""

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from table import machine, table, write
from torch import Tensor
from torch.nn import Linear, Module

from llm_sparsity.inference import sparse_layers as execution
from llm_sparsity.models.loading import family, load_base
from llm_sparsity.pruning.prune import prune
from llm_sparsity.storage.files import write_manifest

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
    parser.add_argument("--write", action="store_true", help="put the table into BENCHMARKS.md")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="sequences at once (default 1 8)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    execution.keep_freed_memory()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, config in SHAPES.items():
            dense = Path(folder) / name
            torch.manual_seed(0)
            transformers.AutoModel.from_config(config).save_pretrained(dense)
            write_manifest(dense, kind="model")
            for method, level in VARIANTS:
                output = Path(folder) / "out"
                prune(dense, {level: output}, method=method, scope="linear")
                for batch in args.batches:
                    row = _row(load_base(dense), load_base(output / "model"), output / "model", batch, args.repeats)
                    rows.append([name, method, level, str(batch), *row])
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


def _row(dense: Any, pruned: Any, folder: Path, batch: int, repeats: int) -> list[str]:
    """Milliseconds of the dense model, and the speed-up of each execution of the pruned one."""
    kind, inputs = family(folder), {"input_ids": torch.randint(1000, (batch, TOKENS))}
    names = execution.holding_zeros(pruned, kind)
    nets = [dense, pruned]
    if names:
        nets += [_with_csr(pruned, names), execution.sparse(pruned, kind, names)]
    with torch.inference_mode():
        outputs = [net(**inputs)[0] for net in nets[1:]]
        for output in outputs:
            torch.testing.assert_close(output, outputs[0], rtol=1e-3, atol=1e-4)
        seconds = execution.take_turns([lambda net=net: net(**inputs) for net in nets], repeats)
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
