"""Say what a study will take before it is spent: jobs, GPU-hours, node-hours, minutes, disk; which queue and how many
nodes, and why.
"""

import argparse
from pathlib import Path

from llm_sparsity.jobs.command import run
from llm_sparsity.jobs.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", type=Path, default=Path("config.yaml"), help="the study")
    parser.add_argument(
        "--queues", type=Path, default=Path("profiles/polaris/queues.csv"), help="table of what the site's queues take"
    )
    args = parser.parse_args()

    import yaml

    from llm_sparsity.study import config, plan

    for file in (args.configfile, args.queues):
        if not file.is_file():
            raise UserError(f"{file}: not found; run this in the folder of the project, or name another file")
    study = config.load(yaml.safe_load(args.configfile.read_text()))
    print(plan.table(study, plan.queues(args.queues)))


if __name__ == "__main__":
    run(main)
