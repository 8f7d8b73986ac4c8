"""The wheel beside Snakemake alone: a workflow that knows nothing of this repository."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="ends processes by a call of Linux"),
]

HERE = Path(__file__).parent
README = (HERE.parent / "README.md").read_text()
SNAKEFILE = """
from pathlib import Path

module readme:
    snakefile: "readme.smk"

use rule work from readme

rule all:
    input: "total.txt", "checked.txt", "out/0.txt"
    default_target: True
    localrule: True

checkpoint split:  # how many parts there are is known once it has run
    output: directory("parts")
    resources: runtime=1
    shell: "mkdir parts && for n in 1 2 3; do echo $n > parts/$n.txt; done"

rule square:
    input: "parts/{n}.txt"
    output: "squares/{n}.txt"
    group: "each"
    run:
        Path(output[0]).write_text(str(int(Path(input[0]).read_text()) ** 2))

rule halve:
    input: "squares/{n}.txt"
    output: "halves/{n}.txt"
    group: "each"
    shell: "echo $(( $(cat {input}) / 2 )) > {output}"

def halves(wildcards):
    folder = checkpoints.split.get().output[0]
    return expand("halves/{n}.txt", n=glob_wildcards(f"{folder}/{{n}}.txt").n)

rule total:
    input: halves
    output: "total.txt"
    script: "total.py"

rule fails_once:
    output: "checked.txt"
    retries: 1
    resources: runtime=lambda wildcards, attempt: attempt
    shell: "test {resources.runtime} = 2 && touch {output}"
"""
SCRIPT = """
import sys
from pathlib import Path
assert "llm_sparsity" not in sys.modules
Path(snakemake.output[0]).write_text(str(sum(int(Path(file).read_text()) for file in snakemake.input)))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel puts into site-packages, without its dependencies: they are in this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    copy = folder / "source"  # a build leaves files
    subprocess.run(["cp", "-r", HERE.parent, copy], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, copy], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def run(installed: Path, folder: Path, command: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(installed),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_workflow_of_shell_run_script_checkpoint_group_and_retries(installed: Path, tmp_path: Path) -> None:
    """And of the README's rule, with its pools, by its command."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "readme.smk").write_text(block("Snakefile"))
    (tmp_path / "total.py").write_text(SCRIPT)
    (tmp_path / "pools.py").write_text(block("pools.py"))
    command = re.search(r"```sh\n(snakemake --executor parsl.*?)```", README, re.DOTALL)
    assert command is not None
    said = run(installed, tmp_path, command.group(1))
    assert (tmp_path / "total.txt").read_text() == str(1 // 2 + 4 // 2 + 9 // 2)
    assert (tmp_path / "checked.txt").exists()
    assert re.search(r"parsl: .* of \d+ done", said)
    where = run(installed, tmp_path, "python -c 'import snakemake_executor_plugin_parsl as p; print(p.__file__)'")
    assert where.startswith(str(installed)), "the wheel, not the checkout"
    assert not [name for name in installed.rglob("*.py") if "llm_sparsity" in name.read_text()]


def block(name: str) -> str:
    """A file of the README's example."""
    found = re.search(rf"`{name}`:\n\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found is not None, name
    return found.group(1)


def test_help_documents_every_setting(installed: Path, tmp_path: Path) -> None:
    said = run(installed, tmp_path, "snakemake --help")
    for setting in ("config", "account", "queue", "pilots", "nodes", "minutes", "again", "status"):
        assert f"--parsl-{setting} VALUE" in said
        assert f"`--parsl-{setting}`" in README
