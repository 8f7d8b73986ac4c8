"""Accuracy of the recipes of studies/recovery.yaml: the study's own runs, in less than half of its time on a CPU.

    PYTHONPATH=workflow python benchmarks/recovery.py --model FOLDER --tasks FOLDER... [--write]
    ... --runs uniform/gradual uniform/kept     these alone

Each run is the engine's, with the study's settings; but matrices are multiplied in bfloat16 and attention is plain
matrices (`eager`), which takes a CPU half the time. Runs are cached: the same command goes on, or adds runs.
"""

import argparse
import json
import os
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import t as student
from table import machine, table, write

STUDY = Path(__file__).parent.parent / "studies/recovery.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the dense model, as downloaded")
    parser.add_argument("--tasks", type=Path, nargs="+", required=True, help="folders of prepared tasks")
    parser.add_argument("--work", type=Path, default=Path("work/recovery"), help="folder of variants, runs and caches")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: the study's")
    parser.add_argument("--runs", nargs="+", metavar="METHOD/RECIPE", help="default: the study's")
    parser.add_argument("--trained", action="store_true", help="train nothing more: tell of the runs that are there")
    parser.add_argument("--write", action="store_true", help="write the table into BENCHMARKS.md")
    args = parser.parse_args()
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    import torch

    from llm_sparsity.models.loading import load_classifier
    from llm_sparsity.pruning.prune import prune
    from llm_sparsity.study import config
    from llm_sparsity.study.cells import DENSE
    from llm_sparsity.training import finetune, objective

    def eager(*args: Any, **options: Any) -> Any:
        net = load_classifier(*args, **options)
        net.set_attn_implementation("eager")
        return net

    torch.set_num_threads(1)
    objective.load_classifier = eager
    study = config.load(yaml.safe_load(STUDY.read_text()))
    found: dict[tuple[str, str], list[float]] = {}
    tasks = {task.name: task for task in args.tasks}
    for run in sorted(study.cells().runs, key=lambda run: (run.seed, run.task, run.variant != DENSE)):  # dense first
        row = "dense" if run.variant == DENSE else f"{run.variant.method}/{run.recipe}"
        if run.task not in tasks or run.seed not in (args.seeds or [run.seed]):
            continue
        if args.runs and row not in ("dense", *args.runs):
            continue
        model, dense = args.model, None
        if run.variant != DENSE:
            folder = args.work / "variants" / str(run.variant)
            model = folder / "model"
            if not model.exists():
                levels = {run.variant.sparsity: folder}
                prune(args.model, levels, method=run.variant.method, scope=run.variant.scope)
            if study.recipe(run.recipe).needs_dense:
                dense = args.work / replace(run, variant=DENSE, recipe="kept").folder / "checkpoints.csv"
        output, settings = args.work / run.folder, study.run_settings(run.task, run.recipe, run.seed)
        if not args.trained:
            finetune.finetune(model, tasks[run.task], output, args.work, code="", dense=dense, **settings)
        elif not (output / "metrics.json").exists():
            continue
        accuracy = json.loads((output / "metrics.json").read_text())["metrics"]["accuracy"]
        print(run.task, row, run.seed, f"{accuracy:.4f}", flush=True)
        found.setdefault((row, run.task), []).append(accuracy)
    rows = dict.fromkeys(row for row, _ in found)
    text = table(["", *tasks], [[row, *(told(found.get((row, task), [])) for task in tasks)] for row in rows])
    text += f"\n\nAccuracy: mean ± 95 % t interval over seeds (each). {machine(1)}."
    print(text)
    if args.write:
        write("recovery", text)


def told(values: list[float]) -> str:
    """A mean, its 95 % t interval, and the values."""
    if len(values) < 2:
        return " ".join(f"{value:.3f}" for value in values)
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.3f} ± {half:.3f} ({' '.join(f'{value:.3f}' for value in values)})"


if __name__ == "__main__":
    main()
