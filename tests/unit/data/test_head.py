"""The head that a classifier brings is checked against the task that it is said to be of; RANDOM weights."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from llm_sparsity.data.download import download_model
from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import read_manifest, sha256, write_manifest

MNLI = ["entailment", "neutral", "contradiction"]


def task_of(folder: Path, labels: Sequence[str] | None) -> TaskFolder:
    """The folder of a task with these labels, or of a regression; nothing reads its rows."""
    folder.mkdir(exist_ok=True)
    kind = {"task": "classification", "labels": list(labels)} if labels else {"task": "regression"}
    write_manifest(folder, kind="task", **kind)
    return TaskFolder(folder)


@pytest.fixture
def classifier(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """`classifier(names)` -> the folder of a BERT with a head of these labels, as `save_pretrained` leaves it."""

    def make(names: Sequence[str] = ("LABEL_0", "LABEL_1"), auto: str = "AutoModelForSequenceClassification") -> Path:
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
        net = getattr(tf, auto).from_pretrained(tiny_model("bert"), **labels)
        net.save_pretrained(tmp_path / "mine")
        for path in tiny_model("bert").glob("tokenizer*"):
            shutil.copy(path, tmp_path / "mine")
        return tmp_path / "mine"

    return make


def download(folder: Path, target: Path, head: TaskFolder | None) -> dict[str, Any]:
    """The manifest of the downloaded model."""
    download_model(target, source={"folder": str(folder)}, architecture="encoder", head=head)
    return read_manifest(target)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["LABEL_0", "LABEL_1"], ["negative", "positive"]),
        (["NEGATIVE", "POSITIVE"], ["negative", "positive"]),
        (["0", "1", "2"], MNLI),
        (["LABEL_0"], None),
    ],
)
def test_a_head_is_kept_with_its_task(
    names: list[str], labels: list[str] | None, classifier: Callable[..., Path], tmp_path: Path
) -> None:
    task, mine = task_of(tmp_path / "mood", labels), classifier(names)
    manifest = download(mine, tmp_path / "model", task)
    assert manifest["task"] == task.facts
    assert manifest["files"]["model.safetensors"]["sha256"] == sha256(mine / "model.safetensors")
    without = download(mine, tmp_path / "other", None)
    assert "task" not in without
    assert not [name for name in load_file(tmp_path / "other/model.safetensors") if name.startswith("classifier")]


@pytest.mark.parametrize(
    ("names", "labels", "said"),
    [
        (["a", "b", "c"], ["bad", "good"], "head: found 'mood', which has 2 labels, but .* has 3; name the task"),
        (["a", "b"], MNLI, "head: found 'mood', which has 3 labels, but .* has 2; name the task"),
        (["a", "b"], None, "head: found 'mood', which has 1 labels, but .* has 2; name the task"),
        (
            [name.upper() for name in reversed(MNLI)], MNLI,
            r'mood in another order, CONTRADICTION, NEUTRAL, ENTAILMENT; write `labels: \["contradiction", "neutral", '
            r'"entailment"\]` in the task\'s entry if its column holds names, `labels: \["2", "1", "0"\]` if it holds',
        ),
        (["good", "Bad"], ["bad", "good"], r'write `labels: \["good", "bad"\]`'),
        (MNLI, ["0", "1", "2"], "its labels entailment, neutral, contradiction, mood 0, 1, 2, so their order cannot"),
        (["NEGATIVE", "POSITIVE"], ["bad", "good"], "NEGATIVE, POSITIVE, mood bad, good, so their order cannot be"),
        (["b", "c", "a"], ["a", "b", "c"], r'labels: \["b", "c", "a"\]` in .*, `labels: \["1", "2", "0"\]` if'),
    ],
)  # fmt: skip
def test_labels_of_another_task_are_refused(
    names: list[str], labels: list[str] | None, said: str, classifier: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as error:
        download(classifier(names), tmp_path / "model", task_of(tmp_path / "mood", labels))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model/manifest.json").exists()


@pytest.mark.parametrize(
    ("auto", "said"),
    [
        ("AutoModel", "is a BertModel, which has no classification head for texts; remove `head`"),
        ("AutoModelForMaskedLM", "is a BertForMaskedLM, which has no"),
        (
            "AutoModelForTokenClassification",
            "is a BertForTokenClassification, which has no",
        ),  # of the same tensor names
    ],
)
def test_other_heads_are_refused(auto: str, said: str, classifier: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        download(classifier(auto=auto), tmp_path / "model", task_of(tmp_path / "mood", ["bad", "good"]))


@pytest.mark.parametrize("kind", ["body", "part", "pooler", "shape"])
def test_a_damaged_head_is_refused(kind: str, classifier: Callable[..., Path], tmp_path: Path) -> None:
    weights = load_file(classifier() / "model.safetensors")
    if kind == "shape":
        weights["classifier.weight"] = torch.zeros(3, 32)
    gone = {"body": "classifier", "part": "classifier.bias", "pooler": "bert.pooler.dense.bias"}.get(kind, "-")
    held = {name: weight for name, weight in weights.items() if not name.startswith(gone)}
    save_file(held, tmp_path / "mine/model.safetensors", {"format": "pt"})
    said = {"shape": r"no classification head of 2 labels: .*\(classifier.weight: 3x32 in place of 2x32\)"}
    with pytest.raises(UserError, match=said.get(kind, rf"head: .* holds no {gone}")) as error:
        download(tmp_path / "mine", tmp_path / "model", task_of(tmp_path / "mood", ["bad", "good"]))
    assert "\n" not in str(error.value)


def test_a_head_without_a_class_in_the_configuration(classifier: Callable[..., Path], tmp_path: Path) -> None:
    config = json.loads((classifier() / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "mine/config.json").write_text(json.dumps(config))
    task = task_of(tmp_path / "mood", ["bad", "good"])
    assert download(tmp_path / "mine", tmp_path / "model", task)["task"] == task.facts
