"""Whole runs of tiny models, and what they leave."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage.files import read_json, write_json
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


def without_dropout(model: ModelFolder) -> ModelFolder:
    """The model with dropout off, whose draws would differ between processes."""
    path = model.path / "config.json"
    write_json(path, {key: 0.0 if "drop" in key else value for key, value in read_json(path).items()})
    return ModelFolder(model.path)


def same_but_for_rounding(one: dict[str, Any], folder: Path, gone: dict[str, torch.Tensor]) -> None:
    found = weights.load(next((folder / "work").glob("*/epoch-1")))
    expected = weights.load(one["weights"])
    assert found.keys() == expected.keys()
    assert all(torch.allclose(expected[name], found[name], atol=1e-5) for name in found)
    for name, where in gone.items():
        assert not next(w for key, w in found.items() if key.endswith(name))[where].any()
    metrics = read_json(folder / "out/metrics.json")["metrics"]
    assert metrics == (pytest.approx(one["metrics"], rel=1e-5) if "perplexity" in metrics else one["metrics"])
