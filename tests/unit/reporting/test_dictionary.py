"""All tables in one typed file, and the dictionary of their columns, of a MADE UP study."""

import csv
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest

from llm_sparsity.reporting import dictionary, tables
from llm_sparsity.reporting.dictionary import page_table, with_tables, write
from tests.tables import write_tables


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables")
    write_tables(path, ["minilm"], ["magnitude"], sparsities=("0.5", "2of4"), speed=True)
    found = {
        name: tables.frame(name, pd.read_csv(path / f"{name}.csv", dtype=str, keep_default_na=False))
        for name in tables.COLUMNS
    }
    found["history"]["matthews_correlation"] = 0.5
    write(path, found)
    return path


def test_the_file_holds_what_the_tables_hold(folder: Path) -> None:
    study = pd.read_parquet(folder / "study.parquet")
    for name in tables.COLUMNS:
        kinds = {column: str for column in tables.COLUMNS[name] if dictionary.column_type(column) == "text"}
        alone = pd.read_csv(folder / f"{name}.csv", dtype=kinds, keep_default_na=False, na_values=[""])
        mine = study[study.table == name].replace("", None).reset_index(drop=True)
        assert len(mine) == len(alone), name
        for column in alone:
            ours, theirs = (table[column].dropna().astype(kinds.get(column, float)) for table in (mine, alone))
            assert ours.index.tolist() == theirs.index.tolist(), column
            assert ours.tolist() == theirs.tolist(), column


def test_columns_are_typed_and_say_what_they_mean(folder: Path) -> None:
    schema = pyarrow.parquet.read_schema(folder / "study.parquet")
    assert str(schema.field("seed").type) == str(schema.field("bytes").type) == "int64"
    assert str(schema.field("value").type) == "double"
    assert str(schema.field("sparsity").type) == str(schema.field("model").type) == "string"
    assert b"metrics: 0 to 1; correlations from -1; perplexity" in schema.field("value").metadata[b"unit"]
    assert schema.field("peak_memory_bytes").metadata[b"unit"] == b"runs: bytes"
    assert all(field.metadata[b"meaning"] for field in schema)


def test_no_comma_cuts_a_meaning() -> None:
    rows = list(csv.reader(Path(dictionary.__file__).with_suffix(".csv").open()))
    assert {len(row) for row in rows} == {4}


def test_every_column_of_every_table_has_a_row(folder: Path) -> None:
    rows = pd.read_csv(folder / "dictionary.csv", keep_default_na=False)
    assert list(rows) == dictionary.COLUMN
    for name, columns in tables.COLUMNS.items():
        expected = [*columns, *(["matthews_correlation"] if name == "history" else [])]
        assert rows.column[rows.table == name].tolist() == expected, name
    explained = rows[rows.column != "matthews_correlation"]
    assert (explained.meaning != "").all()
    assert not explained.meaning.str.startswith("a metric that tasks of this study have").any()
    assert rows.groupby("column").type.nunique().max() == 1


@pytest.mark.parametrize(
    ("column", "meaning"),
    [
        ("matthews_correlation", "a metric that tasks of this study have, on the validation split"),
        ("macro_f1_mismatched", "a metric that tasks of this study have, on the mismatched split"),
        ("f1_my_split_stderr", "standard error of f1_my_split over the examples, where it is the task's score"),
    ],
)
def test_columns_that_only_some_tasks_have(column: str, meaning: str) -> None:
    assert dictionary._of_a_score(column)[1] == meaning


def test_the_page_says_the_same() -> None:
    page = dictionary.PAGE.read_text()
    assert with_tables(page) == page, "run python -m llm_sparsity.reporting.dictionary"
    for name in tables.COLUMNS:
        assert page_table(name) in page, name
