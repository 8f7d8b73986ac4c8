import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.evaluation.evaluate import evaluate, nll
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_causal
from llm_sparsity.storage.container import copy_companions
from llm_sparsity.storage.files import read_json, write_manifest
from tests.weights import load, save
from tests.zoo import make


@pytest.fixture
def text(tmp_path: Path) -> TaskFolder:
    """A language-model task of 60 lines."""
    folder = tmp_path / "task"
    folder.mkdir()
    rows = [{"text": "the film is good"}, {"text": "a dull story"}] * 30
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(folder, kind="task", task="language-model")
    return TaskFolder(folder)


@pytest.fixture
def llama(tiny_model: Callable[[str], Path]) -> ModelFolder:
    return ModelFolder(tiny_model("llama"))


@pytest.mark.parametrize("chunk", [256, 7])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_perplexity_matches_the_loss_of_transformers(
    kind: str,
    chunk: int,
    tiny_model: Callable[[str], Path],
    text: TaskFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.import_module("llm_sparsity.evaluation.evaluate"), "CHUNK", chunk)
    evaluate(ModelFolder(tiny_model(kind)), text, tmp_path / "out", sequence_length=16, max_tokens=100, batch_size=2)
    result = read_json(tmp_path / "out/metrics.json")
    tokens = ModelFolder(tiny_model(kind)).tokenizer("\n\n".join(text.texts("test")))["input_ids"]
    assert tokens[0] == 4  # the tokenizer's special token, once at the start of the text
    model, losses = load_causal(ModelFolder(tiny_model(kind))), []
    for start in range(0, 96, 16):
        window = torch.tensor([tokens[start : start + 16]])
        with torch.no_grad():
            losses.append(float(model(input_ids=window, labels=window).loss))
    assert result["tokens"] == 6 * 15
    assert result["metrics"]["perplexity"] == pytest.approx(math.exp(sum(losses) / 6), rel=1e-5)
    name, *each = (tmp_path / "out/predictions.csv").read_text().split()
    assert name == "nll" and list(map(float, each)) == pytest.approx(losses, rel=1e-5)
    assert read_json(tmp_path / "out/runtime.json")["device"]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("llama", {}),
        ("granite", {"logits_scaling": 4.0}),
        ("cohere", {"logit_scale": 0.1}),
        ("gemma2", {"final_logit_softcapping": 0.5}),
        ("gptj", {}),  # its output layer has a bias
        ("opt", {}),  # has a projection before it
    ],
)
def test_scaled_and_capped_logits_count_as_the_model_has_them(kind: str, values: dict[str, float]) -> None:
    """RANDOM weights."""
    net, windows = make(kind, **values), torch.randint(6, 26, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = net(input_ids=windows).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, windows[:, 1:].flatten(), reduction="sum")
    assert sum(map(sum, nll(net, windows, 2))) == pytest.approx(float(expected), rel=1e-5)


def test_weights_that_are_not_finite(llama: ModelFolder, text: TaskFolder, tmp_path: Path) -> None:
    """NaN is neither a JSON number nor a perplexity."""
    copy_companions(llama.path, tmp_path / "nan")
    weights = load(llama.path)
    name = next(name for name in weights if "down_proj" in name)
    weights[name] = torch.full_like(weights[name], math.nan)
    save(tmp_path / "nan", weights)
    with pytest.raises(UserError, match="the loss on task is nan; a weight is damaged"):
        evaluate(
            ModelFolder(tmp_path / "nan"), text, tmp_path / "out", sequence_length=16, max_tokens=None, batch_size=1
        )
    assert not (tmp_path / "out/metrics.json").exists()


def test_a_text_that_is_too_short(llama: ModelFolder, text: TaskFolder, tmp_path: Path) -> None:
    found = r"sequence_length: found 64, but the split test of task has only \d+ tokens, of which max_tokens allows 20;"
    with pytest.raises(UserError, match=found):
        evaluate(llama, text, tmp_path / "out", sequence_length=64, max_tokens=20, batch_size=1)


def test_a_window_longer_than_the_model_allows(llama: ModelFolder, text: TaskFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sequence_length: found 65, but llama.* allows 64 tokens"):
        evaluate(llama, text, tmp_path / "out", sequence_length=65, max_tokens=None, batch_size=1)
