import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.data.tokens import UNLABELLED, tokenize
from llm_sparsity.evaluation.evaluate import evaluate
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_causal
from llm_sparsity.storage.files import read_json, write_manifest
from llm_sparsity.training.objective import Labels, NextTokens, divergence, objective, summed_loss
from tests.tiny import save_mood_task, save_text_task

from .helpers import run

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


@pytest.fixture
def stars(tmp_path: Path) -> TaskFolder:
    """A made-up regression: the mood of a sentence as a number, with a second split to score, and a score."""
    folder = save_mood_task(tmp_path / "stars")
    for split in ("train", "validation"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        text = "".join(json.dumps(row | {"label": row["label"] - 0.25}) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)
        (folder / "other.jsonl").write_text(text)
    sizes = {"train": 64, "validation": 32, "other": 32}
    write_manifest(folder, kind="task", task="regression", score="pearsonr", rows=sizes)
    return TaskFolder(folder)


def test_a_number_is_learned(dense: Callable[[str], ModelFolder], stars: TaskFolder, tmp_path: Path) -> None:
    result = run(dense("bert"), stars, tmp_path, epochs=8)
    metrics = result["metrics"]
    assert metrics["pearsonr"] > 0.9
    assert metrics.keys() == {"pearsonr", "spearmanr", "pearsonr_stderr", "pearsonr_other", "spearmanr_other"}
    assert metrics["pearsonr_other"] == pytest.approx(metrics["pearsonr"])  # the same rows
    assert result["baseline"] == {"pearsonr": 0, "spearmanr": 0, "pearsonr_other": 0, "spearmanr_other": 0}
    assert result["score"] == "pearsonr"
    assert result["examples"] == {"train": 64, "validation": 32, "other": 32}
    assert ModelFolder(result["weights"]).facts["task"] == {"name": "stars", "labels": ["LABEL_0"]}
    config = json.loads((result["weights"] / "config.json").read_text())
    assert config["problem_type"] == "regression"
    assert len(config["id2label"]) == 1
    head = (tmp_path / "out/history.csv").read_text().splitlines()[0].split(",")
    assert head[:7] == ["epoch", "step", "train_loss", "accuracy", "f1", "combined", "perplexity"]
    assert head[7:] == [
        "pearsonr",
        "pearsonr_other",
        "pearsonr_stderr",
        "spearmanr",
        "spearmanr_other",
        "measured_sparsity",
    ]


def test_a_classifier_is_none_of_several_labels(
    dense: Callable[[str], ModelFolder], task: TaskFolder, tmp_path: Path
) -> None:
    """Pipelines would take the logits of one of these for independent ones, and give shares that do not add up to 1."""
    path = shutil.copytree(dense("bert").path, tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    tokens = tokenize(ModelFolder(path), task, tmp_path, max_length=8, code="")
    net = Labels(tokens).load(ModelFolder(path), 0, values=True)
    assert net.config.problem_type == "single_label_classification"


@pytest.mark.slow
def test_a_number_is_learned_from_a_teacher(
    dense: Callable[[str], ModelFolder], variant: Callable[[str], ModelFolder], stars: TaskFolder, tmp_path: Path
) -> None:
    teacher = ModelFolder(run(dense("bert"), stars, tmp_path / "dense", epochs=8)["weights"])
    distill = {"labels": 0.0, "logits": 1.0, "hidden": 0.0, "temperature": 2.0}
    schedule = {"begin": 0.0, "end": 0.3, "scores": "magnitude"}
    result = run(variant("bert"), stars, tmp_path, dense=teacher, distill=distill, schedule=schedule, epochs=8)
    assert result["metrics"]["pearsonr"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sentences", pytest.param("lines", marks=pytest.mark.exhaustive)])
def test_sentences_without_labels_are_learned_from_a_teacher(
    kind: str,
    dense: Callable[[str], ModelFolder],
    variant: Callable[[str], ModelFolder],
    task: TaskFolder,
    tmp_path: Path,
) -> None:
    """A task of one sentence, so that the labels alone teach nothing; the others come from a task, as they are."""
    teacher = ModelFolder(run(dense("bert"), task, tmp_path / "dense", epochs=8)["weights"])
    few = save_mood_task(tmp_path / "few")
    (few / "train.jsonl").write_text((few / "train.jsonl").read_text().splitlines()[0] + "\n")
    write_manifest(few, kind="task", task="classification", labels=["bad", "good"], rows={"train": 1, "validation": 32})
    other = save_mood_task(tmp_path / "other")
    rows = [json.loads(line) for line in (other / "train.jsonl").read_text().splitlines()]
    kept = ("text",) if kind == "lines" else ("text", "label")
    (other / "train.jsonl").write_text("".join(json.dumps({key: row[key] for key in kept}) + "\n" for row in rows))
    write_manifest(other, kind="task", task="language-model")
    options = {"distill": {"labels": 1.0, "logits": 1.0, "hidden": 1.0, "temperature": 2.0}, "epochs": 16}
    alone = run(variant("bert"), TaskFolder(few), tmp_path / "alone", dense=teacher, **options)
    more = run(variant("bert"), TaskFolder(few), tmp_path / "more", dense=teacher, text=TaskFolder(other), **options)
    assert (alone["examples"], alone["seen"]) == ({"train": 1, "validation": 32}, 0)
    assert more["examples"] == {"train": 1, "unlabelled": 64, "validation": 32}
    assert more["metrics"]["accuracy"] > 0.9 > alone["metrics"]["accuracy"]
    assert more["baseline"] == alone["baseline"]


@pytest.mark.exhaustive
def test_numbers_without_labels_are_learned_from_a_teacher(
    dense: Callable[[str], ModelFolder], variant: Callable[[str], ModelFolder], stars: TaskFolder, tmp_path: Path
) -> None:
    teacher = ModelFolder(run(dense("bert"), stars, tmp_path / "dense", epochs=8)["weights"])
    distill = {"labels": 1.0, "logits": 1.0, "hidden": 0.0, "temperature": 2.0}
    result = run(variant("bert"), stars, tmp_path, dense=teacher, text=stars, distill=distill, epochs=8)
    assert result["examples"]["train"] == result["examples"]["unlabelled"] == 64
    assert result["metrics"]["pearsonr"] > 0.9


def test_without_a_teacher_nothing_answers_sentences_without_labels(
    dense: Callable[[str], ModelFolder], task: TaskFolder, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"text: found .*, but only a teacher can answer sentences without labels"):
        run(dense("bert"), task, tmp_path, text=task)


def test_classes_are_scored_by_the_score_of_the_task_too(
    dense: Callable[[str], ModelFolder], task: TaskFolder, tmp_path: Path
) -> None:
    plain = run(dense("bert"), task, tmp_path / "plain")
    folder = save_mood_task(tmp_path / "mood")
    write_manifest(folder, kind="task", task="classification", labels=["bad", "good"], score="matthews_correlation")
    found = run(dense("bert"), TaskFolder(folder), tmp_path / "named")
    extra = found["metrics"].keys() - plain["metrics"].keys()
    assert extra == {"matthews_correlation", "matthews_correlation_stderr"}
    assert {key: found["metrics"][key] for key in plain["metrics"]} == plain["metrics"]
    assert "score" not in plain
    assert found["score"] == "matthews_correlation"
    assert found["baseline"]["matthews_correlation"] == 0


def test_the_loss_of_numbers_is_the_squared_error() -> None:
    logits, labels = torch.tensor([[1.0], [4.0]]), torch.tensor([0.0, 2.0])
    assert float(summed_loss(logits, labels)) == 1 + 4
    assert float(summed_loss(logits, torch.tensor([0.0, math.nan]))) == 1
    assert 4 * float(divergence(logits, logits + 3, labels, 2.0)) == pytest.approx(9 + 9)


def test_the_loss_of_labels_is_a_sum() -> None:
    logits, labels = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]), torch.tensor([1, 1])
    assert float(summed_loss(logits, labels)) == pytest.approx(math.log(2) + math.log(4 / 3))
    assert float(summed_loss(logits, torch.tensor([1, UNLABELLED]))) == pytest.approx(math.log(2))
    assert float(summed_loss(logits, torch.tensor([UNLABELLED] * 2))) == 0


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
