"""Tables: parquet, JSON lines, CSV, TSV and text files as rows. Only the columns that a task uses have to be sound."""

import csv
import gzip
import io
import json
import lzma
import math
import zlib
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from llm_sparsity.data.compressed import Bounded, Budget, opener_of
from llm_sparsity.jobs.errors import UserError, storage_message

FORMATS = {
    ".parquet": "parquet", ".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".txt": "text",
    ".raw": "text",
}  # fmt: skip
BATCH = 256  # rows of a parquet file that are decoded at a time
PACKED = (".bz2", ".xz", ".zip", ".zst", ".7z")  # suffixes of compressed files that are not read
SHEETS = (".xlsx", ".xls", ".ods")
BEGINNINGS = {  # of files that are no text -> what to do
    b"\x1f\x8b": "is compressed by gzip; give it a name that ends in .gz",
    b"PK\x03\x04": "is a zip archive or a spreadsheet; unpack it, or save it as csv",
    b"version https://git-lfs.github.com/": "is a pointer of Git LFS, not the file itself; fetch that: git lfs pull",
}
POINTER = 16  # bytes that a row takes at least, also if all its values are missing
Row = dict[str, Any]


def shown(value: Any, length: int = 60) -> str:
    """A value in a message: in one line, and not too long."""
    text = repr(value[: length + 1] if isinstance(value, str) else value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


@dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
        name: the file's name, for messages.
        rows: column -> value, one dictionary a row. A row may lack a column, as a line of JSON does.
        numbers: of the rows in their file, for messages; default: from 1.
        classes: column -> names of the numbers in it, if the file tells them (a `ClassLabel` of the library datasets).
    """

    name: str
    rows: list[Row]
    numbers: Sequence[int] = ()
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def where(self, position: int, column: str) -> str:
        """The start of a message about a value: file, row and column."""
        number = self.numbers[position] if self.numbers else position + 1
        return f"{self.name}: row {number}: column {column!r}"

    def texts(self, column: str, fix: str = "name another") -> list[str]:
        """A column as text; the empty string for a missing value.

        Args:
            column: its name.
            fix: what to do if a value is no text, for the message.

        Raises:
            UserError: a value is a list, a dictionary or bytes.
        """
        found = [row.get(column) for row in self.rows]
        for position, value in enumerate(found):
            if isinstance(value, list | dict | bytes):
                raise UserError(f"{self.where(position, column)} holds a {type(value).__name__}, expected text; {fix}")
        return ["" if value is None or _is_nan(value) else str(value) for value in found]


def _is_nan(value: Any) -> bool:
    """Whether a value is NaN, a missing number of a parquet file and of some JSON lines."""
    return isinstance(value, float | Decimal) and math.isnan(value)


def read_table(
    path: Path,
    format: str | None = None,
    columns: Sequence[str] | None = None,
    *,
    used: Sequence[str] | None = None,
    max_bytes: int | None = None,
) -> Table:
    """Read a table.

    Args:
        path: the file; a name that ends in `.gz` is decompressed.
        format: one of the values of `FORMATS`; the default is the format that the file's suffix stands for.
        columns: names of the columns, for CSV and TSV files without a header.
        used: the columns that the task uses; default: all of them.
        max_bytes: of the decompressed table, see `compressed.Budget`.

    Raises:
        UserError: the format is unknown, a column is missing or there twice, or the file is empty, damaged, too large,
            or not of its format.
    """
    if path.suffix.lower() in PACKED:
        raise UserError(f"{path.name}: is compressed; unpack it, or compress it by gzip, with a name that ends in .gz")
    if path.suffix.lower() in SHEETS:
        raise UserError(f"{path.name}: is a spreadsheet; save it as csv")
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    format = format or FORMATS.get(name.suffix.lower())
    if format is None:
        raise UserError(
            f"{path.name}: format unknown; add `format:`, one of {', '.join(sorted(set(FORMATS.values())))}"
        )
    budget = Budget(path, max_bytes)
    numbers: list[int] = []
    classes: dict[str, list[str]] = {}
    if format == "parquet":
        rows, names, classes = _parquet(path, used, budget)
    else:
        text = _read_text(path, budget)
        if format in ("csv", "tsv"):
            rows, numbers, names = _separated(path, text, format, columns)
        elif format == "jsonl":
            rows, numbers, names = _json(path, text, used)
        else:
            rows = [{"text": line.rstrip("\n")} for line in io.StringIO(text, newline=None)]
            names = ["text"]
    if not rows:
        raise UserError(f"{path.name}: has no rows; expected a table with at least one")
    _check_columns(path.name, names, used)
    return Table(path.name, rows, numbers, classes)


def _check_columns(name: str, columns: Sequence[str], used: Sequence[str] | None) -> None:
    """Refuse a table that lacks a column which the task uses, or has it twice."""
    counts = Counter(columns)
    for column in counts if used is None else used:
        if not counts[column]:
            known = [shown(known) for known in list(counts)[:20]] + ["..."] * (len(counts) > 20)
            raise UserError(
                f"{name}: no column {column!r}; it has {', '.join(known)}; name its columns by `text`, `text_pair` and "
                "`label`, or correct `format` or `columns`"
            )
        if counts[column] > 1:
            raise UserError(
                f"{name}: has {counts[column]} columns {column!r}; rename them in the file, or give `columns`"
            )


def _read_text(path: Path, budget: Budget) -> str:
    """The text of a file, without its byte order mark."""
    try:
        if path.suffix.lower() == ".gz":
            if opener_of(path) is not gzip.open:
                raise UserError(f"{path.name}: is no gzip file; download it again, or correct its name")
            with Bounded(path, budget) as file:
                data = file.read()
        else:
            data = path.read_bytes()
        if fix := next((fix for beginning, fix in BEGINNINGS.items() if data.startswith(beginning)), None):
            raise UserError(f"{path.name}: {fix}")
        text = data.decode("utf-8-sig")
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and storage_message(error):
            raise
        raise UserError(f"{path.name}: is damaged ({error}); download it again") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{path.name}: holds zero bytes, as UTF-16 does; save the file as UTF-8")
    if not text.strip():
        raise UserError(f"{path.name}: is empty; expected a table with at least one row")
    return text


def _separated(
    path: Path, text: str, format: str, columns: Sequence[str] | None
) -> tuple[list[Row], list[int], list[str]]:
    """The rows of a CSV or TSV file, their numbers and the columns.

    Values stay text: "007" is not 7, and "NA" is not missing. Quotation marks are ordinary characters in a TSV file, as
    in the files of GLUE.
    """
    names = list(columns) if columns is not None else None
    rows: list[Row] = []
    numbers: list[int] = []
    with closing(_csv_lines(path, text) if format == "csv" else _tsv_lines(text)) as lines:
        for number, values in enumerate(lines, start=1):
            if names is None:
                names = values if any(values) else None
                if format == "csv" and len(values) == 1 and ";" in values[0]:
                    raise UserError(f"{path.name}: its columns are parted by `;`; save it with commas, or as tsv")
                continue
            if not values and len(names) > 1:
                continue
            row = values or [""]
            if columns is not None and not rows and row == names:
                raise UserError(f"{path.name}: its first row holds the names in `columns`; remove `columns`")
            if len(row) != len(names):
                raise UserError(
                    f"{path.name}: row {number} has {len(row)} values, expected {len(names)} "
                    f"({', '.join(names) if len(names) <= 20 else '...'}); correct the file, `columns` or `format`"
                )
            rows.append(dict(zip(names, row, strict=True)))
            numbers.append(number)
    return rows, numbers, names or []


def _tsv_lines(text: str) -> Generator[list[str], None, None]:
    """The values of each line of a TSV file."""
    if "\n" not in text:  # as old Macs end lines
        text = text.replace("\r", "\n")
    lines = (line.removesuffix("\r") for line in text.removesuffix("\n").split("\n"))
    return (line.split("\t") if line else [] for line in lines)


def _csv_lines(path: Path, text: str) -> Generator[list[str], None, None]:
    """The values of each record of a CSV file, of any length: the limit of the module csv is 131072 characters."""
    before = csv.field_size_limit(max(len(text), 1))
    done = 0
    try:
        for values in csv.reader(io.StringIO(text, newline=""), strict=True):
            yield values
            done += 1
    except csv.Error as error:
        where = f"row {done + 1}"
        if "end of data" in str(error):
            raise UserError(f"{path.name}: a quotation mark in {where} is never closed; correct the file") from None
        raise UserError(
            f"{path.name}: not readable as csv ({where}: {error}); correct the file, in which a quotation mark within "
            "quotation marks is doubled, or `format`"
        ) from None
    finally:
        csv.field_size_limit(before)


def _json(path: Path, text: str, used: Sequence[str] | None) -> tuple[list[Row], list[int], list[str]]:
    """The rows of a JSON lines file, or of a file that holds one array of rows; their numbers and columns.

    Values stay as they are written. If all columns are used, every row gets all of them.
    """

    def pairs(found: list[tuple[str, Any]]) -> Row:
        row = dict(found)
        if len(row) < len(found):
            names = Counter(name for name, _ in found)
            if twice := [name for name in names if names[name] > 1 and (used is None or name in used)]:
                raise ValueError(f"column {shown(twice[0])} twice in a row")
        return row

    def parsed(line: str, number: int) -> Any:
        try:
            return json.loads(line, object_pairs_hook=pairs)
        except (ValueError, RecursionError) as error:
            why = "too deep" if isinstance(error, RecursionError) else str(error)
            raise UserError(
                f"{path.name}: not readable as jsonl (line {number}: {why}); correct the file or `format`"
            ) from None

    if text.lstrip().startswith("["):
        rows = parsed(text, 1)
        numbers = list(range(1, len(rows) + 1))
    else:
        filled = {number: line for number, line in enumerate(text.split("\n"), start=1) if line.strip()}
        rows, numbers = [parsed(line, number) for number, line in filled.items()], list(filled)
    for number, row in zip(numbers, rows, strict=True):
        if not isinstance(row, dict):
            raise UserError(f"{path.name}: row {number} is {shown(row)}, expected an object with the columns as keys")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return (rows if used is not None else [{name: row.get(name) for name in names} for row in rows]), numbers, names


def _parquet(
    path: Path, used: Sequence[str] | None, budget: Budget
) -> tuple[list[Row], list[str], dict[str, list[str]]]:
    """The rows of a parquet file, its columns, and the names of the numbers in them.

    Rows are read a few at a time: a short file may hold a long text many times.
    """
    import pyarrow
    from pyarrow import parquet

    rows: list[Row] = []
    try:
        with parquet.ParquetFile(path) as file:
            names, classes = file.schema_arrow.names, _classes(file.schema_arrow.metadata or {})
            _check_columns(path.name, names, used)
            for batch in file.iter_batches(BATCH, columns=None if used is None else list(dict.fromkeys(used))):
                whole = [column.dictionary_decode() if _is_dictionary(column) else column for column in batch.columns]
                budget.spend(sum(column.nbytes for column in whole) + POINTER * len(batch))
                rows += pyarrow.RecordBatch.from_arrays(whole, batch.schema.names).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and storage_message(error):
            raise
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path.name}: not readable as parquet ({why}); correct the file or `format`") from None
    return rows, names, classes


def _classes(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Column -> names of the numbers in it, as the library datasets writes them into a parquet file."""
    with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            column: list(map(str, feature["names"]))
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    return {}


def _is_dictionary(column: Any) -> bool:
    """Whether a column is stored as its distinct values and a number for each row."""
    return hasattr(column, "dictionary_decode")


def plain(value: Any) -> str:
    """A date, time or decimal number as text, for JSON.

    Raises:
        UserError: the value has no text form, such as an image.
    """
    if isinstance(value, bytes | Mapping):
        raise UserError(f"a column holds {type(value).__name__}, which is no text; leave it out of the file")
    return str(value)
