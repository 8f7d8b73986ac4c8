"""Classifiers that are pruned after they were fine-tuned; tiny models with RANDOM weights learn a made-up task."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.data.tokens import tokenize
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_classifier
from llm_sparsity.pruning.calibration import batches
from llm_sparsity.pruning.prune import prune
from llm_sparsity.storage.files import read_json, sha256
from llm_sparsity.study.sparsity import Sparsity
from llm_sparsity.training.finetune import finetune
from llm_sparsity.training.settings import FinetuneSettings
from tests import weights
from tests.marks import slow
from tests.unit.training.helpers import SHORT, WINDOWS, run

DRAW = {"samples": 16, "sequence_length": 16, "seed": 0}
Pruned = Callable[..., ModelFolder]


@pytest.fixture
def learned(dense: Callable[[str], ModelFolder], task: TaskFolder, tmp_path: Path) -> Callable[[str], ModelFolder]:
    """`learned("bert")` -> the dense model, fine-tuned until it knows the task."""

    def learned(kind: str) -> ModelFolder:
        folder = tmp_path / f"learned-{kind}"
        if not folder.exists():
            assert run(dense(kind), task, folder, epochs=6)["metrics"]["accuracy"] > 0.9
        return ModelFolder(folder / "out/model")

    return learned


@pytest.fixture
def pruned(learned: Callable[[str], ModelFolder], task: TaskFolder, tmp_path: Path) -> Pruned:
    """Prune the fine-tuned model, calibrated on the task's own sentences."""

    def pruned(kind: str, method: str, sparsity: str = "0.5") -> ModelFolder:
        output = tmp_path / f"{kind}-{method}"
        prune(
            learned(kind), {Sparsity(sparsity): output}, method=method, scope="linear", calibration=DRAW, text=task
        )  # fmt: skip
        return ModelFolder(output / "model")

    return pruned


def evaluated(model: ModelFolder, task: TaskFolder, folder: Path, **more: Any) -> dict[str, Any]:
    """The metrics.json of a run without training."""
    settings = FinetuneSettings.from_dict(SHORT | {"start": "finetuned", "epochs": 0} | more)
    finetune(model, task, folder / "out", folder / "work", settings, code="x")
    metrics: dict[str, Any] = read_json(folder / "out/metrics.json")
    return metrics


def accuracy(model: ModelFolder, task: TaskFolder, folder: Path) -> float:
    """The accuracy of a folder's classifier, by plain transformers, sentence by sentence."""
    net = load_classifier(model, labels=2, seed=5)
    split = tokenize(model, task, folder, max_length=SHORT["max_length"], code="x").validation
    right = 0
    with torch.no_grad():
        for row in range(len(split)):
            inputs, labels = split.batch(torch.tensor([row]).numpy())
            right += int(net(**inputs).logits.argmax() == labels)
    return right / len(split)


@pytest.mark.parametrize(
    ("kind", "method"),
    [("bert", "wanda+swaps"), slow("gpt2", "sparsegpt"), slow("bart", "wanda"), slow("bert", "int8"),
     slow("bert", "magnitude"), slow("bert", "structured"), slow("llama", "wanda+reconstruct"),
     slow("bert", "wanda+int4")],
)  # fmt: skip
def test_a_pruned_classifier_is_evaluated_as_it_is(
    kind: str, method: str, pruned: Pruned, task: TaskFolder, tmp_path: Path
) -> None:
    model = pruned(kind, method, "0" if method == "int8" else "0.5")
    metrics = evaluated(model, task, tmp_path)
    assert metrics["metrics"]["accuracy"] == pytest.approx(accuracy(model, task, tmp_path))
    assert metrics["measured_sparsity"] == pytest.approx(0.0 if method == "int8" else 0.5, abs=0.2)
    result = tmp_path / "out/model"
    assert sha256(result / "model.safetensors") == sha256(model.path / "model.safetensors")  # not trained, not widened
    assert (tmp_path / "out/checkpoints.csv").read_text().count("\n") == 1
    assert (tmp_path / "out/history.csv").read_text().splitlines()[1].startswith("0,0,,")


@pytest.mark.slow
def test_without_sparsity_it_is_the_dense_run(
    learned: Callable[[str], ModelFolder], pruned: Pruned, task: TaskFolder, tmp_path: Path
) -> None:
    first = read_json(learned("bert").path.parent / "metrics.json")["metrics"]
    assert evaluated(pruned("bert", "magnitude", "0.0001"), task, tmp_path)["metrics"] == first


@pytest.mark.slow
def test_a_repeated_evaluation_leaves_the_same_bytes(pruned: Pruned, task: TaskFolder, tmp_path: Path) -> None:
    model = pruned("bert", "wanda")
    evaluated(model, task, tmp_path)
    first = (tmp_path / "out/metrics.json").read_bytes()
    evaluated(model, task, tmp_path)
    assert (tmp_path / "out/metrics.json").read_bytes() == first


@pytest.mark.parametrize("distill", [slow(None), {"labels": 1.0, "logits": 1.0, "hidden": 1.0, "temperature": 2.0}])
def test_training_goes_on_from_the_pruned_classifier(
    distill: dict[str, float] | None, learned: Callable[[str], ModelFolder], pruned: Pruned, task: TaskFolder,
    tmp_path: Path,
) -> None:  # fmt: skip
    """sparsegpt changes the weights that it keeps: a run that started from the dense ones would show it."""
    model = pruned("bert", "sparsegpt", "0.9")
    result = run(
        model, task, tmp_path, dense=learned("bert") if distill else None, start="finetuned", epochs=1,
        learning_rate=1e-9, distill=distill,
    )  # fmt: skip
    assert result["measured_sparsity"] == pytest.approx(0.9, abs=1e-3)
    before, after = weights.load(model.path), weights.load(result["weights"])
    for name, weight in after.items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=1e-6)


def test_calibration_sequences_are_the_sentences_of_the_task(
    learned: Callable[[str], ModelFolder], task: TaskFolder
) -> None:
    model = learned("bert")
    drawn = batches(model, task, **DRAW)
    rows = [row.tolist() for batch in drawn for row in batch["input_ids"]]
    texts = task.examples("train").texts
    known = [model.tokenizer(text)["input_ids"] for text in texts]
    assert len(rows) == 16 and all(row in known for row in rows)
    assert len(set(map(len, rows))) == len({batch["input_ids"].shape[1] for batch in drawn}) > 1
    assert len(batches(model, task, **DRAW, least=8)) >= 8
    with pytest.raises(UserError, match=r"calibration: 65 sentences are asked for, but .* has 64; lower samples"):
        batches(model, task, **DRAW | {"samples": 65})


@pytest.mark.slow
def test_the_predictions_are_those_that_are_scored(
    learned: Callable[[str], ModelFolder], task: TaskFolder, text: TaskFolder, dense: Callable[[str], ModelFolder],
    tmp_path: Path,
) -> None:  # fmt: skip
    first = learned("bert").path.parent
    rows = [line.split(",") for line in (first / "predictions.csv").read_text().splitlines()]
    assert (
        rows[0] == ["label", "prediction"]
        and [int(label) for label, _ in rows[1:]] == task.examples("validation").labels
    )
    right = sum(label == prediction for label, prediction in rows[1:]) / (len(rows) - 1)
    assert right == read_json(first / "metrics.json")["metrics"]["accuracy"]
    run(dense("gpt2"), text, tmp_path, evaluation=WINDOWS, max_length=32, epochs=1)
    name, *losses = (tmp_path / "out/predictions.csv").read_text().split()
    mean = sum(map(float, losses)) / len(losses)
    assert name == "nll" and math.exp(mean) == pytest.approx(
        read_json(tmp_path / "out/metrics.json")["metrics"]["perplexity"]
    )
