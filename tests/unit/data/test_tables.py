"""Tables: formats, and one-line errors for files that are not readable."""

import gzip
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llm_sparsity.data.tables import Row, read_table
from llm_sparsity.jobs.errors import UserError


def rows_of(folder: Path, name: str, content: str | bytes, **options: Any) -> list[Row]:
    """Write a file and read its rows."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(folder / name, **options).rows


def test_parquet(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    pd.DataFrame(rows).to_parquet(tmp_path / "train.parquet")
    assert read_table(tmp_path / "train.parquet").rows == rows


def test_quotation_marks_in_tsv_are_text(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "train.tsv", 'text\tlabel\nhe said " no \t0\nNA\t1\n')
    assert rows == [{"text": 'he said " no ', "label": "0"}, {"text": "NA", "label": "1"}]


def test_csv_and_jsonl(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "train.csv", 'text,label\n"a, b",0\n') == [{"text": "a, b", "label": "0"}]
    assert rows_of(tmp_path, "train.jsonl", '{"text":"d","label":1}\n') == [{"text": "d", "label": 1}]


def test_tables_without_header(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "train.txt", "1\tgood\r\n2\tbad\r\n", format="tsv", columns=["id", "text"])
    assert rows == [{"id": "1", "text": "good"}, {"id": "2", "text": "bad"}]


def test_values_of_csv_and_tsv_stay_text(tmp_path: Path) -> None:
    table = b"\xef\xbb\xbftext\tlabel\r\n007\t0\r\n\r\n1e5\t1\r\n"  # with a byte order mark and an empty line
    assert [row["text"] for row in rows_of(tmp_path, "train.tsv", table)] == ["007", "1e5"]
    table = b'text,label\n"two\nlines ""so""",0\n"",1\nb,1\n'
    assert [row["text"] for row in rows_of(tmp_path, "train.csv", table)] == ['two\nlines "so"', "", "b"]


def test_lines_of_text_keep_blanks(tmp_path: Path) -> None:
    assert [row["text"] for row in rows_of(tmp_path, "test.txt", "one\n\n two \n")] == ["one", "", " two "]


def test_compressed_table(tmp_path: Path) -> None:
    content = gzip.compress(b'{"text": "one", "url": "a"}\n{"text": "two", "url": "b"}\n')
    assert [row["text"] for row in rows_of(tmp_path, "train.json.gz", content)] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("train.json.gz", b"{}", None, "train.json.gz: is no gzip file; download it again"),
        ("train.tsv", b"text\tlabel\ncaf\xe9\t1\n", None, "train.tsv: byte 14 is not UTF-8"),
        ("train.tsv", b"", None, "train.tsv: is empty"),
        ("train.tsv", b"text\tlabel\n", None, "train.tsv: has no rows"),
        (
            "train.tsv",
            b"text\tlabel\na\t1\tb\n",
            None,
            "train.tsv: row 2 has 3 values, expected 2 (text, label); correct the file, `columns` or `format`",
        ),
        ("train.tsv", b"1\ta\t0\n", ["text", "label"], "train.tsv: row 1 has 3 values, expected 2"),
        ("train.parquet", b"PAR1", None, "train.parquet: not readable as parquet"),
        ("train.jsonl", b"{", None, "train.jsonl: not readable as jsonl"),
        ("train.dat", b"x", None, "train.dat: format unknown; add `format:`, one of csv, jsonl, parquet, text, tsv"),
    ],
)
def test_unreadable_file_is_one_line(
    name: str, content: bytes, columns: list[str] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        rows_of(tmp_path, name, content, columns=columns)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
