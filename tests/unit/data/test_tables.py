"""Tables: formats, and one-line errors for files that are not readable."""

import csv
import gzip
import json
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
    """In every format, so that perplexity does not depend on it. An empty line of several columns is no row."""
    texts = ["one", "", " two ", ""]
    for name in ("test.csv", "test.tsv"):
        assert [row["text"] for row in rows_of(tmp_path, name, "text\none\n\n two \n\n")] == texts
    assert [row["text"] for row in rows_of(tmp_path, "test.csv", 'id,text\n1,one\n\n,""\n')] == ["one", ""]
    assert rows_of(tmp_path, "test.csv", 'text\none\n""\n') == [{"text": "one"}, {"text": ""}]
    assert [row["text"] for row in rows_of(tmp_path, "test.txt", "one\n\n two \n")] == ["one", "", " two "]


def test_compressed_table(tmp_path: Path) -> None:
    content = gzip.compress(b'{"text": "one", "url": "a"}\n{"text": "two", "url": "b"}\n', mtime=0)
    for name in ("train.json.gz", "train.JSON.GZ"):
        assert [row["text"] for row in rows_of(tmp_path, name, content)] == ["one", "two"]


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
        (
            "train.jsonl",
            b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            None,
            "readable as jsonl (line 1: too deep)",
        ),
        (
            "train.jsonl",
            b'{"a": 1}\n[2]\n',
            None,
            "train.jsonl: row 2 is [2], expected an object with the columns as keys",
        ),
        ("train.jsonl", b'{"a": 1, "a": 2}', None, "column 'a' twice in a row"),
        ("train.jsonl", b'{"a": ' + b"9" * 5000 + b"}", None, "not readable as jsonl (line 1: Exceeds the limit"),
        ("train.csv", b'a,b\n1,2\n3,"4\n5,6\n', None, "train.csv: a quotation mark in row 3 is never closed"),
        (
            "train.csv",
            b'a,b\nx,0\n"Good, he said,1\nplain one,0\n"Fine" she said,0\n',
            None,
            "train.csv: not readable as csv (row 3: ',' expected after '\"'); correct the file, in which a",
        ),
        ("train.csv", b"text,label\n\n\ngood\n", None, "train.csv: row 4 has 1 values"),
        ("train.csv", b"text,label\na,1\n", ["text", "label"], "its first row holds the names in `columns`; remove"),
        ("train.txt", "good film\n".encode("utf-16-le"), None, "train.txt: holds zero bytes, as UTF-16 does; save the"),
        ("train.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:a\n", None, "is a pointer of Git LFS"),
        (
            "train.csv",
            gzip.compress(b"a,b\n", mtime=0),
            None,
            "train.csv: is compressed by gzip; give it a name that ends in",
        ),
        ("train.csv", b"PK\3\4\x14\0\6\0", None, "train.csv: is a zip archive or a spreadsheet; unpack it, or save"),
        ("train.xlsx", b"PK\3\4\x14\0\6\0", None, "train.xlsx: is a spreadsheet; save it as csv"),
        ("train.csv", b"text;label\na, b;1\n", None, "train.csv: its columns are parted by `;`; save it with"),
        ("train.csv", b"a,b,a\n1,2,3\n", None, "train.csv: has 2 columns 'a'; rename them"),
        (
            "train.csv.gz",
            gzip.compress(b"a\n1\n" * 99, mtime=0)[:-9],
            None,
            "train.csv.gz: is damaged (Compressed file ended",
        ),
        ("train.csv.gz", gzip.compress(b"a\n1\n" * 99, mtime=0)[:12] + b"\xff" * 30, None, "train.csv.gz: is damaged"),
        ("train.parquet", b"PAR1" + bytes(range(200)) + b"PAR1", None, "train.parquet: not readable as parquet"),
        (
            "train.csv.bz2",
            b"BZh9",
            None,
            "train.csv.bz2: is compressed; unpack it, or compress it by gzip, with a name",
        ),
        ("train.tsv.ZIP", b"PK", ["a"], "train.tsv.ZIP: is compressed; unpack it"),
        ("train.dat", b"x", None, "train.dat: format unknown; add `format:`, one of csv, jsonl, parquet, text, tsv"),
    ],
)
def test_unreadable_file_is_one_line(
    name: str, content: bytes, columns: list[str] | None, message: str, tmp_path: Path
) -> None:
    limit = csv.field_size_limit()
    with pytest.raises(UserError) as error:
        rows_of(tmp_path, name, content, columns=columns)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert csv.field_size_limit() == limit, "other readers of csv have it too"


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.csv.gz", "train.jsonl"])
def test_a_field_may_have_any_length(name: str, tmp_path: Path) -> None:
    """The module csv refuses fields above 131072 characters by default."""
    document = "word " * 60_000
    content = {"tsv": f"text\tlabel\n{document}\t1\n", "jsonl": json.dumps({"text": document, "label": "1"})}
    data = content.get(name.partition(".")[2], f'text,label\n"{document}",1\n').encode()
    rows = rows_of(tmp_path, name, gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    assert rows == [{"text": document, "label": "1"}]


def test_only_used_columns_have_to_be_sound(tmp_path: Path) -> None:
    """The other columns change their type, hold objects, are missing, or are there twice."""
    lines = ['{"text": "2021-03-04", "other": null}', '{"text": "12:00", "other": {"a": 1}}', '{"text": "a", "x": []}']
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    assert read_table(tmp_path / "train.jsonl", used=["text"]).texts("text") == ["2021-03-04", "12:00", "a"]
    (tmp_path / "train.json").write_text(f"[{', '.join(lines)}]")
    assert read_table(tmp_path / "train.json", used=["text"]).texts("text") == ["2021-03-04", "12:00", "a"]
    (tmp_path / "train.csv").write_text("text,x,x\na,1,2\n")
    assert read_table(tmp_path / "train.csv", used=["text"]).texts("text") == ["a"]
    with pytest.raises(UserError, match=r"train\.csv: has 2 columns 'x'"):
        read_table(tmp_path / "train.csv", used=["text", "x"])


def test_all_columns_of_json_lines_are_in_every_row(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "train.jsonl", '{"a": "2021-03-04"}\n{"b": 1.5, "a": null}\n') == [
        {"a": "2021-03-04", "b": None},
        {"a": None, "b": 1.5},
    ]


def test_dates_and_categories_of_parquet_are_text(tmp_path: Path) -> None:
    days = pd.to_datetime(["2021-03-04", "1999-12-31"])
    table = pd.DataFrame({"day": days.date, "time": days, "word": pd.Categorical(["a", "b"]), "list": [[1], [2]]})
    table.to_parquet(tmp_path / "train.parquet")
    found = read_table(tmp_path / "train.parquet", used=["day", "time", "word"])
    assert found.texts("day") == ["2021-03-04", "1999-12-31"]
    assert found.texts("time") == ["2021-03-04 00:00:00", "1999-12-31 00:00:00"]
    assert found.texts("word") == ["a", "b"]


@pytest.mark.slow
def test_small_file_that_holds_a_large_table(tmp_path: Path) -> None:
    """A text repeated 300 times is a few kilobytes of parquet, and of gzip."""
    text = "a" * 1_000_000
    for values in ([text] * 300, pd.Categorical([text] * 300)):
        pd.DataFrame({"text": values}).to_parquet(tmp_path / "bomb.parquet")
        assert (tmp_path / "bomb.parquet").stat().st_size < 4_000_000
        with pytest.raises(
            UserError, match=r"bomb\.parquet: holds more than 268435456 bytes once .* source\.max_bytes"
        ):
            read_table(tmp_path / "bomb.parquet")
    with gzip.open(tmp_path / "bomb.txt.gz", "wb") as file:
        for _ in range(300):
            file.write(b"a" * 999_999 + b"\n")
    with pytest.raises(UserError, match=r"bomb\.txt\.gz: holds more than 268435456 bytes"):
        read_table(tmp_path / "bomb.txt.gz")
    assert len(read_table(tmp_path / "bomb.txt.gz", max_bytes=300_000_000).rows) == 300


def test_messages_are_short(tmp_path: Path) -> None:
    header = ",".join(f"column {number}" for number in range(100_000))
    (tmp_path / "wide.csv").write_text(f"{header}\n{header}\n")
    with pytest.raises(UserError, match=r"no column 'text'; it has 'column 0', ") as error:
        read_table(tmp_path / "wide.csv", used=["text"])
    assert len(str(error.value)) < 1000


def test_lines_that_end_as_on_old_macs(tmp_path: Path) -> None:
    for name in ("train.tsv", "train.csv"):
        parted = b"text\tlabel\rgood\t1\r" if name == "train.tsv" else b"text,label\rgood,1\r"
        assert rows_of(tmp_path, name, parted) == [{"text": "good", "label": "1"}]
