"""Check the place where a study is to run: a screen of lines, each OK, TO DO, or -- for what cannot be seen from here.

Nothing is submitted and nothing written, unless --submit asks for a job of five minutes. Exit status 1 if there is
something to do.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llm_sparsity.site import doctor
from llm_sparsity.site.place import place
from llm_sparsity.study import config
from llm_sparsity.study.project import STUDY, study_file


def main(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Print the screen."""
    parser.add_argument("study", type=Path, nargs="?", default="config.yaml", help=f"{STUDY} (default config.yaml)")
    parser.add_argument("--profile", type=Path, help="folder of a Snakemake profile (default: none, this machine)")
    parser.add_argument("--submit", action="store_true", help="run a job of five minutes on a node, and wait for it")
    args = parser.parse_args(words)
    where = place(config.read(study_file(args.study)), args.profile)
    lines = doctor.examine(where, submits=args.submit)
    print(doctor.screen(where, lines))
    if any(line.fix for line in lines):
        sys.stdout.flush()
        sys.exit(1)
