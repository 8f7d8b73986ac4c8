"""A mistake of the user ends before any job, in one line that names the key, the value and the fix."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.marks import slow

from .conftest import Project, checkout

GRID = ("study", 0)


@pytest.fixture
def fresh(root: Path, hub: Path, tmp_path: Path) -> Project:
    """A project in which nothing has run yet."""
    checkout(root, tmp_path)
    shutil.copy(root / "tests/config.yaml", tmp_path / "config.yaml")
    return Project(tmp_path, hub)


def errors(project: Project, *arguments: str) -> list[str]:
    """The error lines of a run that must fail without a traceback and without having started a job."""
    done = project.snakemake("--configfile", "config.yaml", "--cores", "1", *arguments)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in output, output
    assert not (project.folder / "results").exists()
    return [line for line in output.splitlines() if line.startswith("error: ") or line.startswith("config: ")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values.update(finetun={}), "finetun: unknown key; did you mean 'finetune'?"),
        slow(lambda values: values["study"][0].update(sparsities=[1.5]), "study.0.sparsities.0: found 1.5; expected"),
    ],
)
def test_config_mistakes(change: Callable[[dict], None], said: str, fresh: Project) -> None:
    fresh.configure(change)
    lines = errors(fresh)
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.slow
def test_a_key_that_is_given_twice(fresh: Project) -> None:
    """Snakemake keeps the last of two equal keys without a word."""
    fresh.edit("config.yaml", lambda text: f"{text}\nfinetune: {{batch_size: 8}}\n")
    (line,) = errors(fresh)
    assert line.startswith(f"error: {fresh.folder}/config.yaml: line ")
    assert line.endswith(": finetune is given twice; remove one")


@pytest.mark.slow
def test_a_study_without_models_does_not_borrow_those_of_the_default_config(fresh: Project) -> None:
    (fresh.folder / "study.yaml").write_text("name: mine\nstudy: [{models: [gpt2], sparsities: [0]}]\n")
    done = fresh.snakemake("--configfile", "study.yaml", "-n")
    assert done.returncode != 0
    assert "error: config: models: missing; add it" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("report/claims.yaml", "limit: 0.5", "limit: 0", "claims.8: limit: found 0; give a number above 0"),
        ("published.csv", "sparsity", "sparsty", "published.csv: column sparsity is missing"),
    ],
)
def test_files_that_the_last_stages_read(file: str, old: str, new: str, said: str, fresh: Project) -> None:
    fresh.edit(f"studies/{file}", lambda text: text.replace(old, new, 1))
    (line,) = errors(fresh)
    assert line.startswith("error: studies/")
    assert said in line


@pytest.mark.slow
def test_offline_and_uncached_stops_before_any_job(fresh: Project, tmp_path: Path) -> None:
    fresh.hub = tmp_path / "empty"
    lines = errors(fresh)
    assert lines
    assert "roberta-base" in " ".join(lines)
    assert not (fresh.folder / "resources").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(fresh: Project) -> None:
    (fresh.folder / "inputs").mkdir()
    (fresh.folder / "resources").mkdir(mode=0o500)
    done = fresh.snakemake("--configfile", "config.yaml", "--cores", "1", "resources/tasks/lines/manifest.json")
    assert done.returncode != 0
    assert "Permission denied: 'resources/tasks'" in done.stdout + done.stderr
