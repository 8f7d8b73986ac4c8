"""Inference of pruned models on a CPU: whole models, end to end, beside torch's own sparse product.

    PYTHONPATH=workflow python benchmarks/execution.py                 all shapes
    PYTHONPATH=workflow python benchmarks/execution.py --shapes GPT-2  one of them
    PYTHONPATH=workflow python benchmarks/execution.py --layers        single layers, in seconds of the processor
    PYTHONPATH=workflow python benchmarks/execution.py --write         the same, and writes the table to BENCHMARKS.md

RANDOM weights, pruned in the scope linear: the seconds depend on shapes, sparsity and execution only. All models take
turns in one process; a figure is the median of each turn's ratio to the dense model. Peers: dense execution of the same
zeros (the cost of a mask alone), and torch's CSR product, with inputs in its fastest layout. Prefill computes all
tokens of a sequence at once, as classification does; decode the last one, with the others cached.
"""

import copy
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from shared import argument_parser, machine, publish, table
from torch import Tensor
from torch.nn import Linear, Module
from transformers.pytorch_utils import Conv1D

from llm_sparsity.inference import workloads
from llm_sparsity.inference.executions import Executions
from llm_sparsity.inference.memory import keep_freed_memory
from llm_sparsity.inference.sparse_layers import SparseLinear, layers_with_zeros
from llm_sparsity.inference.timing import take_turns
from llm_sparsity.inference.ways import possible
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
    "GPT-2": transformers.GPT2Config(),
    "Llama, 4 layers": transformers.LlamaConfig(
        vocab_size=1000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=4, num_attention_heads=32,
        num_key_value_heads=4,
    ),
}  # fmt: skip
VARIANTS = [("random", "0.3"), ("random", "0.5"), ("random", "0.7"), ("random", "0.8"), ("random", "0.9"),
            ("random", "0.95"), ("block", "0.5"), ("block", "0.9"), ("structured", "0.5")]  # fmt: skip
LAYERS = {
    "MiniLM": (1536, 384, Linear),
    "roberta-base": (3072, 768, Linear),
    "GPT-2": (3072, 768, Conv1D),
    "Llama": (5632, 2048, Linear),
}  # outputs, inputs of the first matrix of a feed-forward block
LAYER_TURNS = 8
TOKENS = 128


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--layers", action="store_true", help="time single layers instead, on one thread")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="default: all")
    parser.add_argument("--variants", nargs="+", help="such as random-0.5 (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--repeats", type=int, default=3, help="turns (default 3)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="sequences in a batch (default 1 8)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    if args.layers:
        text = _layers()
        publish("execution-layers", text, write=args.write)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.shapes:
            path, output = Path(folder) / name, Path(folder) / "out"
            torch.manual_seed(0)
            transformers.AutoModel.from_config(SHAPES[name]).save_pretrained(path)
            write_manifest(path, kind="model")
            dense = ModelFolder(path)
            for method, sparsity in VARIANTS:
                if args.variants and f"{method}-{sparsity}" not in args.variants:
                    continue
                prune(dense, {Sparsity(sparsity): output}, method=method, scope="linear")
                for row in _rows(dense, ModelFolder(output / "model"), args.batches, args.repeats):
                    rows.append([name, method, sparsity, *row])
                    print(*rows[-1], sep=" | ", flush=True)
    text = (
        f"Speed-up over the dense model (its milliseconds are beside it), whole base model, sequences of {TOKENS} "
        f"tokens, float32. {machine(args.threads)}.\n\n"
        + table(
            ["shape", "method", "sparsity", "phase", "batch", "dense model, ms", "dense execution", "torch CSR",
             "this, sparse", "this, fastest"],
            rows,
            texts=2,
        )
    )  # fmt: skip
    publish("execution", text, write=args.write)


def _layers() -> str:
    """A table of single layers: the fastest way over the dense layer, by processor time, free of other work."""
    torch.set_num_threads(1)
    rows = []
    for name, (outputs, inputs, kind) in LAYERS.items():
        for sparsity in (0.3, 0.5, 0.7, 0.9):
            dense: Any = Conv1D(outputs, inputs) if kind is Conv1D else Linear(inputs, outputs)
            dense.weight.data *= torch.rand(dense.weight.shape) >= sparsity
            sparse = SparseLinear(dense)
            shapes = [(1, 1, inputs), (8, 1, inputs), (1, TOKENS, inputs), (8, TOKENS, inputs)]
            rows.append([name, f"{sparsity:.0%}", *(_fastest(dense, sparse, torch.randn(shape)) for shape in shapes)])
            print(*rows[-1], sep=" | ", flush=True)
    heads = ["layer", "sparsity", "decode, batch 1", "decode, batch 8", "prefill, batch 1", "prefill, batch 8"]
    return (
        f"Speed-up of a layer's fastest way over the dense layer, float32, {TOKENS} tokens in prefill; least "
        f"processor time of {LAYER_TURNS} turns. {machine(1)}.\n\n{table(heads, rows)}"
    )


def _fastest(dense: Module, sparse: SparseLinear, x: Tensor) -> str:
    names = possible(sparse.matrix, x[..., 0].numel())
    calls = {"dense": dense} | {name: getattr(sparse, name) for name in names}
    seconds = dict.fromkeys(calls, float("inf"))
    with torch.inference_mode():
        for _ in range(LAYER_TURNS):
            for name, call in calls.items():
                start = time.thread_time()
                call(x)
                seconds[name] = min(seconds[name], time.thread_time() - start)
    best = min(names, key=lambda name: seconds[name])
    return f"{seconds['dense'] / seconds[best]:.2f} ({best})"


def _rows(dense: ModelFolder, pruned: ModelFolder, batches: list[int], repeats: int) -> Iterator[list[str]]:
    """Phase, batch, milliseconds of the dense model, and the speed-up of each execution of the pruned one."""
    reference, variant = load_base(dense), load_base(pruned)
    for model in (reference, variant):
        model.config.use_cache = False
    ways = Executions(variant, pruned)
    names = layers_with_zeros(variant, pruned.structure)
    csr = {"CSR": _with_csr(variant, names)} if names else {}
    for size in batches:
        batch = workloads.prefill(reference, size, TOKENS)
        decodes = pruned.structure.architecture == "decoder"
        for workload in [batch, *([workloads.decode(batch)] if decodes else [])]:
            models: dict[str, Module] = {name: way.model for name, way in ways.of(workload).items()} | csr
            expected = workload(models["dense"])
            for model in models.values():
                torch.testing.assert_close(workload(model), expected, rtol=1e-3, atol=1e-3)
            calls = [partial(workload, model) for model in (reference, *models.values())]
            seconds = take_turns(calls, repeats)
            gains = dict(zip(models, np.median(seconds[:, :1] / seconds[:, 1:], axis=0), strict=True))
            if "sparse" in gains:
                gains.setdefault("fastest", max(gains["dense"], gains["sparse"]))
            shown = [f"{gains[name]:.2f}" if name in gains else "-" for name in ("dense", "CSR", "sparse", "fastest")]
            yield [workload.phase, str(size), f"{1e3 * np.median(seconds[:, 0]):.1f}", *shown]


def _with_csr(model: Module, names: list[str]) -> Module:
    model = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    for name in names:
        model.set_submodule(name, Csr(model.get_submodule(name)))
    return model


class Csr(Module):
    """torch's CSR matrix times activations as (inputs, tokens): its fastest form on a CPU."""

    def __init__(self, dense: Any) -> None:
        super().__init__()
        weight = dense.weight.detach()
        self.weight = (weight.t() if isinstance(dense, Conv1D) else weight).to_sparse_csr()
        self.bias = None if dense.bias is None else dense.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        out = (self.weight @ x.flatten(0, -2).t()).t()
        return (out if self.bias is None else out + self.bias).unflatten(0, x.shape[:-1])


if __name__ == "__main__":
    main()
