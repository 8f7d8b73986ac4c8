"""What the README says is what the program does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.workflow


def rulegraph(root: Path) -> str:
    """The rule graph as Snakemake draws it, without its colours."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--configfile", "studies/embedded.yaml", "--rulegraph", "mermaid-js"],
        cwd=root, text=True, capture_output=True, check=True,
    )  # fmt: skip
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", done.stdout))
    edges = sorted(f"    {names[a]} --> {names[b]}" for a, b in re.findall(r"(id\d+) --> (id\d+)", done.stdout))
    return "\n".join(["```mermaid", "flowchart LR", *edges, "```"])


def test_the_rule_graph_is_drawn_from_the_code(root: Path) -> None:
    drawn = re.search(r"<!-- rulegraph -->\n(.*?)\n<!-- /rulegraph -->", (root / "README.md").read_text(), re.DOTALL)
    assert drawn is not None
    assert drawn.group(1) == rulegraph(root), "paste this between the markers:\n" + rulegraph(root)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "docs/polaris.md"])
def test_every_file_that_is_named_exists(page: str, root: Path) -> None:
    text = (root / page).read_text()
    named = {
        *re.findall(r"\]\(([^)#]+)\)", text),
        *re.findall(r"`((?:workflow|scripts|studies|tests|profiles|docs)/[\w./]+\.\w+)`", text),
    }
    assert named
    for name in named:
        assert (root / name).exists(), name


@pytest.mark.parametrize(
    "script", ["checkpoint", "collect", "download", "evaluate", "finetune", "plot", "prune", "weights"]
)
def test_every_script_explains_itself(script: str, root: Path) -> None:
    done = subprocess.run(
        [sys.executable, root / f"scripts/{script}.py", "--help"],
        env={"PYTHONPATH": str(root / "workflow")}, text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert "--output" in done.stdout
    assert len(done.stdout.splitlines()) > 8


def test_every_stage_has_one_name_everywhere(root: Path) -> None:
    rules = {path.stem for path in (root / "workflow/rules").glob("*.smk")} - {"common"}
    scripts = {path.stem for path in (root / "scripts").glob("*.py")} - {"checkpoint", "plan"}
    assert rules == scripts
    for stage in rules:
        assert (root / f"workflow/llm_sparsity/{stage}.py").exists()
        assert (root / f"tests/unit/test_{stage}.py").exists()


def test_run_explains_itself_and_names_a_missing_python(root: Path, tmp_path: Path) -> None:
    done = subprocess.run(["sh", root / "run"], text=True, capture_output=True, check=True)
    assert "./run embedded" in done.stdout
    (tmp_path / "run").write_text((root / "run").read_text())
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs/requirements.txt").touch()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "bin").mkdir()
    for tool in ("dirname", "basename", "cat", "cmp", "sed"):
        (tmp_path / "bin" / tool).symlink_to(f"/usr/bin/{tool}")
    done = subprocess.run(
        ["/bin/sh", tmp_path / "run", "embedded"],
        env={"PATH": str(tmp_path / "bin")}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "error: no Python 3.11 or newer on PATH" in done.stderr


@pytest.mark.parametrize("profile", ["polaris", "node"])
def test_a_profile_plans_on_any_machine_without_what_it_runs_with(profile: str, root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "snakemake", "--profile", f"profiles/{profile}", "-n", "--quiet"],
        cwd=root, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root / "workflow")}, text=True, capture_output=True,
        check=True,
    )  # fmt: skip
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "snakemake" in imported
    assert not imported & {"parsl", "torch", "transformers"}


def test_commands_for_polaris_are_true(root: Path, tmp_path: Path) -> None:
    """What can be true of them here: options and files exist; the last figure is where the page says."""
    page = (root / "docs/polaris.md").read_text()
    script = re.search(r"```sh\n(ssh .*?)```", page, re.DOTALL)
    assert script is not None
    lines = script.group(1).strip().splitlines()
    assert [int(line.rsplit("#", 1)[1]) for line in lines] == list(range(1, 11)), "ten lines, numbered"
    assert [int(row) for row in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == list(range(1, 11)), "each explained"
    plan = subprocess.run(
        [sys.executable, root / "scripts/plan.py"],
        cwd=root, env={"PYTHONPATH": str(root / "workflow")}, text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert 'QUEUE = "' in plan.stdout or "Nothing is left" in plan.stdout
    pools = (root / "profiles/polaris/pools.py").read_text()
    for setting in ("ACCOUNT", "QUEUE", "JOBS", "NODES", "WALLTIME"):
        assert re.search(rf"^{setting} = ", pools, re.MULTILINE)
        assert setting in page
    for value in ("HF_HUB_OFFLINE=1", "TMPDIR=/tmp", "umask 022"):
        assert value in pools
        assert value in page
    threshold = re.search(r"heartbeat_threshold=(\d+)", pools)
    assert threshold is not None
    assert f"within {threshold.group(1)} seconds" in page
    subprocess.run(["bash", "-n", root / "profiles/node/job.sh"], check=True)
