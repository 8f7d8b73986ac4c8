import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llm_sparsity.data import tasks
from llm_sparsity.data import tokens as encoded
from llm_sparsity.data.tokens import Encoded
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.loading import load_tokenizer
from llm_sparsity.storage.files import write_manifest
from tests.tiny import save_mood_task


def split(rows: list[list[int]], labels: list[int] | None = None) -> Encoded:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    ids = np.concatenate([np.array(row, np.int32) for row in rows])
    return Encoded(ids, offsets, np.array(labels or [0] * len(rows)), None, pad=3, classes=2)


def test_a_task_is_tokenised_once_and_read_back_as_the_tokenizer_gave_it(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, task = tiny_model("bert"), save_mood_task(tmp_path / "task")
    path = encoded.encode(model, task, tmp_path, max_length=6, code="")
    train, _ = encoded.load(path)
    examples = tasks.load(task, "train")
    given = load_tokenizer(model)(examples.texts, truncation=True, max_length=6)["input_ids"]
    assert len(train) == 64
    assert train.labels.tolist() == examples.labels
    for i, ids in enumerate(given):
        inputs, labels = train.batch(np.array([i]))
        assert inputs["input_ids"].tolist() == [ids]
        assert labels.tolist() == [examples.labels[i]]
    monkeypatch.setattr(encoded, "load_tokenizer", lambda _: pytest.fail("tokenised again"))
    assert encoded.encode(model, task, tmp_path, max_length=6, code="") == path


def test_another_length_task_model_or_code_is_tokenised_anew(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    task = save_mood_task(tmp_path / "task")
    keys = {
        encoded._key(tiny_model("bert"), task, None, 6, "", None),
        encoded._key(tiny_model("bert"), task, None, 7, "", None),
        encoded._key(tiny_model("gpt2"), task, None, 6, "", None),
        encoded._key(tiny_model("bert"), task, None, 6, "x", None),
        encoded._key(tiny_model("bert"), task, task, 6, "", None),
    }
    assert len(keys) == 5


def test_pairs_keep_their_types(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(tiny_model("bert"))
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT's own tokenizer says
    monkeypatch.setattr(encoded, "load_tokenizer", lambda _: tokenizer)
    for name in encoded.SPLITS:
        rows = [{"text": "good film", "text_pair": "bad", "label": label} for label in (0, 1)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(tmp_path, kind="task", task="classification", labels=["no", "yes"])
    train, _ = encoded.load(encoded.encode(tiny_model("bert"), tmp_path, tmp_path, max_length=9, code=""))
    inputs, _ = train.batch(np.array([0]))
    assert inputs["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]


def test_a_label_that_the_task_does_not_have(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    task = save_mood_task(tmp_path)
    with (task / "train.jsonl").open("a") as file:
        file.write('{"text": "dull", "label": 2}\n')
    with pytest.raises(UserError, match=r"train\.jsonl: line 65 has label 2, but the task has 2 \(0 to 1\)"):
        encoded.encode(tiny_model("bert"), task, tmp_path, max_length=6, code="")


def test_batches_hold_every_example_once_and_similar_lengths() -> None:
    generator = np.random.default_rng(0)
    some = split([[0] * length for length in generator.integers(1, 100, 1000)])
    batches = list(some.shuffled(32, seed=1))
    assert sorted(np.concatenate(batches)) == list(range(1000))
    spread = [some.lengths[batch].max() - some.lengths[batch].min() for batch in batches]
    assert np.median(spread) < 10
    same, other = list(some.shuffled(32, seed=1)), list(some.shuffled(32, seed=2))
    assert all(np.array_equal(a, b) for a, b in zip(batches, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(batches, other, strict=True))


def test_padding_reaches_no_further_than_the_batch_and_only_padding_needs_a_mask() -> None:
    some = split([[7, 8, 9], [5], list(range(20)), [1]], [1, 0, 1, 1])
    inputs, labels = some.batch(np.array([0, 1]))
    assert inputs["input_ids"].tolist() == [[7, 8, 9], [5, 3, 3]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert labels.tolist() == [1, 0]
    inputs, _ = some.batch(np.array([1, 3]))
    assert inputs["input_ids"].tolist() == [[5], [1]]
    assert "attention_mask" not in inputs
