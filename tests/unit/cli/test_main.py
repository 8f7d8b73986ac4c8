"""The command `llm-sparsity`: what it prints, and how it fails."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import llm_sparsity
from llm_sparsity.cli.main import COMMANDS, main
from llm_sparsity.study.project import project

ROOT = Path(__file__).parents[3]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert re.findall(r"^llm-sparsity (\w+)", capsys.readouterr().out, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_its_options(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: llm-sparsity {name} ")
    for option in re.findall(r"^  (-.*(?:\n {10,}.*)*)", shown, re.MULTILINE):
        assert re.search(r"\S\s{2,}\S", option), f"{option}: says not what it is for"


@pytest.mark.parametrize("words", [[], ["prune"], ["--delete"]])
def test_what_is_no_command_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert "usage: llm-sparsity" in shown and (words or "llm-sparsity init MODEL" in shown)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"name: [", "no config of a study: while parsing"), (b"name: \xff", "no config of a study: 'utf-8' codec"),
        (b"", "no config of a study: it has no keys"), (b"- name", "no config of a study: it has no keys"),
        (b"[" * 100_000, "no config of a study: "), (b"name: {a: 1}", "config: name: "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["plan", "doctor", "clean"])
def test_a_file_that_is_no_study_is_one_line(
    command: str, text: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("work").mkdir()
    Path("bad.yaml").write_bytes(text)
    with pytest.raises(SystemExit) as ended:
        main([command, "bad.yaml"])
    assert str(ended.value.code).startswith("error: ")
    assert said in str(ended.value.code)


def test_run_reads_the_file_before_snakemake_does(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"name: \xff")
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "bad.yaml")])
    assert str(ended.value.code).startswith(f"error: {tmp_path / 'bad.yaml'}: no config of a study: 'utf-8' codec")


def test_a_plan_is_of_a_file_or_of_a_shipped_study(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "copy.yaml").write_text((ROOT / "studies/recovery.yaml").read_text())
    for study in ("recovery", str(tmp_path / "copy.yaml")):
        main(["plan", study])
        assert "Plan of recovery: jobs that are left" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_study_that_is_not_there_is_one_line(command: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "nowhere.yaml"])
    assert str(ended.value.code) == "error: nowhere.yaml: not found; `llm-sparsity init MODEL` writes a study"
    with pytest.raises(SystemExit, match=rf"{tmp_path}: is a folder, no config; `llm-sparsity init {tmp_path}` writes"):
        main([command, str(tmp_path)])


def test_generate_finds_a_result_as_export_does(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"results/m/dense: no such result; .* has no results"):
        main(["generate", str(tmp_path / "results/m/dense"), "--prompt", "a"])


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
