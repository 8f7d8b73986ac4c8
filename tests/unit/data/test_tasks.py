"""Task folders: splits, labels, and errors for what a folder does not have."""

from pathlib import Path

import pytest

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.jobs.errors import UserError
from tests.tiny import save_mood_task, save_text_task


def test_examples_of_a_classification_task(tmp_path: Path) -> None:
    task = TaskFolder(save_mood_task(tmp_path / "mood"))
    examples = task.examples("validation")
    assert (task.name, task.num_labels) == ("mood", 2)
    assert len(examples.texts) == len(examples.labels) == 32
    assert examples.pairs is None


def test_pairs(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "text_pair": "b", "label": 1}\n')
    examples = TaskFolder(tmp_path).examples("train")
    assert (examples.texts, examples.pairs, examples.labels) == (["a"], ["b"], [1])


def test_lines_of_running_text(tmp_path: Path) -> None:
    assert len(TaskFolder(save_text_task(tmp_path)).texts("test")) == 40


def test_missing_split_and_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no test\.jsonl; the task has no such split"):
        TaskFolder(tmp_path).rows("test")
    with pytest.raises(UserError, match="is not complete; make it with its stage"):
        TaskFolder(tmp_path).manifest  # noqa: B018


@pytest.mark.parametrize(("content", "message"), [("", "has no rows; download"), ("{", "is damaged .*; download")])
def test_empty_and_damaged_split(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(content)
    with pytest.raises(UserError, match=rf"train\.jsonl: {message} the task again"):
        TaskFolder(tmp_path).examples("train")
