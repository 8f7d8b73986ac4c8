"""What the benchmarks share: arguments, a tokenizer, the machine in words, and BENCHMARKS.md: each owns a block."""

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

PAGE = Path(__file__).parent.parent / "BENCHMARKS.md"


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of a benchmark, with the option `--write`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into BENCHMARKS.md")
    return parser


def word_tokenizer(folder: Path, words: Iterable[str]) -> None:
    """Add a tokenizer of whole words, whose end is `<s>`, to a model folder."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["<s>", *words])}, "<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<s>").save_pretrained(folder)


def machine(threads: int) -> str:
    """Where, and how busy."""
    import torch

    return (
        f"torch {torch.__version__}, {threads} thread{'s' * (threads > 1)} of {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f} when it ended"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table; all columns after the first `texts` are numbers."""
    rule = ["---"] * texts + ["---:"] * (len(heads) - texts)
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, rule, *rows])


def replace_block(name: str, text: str) -> None:
    """Replace the block of a benchmark in BENCHMARKS.md."""
    page = PAGE.read_text()
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.partition(start)
    if not found:
        raise SystemExit(f"error: {PAGE} has no block {start}; add it, and {end}, where the table belongs")
    PAGE.write_text(f"{before}{start}\n{text}\n{end}{rest.partition(end)[2]}")


def publish(name: str, text: str, *, write: bool) -> None:
    """Print the text of a benchmark; with `write`, also put it into its block in BENCHMARKS.md."""
    print(text)
    if write:
        replace_block(name, text)
