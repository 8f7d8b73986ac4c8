"""Prune a model to one sparsity: writes model/ (a sparse checkpoint) and sparsity.csv.

Settings: method, scope, sparsity, seed.
"""

from pathlib import Path

from llm_sparsity.errors import arguments, run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the dense model")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parser.parse_args()

    from llm_sparsity.prune import prune

    sparsity = args.settings.pop("sparsity")
    prune(args.model, {sparsity: args.output}, **args.settings)


if __name__ == "__main__":
    run(main)
