"""The rule measure itself, in a toy workflow: nothing runs beside it, and a dry run needs no number of cores."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.marks import slow

ROOT = Path(__file__).parents[3]
RULES = ROOT / "workflow/rules"
SNAKEFILE = """
rule all:
    input: expand("results/{{m}}/dense/cost.json", m=list("abc")), expand("other/{{n}}", n=range(6)),
rule other:
    output: "other/{{n}}"
    shell: "python measure.py {{output}}"
class STUDY:
    class measure:
        model_dump = dict
model_manifest = model_weights = "Snakefile"
class footprint:
    mem_mb = disk_mb = None
runtime = lambda stage: 1
megabytes = lambda estimate, stage: 1
code = lambda stage: ""
settings = lambda: ""
{all_cores}
include: "{rules}/measure.smk"
"""
STAND_IN = """
import sys, time
from pathlib import Path
arguments = sys.argv[1:]
output = Path(arguments[0])
if "--output" in arguments:
    output = Path(arguments[arguments.index("--output") + 1]) / "cost.json"
    assert arguments[arguments.index("--threads") + 1] == "1"
start = time.monotonic()
time.sleep(0.3)
output.write_text(f"{start} {time.monotonic()}")
"""


def snakemake(folder: Path, *arguments: str) -> str:
    (folder / "scripts").mkdir(exist_ok=True)
    for model in "abc":
        (folder / "resources/models" / model).mkdir(parents=True, exist_ok=True)
        for name in ("manifest.json", "model.safetensors"):
            (folder / "resources/models" / model / name).touch()
    [all_cores] = re.findall(r"^def all_cores.*?(?=\n\n)", (RULES / "common.smk").read_text(), re.MULTILINE | re.DOTALL)
    (folder / "Snakefile").write_text(SNAKEFILE.format(rules=RULES, all_cores=all_cores))
    for path in ("measure.py", "scripts/measure.py"):
        (folder / path).write_text(STAND_IN)
    command = [sys.executable, "-m", "snakemake", *arguments]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PATH": path, "HOME": str(folder), "LLM_SPARSITY": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--cores", "3"), ("--cores", "all", "--scheduler", "greedy")])
def test_nothing_runs_beside_it(options: tuple[str, ...], tmp_path: Path) -> None:
    snakemake(tmp_path, *options)
    spans = {path: [float(number) for number in path.read_text().split()] for path in outputs(tmp_path)}
    assert len(spans) == 9
    for (one, (start, end)), (other, (begin, stop)) in itertools.combinations(spans.items(), 2):
        assert end <= begin or stop <= start or "cost.json" not in (one.name, other.name), (one, other)


@pytest.mark.parametrize("option", ["-n", slow("--summary"), slow("--rulegraph")])
def test_to_look_needs_no_number_of_cores(option: str, tmp_path: Path) -> None:
    snakemake(tmp_path, option)


def outputs(folder: Path) -> list[Path]:
    return [*folder.glob("results/*/*/cost.json"), *folder.glob("other/*")]
