"""Tables: parquet, JSON lines, CSV, TSV and text files as rows."""

import csv
import gzip
import io
import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_sparsity.jobs.errors import UserError

FORMATS = {
    ".parquet": "parquet", ".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".txt": "text",
    ".raw": "text",
}  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
        name: the file's name, for messages.
        rows: column -> value, one dictionary a row.
    """

    name: str
    rows: list[Row]

    def text(self, row: Row, column: str) -> str:
        """A value of a row as text; the empty string for a missing value.

        Raises:
            UserError: the table has no such column, or the value is a list or a dictionary.
        """
        if column not in row:
            raise UserError(f"{self.name}: no column {column!r}; it has {', '.join(map(repr, row))}")
        value = row[column]
        if not isinstance(value, str | int | float | None):
            raise UserError(
                f"{self.name}: column {column!r} holds a {type(value).__name__}, expected text; name another"
            )
        return str(value if value is not None else "")


def read_table(path: Path, format: str | None = None, columns: Sequence[str] | None = None) -> Table:
    """Read a table.

    Args:
        path: the file; a name that ends in `.gz` is decompressed.
        format: one of the values of `FORMATS`; the default is the format that the file's suffix stands for.
        columns: names of the columns, for CSV and TSV files without a header.

    Raises:
        UserError: the format is unknown, or the file is empty, damaged, or not of its format.
    """
    format = format or FORMATS.get(path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix)
    if format is None:
        raise UserError(
            f"{path.name}: format unknown; add `format:`, one of {', '.join(sorted(set(FORMATS.values())))}"
        )
    text = "" if format == "parquet" else _read_text(path)
    rows = _separated(path, text, format, columns) if format in ("csv", "tsv") else _read_by_datasets(path, format)
    if not rows:
        raise UserError(f"{path.name}: has no rows; expected a table with at least one")
    return Table(path.name, rows)


def _read_text(path: Path) -> str:
    """The text of a file, without its byte order mark."""
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except gzip.BadGzipFile:
        raise UserError(f"{path.name}: is no gzip file; download it again, or correct its name") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    if not text.strip():
        raise UserError(f"{path.name}: is empty; expected a table with at least one row")
    return text


def _separated(path: Path, text: str, format: str, columns: Sequence[str] | None) -> list[Row]:
    """The rows of a CSV or TSV file. Values stay text: "007" is not 7, and "NA" is not missing.

    Quotation marks are ordinary characters in a TSV file, as in the files of GLUE.
    """
    lines: Iterable[list[str]]
    if format == "csv":
        lines = csv.reader(io.StringIO(text, newline=""))
    else:
        lines = [line.removesuffix("\r").split("\t") for line in text.split("\n")]
    rows: list[Row] = []
    try:
        for number, values in enumerate(lines, start=1):
            if not any(values):
                continue
            if columns is None:
                columns = values
            elif len(values) != len(columns):
                raise UserError(
                    f"{path.name}: row {number} has {len(values)} values, expected {len(columns)} "
                    f"({', '.join(columns)}); correct the file, `columns` or `format`"
                )
            else:
                rows.append(dict(zip(columns, values, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path.name}: not readable as csv ({error}); correct the file or `format`") from None
    return rows


def _read_by_datasets(path: Path, format: str) -> list[Row]:
    """The rows of a parquet, JSON lines or text file."""
    import datasets  # slow to import; most tables of the tests are separated values

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # the exception repeats its messages
    with tempfile.TemporaryDirectory() as cache:
        try:
            table = datasets.load_dataset(
                {"jsonl": "json"}.get(format, format),
                data_files=str(path),
                split="train",
                cache_dir=cache,
                keep_in_memory=True,
            )
        except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
            why = str(error.__cause__ or error).splitlines()[0]
            raise UserError(f"{path.name}: not readable as {format} ({why}); correct the file or `format`") from None
        return list(table.to_list())
