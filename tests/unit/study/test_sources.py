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
        ({"files": {"train": "../t.csv"}}, "files.train: found '../t.csv'; a path inside the source is expected"),
        ({"labels": ["x", "x", "y"]}, "labels: 'x' is given twice; remove one"),
        ({"separator": " "}, "separator: is put between the sentences of a pair; add text_pair or pairs, or remove it"),
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
