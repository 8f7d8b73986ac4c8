"""Atomic files and folders, and manifests. What is written under a temporary name, synced and renamed is complete or
absent.

Every folder that a later stage depends on has a `manifest.json` with the sha256 of each of its files. Snakemake
compares this small file by content, so an identical result does not rerun the stages that depend on it.
"""

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.jobs.lock import locked
from llm_sparsity.jobs.process import runs

MANIFEST = "manifest.json"
PICKLES = {".bin", ".pt", ".pth", ".ckpt"}  # suffixes; to load such a file can run code
ABANDONED = 24 * 3600  # seconds without a write after which a temporary file of another host is removed


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it and rename it to `path`, on an error remove it.

    First, what killed writers have left in this folder is removed, see `remove_partial`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_partial(path.parent)
    temporary = temporary_path(path)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # write() names no file, and which disk is full depends on it
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success sync all in it and rename it to `path`, else remove it.

    Args:
        path: must not exist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(".*.tmp"):
        if left.name.startswith(f".{path.name}.") and left.is_dir() and _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    with _removed_after(temporary_path(path)) as temporary:
        yield temporary
        _sync_all(temporary)
        temporary.rename(path)


@contextmanager
def replacing(folder: Path, patterns: Iterable[str] = ()) -> Iterator[Path]:
    """Replace entries of a folder, all of them or, after an error, none; its manifest disappears first and comes last.

    Yields an empty folder for the new entries; if none are made, nothing changes. Old ones of the same names go, and
    files that match any of several patterns, such as the shards of another model. Everything else stays, such as a
    user's notes. While another process replaces entries, this one waits.

    Args:
        folder: need not exist.
        patterns: of files in the folder.

    Raises:
        UserError: another process has taken over, see `jobs.lock`.
    """
    fresh = folder / ".fresh"  # inside, so that it is on the same file system even if `folder` is a link
    with locked(folder.with_name(f".{folder.name}.lock")) as assert_held:
        try:
            with _removed_after(fresh):
                yield fresh
                made = sorted(fresh.iterdir(), key=lambda path: path.name == MANIFEST)
                _sync_all(fresh)
                assert_held()
                old = [path for pattern in patterns for path in folder.glob(pattern)]
                for path in (folder / MANIFEST, *old) if made else ():
                    if not path.is_dir():
                        path.unlink(missing_ok=True)
                for path in made:
                    target = folder / path.name
                    if target.is_dir():
                        shutil.rmtree(target)
                    path.replace(target)
        finally:
            with suppress(OSError):  # removes the folder only if it is empty, which means that it is new
                folder.rmdir()


@contextmanager
def _removed_after(folder: Path) -> Iterator[Path]:
    """Make an empty folder, in place of what a killed process has left there; remove what the block leaves of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync_all(folder: Path) -> None:
    """Let a folder and all in it reach the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    """Let a file, or the names in a folder, reach the disk; some file systems refuse this of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """The name beside `path` under which this process writes it: `.{name}.{pid}@{host}.tmp`."""
    return path.with_name(f".{path.name}.{os.getpid()}@{socket.gethostname()}.tmp")


def remove_partial(folder: Path, *, alone: bool = False) -> None:
    """Remove the temporary files in a folder (not below it) whose writers were killed.

    A process id says something on its own host only, so another host's file is removed after `ABANDONED` seconds.

    Args:
        folder: need not exist.
        alone: whether the caller holds a lock, so that nobody else writes here: every temporary file is removed.
    """
    for path in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # its writer has just finished, or another process has removed it
            if path.is_file() and (alone or _is_abandoned(path)):
                path.unlink()


def _is_abandoned(path: Path) -> bool:
    """Whether the writer of a temporary file or folder was killed."""
    name = re.fullmatch(r"\..*\.(\d+)@(.*)\.tmp", path.name, re.DOTALL)
    if name and name[2] == socket.gethostname():
        return not runs(int(name[1]))
    return time.time() - path.stat().st_mtime > ABANDONED


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as sorted, indented JSON. Equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; ValueError if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Iterable[str] | None = None) -> None:
    """Write a table as CSV.

    Args:
        path: the file.
        rows: column -> value, one mapping a row.
        columns: the order of the columns; required if there are no rows. Default: the order of the first row.
    """
    rows = list(rows)
    names = list(columns) if columns is not None else list(rows[0])
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, **facts: Any) -> None:
    """Write `folder/manifest.json`: the given facts, and the sha256 and size in bytes of every file in the folder.

    Call it last: a folder with a manifest is complete.
    """
    files: dict[str, dict[str, Any]] = {
        str(path.relative_to(folder)): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and path.suffix != ".tmp"
    }
    total: int = sum(file["bytes"] for file in files.values())
    write_json(folder / MANIFEST, {**facts, "bytes": total, "files": files})


def pickles_in(folder: Path) -> list[Path]:
    """The files of a folder that are pickles by their names, sorted."""
    return sorted(path for path in folder.glob("*") if path.suffix in PICKLES and path.is_file())


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read `folder/manifest.json`.

    Raises:
        UserError: the folder has no manifest, so the stage that makes it has not finished, or a damaged one.
    """
    try:
        manifest = read_json(folder / MANIFEST)
    except FileNotFoundError:
        raise UserError(f"{folder}: no {MANIFEST}, so this folder is not complete; make it with its stage") from None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise UserError(f"{folder / MANIFEST}: damaged, no JSON object; delete it and make it with its stage")
    return manifest


def weight_bytes(manifest: Mapping[str, Any]) -> int:
    """Size of the weight files in a manifest, in bytes."""
    return sum(file["bytes"] for name, file in manifest["files"].items() if name.endswith(".safetensors"))
