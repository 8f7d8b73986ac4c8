"""Draw a study's figures and its page from its tables.

Settings: config (the study's), methods (what each is).
"""

from pathlib import Path

from llm_sparsity.jobs.command import arguments, run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the study's tables")
    parser.add_argument("--output", type=Path, required=True, help="folder that gets figures/ and report.html")
    parser.add_argument("--published", type=Path, nargs="?", help="CSV file of numbers of papers, drawn as crosses")
    parser.add_argument(
        "--claims", type=Path, nargs="?", help="file of claims of an earlier study, judged in the tables"
    )
    parser.add_argument("--processes", type=int, default=1, help="processes that draw (default 1)")
    args = parser.parse_args()

    from llm_sparsity.reporting.plot import plot

    plot(
        args.tables, args.output, published=args.published, claims=args.claims, processes=args.processes,
        **args.settings,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
