"""Zero-shot accuracy beside likelihoods from transformers alone; models with RANDOM weights."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, processors

from llm_sparsity.data import harness
from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.evaluation.zero_shot import zero_shot
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_causal
from llm_sparsity.storage.container import copy_companions
from llm_sparsity.storage.files import read_json, write_manifest
from tests.tiny import WORDS
from tests.weights import load, save

ROWS = 30
TASKS = {  # the split that is scored and the task file; looking them up takes seconds, and test_harness does it
    "openbookqa": ("test", "lm_eval/tasks/openbookqa/openbookqa.yaml"),
    "hellaswag": ("validation", "lm_eval/tasks/hellaswag/hellaswag.yaml"),
}

Decoder = Callable[[str], ModelFolder]
Prepared = Callable[[str, list[Any]], TaskFolder]


@pytest.fixture
def prepared(packages: Path, tmp_path: Path) -> Prepared:
    """`prepared(task, rows)` -> a task of the harness, as the stage download writes it."""
    version = harness.load(packages)

    def make(task: str, rows: list[Any]) -> TaskFolder:
        folder = tmp_path / task
        folder.mkdir()
        split, file = TASKS[task]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        facts = {"version": version, "task": task, "task_version": 1.0, "split": split, "file": file}
        write_manifest(folder, kind="task", task="zero-shot", harness=facts)
        return TaskFolder(folder)

    return make


def questions() -> list[dict[str, Any]]:
    """Rows in the layout of OpenBookQA, of words that the tiny tokenizers know."""
    generator = random.Random(0)
    rows = []
    for number in range(ROWS):
        answers = [" ".join(generator.choices(WORDS, k=generator.randint(1, 4))) for _ in range(4)]
        stem = " ".join(generator.choices(WORDS, k=8))
        choices = {"text": answers, "label": list("ABCD")}
        rows.append({"id": str(number), "question_stem": stem, "choices": choices, "answerKey": "ABCD"[number % 4]})
    return rows


@pytest.fixture
def decoder(tiny_model: Callable[[str], Path], tmp_path: Path) -> Decoder:
    """A tiny decoder whose tokenizer adds no end-of-text token, as the tokenizers of language models."""

    def make(kind: str) -> ModelFolder:
        folder = tmp_path / kind
        shutil.copytree(tiny_model(kind), folder)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 4)])
        tokenizer.save(str(folder / "tokenizer.json"))
        return ModelFolder(folder)

    return make


def likelihood(model: Any, tokenizer: Any, stem: str, answer: str) -> float:
    """The log-likelihood of an answer behind its question, nats."""
    start, tokens = len(tokenizer(stem)["input_ids"]), torch.tensor([tokenizer(f"{stem} {answer}")["input_ids"]])
    with torch.no_grad():
        words = model(input_ids=tokens).logits[0].log_softmax(-1)
    return sum(float(words[place - 1, tokens[0, place]]) for place in range(start, tokens.shape[1]))


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_accuracy_is_that_of_the_likeliest_answers(
    kind: str,
    pruned: bool,
    half_removed: Callable[[ModelFolder], ModelFolder],
    decoder: Decoder,
    prepared: Prepared,
    packages: Path,
    tmp_path: Path,
) -> None:
    model_folder, rows = decoder(kind), questions()
    if pruned:
        model_folder = half_removed(model_folder)
    zero_shot(model_folder, prepared("openbookqa", rows), tmp_path / "out", batch_size=4, packages=packages)
    found = read_json(tmp_path / "out/metrics.json")

    model, tokenizer = load_causal(model_folder), model_folder.tokenizer
    right, right_by_length = 0, 0
    for row in rows:
        answers = row["choices"]["text"]
        scores = [likelihood(model, tokenizer, row["question_stem"], answer) for answer in answers]
        by_length = [score / len(answer) for score, answer in zip(scores, answers, strict=True)]
        key = "ABCD".index(row["answerKey"])
        right += scores.index(max(scores)) == key
        right_by_length += by_length.index(max(by_length)) == key
    metrics = found["metrics"]
    assert metrics["acc"] == pytest.approx(right / ROWS)
    assert metrics["acc_norm"] == pytest.approx(right_by_length / ROWS)
    share = metrics["acc"]
    assert metrics["acc_stderr"] == pytest.approx(math.sqrt(share * (1 - share) / (ROWS - 1)))
    assert found["examples"] == ROWS
    assert found["harness"]["task"] == "openbookqa"
    assert read_json(tmp_path / "out/runtime.json")["device"]
    own = read_json(tmp_path / "out/lm_eval.json")
    from lm_eval.utils import make_table  # what the harness prints of the files that it writes

    assert f"|acc|↑|{share:.4f}|±|{metrics['acc_stderr']:.4f}|" in make_table(own).replace(" ", "")
    assert own["results"]["openbookqa"]["acc_norm,none"] == metrics["acc_norm"]
    assert own["n-samples"]["openbookqa"] == {"original": ROWS, "effective": ROWS}
    assert own["configs"]["openbookqa"]["doc_to_choice"] == "{{choices.text}}"
    assert own["lm_eval_version"] == found["harness"]["version"]


def test_code_beside_the_harness_task_file_is_found(
    decoder: Decoder, prepared: Prepared, packages: Path, tmp_path: Path
) -> None:
    """HellaSwag's rows are rewritten by a function of the harness."""
    row = {"activity_label": "the film", "ctx_a": "it was", "ctx_b": "the story", "label": "1"}
    row |= {"endings": ["is good", "is dull", "was bad", "was fine"]}
    zero_shot(decoder("llama"), prepared("hellaswag", [row, row]), tmp_path / "out", batch_size=1, packages=packages)
    assert read_json(tmp_path / "out/metrics.json")["metrics"].keys() >= {"acc", "acc_norm"}


def test_weights_that_are_not_finite(decoder: Decoder, prepared: Prepared, packages: Path, tmp_path: Path) -> None:
    model = decoder("llama")
    copy_companions(model.path, tmp_path / "nan")
    weights = load(model.path)
    name = next(name for name in weights if "down_proj" in name)
    weights[name] = torch.full_like(weights[name], math.nan)
    save(tmp_path / "nan", weights)
    with pytest.raises(UserError, match="a likelihood on openbookqa is not finite; a weight is damaged"):
        zero_shot(
            ModelFolder(tmp_path / "nan"),
            prepared("openbookqa", questions()),
            tmp_path / "out",
            batch_size=4,
            packages=packages,
        )
    assert not (tmp_path / "out/metrics.json").exists()


def test_another_harness_than_the_tasks(decoder: Decoder, prepared: Prepared, packages: Path, tmp_path: Path) -> None:
    task = prepared("openbookqa", questions())
    write_manifest(task.path, kind="task", task="zero-shot", harness=task.manifest["harness"] | {"version": "0.1"})
    task = TaskFolder(task.path)
    with pytest.raises(UserError, match=r"was prepared for lm-evaluation-harness 0\.1, .* download the task again"):
        zero_shot(decoder("llama"), task, tmp_path / "out", batch_size=1, packages=packages)
