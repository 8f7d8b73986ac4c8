"""lm-evaluation-harness (EleutherAI): where it lies, and what it knows about a task.

It comes with two dozen packages that nothing else here needs, so they have a lock and a folder of their own, which only
the stages that use it see. They lie on top of the main environment: torch and transformers are those of every stage.
"""

import difflib
import importlib.metadata
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import MANIFEST, read_manifest, sha256, write_json

SITE = "site-packages"


def install(folder: Path, *, lock: Path) -> None:
    """Put the packages of a lock with hashes into a folder: all of them, checked, or none.

    A folder that was made from the same lock is left as it is.

    Args:
        folder: gets `site-packages/` and manifest.json.
        lock: a requirements file of pip.

    Raises:
        UserError: the registry cannot be reached, or serves another file than the one that was pinned.
    """
    facts = {"kind": "harness", "lock": sha256(lock)}
    if (folder / MANIFEST).exists() and read_manifest(folder) == facts:
        return
    fresh = folder / ".fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--require-hashes", "--no-deps", "--no-build-isolation", "--target", str(fresh), "-r", str(lock)]
    try:
        done = subprocess.run(command, text=True, capture_output=True, check=False)
        if done.returncode:
            raise UserError(f"{lock}: {_reason(done.stderr)}")
        shutil.rmtree(folder / SITE, ignore_errors=True)
        fresh.rename(folder / SITE)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    write_json(folder / MANIFEST, facts)


def _reason(said: str) -> str:
    """Why pip failed, and what to do."""
    if "connection broken" in said or "No matching distribution" in said:
        return (
            "the package registry cannot be reached, or has not all of it; run once where the network is (a login node)"
        )
    if "DO NOT MATCH THE HASHES" in said:
        return "the registry serves another file than the one that was pinned: do not use it"
    errors = [line for line in said.splitlines() if line.startswith("ERROR")] or said.splitlines() or ["pip failed"]
    return f"{errors[-1].removeprefix('ERROR: ')}; mend it and run the same command again"


def load(folder: Path) -> str:
    """Make the harness importable from here on; its version.

    Raises:
        UserError: it is not there, or does not go with this Python.
    """
    if not (folder / MANIFEST).exists():
        raise UserError(f"{folder}: has no lm-evaluation-harness; make it: ./run --cores 1 {folder / MANIFEST}")
    if (site := str(folder / SITE)) not in sys.path:
        sys.path.append(site)  # last: what both have is the main environment's
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        import lm_eval  # noqa: F401
        from lm_eval.api import metrics  # noqa: F401
    except ImportError as error:
        raise UserError(f"{folder}: {error}; delete the folder, and make it again with this Python") from None
    return importlib.metadata.version("lm_eval")


def described(folder: Path, task: str) -> dict[str, Any]:
    """What the harness knows of a task: its version, the split that it is scored on, and the file that says so.

    Raises:
        UserError: there is no such task, or it is a group of tasks.
    """
    version = load(folder)
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if task not in manager.all_subtasks:
        close = difflib.get_close_matches(task, manager.all_subtasks, 1)
        if task in manager.all_tasks:
            raise UserError(f"harness: {task} is a group of lm-evaluation-harness {version}; name one of its tasks")
        raise UserError(
            f"harness: found {task!r}, which lm-evaluation-harness {version} does not know"
            + (f"; did you mean {close[0]!r}?" if close else "; correct it")
        )
    entry = manager.task_index[task]
    said = entry.cfg or {}
    if entry.yaml_path is None or "class" in said:
        raise UserError(
            f"harness: {task} reads its data by code of its own, which cannot be pinned; choose another task"
        )
    return {
        "version": version,
        "task": task,
        "task_version": (said.get("metadata") or {}).get("version"),
        "split": said.get("test_split") or said.get("validation_split"),
        "file": str(entry.yaml_path.relative_to((folder / SITE).resolve())),
    }
