import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llm_sparsity.data import tokens as encoded
from llm_sparsity.evaluation.evaluate import evaluate
from llm_sparsity.models.loading import load_causal
from llm_sparsity.storage.files import read_json, write_manifest
from llm_sparsity.training.objective import Labels, NextTokens, objective, perplexity, summed_loss
from tests.tiny import save_mood_task, save_text_task

WINDOWS = {"sequence_length": 24, "max_tokens": 100}


def test_a_task_says_what_is_asked(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    mood, text = save_mood_task(tmp_path / "mood"), save_text_task(tmp_path / "text")
    path = encoded.encode(tiny_model("llama"), mood, tmp_path, max_length=16, code="")
    assert isinstance(objective(*encoded.load(path)), Labels)
    path = encoded.encode(tiny_model("llama"), text, tmp_path, max_length=16, code="", evaluation=WINDOWS)
    assert isinstance(objective(*encoded.load(path)), NextTokens)


def test_another_tasks_text_is_trained_on(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model, own = tiny_model("gpt2"), save_text_task(tmp_path / "own")
    other = save_text_task(tmp_path / "other")
    lines = (other / "train.jsonl").read_text().splitlines()
    (other / "train.jsonl").write_text("\n".join(lines[: len(lines) // 2]))
    write_manifest(other, kind="task", task="language-model")
    options = {"max_length": 16, "code": "", "evaluation": WINDOWS}
    train, test = encoded.load(encoded.encode(model, own, tmp_path, **options))
    less, same = encoded.load(encoded.encode(model, own, tmp_path, text=other, **options))
    assert 0 < len(less) < len(train)
    assert (less.ids == train.ids[: len(less.ids)]).all()
    assert (same.ids == test.ids).all()


def test_the_loss_of_windows_is_transformers_own(tiny_model: Callable[[str], Path]) -> None:
    tokens = torch.randint(0, 20, (3, 16))
    model = load_causal(tiny_model("llama"))
    with torch.no_grad():
        output = model(input_ids=tokens, labels=tokens)
    assert float(summed_loss(output.logits, tokens)) == pytest.approx(3 * float(output.loss), rel=1e-5)


def test_the_loss_of_labels_is_a_sum() -> None:
    logits, labels = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]), torch.tensor([1, 1])
    assert float(summed_loss(logits, labels)) == pytest.approx(math.log(2) + math.log(4 / 3))


def test_perplexity_is_that_of_the_stage_evaluate(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model, text = tiny_model("gpt2"), save_text_task(tmp_path / "text")
    evaluate(model, text, tmp_path / "out", **WINDOWS, batch_size=1)
    path = encoded.encode(model, text, tmp_path, max_length=16, code="", evaluation=WINDOWS)
    train, test = encoded.load(path)
    assert set(train.lengths) == {16}
    assert set(test.lengths) == {24}
    assert len(test) == 4
    goal, net = objective(train, test), load_causal(model)
    answers = []
    for batch in test.by_length(3):
        inputs, labels = test.batch(batch)
        with torch.no_grad():
            answers += goal.answers(net(**inputs, **goal.options).logits, labels)
    found = read_json(tmp_path / "out/metrics.json")["metrics"]["perplexity"]
    assert goal.metrics(answers)["perplexity"] == pytest.approx(found, rel=1e-5)


def test_a_perplexity_beyond_all_numbers_is_infinite() -> None:
    assert perplexity(1e4) == math.inf
    assert perplexity(0.0) == 1
