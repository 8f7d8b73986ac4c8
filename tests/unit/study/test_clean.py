import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_sparsity.storage.files import sha256, write_json
from llm_sparsity.study import clean
from llm_sparsity.study.clean import leftovers
from llm_sparsity.study.config import Config, load


@pytest.fixture
def study(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return load(yaml.safe_load((root / "tests/config.yaml").read_text()))


@pytest.fixture
def cached(study: Config, tmp_path: Path) -> Callable[..., str]:
    """`cached("name")` -> the name of a cached run of the study's first cell, with changes."""
    run = study.cells().runs[0]

    def make(name: str, **changes: Any) -> str:
        folder = tmp_path / "work" / name
        settings = study.run_settings(run.task, run.recipe, run.seed) | changes.pop("settings", {})
        facts = {"settings": settings, "code": "now", "output": str(run.folder), "inputs": {}, "tokens": "t"}
        write_json(folder / "run.json", facts | changes)
        (folder / "epoch-1").mkdir()
        (folder / "epoch-1/model.safetensors").write_bytes(b"x" * 1000)
        return name

    return make


def found(study: Config) -> dict[str, str]:
    return {leftover.path.name: leftover.reason for leftover in leftovers(Path("work"), [study], lambda model: "now")}


def test_what_a_study_refers_to_stays(study: Config, cached: Callable[..., str]) -> None:
    cached("same")
    assert found(study) == {}


def test_what_no_study_refers_to_is_listed_with_the_reason(study: Config, cached: Callable[..., str]) -> None:
    cached("same")
    cached("settings", settings={"epochs": 99})
    cached("code", code="then")
    cached("cell", output="results/gone/dense/sst2/kept/seed-0")
    assert found(study) == {
        "settings": "another epochs",
        "code": "another code",
        "cell": "no study has results/gone/dense/sst2/kept/seed-0",
    }


def test_other_inputs_are_found_where_they_exist(study: Config, cached: Callable[..., str]) -> None:
    model = Path(f"resources/models/{study.cells().runs[0].model}/manifest.json")
    write_json(model, {})
    cached("old", inputs={"model": "0"})
    cached("new", inputs={"model": sha256(model)})
    assert found(study) == {"old": "another model"}


def test_a_run_that_is_going_on_stays(study: Config, cached: Callable[..., str], tmp_path: Path) -> None:
    cached("code", code="then")
    (tmp_path / "work/code/lock").touch()
    assert found(study) == {}


def test_tokens_stay_as_long_as_a_run_uses_them(study: Config, cached: Callable[..., str], tmp_path: Path) -> None:
    cached("same", tokens="used")
    cached("code", code="then", tokens="unused")
    for name in ("used", "unused"):
        (tmp_path / "work/tokens" / name).mkdir(parents=True)
    (tmp_path / "work/tokens/used.lock").touch()
    assert set(found(study)) == {"code", "unused"}


def test_removing_removes_what_is_listed(study: Config, cached: Callable[..., str], tmp_path: Path) -> None:
    cached("same")
    cached("code", code="then")
    (leftover,) = leftovers(Path("work"), [study], lambda model: "now")
    assert leftover.bytes == 1000 + (leftover.path / "run.json").stat().st_size
    clean.remove(leftover)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["same"]


def test_settings_are_compared_as_they_were_written(study: Config) -> None:
    run = study.cells().runs[0]
    settings = study.run_settings(run.task, run.recipe, run.seed)
    assert json.loads(json.dumps(settings)) == settings
    assert "save_minutes" not in settings
