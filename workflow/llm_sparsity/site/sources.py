"""What a study downloads: whether it is here, or can be fetched from here. The doctor and a run ask the same."""

import os
import sys
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from llm_sparsity.site.check import Line, ask
from llm_sparsity.site.place import Place
from llm_sparsity.storage.files import MANIFEST
from llm_sparsity.study.cells import MODELS, TASKS
from llm_sparsity.study.config import Config

PROXY = "https_proxy"


class Missing(NamedTuple):
    """A source that is not available: its key in the config, the reason, and what to do."""

    key: str
    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}; {self.fix}"


def missing_folders(study: Config) -> Iterator[Missing]:
    """The folders on this machine that a study names and that are not there.

    They must be there even if they have been downloaded: their content decides whether what was made of them is up to
    date.
    """
    for kind, name, entry in _wanted(study):
        if entry.source.folder is not None and not Path(entry.source.folder).expanduser().is_dir():
            yield Missing(
                f"{kind}s.{name}.source.folder", f"found {entry.source.folder!r}, which is no folder",
                "correct the path, or put the folder back: its content decides whether what was made of it is up to "
                "date",
            )  # fmt: skip


def missing(study: Config, *, registries: bool = False, pending: Collection[tuple[str, str]] = ()) -> Iterator[Missing]:
    """The sources of a study that are neither downloaded nor available.

    Args:
        study: the study.
        registries: ask the package registry, too, which takes seconds for each package.
        pending: kind and name of what will be downloaded, again if it has been: it is removed first, so the registry
            is asked in any case.
    """
    from llm_sparsity.data.hub import missing_offline

    yield from missing_folders(study)
    for kind, name, entry in _wanted(study):
        source, key = entry.source, f"{kind}s.{name}.source"
        downloaded = _is_downloaded(kind, name)
        if source.folder is not None or (downloaded and (kind, name) not in pending):
            continue
        if source.package is not None:
            if (registries or downloaded) and (reason := _registry(source.package.partition("==")[0])):
                yield Missing(f"{key}.package", reason, _proxy("run where the registry can be reached"))
        else:
            files = list(getattr(entry, "files", {}).values())
            if message := missing_offline(source.model_dump(exclude_none=True), kind, files):
                reason, _, fix = message.partition("; ")
                yield Missing(f"{key}.hub", reason, _proxy(fix) if "cannot be reached" in reason else fix)


def sources(place: Place) -> Line:
    """Whether models and tasks are downloaded, cached or reachable. The driver downloads: nodes need no network."""
    wanted = list(_wanted(place.study))
    downloaded = sum(_is_downloaded(kind, name) for kind, name, _ in wanted)
    text = f"{downloaded} of {len(wanted)} downloaded"
    for found in missing(place.study, registries=True):
        return Line("sources", f"{text}; {found.key}: {found.reason}", found.fix)
    if downloaded == len(wanted):
        return Line("sources", f"all {len(wanted)} downloaded: nothing needs a network")
    return Line("sources", f"{text}; the driver fetches the others first: they are cached or reachable from here")


def _wanted(study: Config) -> Iterator[tuple[str, str, Any]]:
    """Kind, name and entry of the models and tasks of a study."""
    for name in sorted({model for model, _ in study.cells().variants}):
        yield "model", name, study.models[name]
    for name in sorted(study.wanted_tasks()):
        yield "task", name, study.tasks[name]


def _is_downloaded(kind: str, name: str) -> bool:
    return ({"model": MODELS, "task": TASKS}[kind] / name / MANIFEST).exists()


@cache
def _registry(package: str) -> str | None:
    answer = ask(sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", package)
    return None if answer.code == 0 else f"the package registry does not answer for {package}: {answer.reason}"


def _proxy(fix: str) -> str:
    """What to do about a network that does not answer."""
    known = {PROXY, PROXY.upper()} & os.environ.keys()
    return f"see whether {PROXY} is right, or {fix}" if known else f"{fix}; export {PROXY}=..., if this site has one"
