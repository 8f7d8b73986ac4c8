import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llm_sparsity.data import tasks
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import sha256, write_manifest

ROWS = [{"sentence": f"a film {n}", "label": n % 2} for n in range(20)]


def prepared(folder: Path, tables: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Write tables (a frame as parquet, text as it is) and prepare them."""
    paths = {}
    for name, table in tables.items():
        split, _, suffix = name.partition(".")
        paths[split] = folder / name
        if suffix == "parquet" and not isinstance(table, bytes):
            pd.DataFrame(table).to_parquet(paths[split])
        else:
            paths[split].write_bytes(table if isinstance(table, bytes) else table.encode())
    settings = {"kind": "classification", "text": "sentence", "label": "label"} | settings
    facts = tasks.prepare(paths, folder / "out", **settings)
    write_manifest(folder / "out", kind="task", **facts)
    return facts


def both(table: Any, suffix: str = "parquet") -> dict[str, Any]:
    return {f"train.{suffix}": table, f"validation.{suffix}": table}


def test_parquet_as_the_hub_has_it(tmp_path: Path) -> None:
    facts = prepared(tmp_path, both([{**row, "idx": 1} for row in ROWS]))
    assert facts["rows"] == {"train": 20, "validation": 20}
    assert facts["label_counts"]["train"] == [10, 10]
    examples = tasks.load(tmp_path / "out", "train")
    assert examples.texts[3] == "a film 3"
    assert examples.labels[3] == 1
    assert examples.pairs is None
    assert tasks.label_count(tmp_path / "out") == 2


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    table = 'sentence\tlabel\nhe said " no \t0\nNA\t1\n'
    prepared(tmp_path, both(table, "tsv"))
    assert tasks.load(tmp_path / "out", "train").texts == ['he said " no', "NA"]


def test_csv_jsonl_and_files_without_header(tmp_path: Path) -> None:
    prepared(
        tmp_path, {"train.csv": 'sentence,label\n"a, b",0\nc,1\n', "validation.jsonl": '{"sentence":"d","label":1}\n'}
    )
    assert tasks.load(tmp_path / "out", "train").texts == ["a, b", "c"]
    assert tasks.load(tmp_path / "out", "validation").labels == [1]
    prepared(tmp_path, both("1\tgood\t1\r\n2\tbad\t0\r\n", "tsv"), columns=["id", "sentence", "label"])
    assert tasks.load(tmp_path / "out", "train").labels == [1, 0]


def test_values_are_taken_as_they_are_written(tmp_path: Path) -> None:
    table = b"\xef\xbb\xbfsentence\tlabel\r\n007\t0\r\n\r\n1e5\t1\r\n"  # with byte order mark and an empty line
    prepared(tmp_path, both(table, "tsv"))
    assert tasks.load(tmp_path / "out", "train").texts == ["007", "1e5"]
    prepared(tmp_path, both('sentence,label\n"two\nlines ""so""",0\n"",1\nb,1\n', "csv"))
    assert tasks.load(tmp_path / "out", "train").texts == ['two\nlines "so"', "b"]


def test_labels_may_be_given_by_name(tmp_path: Path) -> None:
    facts = prepared(tmp_path, both("sentence\tlabel\na\tno\nb\tyes\n", "tsv"), labels=["yes", "no"])
    assert tasks.load(tmp_path / "out", "train").labels == [1, 0]
    assert facts["labels"] == ["yes", "no"]


def test_rows_without_text_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [{"sentence": "a", "other": "", "label": 0}, {"sentence": " ", "other": None, "label": 1}]
    rows.append({"sentence": "", "other": "b", "label": 1})
    facts = prepared(tmp_path, both(rows), text_pair="other")
    assert facts["dropped"] == 2  # one in each split
    assert tasks.load(tmp_path / "out", "train").pairs == ["", "b"]


def test_a_rating_becomes_a_label_and_near_neutral_rows_are_counted(tmp_path: Path) -> None:
    table = "sentence\tlabel\na\t2.5\nb\t-0.4\nc\t-3\nd\t0.5\ne\t0\n"
    facts = prepared(tmp_path, both(table, "tsv"), binarize={"threshold": 0.0, "margin": 0.5})
    assert tasks.load(tmp_path / "out", "train").texts == ["a", "c", "d"]
    assert tasks.load(tmp_path / "out", "train").labels == [1, 0, 1]
    assert facts["dropped"] == 4  # two in each split


def test_a_carved_validation_split_is_disjoint_and_fixed(tmp_path: Path) -> None:
    digests = []
    for _ in range(2):
        prepared(tmp_path, {"train.parquet": ROWS}, split={"validation": 5, "seed": 3})
        digests.append(sha256(tmp_path / "out/train.jsonl"))
    train, validation = (set(tasks.load(tmp_path / "out", split).texts) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (15, 5)
    assert not train & validation
    assert digests[0] == digests[1]


def test_pairs_are_balanced_and_labelled_by_equal_labels(tmp_path: Path) -> None:
    settings = {"split": {"validation": 6}, "pairs": {"train": 40, "validation": 10, "seed": 0}}
    facts = prepared(tmp_path, {"train.parquet": ROWS}, **settings)
    assert facts["label_counts"] == {"train": [20, 20], "validation": [5, 5]}
    examples = tasks.load(tmp_path / "out", "train")
    assert examples.pairs is not None
    labels = {row["sentence"]: row["label"] for row in ROWS}
    for first, second, label in zip(examples.texts, examples.pairs, examples.labels, strict=True):
        assert label == int(labels[first] == labels[second])
    held_out = set(tasks.load(tmp_path / "out", "validation").texts)
    assert not held_out & {*examples.texts, *examples.pairs}


def test_pairs_of_the_same_document(tmp_path: Path) -> None:
    rows = [{"sentence": f"{n} {m}", "label": f"{n}_{m}"} for n in range(12) for m in range(3)]
    settings = {"split": {"validation": 9}, "pairs": {"train": 20, "validation": 10, "seed": 0, "group": r"\d+"}}
    facts = prepared(tmp_path, {"train.parquet": rows}, **settings)
    assert facts["label_counts"] == {"train": [10, 10], "validation": [5, 5]}
    documents = {}
    for split in ("train", "validation"):
        examples = tasks.load(tmp_path / "out", split)
        assert examples.pairs is not None
        both = [(a.split()[0], b.split()[0]) for a, b in zip(examples.texts, examples.pairs, strict=True)]
        assert [int(a == b) for a, b in both] == examples.labels
        documents[split] = {name for pair in both for name in pair}
    assert len(documents["validation"]) == 3
    assert not documents["train"] & documents["validation"]


def test_limit_draws_rows(tmp_path: Path) -> None:
    facts = prepared(tmp_path, both(ROWS), limit={"train": 7, "validation": None, "seed": 0})
    assert facts["rows"] == {"train": 7, "validation": 20}


def test_lines_for_language_modelling(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("one\n\n two \n")
    facts = tasks.prepare({"test": tmp_path / "test.txt"}, tmp_path / "out", kind="language-model")
    assert tasks.load_text(tmp_path / "out") == ["one", "", " two "]  # the papers' protocol counts every blank
    assert facts["rows"] == {"test": 3}


def test_a_compressed_table(tmp_path: Path) -> None:
    (tmp_path / "train.json.gz").write_bytes(
        gzip.compress(b'{"text": "one", "url": "a"}\n{"text": "two", "url": "b"}\n')
    )
    tasks.prepare({"train": tmp_path / "train.json.gz"}, tmp_path / "out", kind="language-model")
    assert tasks.load_text(tmp_path / "out", "train") == ["one", "two"]
    (tmp_path / "train.json.gz").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"train.json.gz: is no gzip file; download it again"):
        tasks.prepare({"train": tmp_path / "train.json.gz"}, tmp_path / "out", kind="language-model")


@pytest.mark.parametrize(
    ("tables", "settings", "said"),
    [
        (both(ROWS), {"text": "text"}, r"train.parquet: no column 'text'; it has 'sentence', 'label'"),
        (both(ROWS), {"label": "class"}, r"no column 'class'; it has 'sentence', 'label'"),
        (
            both([{"sentence": "a", "label": None}, {"sentence": "b", "label": 1}]),
            {},
            "column 'label' is empty in a row",
        ),
        (both([{"sentence": "a", "label": -1}]), {}, "column 'label' holds '-1'; expected 0, 1"),
        (both("sentence\tlabel\na\tgood\n", "tsv"), {}, "column 'label' holds 'good'; expected 0, 1"),
        (both([{"sentence": "a", "label": 1}]), {}, "train: all rows have the same label"),
        (both(b"sentence\tlabel\ncaf\xe9\t1\n", "tsv"), {}, "train.tsv: byte 18 is not UTF-8"),
        (both("", "tsv"), {}, "train.tsv: is empty"),
        (
            both("sentence\tlabel\na\t1\tb\n", "tsv"),
            {},
            "train.tsv: row 2 has 3 values, expected 2 (sentence, label); correct the file, `columns` or `format`",
        ),
        (both("1\ta\t0\n", "tsv"), {"columns": ["sentence", "label"]}, "train.tsv: row 1 has 3 values, expected 2"),
        (both([{"sentence": {"a": "b"}, "label": 0}]), {}, "column 'sentence' holds a dict, expected text"),
        (both("sentence\tlabel\na\t1_1\n", "tsv"), {}, "column 'label' holds '1_1'; expected 0, 1"),
        (both([{"sentence": "a", "label": n} for n in (1, 3)]), {}, "train: no row has label 0, but labels go up to 3"),
        (both("sentence\tlabel\na\tbad\n", "tsv"), {"binarize": {}}, "holds 'bad'; expected a number, as `binarize`"),
        (both([{"sentence": "a", "label": 0.2}]), {"binarize": {"margin": 1}}, "train: no rows are left"),
        (both(b"PAR1", "parquet"), {}, "train.parquet: not readable as parquet"),
        (both("sentence\tlabel\n", "tsv"), {}, "train.tsv: has no rows"),
        (both(ROWS), {"labels": ["only"]}, "labels: 1 names given, but the rows hold label 1"),
        ({"train.parquet": ROWS}, {"split": {"validation": 20}}, "split.validation: found 20, but there are 20 rows"),
        (both("x", "dat"), {}, "train.dat: format unknown; add `format:`, one of csv, jsonl, parquet, text, tsv"),
        (both("{", "jsonl"), {}, "train.jsonl: not readable as jsonl"),
    ],
)
def test_a_faulty_table_is_one_line(
    tables: dict[str, Any], settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        prepared(tmp_path, tables, **settings)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    prepared(tmp_path, both(ROWS))
    with pytest.raises(UserError, match=r"no test\.jsonl; the task has no such split"):
        tasks.load(tmp_path / "out", "test")


def test_running_text_is_limited_in_order(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("one\ntwo\nthree\n")
    tasks.prepare({"test": tmp_path / "test.txt"}, tmp_path / "out", kind="language-model", limit={"test": 2})
    assert tasks.load_text(tmp_path / "out") == ["one", "two"]


def test_an_empty_text(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text(" \n\n")
    with pytest.raises(UserError, match=r"test\.txt: is empty"):
        tasks.prepare({"test": tmp_path / "test.txt"}, tmp_path / "out", kind="language-model")


def test_the_real_glue_files(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    sst2 = {split: data / f"sst2/{file}.tsv" for split, file in (("train", "train"), ("validation", "dev"))}
    facts = tasks.prepare(sst2, tmp_path / "sst2", kind="classification", text="sentence", label="label")
    assert facts["rows"] == {"train": 67349, "validation": 872}
    assert facts["label_counts"]["validation"] == [428, 444]
    mrpc = {split: data / f"mrpc/{file}.tsv" for split, file in (("train", "train"), ("validation", "dev"))}
    columns: dict[str, Any] = {"text": "#1 String", "text_pair": "#2 String", "label": "Quality"}
    facts = tasks.prepare(mrpc, tmp_path / "mrpc", kind="classification", **columns)
    assert facts["rows"] == {"train": 3668, "validation": 408}
    assert facts["label_counts"]["validation"] == [129, 279]
    with (tmp_path / "mrpc/train.jsonl").open() as file:
        assert Counter(json.loads(line)["label"] for line in file) == {1: 2474, 0: 1194}
