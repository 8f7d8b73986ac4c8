"""lm-evaluation-harness (EleutherAI): its installation, and the facts about its tasks.

It needs two dozen packages that no other stage needs. They have their own lock and folder, which only the stages that
use the harness import from; torch and transformers come from the main environment.
"""

import importlib.metadata
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from llm_sparsity.jobs.errors import UserError, guess
from llm_sparsity.storage.files import MANIFEST, read_manifest, replacing, sha256, write_json

SITE = "site-packages"
SCORED = ("multiple_choice", "loglikelihood")  # output types of which an accuracy is computed
KEPT = {"PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"}


def install(folder: Path, *, lock: Path) -> None:
    """Install the packages of a lock into a folder: all of them, with their hashes checked, or none.

    A folder made from the same lock is kept.

    Args:
        folder: receives `site-packages/` and manifest.json.
        lock: requirements file of pip, with hashes.

    Raises:
        UserError: the registry cannot be reached, or serves another file than the pinned one.
    """
    facts = {"kind": "harness", "lock": sha256(lock)}
    with replacing(folder) as fresh:
        if not (folder / MANIFEST).exists() or read_manifest(folder) != facts:
            _install(fresh / SITE, lock)
            write_json(fresh / MANIFEST, facts)


def _install(target: Path, lock: Path) -> None:
    """Let pip install a lock into a new folder."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--require-hashes", "--no-deps", "--no-build-isolation", "--target", str(target), "-r", str(lock)]
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(command, text=True, capture_output=True, check=False, env=_environment(home))
    if done.returncode:
        raise UserError(f"{lock}: {_failure_reason(done.stderr)}")


def _environment(home: str) -> dict[str, str]:
    """The environment of pip, which runs the setup.py of some packages: paths, proxies, settings of pip, no tokens."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or name.startswith("PIP_") or name.lower().endswith("_proxy")
    }
    before = Path.home()
    settings = {"XDG_CONFIG_HOME": str(before / ".config"), "NETRC": str(before / ".netrc")}  # pip's, of this user
    settings |= {name: os.environ[name] for name in settings if name in os.environ}
    return {**kept, **settings, "HOME": home}


def _failure_reason(output: str) -> str:
    """Cause and fix of a failed installation, from pip's messages."""
    if "connection broken" in output or "No matching distribution" in output:
        return (
            "the package registry cannot be reached, or has not all of it; run once where the network is (a login node)"
        )
    if "DO NOT MATCH THE HASHES" in output:
        return "the registry serves another file than the one that was pinned: do not use it"
    errors = [line for line in output.splitlines() if line.startswith("ERROR")] or output.splitlines() or ["pip failed"]
    return f"{errors[-1].removeprefix('ERROR: ')}; mend it and run the same command again"


def load(folder: Path) -> str:
    """Make the harness importable in this process.

    Returns:
        Its version.

    Raises:
        UserError: it is not installed, or not for this version of Python.
    """
    if not (folder / MANIFEST).exists():
        raise UserError(f"{folder}: has no lm-evaluation-harness; make it: ./run --cores 1 {folder / MANIFEST}")
    if (site := str(folder / SITE)) not in sys.path:
        sys.path.append(site)  # last, so that the main environment's packages come first
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        import lm_eval  # noqa: F401
        from lm_eval.api import metrics  # noqa: F401
    except ImportError as error:
        raise UserError(f"{folder}: {error}; delete the folder, and make it again with this Python") from None
    return importlib.metadata.version("lm_eval")


def task_facts(folder: Path, task: str) -> dict[str, Any]:
    """The harness's definition of a task.

    Args:
        folder: of the harness.
        task: name of a task in the harness.

    Returns:
        version (of the harness), task, task_version, split (the one that is scored), and file (the task's
        configuration, relative to `site-packages/`).

    Raises:
        UserError: there is no such task, it is a group of tasks, it loads its data by code of its own, or it is scored
            by the text that a model writes.
    """
    version = load(folder)
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if task not in manager.all_subtasks:
        if task in manager.all_tasks:
            raise UserError(f"harness: {task} is a group of lm-evaluation-harness {version}; name one of its tasks")
        raise UserError(
            f"harness: found {task!r}, which lm-evaluation-harness {version} does not know"
            f"{guess(task, manager.all_subtasks)}"
        )
    entry = manager.task_index[task]
    settings = entry.cfg or {}
    if entry.yaml_path is None or "class" in settings:
        raise UserError(
            f"harness: {task} reads its data by code of its own, which cannot be pinned; choose another task"
        )
    if (output_type := settings.get("output_type", "generate_until")) not in SCORED:  # the harness's default
        raise UserError(
            f"harness: {task} has output_type {output_type}, but only tasks that compare given answers are scored "
            f"({', '.join(SCORED)}); choose one of these"
        )
    return {
        "version": version,
        "task": task,
        "task_version": (settings.get("metadata") or {}).get("version"),
        "split": settings.get("test_split") or settings.get("validation_split"),
        "file": str(entry.yaml_path.relative_to((folder / SITE).resolve())),
    }
