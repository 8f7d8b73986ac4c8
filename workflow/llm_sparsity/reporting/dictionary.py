"""The data dictionary: type, unit and meaning of every column of a study's tables, and all tables in one parquet file.

    study.parquet    the rows of all tables; `table` says which one a row is of, columns that it does not have are null
    dictionary.csv   one row per table and column; the fields of study.parquet hold units and meanings too

dictionary.csv beside this module is where units and meanings are written; docs/outputs.md repeats them for readers:

    python -m llm_sparsity.reporting.dictionary        writes the tables of that page, in a checkout
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from llm_sparsity.reporting.tables import COLUMNS, INTEGERS, RUN, TEXT, VARIANT, Tables
from llm_sparsity.storage.files import atomic, write_csv
from llm_sparsity.study.sources import SCORES

PAGE = Path(__file__).parents[3] / "docs" / "outputs.md"
CELLS = {"the cell": RUN, "the variant": VARIANT}  # columns that identify a row
IDENTIFYING = "*"  # the table of their meanings
COLUMN = ["table", "column", "type", "unit", "meaning"]


def write(folder: Path, tables: Tables) -> None:
    """Write study.parquet and dictionary.csv of the tables of a study."""
    described = [row for name, table in tables.items() for row in _described(name, list(table))]
    write_csv(folder / "dictionary.csv", described, COLUMN)
    schema = pa.schema([pa.field("table", pa.string(), metadata={"meaning": "name of the table"}), *_fields(described)])
    stacked = []
    for name, table in tables.items():
        spelled = {"sparsity": table.sparsity.astype(str)} if "sparsity" in table else {}
        rows = table.assign(table=name, **spelled).reindex(columns=schema.names)
        stacked.append(pa.Table.from_pandas(rows, schema=schema, preserve_index=False))
    with atomic(folder / "study.parquet") as temporary:
        pyarrow.parquet.write_table(pa.concat_tables(stacked).replace_schema_metadata(None), temporary)


def column_type(column: str) -> str:
    """The type of a column, the same in every table: text, integer or float."""
    if column in TEXT or column == "sparsity":
        return "text"
    return "integer" if column in INTEGERS else "float"


def _described(table: str, columns: list[str]) -> Iterator[dict[str, str]]:
    """The rows of dictionary.csv of a table."""
    known = {
        column: (unit, meaning)
        for name in (IDENTIFYING, table)
        for group, unit, meaning in _meanings(name)
        for column in group
    }
    for column in columns:
        unit, meaning = known.get(column) or _of_a_score(column)
        yield {"table": table, "column": column, "type": column_type(column), "unit": unit, "meaning": meaning}


def _of_a_score(column: str) -> tuple[str, str]:
    """Unit and meaning of a column of a score that only some tasks have, such as f1_mismatched or pearsonr_stderr."""
    if column.endswith("_stderr"):
        return (
            "",
            f"standard error of {column.removesuffix('_stderr')} over the examples, where it is the task's score",
        )
    known = max((name for names in SCORES.values() for name in names if column.startswith(name)), key=len, default="")
    split = column.removeprefix(known).removeprefix("_") if known else ""
    return "-1 to 1", f"a metric that tasks of this study have, on the {split or 'validation'} split"


def _meanings(table: str) -> list[tuple[list[str], str, str]]:
    """Groups of columns of a table, each with unit and meaning."""
    with Path(__file__).with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["table"] == table]
    return [(row["columns"].split(), row["unit"], row["meaning"]) for row in rows]


def _fields(rows: list[dict[str, str]]) -> Iterator[pa.Field]:
    """The fields of study.parquet, with what each column means in the tables that have it."""
    types = {"text": pa.string(), "integer": pa.int64(), "float": pa.float64()}
    for column in dict.fromkeys(row["column"] for row in rows):
        mine = [row for row in rows if row["column"] == column]
        units = {row["table"]: row["unit"] for row in mine if row["unit"]}
        meanings = dict.fromkeys(row["meaning"] for row in mine)
        told = {"unit": "; ".join(f"{table}: {unit}" for table, unit in units.items()), "meaning": "; ".join(meanings)}
        yield pa.field(column, types[mine[0]["type"]], metadata={key: value for key, value in told.items() if value})


def page_table(table: str) -> str:
    """The table of docs/outputs.md that explains the columns of a table."""
    lines = ["| column | unit | meaning |", "|---|---|---|"]
    for name, cell in CELLS.items():
        if COLUMNS[table][: len(cell)] == cell:
            lines.append(f"| {_spelled(cell)} | | {name} |")
            break
    lines += [
        f"| {_spelled(group)} | {unit}{' ' * bool(unit)}| {meaning} |" for group, unit, meaning in _meanings(table)
    ]
    return "\n".join(lines)


def _spelled(columns: list[str]) -> str:
    return ", ".join(f"`{column}`" for column in columns)


def with_tables(page: str) -> str:
    """docs/outputs.md with the tables of this module in their sections."""
    for table in COLUMNS:
        section = re.compile(rf"(^### {table}\.csv\n.*?)^\| column \|.*?(?=\n\n)", re.MULTILINE | re.DOTALL)
        if found := section.search(page):
            page = page[: found.end(1)] + page_table(table) + page[found.end() :]
    return page


def main() -> None:
    """Write the tables of the page."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
