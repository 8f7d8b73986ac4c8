"""Zero-shot accuracy of a causal language model by lm-evaluation-harness, without training.

The harness's task file defines the prompt, the possible answers and the metrics. The rows are those that the stage
`download` has pinned. The prompt contains no examples. On a GPU the model computes in the checkpoint's dtype, as by the
harness's default; on a CPU, and if the checkpoint has several dtypes, in float32.
"""

import json
import math
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from llm_sparsity.data import harness
from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.jobs.environment import environment
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_causal, loading_dtype
from llm_sparsity.storage.files import write_json


def zero_shot(model: ModelFolder, task: TaskFolder, output: Path, *, batch_size: int, packages: Path) -> None:
    """Measure the zero-shot accuracy of a model on a task of the harness.

    Args:
        model: a causal language model, dense or pruned.
        task: a zero-shot task.
        output: folder to write; gets metrics.json (the harness's metrics and their standard errors), runtime.json, and
            lm_eval.json (the file that the harness itself writes, for programs that read it).
        batch_size: answers in a forward pass.
        packages: folder of the harness, see `harness.install`.

    Raises:
        UserError: the harness is missing, its version is not the one that the task was prepared for, the task asks a
            model to write text, or a likelihood is not finite.
    """
    begin = time.perf_counter()
    found, facts = harness.load(packages), task.manifest["harness"]
    if found != facts["version"]:
        raise UserError(
            f"{task}: was prepared for lm-evaluation-harness {facts['version']}, {packages} has {found}; "
            "download the task again"
        )
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    harness_task = _harness_task(packages, task)
    net = load_causal(model, loading_dtype(model, device)).to(device)
    runner = HFLM(pretrained=net, tokenizer=model.tokenizer, batch_size=batch_size)
    setup = time.perf_counter() - begin

    begin = time.perf_counter()
    result: Any = lm_eval.evaluate(lm=runner, task_dict={"tasks": {facts["task"]: harness_task}}, log_samples=True)
    seconds = time.perf_counter() - begin
    samples = result["samples"][facts["task"]]
    if not all(math.isfinite(float(response[0][0])) for sample in samples for response in sample["resps"]):
        raise UserError(
            f"{model}: a likelihood on {task.name} is not finite; a weight is damaged or overflows, make it again"
        )

    examples = result["n-samples"][facts["task"]]["effective"]
    times = {"setup_seconds": setup, "eval_seconds": seconds, "examples_per_second": examples / seconds}
    write_json(output / "runtime.json", {**times, **environment(device)})
    metrics = {
        "metrics": _metrics(result["results"][facts["task"]]),
        "examples": examples,
        "harness": {key: facts[key] for key in ("version", "task", "task_version", "split")},
        "settings": {"batch_size": batch_size},
    }
    write_json(output / "lm_eval.json", _own_results(result, facts, model, batch_size))
    write_json(output / "metrics.json", metrics)


def _harness_task(packages: Path, task: TaskFolder) -> Any:
    """The harness's task with the prepared rows in place of its data set."""
    import datasets
    from lm_eval.tasks import TaskManager

    facts = task.manifest["harness"]
    split = facts["split"]
    rows = datasets.Dataset.from_list(task.rows(split))
    changes = {
        "custom_dataset": lambda **_: {split: rows},
        "num_fewshot": 0,
        "training_split": None,
        **{key: None for key in ("validation_split", "test_split") if key != f"{split}_split"},
    }
    manager = TaskManager(include_defaults=False, include_path=str((packages / harness.SITE / facts["file"]).parent))
    made = manager.load({"group": "one", "task": [{"task": facts["task"], **changes}]})["tasks"][facts["task"]]
    if made.OUTPUT_TYPE not in harness.SCORED:
        raise UserError(
            f"{task}: the task {facts['task']} of lm-evaluation-harness has output_type {made.OUTPUT_TYPE}, but only "
            f"likelihoods of given answers are scored ({', '.join(harness.SCORED)}); choose another task"
        )
    return made


def _own_results(result: dict[str, Any], facts: dict[str, Any], model: ModelFolder, batch_size: int) -> Any:
    """The harness's results in its own layout, without what depends on the machine, such as date, paths and device.

    Args:
        result: of `lm_eval.evaluate`.
        facts: of the harness's task.
        model: that was measured.
        batch_size: answers in a forward pass.
    """
    from lm_eval.utils import handle_non_serializable, sanitize_model_name

    own = {key: value for key, value in result.items() if key != "samples"}
    settings: dict[str, Any] = dict(own["configs"][facts["task"]])
    del settings["custom_dataset"]  # how the rows were handed over
    own["configs"] = {facts["task"]: settings | {"metadata": {**settings["metadata"], "config_source": facts["file"]}}}
    own |= {
        "config": {"model": "hf", "model_args": {"pretrained": str(model)}, "batch_size": batch_size},
        "model_source": "hf",
        "model_name": str(model),
        "model_name_sanitized": sanitize_model_name(str(model)),
        "lm_eval_version": facts["version"],
        "transformers_version": version("transformers"),
    }
    return json.loads(json.dumps(own, default=handle_non_serializable))


def _metrics(result: dict[str, Any]) -> dict[str, float]:
    """The numbers among the harness's results, "acc,none" renamed to acc and "acc,filter" to acc_filter."""
    metrics = {}
    for key, value in result.items():
        metric, comma, filter_name = key.partition(",")
        if comma and isinstance(value, int | float):
            metrics[metric if filter_name == "none" else f"{metric}_{filter_name}"] = float(value)
    return metrics
