"""Numbers of others that a study is compared with: of papers, and of the earlier study whose claims are judged."""

from pathlib import Path

import pandas as pd

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.study.sparsity import Sparsity

NUMBERS = ["model", "task", "method", "sparsity", "metric", "value"]
PUBLISHED = [*NUMBERS, "source"]


def read_numbers(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read a CSV file of numbers: `Sparsity` objects in `sparsity`, floats in `value`, text in the other columns.

    Raises:
        UserError: the file is missing, lacks one of the columns, or holds a value that cannot be read.
    """
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; correct the path, or remove the key that names it") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
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
    return rows[columns]


_EXPECTED = {"sparsity": "give a fraction such as 0.5, or a pattern such as 2of4", "value": "give a number"}
