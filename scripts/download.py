"""Fetch a model or a task and write down what it is.

Settings of a model: source, architecture. Settings of a task: source, files, kind and the columns; see config.yaml.
"""

from pathlib import Path

from llm_sparsity.errors import arguments, run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("kind", choices=["model", "task"], help="what to fetch")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parser.parse_args()

    from llm_sparsity.download import download_model, download_task

    download = download_model if args.kind == "model" else download_task
    download(args.output, **args.settings)


if __name__ == "__main__":
    run(main)
