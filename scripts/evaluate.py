"""Measure the perplexity of a variant of a causal language model on a text.

Settings: what `evaluate:` in the config holds.
"""

from pathlib import Path

from llm_sparsity.jobs.command import arguments, parse_and_lease, run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a variant")
    parser.add_argument("--task", type=Path, required=True, help="folder of a prepared task")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    args = parse_and_lease(parser)

    from llm_sparsity.evaluation.evaluate import evaluate

    evaluate(args.model, args.task, args.output, **args.settings)


if __name__ == "__main__":
    run(main)
