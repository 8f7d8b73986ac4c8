"""List cached checkpoints that nothing refers to, and remove them with --delete.

Name the config of every study whose caches are to be kept. Without --all, caches of other studies stay as well, unless
a finished run made their results anew or their results are gone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.study import config
from llm_sparsity.study.clean import leftovers, remove
from llm_sparsity.study.fingerprint import code_hash
from llm_sparsity.study.project import STUDY, project, study_file


def main(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Print the list."""
    parser.add_argument("studies", type=Path, nargs="+", help=f"of each study: {STUDY}")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder of caches, beside results/")
    parser.add_argument("--delete", action="store_true", help="remove what is listed")
    parser.add_argument("--all", action="store_true", help="list caches of studies that are not named here, too")
    args = parser.parse_args(words)
    if not args.work.is_dir():
        raise UserError(f"{args.work}: no such folder; run this where the studies run, or give --work")
    studies = [config.read(study_file(study)) for study in args.studies]
    code = code_hash(project() / "scripts/finetune.py")
    found = leftovers(args.work, studies, code, others=args.all)
    if args.delete:
        found = remove(args.work, found)
    if not found:
        print(f"nothing to remove{'' if args.all else '; --all lists caches of other studies, too'}")
        return
    for leftover in found:
        print(f"{leftover.bytes / 1e6:10.1f} MB  {leftover.path}  {leftover.reason}")
    total = sum(leftover.bytes for leftover in found)
    print(f"{total / 1e6:10.1f} MB  {'removed' if args.delete else 'in all; --delete removes them'}")
