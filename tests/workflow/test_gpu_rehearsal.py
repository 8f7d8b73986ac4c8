"""benchmarks/gpu.py, rehearsed on a CPU with tiny shapes: minutes on a GPU are too dear for a slip."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.exhaustive  # minutes; to be run before a machine with a GPU is used
def test_every_part_passes_without_a_gpu(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, root / "benchmarks/gpu.py", "--output", tmp_path, "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(root / "workflow")}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    parts = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert parts.keys() == {"correctness", "decode", "training", "speed", "pruning", "processes", "recovery"}
    figures = {check["name"]: check for part in parts.values() for check in part["checks"]}
    assert figures["gradual: a killed run resumes to the same bytes"]["ok"] is True
    assert figures["recovery"]["figure"].startswith("not run")  # what has not run is said
    again = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert "PASS" not in again.stdout.split("| part |")[0]  # nothing runs twice


@pytest.mark.slow
def test_a_failing_part_leaves_the_others_alone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file where a folder is needed\n")
    command = [sys.executable, root / "benchmarks/gpu.py", "--output", tmp_path, "--device", "cpu", "--parts"]
    environment = {**os.environ, "PYTHONPATH": str(root / "workflow")}
    done = subprocess.run(
        [*command, "pruning", "recovery"], env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert "FAIL  pruning" in done.stdout
    assert "recovery: not run" in done.stdout
