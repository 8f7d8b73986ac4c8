"""Write the weight statistics of a model, dense or pruned, and the bytes that its weights take. No settings."""

from pathlib import Path

from llm_sparsity.jobs.command import arguments, run
from llm_sparsity.jobs.lock import locked


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a variant")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parser.parse_args()

    from llm_sparsity.evaluation.weights import weights
    from llm_sparsity.models.folder import ModelFolder

    with locked(args.output / ".weights.lock"):  # a job of a killed driver may still write there
        weights(ModelFolder(args.model), args.output, **args.settings)


if __name__ == "__main__":
    run(main)
