"""Paths that a config, an index or an archive names: they must lie inside their folder."""

from pathlib import Path, PurePosixPath

from llm_sparsity.jobs.errors import UserError


def climbs(name: str) -> bool:
    """Whether a path is absolute or has a step `..`, whatever the file system holds."""
    return name.startswith("/") or ".." in PurePosixPath(name).parts or "\0" in name


def inside(folder: Path, name: str, key: str) -> Path:
    """The path of a file or folder inside a folder; links are followed, and must not lead out of it.

    A snapshot in the hub's cache is a folder of links to its repository's `blobs/`, which count as inside.

    Args:
        folder: the folder that may be read.
        name: a relative path, which need not exist.
        key: what names it, for the message: `files.train`, `path`, the name of an index.

    Raises:
        UserError: the path is absolute, climbs out of the folder, or is a link that leads out of it.
    """
    if climbs(name):
        raise UserError(f"{key}: found {name!r}, which is outside its folder; give a path inside {folder.name!r}")
    try:
        root, target = folder.resolve(), (folder / name).resolve()
    except (OSError, RuntimeError):  # a name that is too long, a link to itself
        raise UserError(f"{key}: found {name!r}, which is no path; correct it") from None
    blobs = root.parents[1] / "blobs" if root.parent.name == "snapshots" else root
    if not (target.is_relative_to(root) or target.is_relative_to(blobs)):
        raise UserError(f"{key}: {name!r} is a link to {str(target)!r}, outside its folder; put the file itself there")
    return folder / name
