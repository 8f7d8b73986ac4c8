"""The command `llm-sparsity`: what it prints, and how it fails."""

import subprocess
import sys
from pathlib import Path

import pytest

import llm_sparsity
from llm_sparsity.cli.main import SCRIPTS, main
from llm_sparsity.cli.project import project

ROOT = Path(__file__).parents[3]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for name in ("init", "plan", "run", *SCRIPTS):
        assert f"llm-sparsity {name}" in shown


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_a_command_too(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: {name}.py" in capsys.readouterr().out


def test_a_plan_is_of_a_file_or_of_a_shipped_study(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "copy.yaml").write_text((ROOT / "studies/recovery.yaml").read_text())
    for study in ("recovery", str(tmp_path / "copy.yaml")):
        main(["plan", study])
        assert "Plan of recovery: jobs that are left" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_study_that_is_not_there_is_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "nowhere.yaml"])
    assert str(ended.value.code) == "error: nowhere.yaml: not found; `llm-sparsity init MODEL` writes a study"


def test_only_run_passes_options_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "recovery", "-n"])
    assert ended.value.code == 2
    assert "unrecognized arguments: -n" in capsys.readouterr().err


def test_the_project_is_this_checkout_where_the_library_is_in_one() -> None:
    assert project() == ROOT
    assert (project() / "Snakefile").is_file()


def test_public_names_exist_and_cost_nothing_before_they_are_used() -> None:
    code = "import llm_sparsity, sys; print(*sorted({'torch', 'pandas', 'snakemake'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "workflow", text=True, capture_output=True, check=True
    )
    assert done.stdout.strip() == ""
    for name in llm_sparsity.__all__:
        assert getattr(llm_sparsity, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llm_sparsity.nothing
