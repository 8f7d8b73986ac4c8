"""Errors that users can fix: one line that names the key, the value and the fix."""

import errno


class UserError(Exception):
    """A mistake the user can fix. The message is one line: where, what was found, what to do."""


_STORAGE = {
    errno.ENOSPC: "no space is left on the disk; free some and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EROFS: "the file system is read-only; choose a working directory that can be written to",
    errno.EACCES: "permission denied; choose a folder that can be read and written",
    errno.EPERM: "permission denied; choose a folder that can be read and written",
}


def storage_message(error: OSError) -> str | None:
    """The line for an error of the disk (full, read-only, forbidden); None for any other error."""
    fix = _STORAGE.get(error.errno or 0)
    return fix and f"{error.filename or 'disk'}: {fix}"
