"""The command line of a script: its arguments, threads and GPUs, and its errors as one line."""

import argparse
import io
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_sparsity.jobs import forkserver
from llm_sparsity.jobs.errors import UserError, is_out_of_memory, storage_message
from llm_sparsity.jobs.lease import lease


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the option `--settings`, the JSON object that Snakemake compares between runs.

    Args:
        doc: the script's docstring, which becomes the description.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--settings",
        type=_settings,
        default={},
        metavar="JSON",
        help="settings of this job as one JSON object, or @FILE with one (the rule's params.settings)",
    )
    return parser


def _settings(text: str) -> dict[str, Any]:
    try:
        settings = json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}; repeat the snakemake command") from None
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error}): {text[:80]!r}") from None
    if not isinstance(settings, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, found {text[:80]!r}")
    return settings


def quoted(value: object) -> str:
    """A value as one word of a command, for the shell and for Snakemake's format strings alike."""
    return shlex.quote(str(value)).replace("{", "{{").replace("}", "}}")


def run(main: Callable[[], None]) -> None:
    """Call a script's `main`, in a fork of the process that has imported the libraries where there is one.

    User errors and storage errors end in one line instead of a traceback.

    Args:
        main: parses the arguments and does the work.
    """
    forkserver.hand_over()
    # Python puts the script's folder first on sys.path, where evaluate.py would shadow the library evaluate.
    sys.path[:] = [path for path in sys.path if path != str(Path(sys.argv[0]).resolve().parent)]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # where the locale has no letter for an arrow
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()) or "no more could be had"
        sys.exit(
            "error: the memory is full; lower batch_size, batch_sizes or sequence_length of this stage, or use a "
            f"machine or GPU with more ({reason})"
        )
    except BrokenPipeError:  # the reader, such as `| head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        message = storage_message(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Add `--threads` and `--gpus`."""
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process (default 1)")
    parser.add_argument(
        "--gpus", type=int, default=0, help="number of GPUs to reserve, fewer if the machine has fewer (default 0)"
    )


def parse_and_lease(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the arguments with `--threads` and `--gpus`, lease the GPUs, set the CPU threads of torch.

    GPUs are leased before torch is imported, which fixes the visible devices.
    """
    add_devices(parser)
    args = parser.parse_args()
    lease(args.gpus)

    import torch

    torch.set_num_threads(args.threads)
    return args
