"""Show what a study takes before it runs: jobs, GPU-hours, minutes, memory, disk.

With a table of a site's queues, also the queue, batch jobs, nodes and walltime that suit it, with their node-hours.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from llm_sparsity.study import advice, config, plan
from llm_sparsity.study.project import STUDY, study_file


def main(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Print the plan."""
    parser.add_argument("study", type=Path, help=STUDY)
    parser.add_argument("--queues", type=Path, help="CSV table of queue limits; also recommend a queue")
    args = parser.parse_args(words)
    study = config.read(study_file(args.study))
    table = advice.queues(args.queues) if args.queues else []
    print(plan.table(study))
    if table:
        print("", advice.advise(plan.jobs(study), table), sep="\n")
