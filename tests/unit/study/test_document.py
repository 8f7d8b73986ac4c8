"""Documents that a person writes: what runs is what stands on the screen."""

from pathlib import Path

import pytest
import yaml

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.study.document import read_document


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("finetune: {epochs: 10}\nname: a\nfinetune: {batch_size: 8}\n", "line 3: finetune is given twice; remove one"),
        ("tasks:\n  a: {kind: b}\n  'a': {kind: c}\n", "line 3: a is given twice; remove one"),
        ("models: {1.10: a, 1.1: b}\n", "line 1: 1.1 is given twice; remove one"),
        ("models: {1: a, '1': b}\n", "line 1: 1 is given twice; remove one"),
        ("- {a: 1, b: 2, a: 3}\n", "line 1: a is given twice; remove one"),
        ("epochs: 010\n", "line 1: YAML reads 010 in base eight; write it in base ten, or in quotes as a word"),
        ("a:\n- 1\n- 1:30\n", "line 3: YAML reads 1:30 in base sixty; write it in base ten, or in quotes as a word"),
        ("rate: 1:30.5\n", "line 1: YAML reads 1:30.5 in base sixty; write it in base ten, or in quotes as a word"),
    ],
)
def test_a_spelling_that_misleads_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read_document(tmp_path / "study.yaml")
    assert str(error.value) == f"{tmp_path / 'study.yaml'}: {said}"


def test_json_may_have_tabs(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text('{\n\t"a": {"b": 1,\n\t"c": [1e-3]}}')
    assert read_document(tmp_path / "study.json") == {"a": {"b": 1, "c": [0.001]}}
    (tmp_path / "study.json").write_text('{"a": {"b": 1, "b": 2}}')
    with pytest.raises(UserError, match=r"study\.json: b is given twice; remove one"):
        read_document(tmp_path / "study.json")


def test_any_other_document_is_read_as_yaml(root: Path, tmp_path: Path) -> None:
    text = (
        "base: &base {a: 1, b: 2}\ndeep:\n  er: &er {<<: *base, a: 4}\nmerged:\n  <<: *er\n  a: 3\n"
        "numbers: [0, -1, 0.5, 1e-3, 1.0e+3, 0x1f, 0.01, '010', 1_000, .inf]\n"
    )
    (tmp_path / "study.yaml").write_text(text)
    assert read_document(tmp_path / "study.yaml") == yaml.safe_load(text)
    assert read_document(root / "config.yaml") == yaml.safe_load((root / "config.yaml").read_text())
