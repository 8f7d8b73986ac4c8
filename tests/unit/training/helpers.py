"""Whole runs of tiny models, and what they leave."""

import csv
from pathlib import Path
from typing import Any

import torch

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage.files import read_json
from llm_sparsity.training.finetune import finetune
from llm_sparsity.training.settings import FinetuneSettings
from tests import weights
from tests.kill import SETTINGS

WINDOWS = {"sequence_length": 32, "max_tokens": None}
LORA = {"rank": 4, "alpha": 16.0}
SHORT = SETTINGS | {"epochs": 2, "micro_batch_size": 16}


def run(
    model: ModelFolder,
    task: TaskFolder,
    folder: Path,
    *,
    text: TaskFolder | None = None,
    dense: ModelFolder | None = None,
    save_minutes: float = 15,
    **changes: Any,
) -> dict[str, Any]:
    """Fine-tune with `SHORT` and changes to it; metrics.json, and the cached folder of the last epoch as `weights`."""
    settings = FinetuneSettings.from_dict(SHORT | changes)
    output, work = folder / "out", folder / "work"
    finetune(model, task, output, work, settings, code="x", text=text, dense=dense, save_minutes=save_minutes)
    result: dict[str, Any] = read_json(output / "metrics.json")
    with (output / "checkpoints.csv").open() as file:
        result["weights"] = Path(list(csv.DictReader(file))[-1]["path"])
    return result


def removed(model: ModelFolder) -> dict[str, torch.Tensor]:
    """The zeros of a pruned model's matrices."""
    return {n: w == 0 for n, w in weights.load(model.path).items() if model.in_scope(n, "linear")}


def after(result: dict[str, Any], name: str) -> torch.Tensor:
    """A weight after training, whose name has the prefix of the classifier."""
    return next(w for key, w in weights.load(result["weights"]).items() if key.endswith(name))
