"""How a user's mistake reaches the user: one line that names the key, the value and the fix, and exit code 1."""

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Something that the user can mend; the message is one line: where, what was found, what to do."""


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


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A script's parser: its docstring as description, and `--settings`, the JSON that Snakemake tracks."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--settings",
        type=_settings,
        default={},
        metavar="JSON",
        help="the settings of this job as one JSON object (what the rule's params.settings holds)",
    )
    return parser


def _settings(text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error}): {text[:80]!r}") from None
    if not isinstance(settings, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, found {text[:80]!r}")
    return settings


def run(main: Callable[[], None]) -> None:
    """Call a script's `main`; a user's mistake or a disk that refuses ends in one line, not in a traceback."""
    # scripts/evaluate.py would hide the library evaluate: a script's own folder is no place to import from.
    sys.path[:] = [path for path in sys.path if path != str(Path(sys.argv[0]).resolve().parent)]
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        message = storage_message(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")
