"""How much of a pretrained transformer can be removed, and what does that really save?

llm-sparsity init MODEL             write a study of a model, and show what it takes
llm-sparsity plan STUDY [...]       show what a study takes: jobs, GPU-hours, memory, disk, which queue
llm-sparsity doctor STUDY [...]     check the place where it is to run
llm-sparsity run STUDY [...]        run it, with any options of Snakemake
llm-sparsity export CELL [...]      write a model for other programs, with its card
llm-sparsity generate FOLDER [...]  generate text with a model, dense and sparse
llm-sparsity clean STUDY [...]      list caches that no study needs
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from llm_sparsity import __version__
from llm_sparsity.jobs.command import run

COMMANDS = ("init", "plan", "doctor", "run", "export", "generate", "clean")  # each a module of this package


def main(words: Sequence[str] | None = None) -> None:
    """Run a command; user errors end in one line."""
    words = list(sys.argv[1:] if words is None else words)
    parser = argparse.ArgumentParser(
        prog="llm-sparsity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"llm-sparsity {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those above; --help explains it")
    if not words:
        parser.print_help(sys.stderr)
        sys.exit(2)
    name = parser.parse_args(words[:1]).command
    module = import_module(f"{__package__}.{name}")
    own = argparse.ArgumentParser(
        prog=f"llm-sparsity {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    run(lambda: module.main(own, words[1:]))
