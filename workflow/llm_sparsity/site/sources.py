"""Checks of what a study downloads: whether it is here, or can be fetched from here."""

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from llm_sparsity.site.check import Line, ask
from llm_sparsity.site.place import Place
from llm_sparsity.storage.files import MANIFEST

PROXY = "https_proxy"


def sources(place: Place) -> Line:
    """Whether models and tasks are downloaded, cached or reachable. The driver downloads: nodes need no network."""
    wanted = _wanted(place)
    missing = [entry for entry in wanted if not (Path(f"resources/{entry[0]}s") / entry[1] / MANIFEST).exists()]
    if not missing:
        return Line("sources", f"all {len(wanted)} downloaded: nothing needs a network")
    text = f"{len(wanted) - len(missing)} of {len(wanted)} downloaded"
    for kind, name, entry in missing:
        if reason := _unavailable(kind, entry):
            return Line("sources", f"{text}; {kind} {name}: {reason}", _advice(entry))
    return Line("sources", f"{text}; the driver fetches the others first: they are cached or reachable from here")


def _wanted(place: Place) -> list[tuple[str, str, Any]]:
    """Kind, name and entry of the study's models and tasks."""
    study = place.study
    models = sorted({model for model, _ in study.cells().variants})
    return [
        *(("model", name, study.models[name]) for name in models),
        *(("task", name, study.tasks[name]) for name in sorted(study.wanted_tasks())),
    ]


def _unavailable(kind: str, entry: Any) -> str | None:
    from llm_sparsity.data.hub import missing_offline

    source = entry.source
    if source.package is not None:
        return _registry(source.package.partition("==")[0])
    if source.folder is not None:
        return None if Path(source.folder).expanduser().is_dir() else f"{source.folder} is no folder"
    return missing_offline(source.model_dump(exclude_none=True), kind, list(getattr(entry, "files", {}).values()))


@cache
def _registry(package: str) -> str | None:
    answer = ask(sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", package)
    return None if answer.code == 0 else f"the package registry does not answer for {package}: {answer.reason}"


def _advice(entry: Any) -> str:
    if entry.source.folder is not None:
        return "correct the path in the study"
    if os.environ.get("HF_HUB_OFFLINE"):
        return "unset HF_HUB_OFFLINE where the hub can be reached, or put its cache there (HF_HOME)"
    if not {PROXY, PROXY.upper()} & os.environ.keys():
        return f"export {PROXY}=..., if this site has a proxy, or run where the hub can be reached"
    return f"see whether {PROXY} is right, or run where the hub can be reached"
