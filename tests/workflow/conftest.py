"""A copy of the project with a local hub cache, in which the real Snakemake runs the tiny study."""

import csv
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.once import once
from tests.tiny import WORDS

COPIED = ["Snakefile", "config.yaml", "workflow", "scripts", "studies", "envs", "profiles"]
ODD = 'it\'s {odd} $HOME `x` "y" ü;&'


def checkout(root: Path, folder: Path) -> None:
    """Copy the project, with what Python has compiled of it, or each copy's jobs would compile it anew."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("*.pyc.*"))  # half written
        else:
            shutil.copy(root / name, folder / name)


class Project:
    """A copy of the project in a folder of its own, run by the real Snakemake without network."""

    def __init__(self, folder: Path, hub: Path) -> None:
        self.folder = folder
        self.hub = hub
        self.checkout = folder  # where the code is

    def snakemake(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "HF_HOME": str(self.hub), "HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
        return subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=self.folder,
            env=variables | environment,
            text=True,
            capture_output=True,
            check=False,
        )

    def run(self, **environment: str) -> str:
        done = self.snakemake("--configfile", "config.yaml", "--cores", "2", "--show-failed-logs", **environment)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done.stdout + done.stderr

    def pending(self) -> list[str]:
        """What a run would do: "rule wildcard=value ..." a job, sorted; `all` left out."""
        done = self.snakemake("-n", "-p", "--configfile", "config.yaml")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        jobs = []
        for block in re.split(r"\n(?=(?:local)?rule )", done.stdout + done.stderr):
            rule = re.match(r"(?:local)?rule (\w+):", block)
            if rule and rule.group(1) != "all":
                wildcards = re.search(r"^    wildcards: (.*)$", block, re.MULTILINE)
                jobs.append(" ".join([rule.group(1), *(wildcards.group(1).split(", ") if wildcards else [])]))
        return sorted(jobs)

    def edit(self, file: str, change: Callable[[str], str]) -> None:
        path = self.folder / file
        before = path.read_text()
        after = change(before)
        assert after != before, f"the edit of {file} changed nothing"
        path.write_text(after)

    def configure(self, change: Callable[[dict], None]) -> None:
        path = self.folder / "config.yaml"
        values = yaml.safe_load(path.read_text())
        change(values)
        path.write_text(yaml.safe_dump(values, sort_keys=False))


def _sentence(generator: random.Random) -> tuple[str, int]:
    label = generator.randrange(2)
    mood = ["good", "great", "fine"] if label else ["bad", "dull", "awful"]
    return " ".join([*generator.choices(WORDS[:8], k=6), generator.choice(mood)]), label


def _glue(root: Path) -> dict[str, pd.DataFrame]:
    """SST-2 and MRPC as the hub lays them out: the real ones where they lie beside the checkout, else made up."""
    data = root.parent / "shared" / "data"
    tables = {}
    generator = random.Random(0)
    for split, file in (("train", "train"), ("validation", "dev")):
        if data.is_dir():
            sst2 = pd.read_csv(data / "sst2" / f"{file}.tsv", sep="\t", quoting=csv.QUOTE_NONE)
            mrpc = pd.read_csv(data / "mrpc" / f"{file}.tsv", sep="\t", quoting=csv.QUOTE_NONE)
            mrpc = mrpc.rename(columns={"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label"})
            mrpc = mrpc[["sentence1", "sentence2", "label"]]
        else:
            rows = [_sentence(generator) for _ in range(100)]
            sst2 = pd.DataFrame(rows, columns=["sentence", "label"])
            others = [_sentence(generator) for _ in rows]
            mrpc = pd.DataFrame(
                [(a, b, int(x == y)) for (a, x), (b, y) in zip(rows, others, strict=True)],
                columns=["sentence1", "sentence2", "label"],
            )
        tables[f"sst2/{split}-00000-of-00001.parquet"] = sst2
        tables[f"mrpc/{split}-00000-of-00001.parquet"] = mrpc
    return tables


@pytest.fixture(scope="session")
def hub(root: Path, tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache as huggingface_hub lays it out: tiny models under the report's ids, and GLUE."""
    return once("hub", tmp_path_factory, lambda cache: _fill_hub(cache, root, tiny_model))


def _fill_hub(cache: Path, root: Path, tiny_model: Callable[[str], Path]) -> None:
    study = yaml.safe_load((root / "tests/config.yaml").read_text())

    def repository(kind: str, source: dict[str, str]) -> Path:
        folder = cache / "hub" / f"{kind}--{source['hub'].replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(source["revision"])
        snapshot = folder / "snapshots" / source["revision"]
        snapshot.mkdir(parents=True, exist_ok=True)
        return snapshot

    for name, kind in (("roberta-base", "roberta"), ("gpt2", "gpt2"), ("bart-base", "bart")):
        snapshot = repository("models", study["models"][name]["source"])
        for file in tiny_model(kind).iterdir():
            if file.name != "manifest.json":
                shutil.copy(file, snapshot)
    snapshot = repository("datasets", study["tasks"]["sst2"]["source"])
    for file, table in _glue(root).items():
        (snapshot / file).parent.mkdir(exist_ok=True)
        table.to_parquet(snapshot / file)


@pytest.fixture(scope="session")
def finished(root: Path, hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny study, run once from download to report: of its cells those that every rule needs."""
    return _own("finished", hub, tmp_path_factory, lambda folder: _run_study(folder, root, hub))


@pytest.fixture(scope="session")
def whole(finished: Project, root: Path, hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The tiny study with all cells, for exhaustive tests."""
    return _own("whole", hub, tmp_path_factory, lambda folder: _run_whole(folder, finished, root, hub))


def _own(name: str, hub: Path, factory: pytest.TempPathFactory, make: Callable[[Path], None]) -> Project:
    """A copy of a finished project for this test process, as a run locks its folder. Tests that edit copy it again."""
    made = once(name, factory, make)
    own = factory.mktemp("project") / name
    shutil.copytree(made, own)
    project = Project(own, hub)
    project.log = (own / "run.log").read_text()
    return project


def _run_study(half: Path, root: Path, hub: Path) -> None:
    """Run the study in a folder with an odd name, then move its content here."""
    folder, temporary = half / ODD, half / f"{ODD} temporary"
    folder.mkdir()
    temporary.mkdir()
    checkout(root, folder)
    study = yaml.safe_load((root / "tests/config.yaml").read_text())
    trained, evaluated, one_shot = study["study"][:3]
    trained["recipes"], evaluated["methods"], one_shot["methods"] = ["kept", "brief"], ["uniform"], ["wanda+swaps"]
    study["study"] = [trained, evaluated, one_shot]
    (folder / "config.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    (folder / "inputs").mkdir()
    generator = random.Random(0)
    (folder / "inputs/lines.txt").write_text("".join(f"{_sentence(generator)[0]}\n" for _ in range(200)))
    (folder / "run.log").write_text(Project(folder, hub).run(TMPDIR=str(temporary)))
    for path in folder.iterdir():
        path.rename(half / path.name)
    folder.rmdir()
    shutil.rmtree(temporary)


def _run_whole(folder: Path, finished: Project, root: Path, hub: Path) -> None:
    shutil.copytree(finished.folder, folder, dirs_exist_ok=True)
    shutil.copy(root / "tests/config.yaml", folder / "config.yaml")
    (folder / "run.log").write_text(Project(folder, hub).run())


def copied(project: Project, folder: Path) -> Project:
    """A copy of a finished project, without the cache of its runs."""
    shutil.copytree(project.folder, folder, ignore=shutil.ignore_patterns("work"))
    return Project(folder, project.hub)
