"""Collect a study's results into tidy tables.

Settings: study (its name), grids, stages and scores (of each task).
"""

from pathlib import Path

from llm_sparsity.jobs.command import arguments, run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--claims", type=Path, nargs="?", help="file of claims of an earlier study to judge")
    args = parser.parse_args()

    from llm_sparsity.reporting.collect import collect

    collect(args.output, claims=args.claims, **args.settings)


if __name__ == "__main__":
    run(main)
