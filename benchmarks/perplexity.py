"""What pruning in one shot costs a causal language model, by method: perplexity, with three draws of calibration text.

    PYTHONPATH=workflow python benchmarks/perplexity.py --model resources/models/smollm2 --text wiki.test.raw --write

The first half of the text's lines is measured on, the second half is calibrated with: no sequence is in both. This is
shorter than the papers' protocol (128 sequences of 2048 tokens of another text, the whole test split), which a GPU
takes; the numbers order the methods and are not the papers'. Every cell leaves a file in --folder, and what lies there
is not computed again: an interrupted run goes on. The table is of what is there, with --minutes 0 of that alone.
"""

import argparse
import math
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from table import machine, table, write

LEVELS = ["0.5", "2of4", "0.6", "0.3"]
PLAIN = ["magnitude", "uniform", "random"]
CALIBRATED = ["wanda", "sparsegpt", "admm"]
SEEDS = [0, 1, 2]
SAMPLES, LENGTH, WINDOWS = 8, 512, 8
CELL = "cell.json"
T95 = 4.303  # of Student's distribution with two degrees of freedom: three seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a downloaded decoder")
    parser.add_argument("--text", type=Path, required=True, help="running text, one paragraph a line")
    parser.add_argument("--folder", type=Path, default=Path("work/perplexity"), help="where cells lie")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no cell after so many (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default 1)")
    parser.add_argument("--write", action="store_true", help="put the table into BENCHMARKS.md")
    args = parser.parse_args()
    import torch

    from llm_sparsity.storage.files import read_json

    torch.set_num_threads(args.threads)
    _halves(args.text, args.folder)
    end = time.monotonic() + 60 * args.minutes
    found = {}
    for cell in _cells():
        output = args.folder / "-".join(map(str, cell))
        if not (output / CELL).exists() and time.monotonic() < end:
            _measure(args.model, args.folder / "text", output, *cell)
        if (output / CELL).exists():
            found[cell] = read_json(output / CELL)
            print(output.name, found[cell], flush=True)
    text = told(args.model, found, args.threads)
    print(text)
    if args.write:
        write("perplexity", text)


def _cells() -> list[tuple[str, str, str, int]]:
    """(method, level, budgets, seed): what says most comes first."""
    plain = [(method, level, "uniform", 0) for level in LEVELS for method in PLAIN]
    drawn = [(method, level, "uniform", seed) for level in LEVELS for seed in SEEDS for method in CALIBRATED]
    drawn += [(method, "0.6", "owl", seed) for seed in SEEDS for method in CALIBRATED]
    cells = sorted(plain + drawn, key=lambda cell: (cell[1] != LEVELS[0], cell[3]))
    return [("dense", "0", "uniform", 0), *(cell for cell in cells if cell[:2] != ("magnitude", "2of4"))]


def _halves(text: Path, folder: Path) -> None:
    """The text as a task: test is its first half, train its second."""
    from llm_sparsity.data import tasks
    from llm_sparsity.storage.files import write_manifest, write_text

    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    half = len(lines) // 2
    paths = {split: folder / f"{split}.txt" for split in ("test", "train")}
    write_text(paths["test"], "".join(lines[:half]))
    write_text(paths["train"], "".join(lines[half:]))
    facts = tasks.prepare(paths, folder / "text", kind="language-model")
    write_manifest(folder / "text", kind="task", **facts)


def _measure(model: Path, text: Path, output: Path, method: str, level: str, budgets: str, seed: int) -> None:
    """Perplexity of a cell, and the CPU seconds that pruning took."""
    from llm_sparsity.evaluation.evaluate import evaluate
    from llm_sparsity.pruning.prune import prune
    from llm_sparsity.storage.files import read_json, write_json

    begun = time.process_time()
    if method != "dense":
        draw = {"samples": SAMPLES, "sequence_length": LENGTH, "seed": seed}
        more: dict[str, Any] = {"calibration": draw, "text": text, "budgets": budgets} if method in CALIBRATED else {}
        prune(model, {level: output}, method=method, scope="linear", **more)
    seconds = time.process_time() - begun
    pruned = model if method == "dense" else output / "model"
    evaluate(pruned, text, output, sequence_length=LENGTH, max_tokens=WINDOWS * LENGTH, batch_size=1)
    write_json(
        output / CELL, {"perplexity": read_json(output / "metrics.json")["metrics"]["perplexity"], "cpu": seconds}
    )
    shutil.rmtree(output / "model", ignore_errors=True)


def told(model: Path, found: dict[tuple[str, str, str, int], dict[str, Any]], threads: int) -> str:
    """The table, and what its numbers mean."""
    columns = sorted(LEVELS, key=lambda level: (level == "2of4", level))
    rows = []
    for method, budgets in [*((name, "uniform") for name in [*PLAIN, *CALIBRATED]), *((n, "owl") for n in CALIBRATED)]:
        cells = {
            level: [found[cell] for seed in SEEDS if (cell := (method, level, budgets, seed)) in found]
            for level in columns
        }
        if any(cells.values()):
            cpu = [cell["cpu"] for values in cells.values() for cell in values]
            name = f"{method}, OWL" if budgets == "owl" else method
            rows.append([name, *(_interval(values) for values in cells.values()), f"{statistics.mean(cpu):.0f}"])
    dense = found["dense", "0", "uniform", 0]["perplexity"]
    return (
        f"{model.name} on WikiText-2, scope linear; dense {dense:.1f}. Perplexity of {WINDOWS} windows of {LENGTH} "
        f"tokens, where the papers take all of 2048; calibrated with {SAMPLES} sequences of {LENGTH} tokens: mean of "
        "the draws, ± half of its 95 % interval (Student's t) where there are three of them. Of a "
        "pattern magnitude is `uniform`. CPU seconds are those of pruning to one sparsity. "
        f"{machine(threads)}.\n\n"
    ) + table(["", *columns, "CPU s"], rows)


def _interval(cells: list[dict[str, Any]]) -> str:
    values = [cell["perplexity"] for cell in cells]
    if not values:
        return "-"
    mean = f"{statistics.mean(values):,.1f}"
    if len(values) < 3:
        return mean
    return f"{mean} ± {T95 * statistics.stdev(values) / len(values) ** 0.5:.1f}"


if __name__ == "__main__":
    main()
