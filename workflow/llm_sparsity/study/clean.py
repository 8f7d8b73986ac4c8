"""Cached runs that no study refers to, and their removal.

A study refers to a cached run that was made for one of its cells with the settings, code and inputs that it would use
today: no job would ever read another one.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llm_sparsity.storage.files import MANIFEST, read_json, sha256
from llm_sparsity.study.cells import Run
from llm_sparsity.study.config import Config


class Leftover(NamedTuple):
    """A folder that no study refers to: its size in bytes, and the reason."""

    path: Path
    bytes: int
    reason: str


def leftovers(work: Path, studies: Iterable[Config], code: Callable[[str], str]) -> Iterator[Leftover]:
    """The cached runs and tokens in `work` that no study refers to; those of a run that is in progress are left out.

    Args:
        work: the folder of caches.
        studies: the studies whose caches are kept.
        code: model -> the hash of the code that fine-tunes it.
    """
    cells = {str(run.folder): (study, run) for study in studies for run in study.cells().runs}
    tokens: set[str] = set()
    for folder in sorted(path.parent for path in work.glob("*/run.json")):
        cached = read_json(folder / "run.json")
        study, run = cells.get(cached["output"], (None, None))
        reason = _reason(cached, study, run, code)
        if reason and not (folder / "lock").exists():
            yield _leftover(folder, reason)
        else:
            tokens.add(cached.get("tokens", ""))
    for folder in sorted(path for path in (work / "tokens").glob("*") if path.is_dir()):
        if folder.name not in tokens:
            yield _leftover(folder, "no cached run that is kept uses it")


def remove(leftover: Leftover) -> None:
    """Remove one."""
    shutil.rmtree(leftover.path)


def _leftover(folder: Path, reason: str) -> Leftover:
    return Leftover(folder, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), reason)


def _reason(cached: dict[str, Any], study: Config | None, run: Run | None, code: Callable[[str], str]) -> str | None:
    """Why no study refers to a cached run; None if one does."""
    if study is None or run is None:
        return f"no study has {cached['output']}"
    settings = json.loads(json.dumps(study.run_settings(run.task, run.recipe, run.seed)))
    if cached["settings"] != settings:
        names = [key for key in sorted(settings) if settings[key] != cached["settings"].get(key)]
        return f"another {', '.join(names)}" if names else "other settings"
    if cached["code"] != code(run.model):
        return "another code"
    for name, manifest in _inputs(study, run).items():
        if manifest.exists() and sha256(manifest) != cached["inputs"].get(name):
            return f"another {name}"
    return None


def _inputs(study: Config, run: Run) -> dict[str, Path]:
    """The manifests that a run reads, by the names in its cache."""
    dense = Path("resources/models") / run.model
    model = dense if run.variant.is_dense else Path("results") / run.model / str(run.variant) / "model"
    inputs = {"model": model / MANIFEST, "task": Path("resources/tasks") / run.task / MANIFEST}
    if text := study.tasks[run.task].train_on:
        inputs["text"] = Path("resources/tasks") / text / MANIFEST
    return inputs
