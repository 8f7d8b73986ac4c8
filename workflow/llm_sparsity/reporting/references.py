"""Numbers of others that a study is compared with: of papers, and of the earlier study whose claims are judged."""

import math
from pathlib import Path

import pandas as pd

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.study.sparsity import Sparsity

NUMBERS = ["model", "task", "method", "sparsity", "metric", "value"]
PUBLISHED = [*NUMBERS, "source"]


def read_numbers(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read a CSV file of numbers: `Sparsity` objects in `sparsity`, floats in `value`, text in the other columns.

    Raises:
        UserError: the file is missing, lacks one of the columns, gives a number twice, or holds a value that cannot be
            read, or that its metric cannot have.
    """
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; correct the path, or remove the key that names it") from None
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no CSV table ({str(error).strip()}); correct it") from None
    for column in columns:
        if column not in rows:
            raise UserError(f"{path}: column {column} is missing, found {', '.join(rows)}; add it")
    for column, read in (("sparsity", Sparsity), ("value", float)):
        values = []
        for line, text in enumerate(rows[column], start=2):
            try:
                values.append(read(text))
            except ValueError:
                raise UserError(f"{path}: line {line}: {column}: found {text!r}; {_EXPECTED[column]}") from None
        rows[column] = pd.Series(values, rows.index, dtype=object if read is Sparsity else float)
    for line, (metric, value) in enumerate(zip(rows.metric, rows.value, strict=True), start=2):
        if not (1 <= value < math.inf if metric == "perplexity" else -1 <= value <= 1):
            expected = (
                "perplexities are at least 1" if metric == "perplexity" else "scores are fractions, such as 0.923"
            )
            raise UserError(f"{path}: line {line}: value: found {value:g}; {expected}")
    keys = [column for column in columns if column != "value"]
    if (twice := rows[keys].astype(str).duplicated()).any():
        raise UserError(f"{path}: line {twice.to_numpy().argmax() + 2}: gives a number again; remove one")
    return rows[columns]


_EXPECTED = {"sparsity": "give a fraction such as 0.5, or a pattern such as 2of4", "value": "give a number"}
