"""The documentation is true: graphs, files, columns, messages and commands."""

import os
import re
import runpy
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llm_sparsity.cli.main import COMMANDS

from .conftest import Project

ROOT = Path(__file__).parents[2]


def rulegraph(root: Path) -> str:
    """The rule graph as Snakemake draws it, without its colours."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--configfile", "studies/embedded.yaml", "--rulegraph", "mermaid-js"],
        cwd=root, text=True, capture_output=True, check=True,
    )  # fmt: skip
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", done.stdout))
    edges = sorted(f"    {names[a]} --> {names[b]}" for a, b in re.findall(r"(id\d+) --> (id\d+)", done.stdout))
    return "\n".join(["```mermaid", "flowchart LR", *edges, "```"])


@pytest.mark.slow
def test_the_rule_graph_is_drawn_from_the_code(root: Path) -> None:
    drawn = re.search(
        r"<!-- rulegraph -->\n(.*?)\n<!-- /rulegraph -->", (root / "ARCHITECTURE.md").read_text(), re.DOTALL
    )
    assert drawn is not None
    assert drawn.group(1) == rulegraph(root), "paste this between the markers:\n" + rulegraph(root)


def imports(root: Path) -> dict[str, set[str]]:
    """Package -> the packages of this library that it imports; likewise of the Snakefile and of the scripts."""
    files = {"Snakefile": [*(root / "workflow/rules").glob("*.smk")], "scripts": [*(root / "scripts").glob("*.py")]}
    for init in (root / "workflow/llm_sparsity").glob("*/__init__.py"):
        files[init.parent.name] = [*init.parent.rglob("*.py")]
    found = {
        package: {
            name for path in paths for name in re.findall(r"^\s*from llm_sparsity\.(\w+)", path.read_text(), re.M)
        }
        for package, paths in files.items()
    }
    return {package: names & files.keys() - {package} for package, names in found.items()}


def test_imports_follow_the_arrows_which_point_one_way(root: Path) -> None:
    drawn = re.search(r"```mermaid\nflowchart TD\n(.*?)```", (root / "ARCHITECTURE.md").read_text(), re.DOTALL)
    assert drawn is not None
    arrows = {package: set(targets.split(" & ")) for package, targets in re.findall(r"(\w+) --> (.+)", drawn.group(1))}
    below: dict[str, set[str]] = {}
    for package in TopologicalSorter(arrows).static_order():  # which raises an error for a cycle
        direct = arrows.get(package, set())
        below[package] = direct.union(*(below[each] for each in direct))
    found = imports(root)
    assert below.keys() == found.keys()
    for package, used in found.items():
        assert used <= below[package], f"{package} imports what no arrow leads to"
        assert arrows.get(package, set()) - {"Snakefile"} <= used, f"{package} imports less than is drawn"


PAGES = [
    "README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "docs/polaris.md", "docs/extending.md", "docs/outputs.md",
    "docs/troubleshooting.md", "docs/reruns.md", "docs/container.md", "docs/configuration.md",
    "docs/library.md", "docs/tutorial.md", "docs/howto.md", "docs/explanation.md",
    "docs/export.md", "docs/generating.md", "docs/slurm.md", "docs/models.md",
]  # fmt: skip
# Pages without commands, and those whose commands have tests of their own.
QUIET = {"docs/explanation.md", "docs/configuration.md", "docs/generating.md", "docs/models.md"}
OWN = {"docs/polaris.md", "docs/slurm.md", "docs/extending.md"}


def test_every_page_is_known_here(root: Path) -> None:
    assert {f"docs/{path.name}" for path in (root / "docs").glob("*.md")} == {p for p in PAGES if "/" in p}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page: str, root: Path) -> None:
    text = (root / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = {
        *(str((root / page).parent.joinpath(link).resolve().relative_to(root)) for link in links),
        *re.findall(r"`((?:workflow|scripts|studies|tests|profiles|docs)/[\w./]+\.\w+)`", text),
    }
    for name in named:
        assert (root / name).exists(), name


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "scripts").glob("*.py")))
def test_every_script_explains_itself(script: str, root: Path) -> None:
    done = subprocess.run(
        [sys.executable, root / f"scripts/{script}.py", "--help"],
        env={"PYTHONPATH": str(root / "workflow"), "COLUMNS": "200"}, text=True, capture_output=True, check=True,
    )  # fmt: skip
    options = re.findall(r"^  (-.*(?:\n {10,}.*)*)", done.stdout, re.MULTILINE)
    assert len(options) >= 2
    for option in options:
        assert re.search(r"\S\s{2,}\S", option), f"{option}: says not what it is for"


def test_every_stage_has_one_name_everywhere(root: Path) -> None:
    rules = {path.stem for path in (root / "workflow/rules").glob("*.smk")} - {"common"}
    scripts = {path.stem for path in (root / "scripts").glob("*.py")}
    assert rules == scripts
    for stage in rules:
        (module,) = (root / "workflow/llm_sparsity").glob(f"*/{stage}.py")
        assert (root / f"tests/unit/{module.parent.name}/test_{stage}.py").exists()


def test_tests_mirror_the_packages(root: Path) -> None:
    packages = {path.parent.name for path in (root / "workflow/llm_sparsity").glob("*/__init__.py")}
    tested = {path.parent.name for path in (root / "tests/unit").glob("*/test_*.py")}
    assert tested == packages | {"logger"}


def test_every_package_says_in_three_lines_what_it_knows(root: Path) -> None:
    for init in (root / "workflow/llm_sparsity").glob("*/__init__.py"):
        assert 2 <= len(init.read_text().strip().splitlines()) <= 5, init


def test_run_explains_itself_and_names_a_missing_python(root: Path, tmp_path: Path) -> None:
    done = subprocess.run(["sh", root / "run"], text=True, capture_output=True, check=True)
    assert "./run embedded" in done.stdout
    wrong = subprocess.run(["sh", root / "run", "emebdded"], text=True, capture_output=True, check=False)
    assert wrong.returncode == 2
    assert "error: emebdded: no such command, and no rule of that name" in wrong.stderr
    assert "./run embedded" in wrong.stderr
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


@pytest.mark.parametrize(
    "profile",
    ["polaris", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("slurm", "slurm-nodes", "node"))],
)
def test_a_profile_plans_on_any_machine_without_what_it_runs_with(profile: str, root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "snakemake", "--profile", f"profiles/{profile}", "-n", "--quiet"],
        cwd=root, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root / "workflow")}, text=True, capture_output=True,
        check=True,
    )  # fmt: skip
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "snakemake" in imported
    assert not imported & {"parsl", "torch", "transformers"}


@pytest.mark.parametrize("page", ["docs/polaris.md", "docs/slurm.md"])
def test_ten_lines_lead_from_login_to_the_first_figure(page: str, root: Path) -> None:
    """Each is explained, and names files that exist."""
    text = (root / page).read_text()
    script = re.search(r"```sh\n(ssh .*?)```", text, re.DOTALL)
    assert script is not None
    lines = script.group(1).strip().splitlines()
    assert [int(line.rsplit("#", 1)[1]) for line in lines] == list(range(1, 11)), "ten lines, numbered"
    assert [int(row) for row in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)] == list(range(1, 11)), "each explained"
    for name in re.findall(r"(?:profiles|scripts)/[\w./-]+", script.group(1)):
        assert (root / name).exists(), name


def test_commands_for_polaris_are_true(root: Path, tmp_path: Path) -> None:
    """What can be true of them here: options and files exist; the last figure is where the page says."""
    page = (root / "docs/polaris.md").read_text()
    plan = subprocess.run(
        [sys.executable, "-m", "llm_sparsity", "plan", "config.yaml", "--queues", "profiles/polaris/queues.csv"],
        cwd=root, env={"PYTHONPATH": str(root / "workflow")}, text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert "\nparsl-queue: " in plan.stdout or "Nothing is left" in plan.stdout
    pools = (root / "profiles/polaris/pools.py").read_text()
    profile = (root / "profiles/polaris/config.yaml").read_text()
    for setting in ("account", "queue", "pilots", "nodes", "minutes"):
        assert re.search(rf"^(# )?parsl-{setting}: ", profile, re.MULTILINE)
        assert f"parsl-{setting}" in page
    for value in ("HF_HUB_OFFLINE=1", "TMPDIR=/tmp", "umask 022"):
        assert value in pools
        assert value in page
    threshold = re.search(r"heartbeat_threshold=(\d+)", pools)
    assert threshold is not None
    assert f"within {threshold.group(1)} seconds" in page
    subprocess.run(["bash", "-n", root / "profiles/node/job.sh"], check=True)


def documented(page: str) -> dict[str, set[str]]:
    """Of docs/outputs.md: the columns that the table below a file's heading names."""
    found = {}
    for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        name, rest = section.split("\n", 1)
        rows = re.findall(r"^\| (`[^|]*) \|", rest.split("\n#")[0], re.MULTILINE)
        found[name] = {column for row in rows for column in re.findall(r"`(\w+)`", row)}
    return found


def test_every_column_is_explained(finished: Project, root: Path) -> None:
    told = documented((root / "docs/outputs.md").read_text())
    tables = finished.folder / "reports/tiny/tables"
    run = finished.folder / "results/roberta-base/magnitude-linear-0.5/mrpc/kept/seed-0"
    files = [*tables.glob("*.csv"), run / "checkpoints.csv", run.parents[2] / "sparsity.csv"]
    assert {path.name for path in files} == set(told)
    for path in files:
        assert set(pd.read_csv(path, nrows=1).columns) == told[path.name], path.name


def test_every_file_is_explained(finished: Project, root: Path) -> None:
    page = (root / "docs/outputs.md").read_text()
    variant = finished.folder / "results/roberta-base/magnitude-linear-0.5"
    left = [
        *variant.iterdir(),
        *(variant / "mrpc/kept/seed-0").iterdir(),
        *(finished.folder / "reports/tiny").iterdir(),
    ]
    for path in left:
        assert path.name == "mrpc" or f"{path.name}" in page, path.name


def test_the_program_says_the_messages_that_are_explained(root: Path) -> None:
    page = (root / "docs/troubleshooting.md").read_text()
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(messages) > 20
    ours = [root / "run", *(root / "scripts").glob("*.py"), *(root / "workflow").rglob("*.py")]
    ours += [*(root / "workflow").rglob("*.smk"), *(root / "snakemake-executor-plugin-parsl/src").rglob("*.py")]
    said = " ".join(path.read_text() for path in ours)
    said = re.sub(r'"\s+f?"', "", said)  # a message over several lines
    snakemakes = {"Directory cannot be locked", "Nothing to be done"}
    for message in set(messages) - snakemakes:
        assert message in said, message


def test_answers_on_reruns_are_cases_of_the_contract(root: Path) -> None:
    from .test_invalidation import CASES

    page = (root / "docs/reruns.md").read_text()
    named = re.findall(r"\[([\w ]+)\](?!\()", page)
    assert len(named) > 8
    assert set(named) <= set(CASES)


def commands(page: str) -> list[str]:
    """The commands of a page: lines of its sh blocks, and code that begins like one."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL).replace("\n", " ")
    inline = re.findall(r"`(\./run [^`]+|(?:snakemake|llm-sparsity|python|\.venv/bin/python) [^`]+)`", prose)
    return list(dict.fromkeys([*"".join(blocks).splitlines(), *inline]))


CELL = "results/gpt2/uniform-linear-0.5"


def translated(command: str) -> tuple[str, ...]:
    """A command as it is run here: its folder, then its words."""
    ours = {
        "my.yaml": "{tmp}/my.yaml", "my-model.yaml": "{tmp}/my.yaml", "RULE": "collect", "plain": "{tmp}/plain",
        "OUTPUT": "{tmp}/output", "CELL": CELL, "results/minilm/magnitude-linear-0.9": CELL, "FOLDER": f"{CELL}/model",
    }  # fmt: skip
    program, *words = (ours.get(word, word) for word in command.split())
    if words[0] in COMMANDS:
        assert program in ("./run", "llm-sparsity"), command
        where = "{finished}" if words[0] in ("export", "generate", "clean") else "{tmp}"
        words = ["llm_sparsity", *words]
    else:
        assert program in ("./run", "snakemake"), command
        if words[0] == "embedded":
            words = ["--configfile", "studies/embedded.yaml", "--cores", "1"]
        where = "{root}" if "--profile" in words else "{finished}"
        words = ["snakemake", *words]
    if words[0] == "snakemake" or words[1] == "run":
        words = [*(word for word in words if word != "-n"), "-n", "--nolock", "--quiet"]
    return where, "-m", *words


def every_command() -> list[str]:
    """The commands of the pages, but those of this run and of pages with tests of their own."""
    told = {page: commands((ROOT / page).read_text()) for page in PAGES if page not in QUIET | OWN}
    assert all(told.values())
    return [command for found in told.values() for command in found if command.split()[1] != "test"]


def of_the_project() -> list[Any]:
    """Each command once, though it is written in several ways. Only a plan is not slow."""
    found: dict[tuple[str, ...], Any] = {}
    for command in every_command():
        if not re.match(r"\S*python ", command):
            marks = () if command.startswith("./run -n") else pytest.mark.slow
            if re.search(r" (init|doctor|generate|export|--unlock)\b", command):  # other tests do, elsewhere
                marks = pytest.mark.exhaustive
            found.setdefault(translated(command), pytest.param(command, marks=marks, id=command))
    return list(found.values())


@pytest.mark.parametrize("command", of_the_project())
def test_every_command_is_run(command: str, finished: Project, root: Path, tmp_path: Path) -> None:
    """Studies are planned, commands of a result run on a finished study."""
    (tmp_path / "my.yaml").write_text((root / "studies/embedded.yaml").read_text())
    (tmp_path / "my-model").symlink_to(finished.folder / "resources/models/gpt2")
    folders = {"tmp": tmp_path, "finished": finished.folder, "root": root}
    where, *words = (word.format(**folders) for word in translated(command))
    environment = {**os.environ, "PYTHONPATH": f"{root / 'workflow'}:{root}", "HF_HOME": str(finished.hub)}
    done = subprocess.run(
        [sys.executable, *words], cwd=where, env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-1500:]}{done.stderr[-1500:]}"


@pytest.mark.slow
def test_benchmarks_and_tools_have_the_options_that_pages_give_them(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are asked what they do, in this process, as a new one would import torch for each."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    asked = [command.split()[1:] for command in every_command() if re.match(r"\S*python ", command)]
    assert len(asked) >= 8
    for script, *words in asked:
        monkeypatch.setattr(sys, "argv", [script, "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(root / script), run_name="__main__")
        assert ended.value.code == 0, script
        assert {word for word in words if word.startswith("-")} <= set(re.findall(r"-[\w-]+", capsys.readouterr().out))


def test_figures_of_the_readme_are_measured(root: Path) -> None:
    section = re.search(r"## Measured\n(.*?)\n## ", (root / "README.md").read_text(), re.DOTALL)
    assert section is not None
    measured = (root / "BENCHMARKS.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| ([^|]*\d[^|]*) \|", section.group(1), re.MULTILINE)
    assert len(rows) > 4
    for row in rows:
        for figure in re.findall(r"\d+\.\d+", row):
            assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", measured), figure
