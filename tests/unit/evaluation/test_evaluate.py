import importlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llm_sparsity.data import tasks
from llm_sparsity.evaluation.evaluate import evaluate
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.loading import load_causal, load_tokenizer
from llm_sparsity.storage import container as checkpoint
from llm_sparsity.storage.container import copy_companions
from llm_sparsity.storage.files import read_json, write_manifest


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "lines.txt").write_text("the film is good\na dull story\n" * 30)
    facts = tasks.prepare({"test": tmp_path / "lines.txt"}, tmp_path / "task", kind="language-model")
    write_manifest(tmp_path / "task", kind="task", **facts)
    return tmp_path / "task"


@pytest.mark.parametrize("chunk", [256, 7])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_perplexity_is_that_of_transformers_own_loss(
    kind: str,
    chunk: int,
    tiny_model: Callable[[str], Path],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.import_module("llm_sparsity.evaluation.evaluate"), "CHUNK", chunk)
    evaluate(tiny_model(kind), text, tmp_path / "out", sequence_length=16, max_tokens=100, batch_size=2)
    result = read_json(tmp_path / "out/metrics.json")
    tokens = load_tokenizer(tiny_model(kind))("\n\n".join(tasks.load_text(text)))["input_ids"]
    assert tokens[0] == 4  # what the tokenizer sets before a text, once
    model, losses = load_causal(tiny_model(kind)), []
    for start in range(0, 96, 16):
        window = torch.tensor([tokens[start : start + 16]])
        with torch.no_grad():
            losses.append(float(model(input_ids=window, labels=window).loss))
    assert result["tokens"] == 6 * 15
    assert result["metrics"]["perplexity"] == pytest.approx(math.exp(sum(losses) / 6), rel=1e-5)
    assert read_json(tmp_path / "out/runtime.json")["device"]


def test_weights_that_are_not_finite(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    """NaN is no JSON number, and no perplexity."""
    copy_companions(tiny_model("llama"), tmp_path / "nan")
    weights = checkpoint.load(tiny_model("llama"))
    name = next(name for name in weights if "down_proj" in name)
    weights[name] = torch.full_like(weights[name], math.nan)
    checkpoint.save(tmp_path / "nan", weights)
    with pytest.raises(UserError, match="the loss on task is nan; a weight is damaged"):
        evaluate(tmp_path / "nan", text, tmp_path / "out", sequence_length=16, max_tokens=None, batch_size=1)
    assert not (tmp_path / "out/metrics.json").exists()


def test_a_text_that_is_too_short(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"sequence_length: found 64, but the split test of task has only \d+ tokens \(max_tokens: 20\)"
    ):
        evaluate(tiny_model("llama"), text, tmp_path / "out", sequence_length=64, max_tokens=20, batch_size=1)


def test_a_window_longer_than_the_model_allows(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sequence_length: found 65, but llama.* allows 64 tokens"):
        evaluate(tiny_model("llama"), text, tmp_path / "out", sequence_length=65, max_tokens=None, batch_size=1)
