"""The command that becomes Snakemake, and faults at which Snakemake itself ends in a traceback."""

import argparse
import os
import sys
from pathlib import Path

import pytest

from llm_sparsity.cli.run import main, snakemake
from llm_sparsity.jobs.errors import UserError


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that a process would have become."""
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: commands.append(words))
    return commands


@pytest.mark.parametrize(
    "words",
    [
        ["--configfile", "{}"], ["--configfile={}", "-n"], ["-n", "--configfiles", "good.yaml", "{}", "--cores", "1"],
        ["--configfile", "{}", "--config", "name=x"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("fault", ["missing.yaml", "folder", "latin.yaml", "list.yaml", "empty.yaml"])
def test_a_config_file_that_cannot_be_read(
    words: list[str], fault: str, started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("good.yaml").write_text("name: x")
    Path("latin.yaml").write_bytes(b"name: M\xfcller")
    Path("list.yaml").write_text("- a")
    Path("empty.yaml").touch()
    with pytest.raises(UserError, match=f"^{fault}: no config of a study: [^\n]*$"):
        snakemake([word.format(fault) for word in words])
    assert not started


@pytest.mark.parametrize("folder", ["/proc/nohome", "file/cache"])
def test_a_home_that_cannot_be_written(
    folder: str, started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", folder)
    with pytest.raises(UserError, match=r"^Snakemake has no folder for its cache: [^\n]*; export XDG_CACHE_HOME, "):
        snakemake(["-n"])
    assert not started
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LLM_SPARSITY_RUN", "")  # restored at the end
    snakemake(["-n"])
    assert started == [[sys.executable, "-m", "snakemake", "-n"]]


@pytest.mark.parametrize(("said", "cores"), [("cores: 1\n", []), ("jobs: 9\n", ["--cores", "all"])])
def test_the_cores_of_a_profile_count(
    said: str, cores: list[str], started: list[list[str]], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_SPARSITY_RUN", "")
    monkeypatch.chdir(root)
    (tmp_path / "config.yaml").write_text(said)
    main(argparse.ArgumentParser(), ["config.yaml", "--profile", str(tmp_path), "-n"])
    (words,) = started
    assert words[words.index("--configfile") + 2 :] == [*cores, "--profile", str(tmp_path), "-n"]
