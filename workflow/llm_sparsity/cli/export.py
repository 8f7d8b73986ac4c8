"""Export a model of a study for other programs: a folder that plain transformers loads, with a model card.

llm-sparsity export results/smollm2/wanda-linear-0.5 --output smollm2-half
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path


def main(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Export, and print a summary."""
    parser.add_argument("cell", type=Path, metavar="CELL", help="folder of a result, or any model folder")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to write, a new one")
    parser.add_argument(
        "--max-shard-size", type=_size, default="5GB", metavar="SIZE", help="of a weight file, as 500MB (default 5GB)"
    )
    parser.add_argument(
        "--no-check", action="store_true", help="do not compare outputs in a new process, for large models"
    )
    args = parser.parse_args(words)

    from llm_sparsity.export.cell import find_cell
    from llm_sparsity.export.export import export, summary

    exported = export(find_cell(args.cell), args.output, max_shard_size=args.max_shard_size, check=not args.no_check)
    print(summary(exported, args.output))


def _size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*[KMGT]B", text):
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a size such as 500MB or 5GB")
    return text
