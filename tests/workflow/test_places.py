"""The workflow runs from any folder, as a module, and under executors with default resources."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .conftest import Project, checkout

TARGET = "results/gpt2/uniform-linear-0.5/lines/metrics.json"


@pytest.fixture
def elsewhere(finished: Project, tmp_path: Path) -> Project:
    """An empty working directory with the study's inputs; the checkout is another folder, with an odd name."""
    shutil.copytree(finished.folder / "inputs", tmp_path / "run here/inputs")
    project = Project(tmp_path / "run here", finished.hub)
    project.checkout = tmp_path / "it's a {checkout} $HOME"
    project.checkout.mkdir()
    checkout(finished.folder, project.checkout)
    return project


@pytest.mark.slow
def test_it_runs_in_another_folder_also_as_a_module(elsewhere: Project) -> None:
    """A job does not depend on the way in which the checkout is named, or on where it is."""
    shutil.copy(elsewhere.checkout / "config.yaml", elsewhere.folder / "config.yaml")
    (elsewhere.folder / "Snakefile").write_text(
        'configfile: "config.yaml"\n'
        f"module sparsity:\n    snakefile: {str(elsewhere.checkout / 'Snakefile')!r}\n    config: config\n"
        "use rule * from sparsity as sparsity_*\n"
        f'rule mine:\n    default_target: True\n    input: "{TARGET}"\n    output: "mine.json"\n'
        '    shell: "cp {input} {output}"\n'
    )
    done = elsewhere.snakemake("--cores", "2", "--show-failed-logs")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert (elsewhere.folder / "mine.json").read_bytes() == (elsewhere.folder / TARGET).read_bytes()
    assert not (elsewhere.checkout / "results").exists()
    (elsewhere.folder / "config.yaml").unlink()  # that of the checkout is read
    for move in (False, True):
        place = elsewhere.checkout.rename(elsewhere.checkout.with_name("moved")) if move else elsewhere.checkout
        again = elsewhere.snakemake("--snakefile", str(place / "Snakefile"), "--cores", "2", TARGET)
        assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.slow
def test_memory_and_disk_are_the_plans_under_default_resources(root: Path, tmp_path: Path) -> None:
    """An executor that enforces memory gets it from the plan, not from the size of manifests."""
    study = yaml.safe_load((root / "studies/one-billion.yaml").read_text())
    study["study"] = [study["study"][0] | {"models": ["opt-1.3b"]}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "-p", "--snakefile", root / "Snakefile", "--directory", tmp_path,
         "--configfile", tmp_path / "study.yaml", "--default-resources"],
        text=True, capture_output=True, check=True,
    )  # fmt: skip
    found: dict[str, set[int]] = {}
    for block in re.split(r"\n(?=(?:local)?rule )", done.stdout + done.stderr):
        if (rule := re.match(r"(?:local)?rule (\w+):", block)) and rule[1] != "all":
            memory, disk = (int(re.search(rf"\b{key}=(\d+)", block)[1]) for key in ("mem_mb", "disk_mb"))
            found.setdefault(rule[1], set()).update({memory} if memory and disk else {0})
    assert {"download_model", "prune", "weights", "evaluate", "zero_shot", "collect", "plot"} <= found.keys()
    assert min(map(min, found.values())) > 0
    assert min(found["evaluate"]) > 4000  # one billion parameters in float32 take 4 GB


@pytest.mark.slow
def test_a_deleted_weight_file_is_made_again_once_it_is_needed(finished: Project, tmp_path: Path) -> None:
    shutil.copytree(finished.folder, tmp_path / "project")
    project = Project(tmp_path / "project", finished.hub)
    weights = project.folder / "resources/models/gpt2/model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    assert project.pending() == []  # no pending job needs it
    project.configure(lambda values: values["study"][1].update(sparsities=[0, 0.5, 0.6]))
    assert "download_model model=gpt2" in project.pending()
    target = "results/gpt2/uniform-linear-0.6/sparsity.csv"
    done = project.snakemake("--configfile", "config.yaml", "--cores", "2", "--show-failed-logs", target)
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights.read_bytes() == before
