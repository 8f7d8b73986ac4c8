"""docs/extending.md is this test's code: its files are written and its commands run, in their order."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from .conftest import Project, checkout


def blocks(page: str) -> Iterator[tuple[str, str, str]]:
    """The fenced blocks of a page: language, what follows it on the line, text."""
    yield from re.findall(r"^```(\w+)(?: ([^\n]+))?\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


@pytest.fixture
def fresh(root: Path, tiny_model: Callable[[str], Path], tmp_path: Path) -> Project:
    """A checkout with a model in mine/model."""
    checkout(root, tmp_path)
    (tmp_path / "tests/unit/pruning").mkdir(parents=True)
    shutil.copytree(tiny_model("bert"), tmp_path / "mine/model", ignore=shutil.ignore_patterns("manifest.json"))
    return Project(tmp_path, tmp_path / "empty hub")


@pytest.mark.exhaustive
def test_the_tutorial_works(fresh: Project, root: Path) -> None:
    said = []
    for language, name, text in blocks((root / "docs/extending.md").read_text()):
        if language == "sh":
            said += [run(fresh, command) for command in text.splitlines()]
        elif ": " in name:  # one line of a file, changed
            file, key = name.split(": ")
            fresh.edit(file, lambda before, key=key, text=text: re.sub(rf" *{key}: .*\n", text, before))
        else:
            (fresh.folder / name).parent.mkdir(exist_ok=True)
            (fresh.folder / name).write_text(text)
    first, ran, tested, second, _, step = said
    assert {"download_model", "download_task", "prune", "finetune", "plot"} <= set(re.findall(r"rule (\w+):", first))
    assert "Read reports/mine/report.html" in ran
    assert "1 passed" in tested and "1 passed" in step
    pending = set(re.findall(r"^    wildcards: (.*)$", second, re.MULTILINE))
    assert pending
    assert all("relative-linear-0.5" in job for job in pending)
    metrics = pd.read_csv(fresh.folder / "reports/mine/tables/metrics.csv")
    assert set(metrics.method) == {"dense", "magnitude", "relative"}
    assert "Zhang et al. 2024" in (fresh.folder / "reports/mine/report.html").read_text()


def run(project: Project, command: str) -> str:
    """A command of the page, with this environment in place of the one that ./run sets up."""
    _, *arguments = command.split()
    if arguments[0] == "test":
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments[1:]],
            cwd=project.folder, env={"PYTHONPATH": "workflow"}, text=True, capture_output=True, check=False,
        )  # fmt: skip
    else:
        done = project.snakemake(*arguments, "--show-failed-logs")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_mistake_that_is_shown_is_told_so(fresh: Project, root: Path) -> None:
    page = (root / "docs/extending.md").read_text()
    study = next(text for _, name, text in blocks(page) if name == "mine/study.yaml")
    shown = re.search(r"^error: .*$", page, re.MULTILINE)
    assert shown is not None
    (fresh.folder / "mine/study.yaml").write_text(study.replace("[linear]", "[linaer]"))
    done = fresh.snakemake("-n", "--configfile", "mine/study.yaml")
    assert shown.group(0) in (done.stdout + done.stderr).splitlines()
