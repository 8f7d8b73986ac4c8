"""Perplexity and bytes of chains: methods followed by steps, and quantised models, by the protocol of perplexity.py.

    PYTHONPATH=workflow python benchmarks/chains.py --model resources/models/smollm2 --text wiki.test.raw --write

Cells are files, as there: an interrupted run continues, --minutes 0 shows the finished ones, and --cells names those to
compute, such as wanda+swaps-0.5. A chain of `reconstruct` takes a quarter of an hour of one core. --samples 8 32 also
shows what more calibration text gives.
"""

import math
import statistics
import time
from pathlib import Path

from perplexity import CELL, LENGTH, SAMPLES, SEEDS, WINDOWS, halves, interval, measure
from shared import argument_parser, machine, publish, table

LEVELS = ["0.5", "0.6", "2of4"]
CHAINS = [
    "uniform", "uniform+reconstruct", "wanda", "wanda+swaps", "wanda+reconstruct", "wanda+swaps+reconstruct",
    "sparsegpt", "sparsegpt+swaps", "sparsegpt+reconstruct", "admm", "admm+swaps", "admm+reconstruct",
    "wanda+int8", "wanda+reconstruct+int8", "admm+reconstruct+int8",
]  # fmt: skip
CELLS = ["dense-0", "int8-0", "int4-0", *(f"{chain}-{level}" for level in LEVELS for chain in CHAINS)]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a downloaded decoder")
    parser.add_argument("--text", type=Path, required=True, help="running text, one paragraph a line")
    parser.add_argument("--folder", type=Path, default=Path("work/perplexity"), help="folder of the cells")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS, metavar="CELL", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="draws of calibration text")
    parser.add_argument(
        "--samples", nargs="+", type=int, default=[SAMPLES], help=f"calibration sequences (default {SAMPLES})"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no cell after MINUTES")
    parser.add_argument("--threads", type=int, default=1, help="threads (default 1)")
    args = parser.parse_args()
    import torch

    from llm_sparsity.models.folder import ModelFolder
    from llm_sparsity.storage.files import read_json
    from llm_sparsity.storage.sizes import weight_sizes
    from llm_sparsity.study.methods import is_calibrated

    torch.set_num_threads(args.threads)
    halves(args.text, args.folder)
    model = ModelFolder(args.model)
    with model.open() as reader:
        names = model.structure.without_copies(reader.names)
        dense = weight_sizes(reader, names, model)["container_bytes"]
    end, rows = time.monotonic() + 60 * args.minutes, []
    for cell in CELLS:
        chain, level = cell.rsplit("-", 1)
        calibrated = is_calibrated(chain)
        for samples in args.samples if calibrated else [0]:
            more = "" if samples in (0, SAMPLES) else f"-{samples}"
            draws = []
            for seed in SEEDS if calibrated else [0]:
                output = args.folder / f"{cell}-uniform-{seed}{more}"
                wanted = cell in args.cells and (seed in args.seeds or not calibrated)
                if wanted and not (output / CELL).exists() and time.monotonic() < end:
                    measure(args.model, args.folder / "text", output, chain, level, "uniform", seed, samples)
                if (output / CELL).exists():
                    draws.append(read_json(output / CELL))
                    print(output.name, draws[-1], flush=True)
            if draws:
                size = dense if chain == "dense" else statistics.mean(draw["bytes"] for draw in draws)
                sizes = [f"{size / 1e6:.0f}", f"{100 * size / dense:.0f} %"]
                minutes = f"{draws[0]['cpu'] / 60:.1f}"
                rows.append([chain, level, str(samples or ""), interval(draws), *sizes, minutes])
    text = (
        f"{args.model.name} on WikiText-2, scope linear. Perplexity of {WINDOWS} windows of {LENGTH} tokens; "
        f"calibration sequences of {LENGTH} tokens; mean over their draws, ± half of the 95 % interval "
        "(Student's t) if there are three. MB are those of the whole file in the sparse container, whose embeddings "
        "are neither pruned nor quantised. CPU minutes are those of pruning and all steps, of the first draw. "
        f"{machine(args.threads)}.\n\n"
    ) + table(["", "sparsity", "sequences", "perplexity", "MB", "of dense", "CPU min"], rows, texts=2)
    publish("chains", text, write=args.write)


if __name__ == "__main__":
    main()
