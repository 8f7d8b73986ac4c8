"""The installed library, without a checkout: what a wheel holds is enough to plan and start a study."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel puts into site-packages. Built from a copy, which a build leaves files in."""
    copy = tmp_path_factory.mktemp("copy")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=root, text=True, capture_output=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, copy / name)
    target = tmp_path_factory.mktemp("site-packages")
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", target], cwd=copy, check=True)
    return target


@pytest.mark.slow
def test_init_plan_and_run_work_in_any_folder(installed: Path, tmp_path: Path) -> None:
    save_tiny_model("bert", tmp_path / "my-model")
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def command(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm_sparsity", *words],
            cwd=tmp_path, env=environment, text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "Wrote my-model.yaml" in command("init", "my-model")
    assert "Plan of my-model" in command("plan", "my-model.yaml")
    assert "finetune" in command("run", "my-model.yaml", "-n")
    assert "download_model" in command("run", "embedded", "-n")
    where = subprocess.run(
        [sys.executable, "-c", "import llm_sparsity; print(llm_sparsity.__file__)"],
        cwd=tmp_path, env=environment, text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert str(installed) in where.stdout


def test_a_wheel_holds_no_second_copy_of_the_library(installed: Path) -> None:
    held = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert "llm_sparsity/project/Snakefile" in held
    assert not [name for name in held if "project/workflow/llm_sparsity" in name or "tests/" in name]
