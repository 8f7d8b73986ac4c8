"""The examples of docs/library.md are run. Weights are RANDOM, numbers MADE UP."""

import re
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    ("sparsity", "scope", "said"),
    [
        ("50", "linear", "outputs: found '50'; expected a fraction"),
        ("0.5", "lineer", "scope: found 'lineer'; expected all, linear, .* did you mean 'linear'"),
        ("0.5", [-1], r"scope: found \[-1\]; expected a list of layers"),
    ],
)
def test_arguments_of_prune_are_refused_in_one_line(sparsity: str, scope: Any, said: str, tmp_path: Path) -> None:
    model = save_tiny_model("bert", tmp_path / "model")
    with pytest.raises(UserError, match=f"^{said}[^\n]*$"):
        llm_sparsity.prune(model, {sparsity: tmp_path / "out"}, method="magnitude", scope=scope)


def test_a_list_of_layers_is_a_scope_and_a_plain_folder_is_not_pruned(tmp_path: Path) -> None:
    model = save_tiny_model("bert", tmp_path / "model")
    (model / "manifest.json").unlink()
    assert llm_sparsity.ModelFolder(model).pruned is None
    llm_sparsity.prune(model, {0.5: tmp_path / "out"}, method="magnitude", scope=[1, 0])
    assert (llm_sparsity.ModelFolder(tmp_path / "out/model").pruned or {})["scope"] == "layers.0.1"


def test_the_page_explains_the_public_names() -> None:
    named = set(re.findall(r"^\| `(\w+)", PAGE.read_text(), re.MULTILINE))
    assert named - {"name"} == set(llm_sparsity.__all__)
