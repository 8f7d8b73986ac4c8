"""Hub folders: pinned snapshots of models and data sets, through huggingface_hub and its cache."""

import glob
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, metadata_load, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from llm_sparsity.data.model_files import has_tokenizer, matching
from llm_sparsity.jobs.errors import UserError, storage_message
from llm_sparsity.storage.files import read_json, sha256
from llm_sparsity.storage.paths import inside

CONVERTER = "SFconvertbot"  # the hub's account that proposes safetensors for repositories that have only pickles
LICENCE = 200  # characters of a stated licence
Source = Mapping[str, Any]


def snapshot(source: Source, kind: str, names: Sequence[str]) -> Path:
    """Download files of a pinned revision; interrupted downloads are resumed.

    Args:
        source: {"hub": repository, "revision": commit}, and "converted": True to take the safetensors that the hub
            converted from that commit.
        kind: "model" or "task".
        names: of a task's files; README.md is optional. Of a model, patterns of names.

    Returns:
        The folder in the hub's cache.

    Raises:
        UserError: the files are neither cached nor reachable, or are damaged.
    """
    patterns = names if kind == "model" else [glob.escape(name) for name in names]
    try:
        folder = Path(
            snapshot_download(
                source["hub"],
                repo_type=_repo_type(kind),
                revision=_commit(source),
                allow_patterns=list(patterns),
                ignore_patterns=["*/*"] if kind == "model" else None,  # subfolders hold the model in other formats
            )
        )
    except UserError:
        raise
    except Exception as error:  # from huggingface_hub, its HTTP library (which changed twice), or the disk
        if isinstance(error, OSError) and storage_message(error):
            raise
        cached = _cached(source, kind, [name for name in names if name != "README.md"])
        if cached is None:
            raise UserError(_unreachable(source, error)) from None
        folder = cached
    for path in matching(folder, patterns):
        blob = inside(folder, str(path.relative_to(folder)), "the hub's cache").resolve()
        if not _is_whole(blob):
            raise UserError(f"{blob}: damaged in the hub's cache; delete this file and run again")
    return folder


def _is_whole(blob: Path) -> bool:
    """Whether a file of the cache has the hash that is its name; the library compares none of them.

    Large files are named by their sha256, others by git's hash of them.
    """
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        return sha256(blob) == blob.name
    if re.fullmatch("[0-9a-f]{40}", blob.name):
        data = blob.read_bytes()
        return hashlib.sha1(b"blob %d\0%s" % (len(data), data), usedforsecurity=False).hexdigest() == blob.name
    return True


def missing_offline(source: Source, kind: str, files: Sequence[str] = ()) -> str | None:
    """Check that a hub source is cached or reachable, without downloading it.

    Args:
        source: of a model or task; sources other than the hub are never missing.
        kind: "model" or "task".
        files: the files that a task names.

    Returns:
        The error message, in one line; None if the source is available.
    """
    if "hub" not in source:
        return None
    try:
        if _cached(source, kind, files):
            return None
        HfApi().repo_info(source["hub"], repo_type=_repo_type(kind), revision=source["revision"], timeout=10)
        _commit(source)
    except UserError as error:
        return str(error)
    except Exception as error:
        return _unreachable(source, error)
    return None


def newest(repository: str) -> tuple[str, Path, int | None]:
    """The newest commit of a model, for a study that names none yet.

    Returns:
        The commit, a folder with its config.json, and the number of parameters if the hub states it.

    Raises:
        UserError: the hub has no such model or cannot be reached, or the model has no safetensors.
    """
    try:
        hub = HfApi()
        found = hub.model_info(repository, timeout=10)
        config = Path(hub.hf_hub_download(repository, "config.json", revision=found.sha))
    except Exception as error:  # as in `snapshot`
        raise UserError(_unreachable({"hub": repository, "revision": "main"}, error)) from None
    if not any(file.rfilename.endswith(".safetensors") for file in found.siblings or []):
        raise UserError(
            f"{repository}: has no safetensors; choose a repository that has, or convert it where you trust it"
        )
    total = getattr(found.safetensors, "total", None)
    return str(found.sha), config.parent, int(total) if total else None


def card_licence(path: Path) -> str | None:
    """The licence in the model or data card (README.md) of a folder, or of the folder that holds a file."""
    card = (path if path.is_dir() else path.parent) / "README.md"
    if not card.is_file():
        return None
    try:
        licence = (metadata_load(inside(card.parent, card.name, "README.md")) or {}).get("license")
    except Exception:  # cards are written by hand; an unreadable one states no licence
        return None
    named = [name for name in (licence if isinstance(licence, list) else [licence]) if isinstance(name, str)]
    return " ".join(", ".join(named).split())[:LICENCE] or None


def _repo_type(kind: str) -> str:
    return "model" if kind == "model" else "dataset"


def _cached(source: Source, kind: str, files: Sequence[str]) -> Path | None:
    """The snapshot in the local cache; None if a required file is missing.

    The library checks completeness only for snapshots that it downloaded as a whole, and then requires the README.
    """
    try:
        folder = Path(
            snapshot_download(
                source["hub"],
                repo_type=_repo_type(kind),
                revision=source["revision"],
                allow_patterns=[],
                local_files_only=True,
            )
        )
        if kind == "model":
            shards = [read_json(index)["weight_map"].values() for index in folder.glob("*.safetensors.index.json")]
            files = ["config.json", *(name for names in shards for name in names)]
        complete = all(inside(folder, file, "weight_map" if kind == "model" else "files").exists() for file in files)
    except (LocalEntryNotFoundError, ValueError, KeyError, TypeError, AttributeError):  # an index is anyone's JSON
        return None
    if kind == "model":
        complete &= bool(matching(folder, ("*.safetensors",))) and has_tokenizer(folder)
    return folder if complete else None


def _commit(source: Source) -> str:
    """The commit to download: the pinned one, or the hub's conversion of it.

    A conversion counts only if the hub's own account proposed it directly on top of the pinned commit.
    """
    revision: str = source["revision"]
    if not source.get("converted"):
        return revision
    hub = HfApi()
    for proposal in hub.get_repo_discussions(source["hub"], author=CONVERTER, discussion_type="pull_request"):
        if proposal.author == CONVERTER:
            commits = hub.list_repo_commits(source["hub"], revision=proposal.git_reference)
            if [commit.commit_id for commit in commits[1:2]] == [revision]:
                return commits[0].commit_id
    raise UserError(
        f"{source['hub']}: {CONVERTER} has proposed no safetensors for revision {revision[:12]}; choose the revision "
        "that it did convert, or convert the model where you trust it and use `source: {folder: ...}`"
    )


def _unreachable(source: Source, error: Exception) -> str:
    """The message for a hub source that is not available: cause and fix."""
    name = f"{source['hub']} at revision {source['revision'][:12]}"
    causes = (error, error.__cause__)  # the library raises some of its errors from that of its HTTP library
    cause = error.__cause__ or error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    gated = any(isinstance(each, GatedRepoError) for each in causes)  # which is also the class below
    if not gated and any(isinstance(each, RepositoryNotFoundError) for each in causes):  # 401 in both cases
        return f"{name}: the hub has no such repository, or it is private; correct the source, or set HF_TOKEN"
    if status in (401, 403):
        return f"{name}: the hub asks for permission; accept its licence there and set HF_TOKEN"
    if any(isinstance(each, RemoteEntryNotFoundError) for each in causes):  # of `newest` alone, which names a file
        return f"{name}: has no config.json; an adapter or a GGUF file alone is no model, name the model itself"
    if status == 404:
        return f"{name}: the hub has no such revision; correct the source"
    why = f"the hub cannot be reached ({type(cause).__name__})"
    if isinstance(cause, OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set"
    return (
        f"{name}: not whole in the local cache and {why}; run once where the network is (a login node), or set HF_HOME "
        "to a cache that has it, or use `source: {folder: ...}`"
    )
