"""Calibrated pruning beside llm-compressor: the same masks and weights? And CPU seconds of a matrix.

    pip install -r envs/requirements.txt                               into an environment of its own
    pip install --no-deps llmcompressor compressed-tensors loguru      into the same
    PYTHONPATH=workflow python benchmarks/oracle.py [--write]

A small Llama with RANDOM weights is pruned by both on the same 32 random sequences of 128 tokens. llm-compressor's
SparseGPT removes one weight more than asked for in every 128 columns, whose error then changes what goes after it; it
is asked for a millionth less here, so that it removes as many as this program.
"""

import random
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from llmcompressor.modifiers.pruning.sparsegpt import sgpt_sparsify
from llmcompressor.modifiers.pruning.wanda import wanda_sparsify
from shared import argument_parser, machine, publish, table, word_tokenizer

from llm_sparsity.data.preparation import TaskSettings, prepare
from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.pruning.calibration import sequences
from llm_sparsity.pruning.methods import sparsegpt, wanda
from llm_sparsity.pruning.prune import prune
from llm_sparsity.storage.container import Reader
from llm_sparsity.storage.files import write_manifest
from llm_sparsity.study.sparsity import Sparsity

LEVELS = ["0.25", "0.5", "0.75", "2of4"]
DRAW = {"samples": 32, "sequence_length": 128, "seed": 0}
WORDS = [f"w{number}" for number in range(4000)]


def main() -> None:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        results = _results(Path(temporary))
    text = (
        f"llm-compressor {version('llmcompressor')}, 1.8M random weights in a Llama's matrices; CPU seconds to observe "
        f"4096 tokens and to prune a 2048x2048 matrix. {machine(1)}.\n\n"
    )
    heads = ["", "sparsity", "equal positions", "largest difference of a matrix", "seconds, this", "llm-compressor"]
    text += table(heads, [[*result, *_seconds(*result[:2])] for result in results], texts=2)
    publish("oracle", text, write=args.write)


def _results(folder: Path) -> list[list[str]]:
    """Both on one model: method, sparsity, share of equal positions, relative difference of the weights."""
    config = transformers.LlamaConfig(
        hidden_size=256, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4, intermediate_size=512,
        max_position_embeddings=128, vocab_size=len(WORDS) + 1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = folder / "model"
    transformers.LlamaForCausalLM(config).save_pretrained(model)
    word_tokenizer(model, WORDS)
    write_manifest(model, kind="model")
    (folder / "words.txt").write_text("\n".join(random.Random(0).choices(WORDS, k=5000)))
    facts = prepare({"train": folder / "words.txt"}, folder / "text", TaskSettings(kind="language-model"))
    write_manifest(folder / "text", **facts)
    dense, text = ModelFolder(model), TaskFolder(folder / "text")
    drawn = sequences(dense, text, **DRAW).tolist()
    rows = {"input_ids": drawn, "attention_mask": [[1] * len(row) for row in drawn]}
    found = []
    for method, peer in (("wanda", WandaPruningModifier), ("sparsegpt", SparseGPTModifier)):
        for level in LEVELS:
            output = folder / method / level
            outputs = {Sparsity(level): output}
            prune(dense, outputs, method=method, scope="linear", calibration=DRAW, text=text)
            less = 1e-6 if method == "sparsegpt" else 0
            asked: dict[str, Any] = {"sparsity": 0.5, "mask_structure": "2:4"}
            if "of" not in level:
                asked = {"sparsity": float(level) - less}
            theirs = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
            oneshot(
                model=theirs, dataset=Dataset.from_dict(rows), recipe=[peer(targets=["LlamaDecoderLayer"], **asked)],
                num_calibration_samples=len(drawn), max_seq_length=DRAW["sequence_length"],
                shuffle_calibration_samples=False,
            )  # fmt: skip
            weights = theirs.state_dict()
            with Reader(output / "model") as reader:
                ours = {name: reader.tensor(name) for name in reader.names}
            names = [name for name in ours if name.endswith("proj.weight")]
            equal = sum(int(((ours[name] == 0) == (weights[name] == 0)).sum()) for name in names)
            size = sum(ours[name].numel() for name in names)
            furthest = max(float((ours[name] - weights[name]).norm() / weights[name].norm()) for name in names)
            found.append([method, level, f"{100 * equal / size:.4f} %", f"{furthest:.1e}"])
    return found


def _seconds(method: str, level: str) -> list[str]:
    """CPU seconds to observe the inputs of one matrix and to prune it: this program, llm-compressor."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4096, 2048, generator=generator)
    layer = torch.nn.Linear(2048, 2048, bias=False)
    asked: dict[str, Any] = {"sparsity": 0.5, "prune_n": 2, "prune_m": 4}
    if "of" not in level:
        asked = {"sparsity": float(level), "prune_n": 0, "prune_m": 0}

    def ours() -> None:
        module: Any = wanda if method == "wanda" else sparsegpt
        module.prune(layer.weight.data, module.prepare(module.observe(inputs)), Sparsity(level))

    def theirs() -> None:
        if method == "wanda":
            squares, _ = wanda_sparsify.accumulate_row_scalars(inputs[None], layer, torch.zeros(2048), 0)
            wanda_sparsify.sparsify_weight(layer, {layer: squares}, **asked)
            return
        hessian, _ = sgpt_sparsify.accumulate_hessian(inputs[None], layer, torch.zeros(2048, 2048), 0)
        sgpt_sparsify.sparsify_weight(
            layer, {layer: hessian}, block_size=128, dampening_frac=0.01, preserve_sparsity_mask=False, **asked
        )

    return [f"{min(_timed(part) for _ in range(3)):.2f}" for part in (ours, theirs)]


def _timed(part: Callable[[], None]) -> float:
    begun = time.process_time()
    part()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
