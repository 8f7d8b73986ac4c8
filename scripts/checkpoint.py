"""Convert a model folder to plain safetensors, which any program reads. No settings."""

from pathlib import Path

from llm_sparsity.jobs.command import arguments, run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("model", type=Path, help="model folder, sparse or plain")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parser.parse_args()

    from llm_sparsity.models.folder import ModelFolder
    from llm_sparsity.models.plain import check_plain
    from llm_sparsity.storage.container import to_plain

    check_plain(ModelFolder(args.model))
    to_plain(args.model, args.output)


if __name__ == "__main__":
    run(main)
