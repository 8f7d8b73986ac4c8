"""Perplexity of a causal language model after one-shot pruning, by method, with three draws of calibration text.

    PYTHONPATH=workflow python benchmarks/perplexity.py --model resources/models/smollm2 --text wiki.test.raw --write

Perplexity is measured on the first half of the text's lines; the second half is the calibration text. This is a smaller
protocol than the papers' (128 sequences of 2048 tokens of another text, the whole test split), which needs a GPU: the
numbers rank the methods but are not comparable with the papers. Every cell writes a file to --folder and is not
computed again, so an interrupted run continues. The table shows the finished cells; --minutes 0 computes no other.
"""

import math
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import pandas as pd
from shared import argument_parser, machine, publish, table

from llm_sparsity.reporting.intervals import margin

LEVELS = ["0.5", "2of4", "0.6", "0.3"]
PLAIN = ["magnitude", "uniform", "random"]
CALIBRATED = ["wanda", "sparsegpt", "admm"]
SEEDS = [0, 1, 2]
SAMPLES, LENGTH, WINDOWS = 8, 512, 8
CELL = "cell.json"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a downloaded decoder")
    parser.add_argument("--text", type=Path, required=True, help="running text, one paragraph a line")
    parser.add_argument("--folder", type=Path, default=Path("work/perplexity"), help="folder of the cells")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="start no cell after MINUTES (default: no limit)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads (default 1)")
    args = parser.parse_args()
    import torch

    from llm_sparsity.storage.files import read_json

    torch.set_num_threads(args.threads)
    halves(args.text, args.folder)
    end = time.monotonic() + 60 * args.minutes
    found = {}
    for cell in _cells():
        output = args.folder / "-".join(map(str, cell))
        if not (output / CELL).exists() and time.monotonic() < end:
            measure(args.model, args.folder / "text", output, *cell)
        if (output / CELL).exists():
            found[cell] = read_json(output / CELL)
            print(output.name, found[cell], flush=True)
    text = summary(args.model, found, args.threads)
    publish("perplexity", text, write=args.write)


def _cells() -> list[tuple[str, str, str, int]]:
    """(method, level, layerwise, seed) of every cell, the most informative first."""
    plain = [(method, level, "uniform", 0) for level in LEVELS for method in PLAIN]
    drawn = [(method, level, "uniform", seed) for level in LEVELS for seed in SEEDS for method in CALIBRATED]
    drawn += [(method, "0.6", "owl", seed) for seed in SEEDS for method in CALIBRATED]
    cells = sorted(plain + drawn, key=lambda cell: (cell[1] != LEVELS[0], cell[3]))
    return [("dense", "0", "uniform", 0), *(cell for cell in cells if cell[:2] != ("magnitude", "2of4"))]


def halves(text: Path, folder: Path) -> None:
    """Prepare the text as a task: its first half is the split test, the second half train."""
    from llm_sparsity.data.preparation import TaskSettings, prepare
    from llm_sparsity.storage.files import write_manifest, write_text

    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    half = len(lines) // 2
    paths = {split: folder / f"{split}.txt" for split in ("test", "train")}
    write_text(paths["test"], "".join(lines[:half]))
    write_text(paths["train"], "".join(lines[half:]))
    facts = prepare(paths, folder / "text", TaskSettings(kind="language-model"))
    write_manifest(folder / "text", kind="task", **facts)


def measure(
    path: Path, text: Path, output: Path, method: str, level: str, layerwise: str, seed: int, samples: int = SAMPLES
) -> None:
    """Perplexity of a cell, and the CPU seconds of pruning."""
    from llm_sparsity.data.tasks import TaskFolder
    from llm_sparsity.evaluation.evaluate import evaluate
    from llm_sparsity.models.folder import ModelFolder
    from llm_sparsity.pruning.prune import prune
    from llm_sparsity.storage.files import read_json, read_manifest, weight_bytes, write_json
    from llm_sparsity.study.methods import is_calibrated
    from llm_sparsity.study.sparsity import Sparsity

    model, task = ModelFolder(path), TaskFolder(text)
    begin = time.process_time()
    if method != "dense":
        draw = {"samples": samples, "sequence_length": LENGTH, "seed": seed}
        more: dict[str, Any] = {"calibration": draw, "text": task, "layerwise": layerwise}
        prune(
            model, {Sparsity(level): output}, method=method, scope="linear", **(more if is_calibrated(method) else {})
        )
        model = ModelFolder(output / "model")
    seconds = time.process_time() - begin
    evaluate(model, task, output, sequence_length=LENGTH, max_tokens=WINDOWS * LENGTH, batch_size=1)
    found = read_json(output / "metrics.json")["metrics"]["perplexity"]
    size = weight_bytes(read_manifest(model.path))
    write_json(output / CELL, {"perplexity": found, "cpu": seconds, "bytes": size})
    shutil.rmtree(output / "model", ignore_errors=True)


def summary(model: Path, found: dict[tuple[str, str, str, int], dict[str, Any]], threads: int) -> str:
    """The table and its caption."""
    columns = sorted(LEVELS, key=lambda level: (level == "2of4", level))
    rows = []
    for method, layerwise in [
        *((name, "uniform") for name in [*PLAIN, *CALIBRATED]),
        *((n, "owl") for n in CALIBRATED),
    ]:
        cells = {
            level: [found[cell] for seed in SEEDS if (cell := (method, level, layerwise, seed)) in found]
            for level in columns
        }
        if any(cells.values()):
            cpu = [cell["cpu"] for values in cells.values() for cell in values]
            name = f"{method}, OWL" if layerwise == "owl" else method
            rows.append([name, *(interval(values) for values in cells.values()), f"{statistics.mean(cpu):.0f}"])
    dense = found["dense", "0", "uniform", 0]["perplexity"]
    return (
        f"{model.name} on WikiText-2, scope linear; dense {dense:.1f}. Perplexity of {WINDOWS} windows of {LENGTH} "
        f"tokens (the papers use all windows of 2048); {SAMPLES} calibration sequences of {LENGTH} tokens: mean over "
        "the draws, ± half of the 95 % interval (Student's t) if there are three. For a pattern, magnitude is "
        "`uniform`. CPU seconds are those of pruning to one sparsity. "
        f"{machine(threads)}.\n\n"
    ) + table(["", *columns, "CPU s"], rows)


def interval(cells: list[dict[str, Any]]) -> str:
    values = [cell["perplexity"] for cell in cells]
    if not values:
        return "-"
    mean = f"{statistics.mean(values):,.1f}"
    if len(values) < 3:
        return mean
    return f"{mean} ± {margin(pd.Series(values)):.1f}"


if __name__ == "__main__":
    main()
