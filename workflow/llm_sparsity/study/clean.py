"""Cached runs that nothing refers to, and their removal.

A cache is kept while a process works in it, while a study would continue from it, and while a result was made from it:
its `checkpoints.csv` names the weights in the cache. A cache is also kept if it may belong to a study that was not
given: its run is not finished, or its results folder exists.
"""

import csv
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from llm_sparsity.jobs.process import is_dead
from llm_sparsity.storage.files import MANIFEST, read_json, sha256, write_json
from llm_sparsity.study.cells import MODELS, RESULTS, TASKS, Run
from llm_sparsity.study.config import Config

DAY = 24 * 3600  # seconds; a lock's owner touches it every few


class Leftover(NamedTuple):
    """A folder that nothing refers to: its size in bytes, and the reason."""

    path: Path
    bytes: int
    reason: str


def leftovers(work: Path, studies: Iterable[Config], code: str, *, others: bool = False) -> list[Leftover]:
    """The cached runs and tokens that nothing refers to.

    Args:
        work: the folder of caches; the folders of results and resources lie beside it.
        studies: the studies whose caches are kept.
        code: the hash of the code that fine-tunes.
        others: list caches of studies that were not given, too.
    """
    studies, home = list(studies), work.absolute().parent
    cells: dict[str, list[tuple[Config, Run]]] = defaultdict(list)
    for study in studies:
        for run in study.cells().runs:
            cells[str(run.folder)].append((study, run))
    sources, made = _sources(home, studies), _made(home)
    found, tokens = [], set[str]()
    for folder in sorted(path.parent for path in work.glob("*/run.json")):
        cached = read_json(folder / "run.json")
        reason = None
        if not _is_locked(folder / "lock") and not any(source.is_relative_to(folder.resolve()) for source in sources):
            reasons = [
                _reason(folder, {**cached, "output": output}, cells.get(output, []), code, others)
                for output in sorted({cached["output"], *made[folder.name]})
            ]
            reason = None if None in reasons else reasons[0]
        if reason:
            found.append(_leftover(folder, reason))
        else:
            tokens.add(cached.get("tokens", ""))
    if not _is_in_use(work):
        for folder in sorted(path for path in (work / "tokens").glob("*") if path.is_dir()):
            if folder.name not in tokens:
                found.append(_leftover(folder, "no cached run that is kept uses it"))
    return found


def remove(work: Path, found: Iterable[Leftover]) -> list[Leftover]:
    """Remove leftovers, and the entries of work/runs that speak of them.

    Returns:
        What was removed: a process may have begun to use a folder since it was listed, which then stays.
    """
    removed = []
    for leftover in found:
        of_tokens = leftover.path.parent.name == "tokens"
        if _is_in_use(work) if of_tokens else _is_locked(leftover.path / "lock"):
            continue
        shutil.rmtree(leftover.path)
        removed.append(leftover)
    for index in (work / "runs").glob("*/caches.json"):
        keys = read_json(index)
        kept = [key for key in keys if (work / key).is_dir()]
        if not kept and not _is_locked(index.with_name("lock")):
            shutil.rmtree(index.parent)
        elif kept != keys:
            write_json(index, kept)
    return removed


def _leftover(folder: Path, reason: str) -> Leftover:
    return Leftover(folder, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), reason)


def _is_in_use(work: Path) -> bool:
    """Whether any run works here. One that starts has not written down yet which tokens it reads."""
    return any(map(_is_locked, work.glob("*/lock")))


def _is_locked(lock: Path) -> bool:
    """Whether a process works here: the lock's owner is not known to be dead, and has touched it within a day."""
    try:
        return not is_dead(lock.read_text()) and time.time() - lock.stat().st_mtime < DAY
    except FileNotFoundError:
        return False


def _sources(home: Path, studies: Iterable[Config]) -> list[Path]:
    """The folders that models are made of, by the studies and by what is downloaded."""
    named = [model.source.folder for study in studies for model in study.models.values()]
    downloaded = [read_json(path)["source"].get("folder") for path in (home / MODELS).glob(f"*/{MANIFEST}")]
    return [(home / Path(folder).expanduser()).resolve() for folder in [*named, *downloaded] if folder]


def _reason(
    folder: Path, cached: dict[str, Any], cells: list[tuple[Config, Run]], code: str, others: bool
) -> str | None:
    """Why nothing refers to a cached run; None if something does."""
    home = folder.absolute().parents[1]
    output = home / cached["output"]
    anew = _makers(output) - {folder.name}
    differences = [_difference(cached, study, run, code, home) for study, run in cells]
    versions = cached.get("versions", {})
    if None in differences and (not anew or versions == {name: version(name) for name in versions}):
        return None
    if not anew and not others and (output.exists() or not (cells or _is_finished(folder, cached))):
        return None
    difference = next(filter(None, differences), None)
    return difference or (f"{cached['output']} was made anew" if anew else f"no study has {cached['output']}")


def _made(home: Path) -> dict[str, set[str]]:
    """The name of a cache -> the runs whose results were made from it: recipes of equal settings share one."""
    found: dict[str, set[str]] = defaultdict(set)
    for table in (home / RESULTS).glob("*/*/*/*/*/checkpoints.csv"):
        for name in _makers(table.parent):
            found[name].add(str(table.parent.relative_to(home)))
    return found


def _makers(output: Path) -> set[str]:
    """The names of the caches that a run's results were made from; empty if there are no results."""
    try:
        with (output / "checkpoints.csv").open(newline="", encoding="utf-8") as table:
            return {Path(row["path"]).parent.name for row in csv.DictReader(table)}
    except (FileNotFoundError, KeyError):
        return set()


def _is_finished(folder: Path, cached: dict[str, Any]) -> bool:
    try:
        return bool(read_json(folder / "progress.json")["weights"] == f"epoch-{cached['settings']['epochs']}")
    except (FileNotFoundError, KeyError):
        return False


def _difference(cached: dict[str, Any], study: Config, run: Run, code: str, home: Path) -> str | None:
    """How a cached run differs from a study's, such as "another epochs"; None if the study would continue from it."""
    made, wanted = cached["settings"], json.loads(json.dumps(study.run_settings(run.task, run.recipe, run.seed)))
    if names := [key for key in sorted(made.keys() | wanted.keys()) if made.get(key) != wanted.get(key)]:
        return f"another {', '.join(names)}"
    if code != cached["code"]:
        return "another code"
    for name, manifest in _inputs(study, run).items():
        if (home / manifest).exists() and sha256(home / manifest) != cached["inputs"].get(name):
            return f"another {name}"
    return None


def _inputs(study: Config, run: Run) -> dict[str, Path]:
    """The manifests that a run reads, by the names in its cache."""
    inputs = {"model": study.start_folder(run) / MANIFEST, "task": TASKS / run.task / MANIFEST}
    if text := study.training_text(run.task, run.recipe):
        inputs["text"] = TASKS / text / MANIFEST
    if study.recipe(run.recipe).needs_dense:
        inputs["dense"] = run.dense.folder / "model" / MANIFEST
    return inputs
