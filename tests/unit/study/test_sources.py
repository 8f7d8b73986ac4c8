"""Sources of models and tasks: what is refused before anything is downloaded."""

from typing import Any

import pytest
from pydantic import ValidationError

from llm_sparsity.study.fields import lines
from llm_sparsity.study.sources import Source, Task

TASK: dict[str, Any] = {"kind": "classification", "source": {"folder": "x"}, "label": "label"}
TASK |= {"files": {"train": "t.csv"}, "split": {"validation": 4}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {"train": "/etc/passwd"}}, "files.train: found '/etc/passwd'; a path inside the source is expected"),
        ({"files": {"train": ""}}, "files.train: found ''; a path inside the source is expected"),
        ({"files": {"train": "."}}, "files.train: found '.'; a path inside the source is expected"),
        ({"files": {"train": "../t.csv"}}, "files.train: found '../t.csv'; a path inside the source is expected"),
        ({"labels": ["x", "x", "y"]}, "labels: 'x' is given twice; remove one"),
        ({"labels": [0, 1]}, 'labels: found [0, 1]; a name is text; write it in quotes: "0"'),
        ({"labels": [True, False]}, "labels: found [True, False]; yes, no, on and off are true and false in YAML"),
        ({"labels": ["x", " y"]}, "labels: found ['x', ' y']; ' y' is empty, or begins or ends with a blank"),
        ({"labels": ["x", ""]}, "labels: found ['x', '']; '' is empty, or begins"),
        ({"split": None, "binarize": {}, "files": None}, "files: found nothing; give a value, or remove it"),
        ({"separator": " "}, "separator: is put between the sentences of a pair; add text_pair or pairs, or remove it"),
        ({"binarize": {}, "labels": ["a", "b", "c"]}, "labels: found 3, but binarize makes two, below and above; name"),
        ({"limit": {"test": 9}}, "limit.test: there is no such split, only train, validation; remove it"),
        (
            {"text_pair": "b", "pairs": {"train": 1, "validation": 1}},
            "pairs: draws the second sentence, which text_pair names; remove one of them",
        ),
        (
            {"binarize": {}, "pairs": {"train": 1, "validation": 1, "group": "a"}},
            "pairs.group: replaces the label, of which binarize makes two; remove one of them",
        ),
        ({"pairs": {"train": 1, "validation": 1, "group": "("}}, "pairs.group: found '('; no regular expression"),
        (
            {"pairs": {"train": 1, "validation": 1, "group": "a{99999999999}"}},
            "pairs.group: found 'a{99999999999}'; no",
        ),
    ],
)
def test_faulty_task_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        Task.model_validate(TASK | change)
    [line] = lines(error.value, Task)
    assert line.startswith(message)


LABELLED = {"split": None, "files": {"train": "t.csv", "validation": "v.csv"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "pearsonr"}, "score: found 'pearsonr', but kind is classification; choose one of accuracy, f1, "),
        ({"score": "accuracy", "kind": "regression"}, "score: found 'accuracy', but kind is regression; choose"),
        ({"score": "acuracy"}, "score: found 'acuracy'; input should be 'accuracy', 'f1'"),
        ({"score": "f1", "labels": ["a", "b", "c"]}, "score: f1 is for two labels; use macro_f1, the mean over all"),
        ({"kind": "regression", "labels": ["a", "b"]}, "labels: makes classes, but kind is regression; remove one"),
        ({"kind": "regression", "binarize": {}}, "binarize: makes classes, but kind is regression; remove one of them"),
        ({"kind": "regression", "label": None}, "label: missing; name the column that holds the label"),
        ({"files": LABELLED["files"] | {"unlabelled": "u"}}, "files.unlabelled: is what results call the sentences"),
        ({"files": {"train": "t.csv", "mismatched": "m.csv"}}, "files: expected train and validation, found train"),
        ({"files": LABELLED["files"] | {"../x": "m.csv"}}, "files.../x: found '../x'; a name becomes a folder"),
        ({"split": {"validation": 1}, "files": {"train": "t", "other": "v"}}, "files: expected train, found train"),
    ],
)
def test_faulty_score_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        Task.model_validate(TASK | LABELLED | change)
    [line] = lines(error.value, Task)
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("change", "score"),
    [
        ({}, "accuracy"),
        ({"score": "matthews_correlation"}, "matthews_correlation"),
        ({"kind": "regression"}, "pearsonr"),
        ({"kind": "regression", "score": "spearmanr"}, "spearmanr"),
        ({"files": LABELLED["files"] | {"mismatched": "m.csv"}}, "accuracy"),
        ({"kind": "language-model", "label": None, "files": {"test": "t"}}, "perplexity"),
    ],
)
def test_what_a_task_is_judged_by(change: dict[str, Any], score: str) -> None:
    assert Task.model_validate(TASK | LABELLED | change).judged_by == score


def test_path_outside_a_package() -> None:
    with pytest.raises(ValidationError) as error:
        Source.model_validate({"package": "a==1", "sha256": "0" * 64, "path": "a/../../b"})
    [line] = lines(error.value, Source)
    assert line.startswith("path: found 'a/../../b'; a path inside the source is expected, neither absolute nor with")


def test_options_that_are_not_given_are_no_settings() -> None:
    given = Task.model_validate(TASK).model_dump(exclude_none=True)
    assert {"separator", "max_bytes"}.isdisjoint({*given, *given["source"]})
    task = Task.model_validate(TASK | {"text_pair": "b", "separator": "\n", "source": {"folder": "x", "max_bytes": 9}})
    assert (task.separator, task.source.max_bytes) == ("\n", 9)
