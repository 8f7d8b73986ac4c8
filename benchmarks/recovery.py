"""Accuracy of the recipes of studies/recovery.yaml: the runs of the study, one after the other on one thread.

    PYTHONPATH=workflow python benchmarks/recovery.py --model FOLDER --tasks FOLDER... [--write]
    ... --runs uniform/gradual uniform/kept     only these

Runs use the study's settings. To save time on a CPU, attention is `eager` (plain matrix products). Runs are cached: the
same command continues, or adds runs.
"""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from shared import argument_parser, machine, publish, table

from llm_sparsity.reporting.intervals import margin

STUDY = Path(__file__).parent.parent / "studies/recovery.yaml"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the dense model, as downloaded")
    parser.add_argument("--tasks", type=Path, nargs="+", required=True, help="folders of prepared tasks")
    parser.add_argument("--work", type=Path, default=Path("work/recovery"), help="folder of variants, runs and caches")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: the study's")
    parser.add_argument("--runs", nargs="+", metavar="METHOD/RECIPE", help="default: the study's")
    parser.add_argument("--trained", action="store_true", help="train nothing, report the finished runs")
    args = parser.parse_args()
    import torch

    from llm_sparsity.data.tasks import TaskFolder
    from llm_sparsity.models.folder import ModelFolder
    from llm_sparsity.models.loading import load_classifier
    from llm_sparsity.pruning.prune import prune
    from llm_sparsity.study import config
    from llm_sparsity.study.cells import DENSE
    from llm_sparsity.training import objective
    from llm_sparsity.training.finetune import finetune
    from llm_sparsity.training.settings import FinetuneSettings

    def eager(*args: Any, **options: Any) -> Any:
        net = load_classifier(*args, **options)
        net.set_attn_implementation("eager")
        return net

    torch.set_num_threads(1)
    objective.load_classifier = eager
    study = config.load(yaml.safe_load(STUDY.read_text()))
    found: dict[tuple[str, str], list[float]] = {}
    tasks = {task.name: TaskFolder(task) for task in args.tasks}
    unpruned = ModelFolder(args.model)
    for run in sorted(study.cells().runs, key=lambda run: (run.seed, run.task, run.variant != DENSE)):  # dense first
        row = "dense" if run.variant == DENSE else f"{run.variant.method}/{run.recipe}"
        if run.task not in tasks or run.seed not in (args.seeds or [run.seed]):
            continue
        if args.runs and row not in ("dense", *args.runs):
            continue
        model = unpruned
        if run.variant != DENSE:
            folder = args.work / "variants" / str(run.variant)
            if not (folder / "model/manifest.json").exists():
                prune(unpruned, {run.variant.sparsity: folder}, method=run.variant.method, scope=run.variant.scope)
            model = ModelFolder(folder / "model")
        output = args.work / run.folder
        if not args.trained:
            dense = None
            if study.recipe(run.recipe).needs_dense:
                dense = ModelFolder(args.work / replace(run, variant=DENSE, recipe="kept").folder / "model")
            settings = FinetuneSettings.from_dict(study.run_settings(run.task, run.recipe, run.seed))
            text = study.training_text(run.task, run.recipe)
            finetune(
                model, tasks[run.task], output, args.work, settings, code="", dense=dense, text=text and tasks[text],
            )  # fmt: skip
        elif not (output / "metrics.json").exists():
            continue
        accuracy = json.loads((output / "metrics.json").read_text())["metrics"]["accuracy"]
        print(run.task, row, run.seed, f"{accuracy:.4f}", flush=True)
        found.setdefault((row, run.task), []).append(accuracy)
    rows = dict.fromkeys(row for row, _ in found)
    text = table(["", *tasks], [[row, *(summary(found.get((row, task), [])) for task in tasks)] for row in rows])
    text += f"\n\nAccuracy: mean ± 95 % t interval over seeds (each). {machine(1)}."
    publish("recovery", text, write=args.write)


def summary(values: list[float]) -> str:
    """The mean, its 95 % t interval, and the values."""
    each = " ".join(f"{value:.3f}" for value in values)
    if len(values) < 2:
        return each
    return f"{statistics.mean(values):.3f} ± {margin(pd.Series(values)):.3f} ({each})"


if __name__ == "__main__":
    main()
