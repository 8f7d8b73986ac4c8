"""The examples of docs/library.md are run. Weights are RANDOM, numbers MADE UP."""

import re
from pathlib import Path

import pytest

import llm_sparsity
from llm_sparsity.jobs.errors import UserError
from tests.tables import write_tables
from tests.tiny import save_tiny_model

PAGE = Path(__file__).parents[3] / "docs/library.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_model("bert", tmp_path / "my-model")
    (tmp_path / "my-model/manifest.json").unlink()  # as save_pretrained leaves a model
    write_tables(tmp_path / "reports/embedded/tables", ["minilm"], ["magnitude"], 2)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    shown = capsys.readouterr().out
    assert shown.startswith("0.9")
    assert "count" in shown
    assert (tmp_path / "pruned/half/sparsity.csv").is_file()


def test_paths_are_taken_as_text(root: Path, tmp_path: Path) -> None:
    assert llm_sparsity.load_config(str(root / "studies/recovery.yaml")).name == "recovery"
    with pytest.raises(UserError, match=r"baselines\.csv: not found; name the folder of a study's tables, reports/"):
        llm_sparsity.read_tables(str(tmp_path))
    with pytest.raises(UserError, match="no model folder"):
        llm_sparsity.prune(str(tmp_path), {0.5: str(tmp_path / "half")}, method="magnitude", scope="linear")


def test_the_page_explains_the_public_names() -> None:
    named = set(re.findall(r"^\| `(\w+)", PAGE.read_text(), re.MULTILINE))
    assert named - {"name"} == set(llm_sparsity.__all__)
