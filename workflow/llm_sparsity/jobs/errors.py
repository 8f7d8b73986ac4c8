"""User errors: one line that names the key, the value found and the fix."""

import errno


class UserError(Exception):
    """An error that the user can fix. The message is one line: key or file, value found, fix."""


_FIXES = {
    errno.ENOSPC: "no space is left on the disk; free some and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EROFS: "the file system is read-only; choose a working directory that can be written to",
    errno.EACCES: "permission denied; choose a folder that can be read and written",
    errno.EPERM: "permission denied; choose a folder that can be read and written",
}


def storage_message(error: OSError) -> str | None:
    """The one-line message of a storage error (full, over quota, read-only, forbidden); None for any other error."""
    fix = _FIXES.get(error.errno or 0)
    return fix and f"{error.filename or 'disk'}: {fix}"
