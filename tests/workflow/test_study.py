"""The real Snakemake runs a tiny study from a hub cache, offline; all three architectures in exhaustive tests."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from .conftest import Project

ROOT = Path(__file__).parents[2]


def test_the_study_runs_from_download_to_report(finished: Project) -> None:
    report = finished.folder / "reports/tiny"
    metrics = pd.read_csv(report / "tables/metrics.csv")
    accuracy = metrics[metrics.metric == "accuracy"]
    assert list(accuracy.recipe) == ["kept", "kept", "brief", "one-shot"]  # dense, then pruned
    perplexity = metrics[metrics.metric == "perplexity"]
    assert list(perplexity.task) == ["lines", "lines"]
    assert (report / "report.html").stat().st_size > 10_000
    assert "report.html" in finished.log  # the run's last lines say where to look


@pytest.mark.exhaustive
def test_more_cells_run_alone_and_are_reported_beside_the_others(whole: Project) -> None:
    report = whole.folder / "reports/tiny"
    metrics = pd.read_csv(report / "tables/metrics.csv")
    accuracy = metrics[metrics.metric == "accuracy"]
    assert len(accuracy) == 4 + 1 + 3 + 2  # SST-2 of two models, MRPC dense, pruned: recipes, pruned after fine-tuning
    assert set(metrics.model) == {"roberta-base", "gpt2", "bart-base"}
    perplexity = metrics[metrics.metric == "perplexity"]
    assert (perplexity.task == "lines").sum() == 2 + 2  # dense, wanda, and two methods
    assert list(perplexity.recipe[perplexity.task == "text"].fillna("")) == ["", "", "kept", "kept", "lora"]
    sizes = pd.read_csv(report / "tables/sizes.csv")
    assert sizes.set_index(["model", "method"]).measured_sparsity["bart-base", "magnitude"] > 0.8


def test_a_second_run_does_nothing(finished: Project) -> None:
    assert "Nothing to be done" in finished.run()


def test_the_page_needs_no_network(finished: Project) -> None:
    page = (finished.folder / "reports/tiny/report.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?:https?:)?//[^"']+\.(?:js|css|png|svg|woff2?)""", page)
    assert "<script src" not in page
    assert "@import" not in page


@pytest.mark.exhaustive
def test_the_kept_mask_is_in_the_measured_sparsity(whole: Project) -> None:
    folder = whole.folder / "results/roberta-base/magnitude-linear-0.5/mrpc"
    kept = json.loads((folder / "kept/seed-0/metrics.json").read_text())["measured_sparsity"]
    released = json.loads((folder / "released/seed-0/metrics.json").read_text())["measured_sparsity"]
    assert released < 0.1 < kept


def test_a_recipe_starts_from_the_dense_run_and_ends_at_the_variants_sparsity(finished: Project) -> None:
    folder = finished.folder / "results/roberta-base/magnitude-linear-0.5"
    history = pd.read_csv(folder / "mrpc/brief/seed-0/history.csv")
    asked = json.loads((folder / "model/manifest.json").read_text())["pruned"]["measured_sparsity"]
    assert 0 < history.measured_sparsity.iloc[0] < asked
    assert history.measured_sparsity.iloc[-1] == asked
    runs = pd.read_csv(finished.folder / "reports/tiny/tables/runs.csv")
    assert set(runs[runs.recipe == "brief"]["mask"]) == {"kept"}


@pytest.mark.exhaustive
def test_low_rank_updates_of_a_language_model_keep_its_mask(whole: Project) -> None:
    wanda = whole.folder / "results/gpt2/wanda-linear-0.5"
    pruned = json.loads((wanda / "model/manifest.json").read_text())["pruned"]["measured_sparsity"]
    for recipe in ("kept", "lora"):
        result = json.loads((wanda / f"text/{recipe}/seed-0/metrics.json").read_text())
        assert result["measured_sparsity"] == pruned
        assert result["metrics"].keys() == {"perplexity"}


@pytest.mark.exhaustive
def test_snakemakes_own_report_works(finished: Project, tmp_path: Path) -> None:
    done = finished.snakemake("--configfile", "config.yaml", "--report", str(tmp_path / "report.zip"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "report.zip").stat().st_size > 100_000


SHIPPED = ["config.yaml", *(f"studies/{path.name}" for path in sorted((ROOT / "studies").glob("*.yaml")))]
SLOW = ("studies/embedded.yaml", "studies/glue.yaml")


@pytest.mark.parametrize(
    "study",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.exhaustive) for name in SHIPPED],
)
def test_dry_run_of_every_shipped_study_without_torch(study: str, root: Path, hub: Path, tmp_path: Path) -> None:
    """A laptop without torch and network is stood in for by packages that refuse to be imported."""
    for package in ("torch", "transformers", "datasets", "huggingface_hub", "matplotlib"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('heavy import in a dry run')\n")
    project = Project(root, tmp_path / "empty cache")
    done = project.snakemake("-n", "--configfile", study, "--nolock", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert re.search("jobs? would run:|Nothing to be done", done.stdout + done.stderr)  # which a finished study says


def test_lint_is_clean(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--lint"], cwd=root, text=True, capture_output=True, check=False
    )
    said = re.findall(r"^    \* (.*)$", done.stdout + done.stderr, re.MULTILINE)
    assert {line.split(" (")[0] for line in said} == {"Specify a conda environment or container for each rule.:"}, said
