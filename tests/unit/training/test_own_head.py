"""Classifiers that are fine-tuned already, pruned and scored with their own head; tiny models with RANDOM weights.

The reference is plain transformers on the folder that the user brings.
"""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from llm_sparsity.data.download import download_model
from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_classifier
from llm_sparsity.pruning.prune import prune
from llm_sparsity.storage.files import read_json, sha256, write_json, write_manifest, write_text
from llm_sparsity.study.sparsity import Sparsity
from llm_sparsity.training.finetune import finetune
from llm_sparsity.training.settings import FinetuneSettings
from tests.marks import slow, slow_but
from tests.tiny import ARCHITECTURE
from tests.unit.training.helpers import SHORT

KINDS = ["bert", "roberta", "distilbert", "gpt2", "llama", "bart"]
MATRIX = r"\.(layer|layers|h)\.\d+\..*weight$"  # of a layer, if it has two dimensions


def bring(base: Path, folder: Path, labels: int = 2) -> Path:
    """A classifier as `save_pretrained` leaves it, whose random weights are large enough for its answers to differ."""
    torch.manual_seed(4)
    net = tf.AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    for weight in net.parameters():
        if weight.dim() > 1:
            weight.data.normal_(std=0.3)
    net.save_pretrained(folder)
    for path in base.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def mine(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: bring(tiny_model(kind), tmp_path / f"mine-{kind}")


@pytest.fixture
def brought(mine: Callable[[str], Path], task: TaskFolder, tmp_path: Path) -> Callable[[str], ModelFolder]:
    """`brought("bert")` -> the downloaded classifier, whose head is said to be of the task."""

    def brought(kind: str) -> ModelFolder:
        source = {"folder": str(mine(kind))}
        download_model(tmp_path / kind, source=source, architecture=ARCHITECTURE[kind], head=task)
        return ModelFolder(tmp_path / kind)

    return brought


def prepare_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """A task of three labels."""
    for split in ("train", "validation"):
        write_text(folder / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(folder, kind="task", task="classification", labels=["no", "maybe", "yes"])


def plain(folder: Path) -> Any:
    """The model of transformers, which has to know the padding token of its tokenizer, and of BART the two labels."""
    net = tf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    net.config.pad_token_id = net.config.pad_token_id or ModelFolder(folder).tokenizer.pad_token_id
    return net


def logits(net: Any, folder: Path, texts: list[str]) -> torch.Tensor:
    """One sentence after another, (sentences, labels)."""
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat([net(input_ids=tokenizer(text, return_tensors="pt")["input_ids"]).logits for text in texts])


def assert_equal_weights(own: Any, expected: Any) -> None:
    """To the bit; logits may differ in the last one, by where in memory a weight lies."""
    theirs = dict(expected.named_parameters())
    assert all(torch.equal(weight, theirs.pop(name)) for name, weight in own.named_parameters())
    assert not theirs


def scored(model: ModelFolder, task: TaskFolder, folder: Path, **changes: Any) -> tuple[list[int], dict[str, Any]]:
    """The predictions and the metrics of a run, by default without training."""
    settings = FinetuneSettings.from_dict(SHORT | {"epochs": 0} | changes)
    finetune(model, task, folder / "out", folder / "work", settings, code="x")
    with (folder / "out/predictions.csv").open() as file:
        return [int(row["prediction"]) for row in csv.DictReader(file)], read_json(folder / "out/metrics.json")


@pytest.mark.parametrize("kind", slow_but(("bert",), KINDS))
def test_the_dense_classifier_is_scored_as_it_came(
    kind: str, mine: Callable[[str], Path], brought: Callable[[str], ModelFolder], task: TaskFolder, tmp_path: Path
) -> None:
    model, texts = brought(kind), task.examples("validation").texts
    net, own = plain(mine(kind)), load_classifier(model, labels=2, seed=5, task=task.facts)
    assert_equal_weights(own, net)
    expected = logits(net, mine(kind), texts)
    torch.testing.assert_close(logits(own, model.path, texts), expected)
    predictions, metrics = scored(model, task, tmp_path)
    assert predictions == expected.argmax(-1).tolist()
    assert expected.std(0).min() > 0.01  # the sentences differ
    right = [label == own for label, own in zip(task.examples("validation").labels, predictions, strict=True)]
    assert metrics["metrics"]["accuracy"] == pytest.approx(sum(right) / len(right))
    weights = tmp_path / "out/model/model.safetensors"
    assert sha256(weights) == sha256(mine(kind) / "model.safetensors")


def test_a_classifier_with_old_names_in_several_files(mine: Callable[[str], Path], task: TaskFolder) -> None:
    """As of BERT's early years: gamma and beta are weight and bias of a norm."""
    folder, texts = mine("bert"), task.examples("validation").texts
    expected = logits(plain(folder), folder, texts)
    tensors = load_file(folder / "model.safetensors")
    words = {"Norm.weight": "Norm.gamma", "Norm.bias": "Norm.beta"}
    old = {re.sub("Norm.(weight|bias)", lambda new: words[new.group()], name): each for name, each in tensors.items()}
    assert old.keys() != tensors.keys()
    names, index = sorted(old), {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: old[name] for name in part}, folder / f"part-{number}.safetensors", {"format": "pt"})
        index |= dict.fromkeys(part, f"part-{number}.safetensors")
    write_json(folder / "model.safetensors.index.json", {"weight_map": index})
    (folder / "model.safetensors").unlink()
    download_model(folder / "model", source={"folder": str(folder)}, architecture="encoder", head=task)
    model = ModelFolder(folder / "model")
    own = load_classifier(model, labels=2, seed=5, task=task.facts)
    torch.testing.assert_close(logits(own, model.path, texts), expected)


@pytest.mark.parametrize("kind", slow_but(("bert",), KINDS))
def test_the_pruned_classifier_is_the_masked_one(
    kind: str, mine: Callable[[str], Path], brought: Callable[[str], ModelFolder], task: TaskFolder, tmp_path: Path
) -> None:
    net = plain(mine(kind))
    matrices = [weight for name, weight in net.named_parameters() if re.search(MATRIX, name) and weight.dim() == 2]
    every = torch.cat([weight.detach().abs().flatten() for weight in matrices])
    limit = every.sort().values[every.numel() // 2]
    for weight in matrices:
        weight.data.masked_fill_(weight.abs() < limit, 0)
    texts = task.examples("validation").texts
    expected = logits(net, mine(kind), texts)

    prune(brought(kind), {Sparsity("0.5"): tmp_path / "half"}, method="magnitude", scope="linear")
    half = ModelFolder(tmp_path / "half/model")
    own = load_classifier(half, labels=2, seed=5, task=task.facts)
    assert_equal_weights(own, net)
    torch.testing.assert_close(logits(own, half.path, texts), expected)
    predictions, metrics = scored(half, task, tmp_path)
    assert predictions == expected.argmax(-1).tolist()
    assert metrics["measured_sparsity"] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("kind", "method"), [("bert", "wanda"), slow("gpt2", "structured"), slow("bart", "int8")])
def test_other_methods_keep_the_head(
    kind: str, method: str, brought: Callable[[str], ModelFolder], task: TaskFolder, tmp_path: Path
) -> None:
    """Calibrated on the task's own sentences, smaller matrices, and codes."""
    draw = {"samples": 8, "sequence_length": 16, "seed": 0}
    more = {"calibration": draw, "text": task} if method == "wanda" else {}
    dense = brought(kind)
    sparsity = Sparsity("0" if method == "int8" else "0.5")
    prune(dense, {sparsity: tmp_path / "pruned"}, method=method, scope="linear", **more)
    model = ModelFolder(tmp_path / "pruned/model")
    predictions, _ = scored(model, task, tmp_path)
    texts = task.examples("validation").texts
    own = load_classifier(model, labels=2, seed=7, task=task.facts)
    assert predictions == logits(own, model.path, texts).argmax(-1).tolist()
    head = {name: weight for name, weight in own.named_parameters() if not name.startswith(f"{own.base_model_prefix}.")}
    of_dense = dict(load_classifier(dense, labels=2, seed=8, task=task.facts).named_parameters())
    assert head and all(torch.equal(weight, of_dense[name]) for name, weight in head.items())


def test_a_recipe_with_epochs_trains_the_pruned_classifier_on(
    brought: Callable[[str], ModelFolder], task: TaskFolder, tmp_path: Path
) -> None:
    """At no learning rate worth the name, its predictions are those before training: the head is not a new one."""
    prune(brought("bert"), {Sparsity("0.9"): tmp_path / "pruned"}, method="magnitude", scope="linear")
    model = ModelFolder(tmp_path / "pruned/model")
    before, _ = scored(model, task, tmp_path / "before")
    after, metrics = scored(model, task, tmp_path / "after", epochs=1, learning_rate=1e-9)
    assert after == before
    assert metrics["measured_sparsity"] == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_three_labels_that_the_configuration_omits(
    kind: str, tiny_model: Callable[[str], Path], task: TaskFolder, tmp_path: Path
) -> None:
    """transformers takes them for BART's default; the task's labels tell."""
    folder, three = bring(tiny_model(kind), tmp_path / "mine", labels=3), TaskFolder(tmp_path / "three")
    rows = [{"text": text, "label": number % 3} for number, text in enumerate(task.examples("validation").texts)]
    prepare_rows(three.path, rows)
    download_model(tmp_path / "model", source={"folder": str(folder)}, architecture=ARCHITECTURE[kind], head=three)
    model = ModelFolder(tmp_path / "model")
    found = load_classifier(model, labels=3, seed=5, task=three.facts)
    assert_equal_weights(found, tf.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3))


def test_another_task_gets_a_new_head(brought: Callable[[str], ModelFolder], task: TaskFolder) -> None:
    model = brought("bert")
    other = {"name": "other", "labels": task.facts["labels"]}
    heads = [load_classifier(model, labels=2, seed=seed, task=other).classifier.weight for seed in (0, 1)]
    assert not torch.equal(*heads)
