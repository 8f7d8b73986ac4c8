"""Show what a study takes before it runs (jobs, GPU-hours, minutes, memory, disk), and the queue, batch jobs, nodes and
walltime that suit it, with their node-hours.
"""

import argparse
from pathlib import Path

from llm_sparsity.jobs.command import run
from llm_sparsity.jobs.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", type=Path, default=Path("config.yaml"), help="the study's config")
    parser.add_argument(
        "--queues", type=Path, default=Path("profiles/polaris/queues.csv"), help="table of a site's queues"
    )
    args = parser.parse_args()

    import yaml

    from llm_sparsity.study import advice, config, plan

    for file in (args.configfile, args.queues):
        if not file.is_file():
            raise UserError(f"{file}: not found; run this command in the folder of the project, or name another file")
    study = config.load(yaml.safe_load(args.configfile.read_text()))
    print(plan.table(study), advice.advise(plan.jobs(study), advice.queues(args.queues)), sep="\n\n")


if __name__ == "__main__":
    run(main)
