"""Zero-shot accuracy of a causal language model by lm-evaluation-harness, without training.

The harness's own task file says how a row becomes a prompt and its answers, and what is scored; the rows are those that
the stage download has pinned. No examples precede the prompt.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch

from llm_sparsity.data import harness, tasks
from llm_sparsity.jobs.environment import machine
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.loading import load_causal, load_tokenizer
from llm_sparsity.storage.files import read_manifest, write_json


def zero_shot(model: Path, task: Path, output: Path, *, batch_size: int, packages: Path) -> None:
    """Measure one variant on one task of the harness.

    Args:
        model: folder of a variant.
        task: folder of a prepared zero-shot task.
        output: gets metrics.json (each metric of the harness, and its standard error) and runtime.json.
        batch_size: answers at once.
        packages: folder of the harness, see `harness.install`.

    Raises:
        UserError: the harness is missing, is another than the task was prepared for, or a likelihood is not finite.
    """
    begun = time.perf_counter()
    version, facts = harness.load(packages), read_manifest(task)["harness"]
    if version != facts["version"]:
        raise UserError(
            f"{task}: was prepared for lm-evaluation-harness {facts['version']}, {packages} has {version}; "
            "download the task again"
        )
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = load_causal(model).to(device)
    runner = HFLM(pretrained=net, tokenizer=load_tokenizer(model), batch_size=batch_size)
    made = _task(packages, task, facts)
    setup = time.perf_counter() - begun

    begun = time.perf_counter()
    found: Any = lm_eval.evaluate(lm=runner, task_dict={"tasks": {facts["task"]: made}}, log_samples=True)
    seconds = time.perf_counter() - begun
    answers = [float(answer[0][0]) for sample in found["samples"][facts["task"]] for answer in sample["resps"]]
    if not all(map(math.isfinite, answers)):
        raise UserError(
            f"{model}: a likelihood on {task.name} is not finite; a weight is damaged or overflows, make it again"
        )

    examples = found["n-samples"][facts["task"]]["effective"]
    times = {"setup_seconds": setup, "eval_seconds": seconds, "examples_per_second": examples / seconds}
    write_json(output / "runtime.json", {**times, **machine(device)})
    metrics = _metrics(found["results"][facts["task"]])
    told = {key: facts[key] for key in ("version", "task", "task_version", "split")}
    settings = {"batch_size": batch_size}
    write_json(
        output / "metrics.json", {"metrics": metrics, "examples": examples, "harness": told, "settings": settings}
    )


def _task(packages: Path, task: Path, facts: dict[str, Any]) -> Any:
    """The harness's task, its rows replaced by the prepared ones."""
    import datasets
    from lm_eval.tasks import TaskManager

    split = facts["split"]
    rows = datasets.Dataset.from_list(tasks.load_rows(task, split))
    changes = {
        "custom_dataset": lambda **_: {split: rows},
        "num_fewshot": 0,
        "training_split": None,
        **{key: None for key in ("validation_split", "test_split") if key != f"{split}_split"},
    }
    manager = TaskManager(include_defaults=False, include_path=str((packages / harness.SITE / facts["file"]).parent))
    return manager.load({"group": "one", "task": [{"task": facts["task"], **changes}]})["tasks"][facts["task"]]


def _metrics(result: dict[str, Any]) -> dict[str, float]:
    """acc, acc_stderr, ... of what the harness calls "acc,none": the metric, and the filter of the answers."""
    metrics = {}
    for key, value in result.items():
        metric, comma, chosen = key.partition(",")
        if comma and isinstance(value, int | float):
            metrics[metric if chosen == "none" else f"{metric}_{chosen}"] = float(value)
    return metrics
