"""User errors: one line that names the key, the value found and the fix."""

import difflib
import errno
import os
from collections.abc import Iterable
from pathlib import Path

FEW = 50  # names that a message lists


class UserError(Exception):
    """An error that the user can fix. The message is one line: key or file, value found, fix."""


def guess(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest known one, or all of them if they are few."""
    known = list(known)
    if close := difflib.get_close_matches(name, known, 1):
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known) or 'none'}" if len(known) <= FEW else "; correct it"


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the memory of a GPU or of this machine is full; torch need not be imported."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    said = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")  # by torch on a CPU, CUDA, cuBLAS
    return named or (isinstance(error, RuntimeError) and any(text in str(error) for text in said))


_FULL = {errno.ENOSPC: "no space is left on the disk", errno.EDQUOT: "the disk quota is used up"}
_FIXES = {
    errno.EROFS: "the file system is read-only; choose a working directory that can be written to",
    errno.EACCES: "permission denied; choose a folder that can be read and written",
    errno.EPERM: "permission denied; choose a folder that can be read and written",
}


def storage_message(error: OSError) -> str | None:
    """The one-line message of a storage error (full, over quota, read-only, forbidden); None for any other error."""
    name = error.filename or "disk"
    if full := _FULL.get(error.errno or 0):
        return f"{name}: {full}{_file_system(error.filename)}; free some space and run the same command again"
    fix = _FIXES.get(error.errno or 0)
    return fix and f"{name}: {fix}"


def _file_system(name: object) -> str:
    """The file system of a file, which need not exist, and what is free on it; "" if that is not known."""
    if not isinstance(name, str | os.PathLike):
        return ""
    try:
        path = Path(os.path.abspath(name))  # noqa: PTH100, keeps links, unlike resolve()
        path = next(folder for folder in (path, *path.parents) if folder.exists()).resolve()
        mount = next(folder for folder in (path, *path.parents) if folder.is_mount())
        found = os.statvfs(path)
    except (OSError, StopIteration):
        return ""
    files = f" and {found.f_favail:,} files" if found.f_files else ""  # a file system can run out of either
    return f" (file system {mount}: {found.f_bavail * found.f_frsize:,} bytes{files} free)"
