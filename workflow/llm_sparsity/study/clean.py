"""Which cached runs the studies still refer to, and how the others are removed.

A study refers to a cached run that was made for one of its cells, with the settings, the code and the inputs that it
would use today: Snakemake would never read any other.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llm_sparsity.storage.files import MANIFEST, read_json, sha256
from llm_sparsity.study.cells import Run
from llm_sparsity.study.config import Config


class Leftover(NamedTuple):
    """A file or folder that no study refers to."""

    path: Path
    bytes: int
    reason: str


def leftovers(work: Path, studies: Iterable[Config], code: str) -> Iterator[Leftover]:
    """What `work` holds that no study refers to; a run that is going on at this moment is none.

    Args:
        work: the folder of caches.
        studies: the studies whose caches are to stay.
        code: the hash of the code that fine-tunes.
    """
    cells = {str(run.folder): (study, run) for study in studies for run in study.cells().runs}
    tokens: set[str] = set()
    for place in sorted(path.parent for path in work.glob("*/run.json")):
        cached = read_json(place / "run.json")
        study, run = cells.get(cached["output"], (None, None))
        reason = _reason(cached, study, run, code)
        if reason and not (place / "lock").exists():
            yield Leftover(place, sum(path.stat().st_size for path in place.rglob("*") if path.is_file()), reason)
        else:
            tokens.add(cached.get("tokens", ""))
    for path in sorted((work / "encoded").glob("*.safetensors")):
        if path.name not in tokens:
            yield Leftover(path, path.stat().st_size, "no run that stays uses it")


def remove(leftover: Leftover) -> None:
    """Remove one."""
    shutil.rmtree(leftover.path) if leftover.path.is_dir() else leftover.path.unlink()


def _reason(cached: dict[str, Any], study: Config | None, run: Run | None, code: str) -> str | None:
    """Why no study refers to a cached run; None when one does."""
    if study is None or run is None:
        return f"no study has {cached['output']}"
    settings = json.loads(json.dumps(study.run_settings(run.task, run.recipe, run.seed)))
    if cached["settings"] != settings:
        names = [key for key in sorted(settings) if settings[key] != cached["settings"].get(key)]
        return f"another {', '.join(names)}" if names else "other settings"
    if cached["code"] != code:
        return "another code"
    variant = Path("resources/models") if run.variant.is_dense else Path("results")
    inputs = {
        "model": variant / run.model / ("" if run.variant.is_dense else f"{run.variant}/model") / MANIFEST,
        "task": Path("resources/tasks") / run.task / MANIFEST,
    }
    if text := study.tasks[run.task].train_on:
        inputs["text"] = Path("resources/tasks") / text / MANIFEST
    for name, manifest in inputs.items():
        if manifest.exists() and sha256(manifest) != cached["inputs"].get(name):
            return f"another {name}"
    return None
