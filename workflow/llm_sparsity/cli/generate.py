"""Generate text with a model folder, dense and sparse, and compare their speed.

llm-sparsity generate results/smollm2/wanda-linear-0.5 --prompt "Gravity is"
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Print both texts and a table of their speed."""
    parser.add_argument(
        "model", type=Path, metavar="FOLDER", help="folder of a result, or any model folder, of a causal LM"
    )
    parser.add_argument("--prompt", required=True, help="the text before")
    parser.add_argument("--tokens", type=_positive, default=64, help="tokens to generate (default 64)")
    parser.add_argument("--threads", type=_positive, help="CPU threads (default: torch's)")
    parser.add_argument("--execution", choices=("dense", "sparse"), help="one of them (default: both)")
    args = parser.parse_args(words)

    import torch
    import transformers
    from tabulate import tabulate  # type: ignore[import-untyped]

    from llm_sparsity.export.cell import find_cell
    from llm_sparsity.inference.generate import generate

    transformers.logging.disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)
    folder = find_cell(args.model).folder
    rows: list[list[Any]] = []
    for execution in [args.execution] if args.execution else ["dense", "sparse"]:
        found = generate(folder, execution, args.prompt, args.tokens)
        row = [execution, found.layers, found.prefill, found.decode, found.bytes / 1e6, found.seconds]
        rows.append([*row, found.decode / (rows[0][3] if rows else found.decode)])
    heads = ["execution", "sparse layers", "prompt, token/s", "generating, token/s", "weights, MB", "load, s", "ratio"]
    print(f"\n{tabulate(rows, heads, floatfmt='.1f')}\n")
    print(f"CPU threads: {torch.get_num_threads()}; `generating` begins after the first token")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a whole number from 1")
    return int(text)
