"""Collect a study's results into tidy tables.

Settings: study, grids, stages (what a task's variants go through).
"""

from pathlib import Path

from llm_sparsity.jobs.command import arguments, run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the tables")
    args = parser.parse_args()

    from llm_sparsity.reporting.collect import collect

    collect(args.output, **args.settings)


if __name__ == "__main__":
    run(main)
