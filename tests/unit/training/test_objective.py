import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.data.tokens import tokenize
from llm_sparsity.evaluation.evaluate import evaluate
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_causal
from llm_sparsity.storage.files import read_json, write_manifest
from llm_sparsity.training.objective import Labels, NextTokens, objective, summed_loss
from tests.tiny import save_text_task

WINDOWS = {"sequence_length": 24, "max_tokens": 100}


def test_a_task_has_an_objective(
    dense: Callable[[str], ModelFolder], task: TaskFolder, text: TaskFolder, tmp_path: Path
) -> None:
    tokens = tokenize(dense("llama"), task, tmp_path, max_length=16, code="")
    assert isinstance(objective(tokens), Labels)
    tokens = tokenize(dense("llama"), text, tmp_path, max_length=16, code="", evaluation=WINDOWS)
    assert isinstance(objective(tokens), NextTokens)


def test_another_tasks_text_is_trained_on(
    dense: Callable[[str], ModelFolder], text: TaskFolder, tmp_path: Path
) -> None:
    other = save_text_task(tmp_path / "other")
    lines = (other / "train.jsonl").read_text().splitlines()
    (other / "train.jsonl").write_text("\n".join(lines[: len(lines) // 2]))
    write_manifest(other, kind="task", task="language-model")
    options = {"max_length": 16, "code": "", "evaluation": WINDOWS}
    own = tokenize(dense("gpt2"), text, tmp_path, **options)
    less = tokenize(dense("gpt2"), text, tmp_path, text=TaskFolder(other), **options)
    assert 0 < len(less.train) < len(own.train)
    assert less.train.data["input_ids"][0].tolist() == own.train.data["input_ids"][0].tolist()
    assert less.validation.data[:]["input_ids"].tolist() == own.validation.data[:]["input_ids"].tolist()


def test_the_loss_of_windows_is_transformers_own(dense: Callable[[str], ModelFolder]) -> None:
    tokens = torch.randint(0, 20, (3, 16))
    model = load_causal(dense("llama"))
    with torch.no_grad():
        output = model(input_ids=tokens, labels=tokens)
    assert float(summed_loss(output.logits, tokens)) == pytest.approx(3 * float(output.loss), rel=1e-5)


def test_the_loss_of_labels_is_a_sum() -> None:
    logits, labels = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]), torch.tensor([1, 1])
    assert float(summed_loss(logits, labels)) == pytest.approx(math.log(2) + math.log(4 / 3))


def test_perplexity_is_that_of_the_stage_evaluate(
    dense: Callable[[str], ModelFolder], text: TaskFolder, tmp_path: Path
) -> None:
    model = dense("gpt2")
    evaluate(model, text, tmp_path / "out", **WINDOWS, batch_size=1)
    tokens = tokenize(model, text, tmp_path, max_length=16, code="", evaluation=WINDOWS)
    assert set(tokens.train.lengths) == {16}
    assert set(tokens.validation.lengths) == {24}
    assert len(tokens.validation) == 4
    goal, net = objective(tokens), load_causal(model)
    predictions = []
    for batch in tokens.validation.by_length(3):
        inputs, labels = tokens.validation.batch(batch)
        with torch.no_grad():
            predictions += goal.predictions(net(**inputs, **goal.options).logits, labels)
    found = read_json(tmp_path / "out/metrics.json")["metrics"]["perplexity"]
    assert goal.metrics(predictions)["perplexity"] == pytest.approx(found, rel=1e-5)
