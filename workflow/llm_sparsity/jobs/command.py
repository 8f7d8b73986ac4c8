"""Command lines of the scripts: arguments, settings, threads, and errors as one line."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_sparsity.jobs.errors import UserError, storage_message
from llm_sparsity.jobs.lease import lease


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


def computing(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the arguments of a script that computes, lease its GPUs before torch sees them, and set its CPU threads."""
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to lease, where there are so many")
    args = parser.parse_args()
    lease(args.gpus)

    import torch

    torch.set_num_threads(args.threads)
    return args
