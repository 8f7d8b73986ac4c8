"""Preparation: labels, ratings, pairs, splits and limits."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from llm_sparsity.data import preparation
from llm_sparsity.data.preparation import TaskSettings, prepare
from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import sha256, write_manifest

ROWS = [{"sentence": f"a film {n}", "label": n % 2} for n in range(20)]


def prepared(folder: Path, tables: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Write tables (rows as parquet, text and bytes unchanged) and prepare them."""
    paths = {}
    for name, table in tables.items():
        split, _, suffix = name.partition(".")
        paths[split] = folder / name
        if suffix == "parquet" and not isinstance(table, bytes):
            pd.DataFrame(table).to_parquet(paths[split])
        else:
            paths[split].write_bytes(table if isinstance(table, bytes) else table.encode())
    settings = {"kind": "classification", "text": "sentence", "label": "label"} | settings
    facts = prepare(paths, folder / "out", TaskSettings(**settings))
    write_manifest(folder / "out", kind="task", **facts)
    return facts


REGRESSION = {"kind": "regression"}


def both(table: Any, suffix: str = "parquet") -> dict[str, Any]:
    return {f"train.{suffix}": table, f"validation.{suffix}": table}


def test_parquet(tmp_path: Path) -> None:
    facts = prepared(tmp_path, both([{**row, "idx": 1} for row in ROWS]))
    assert facts["rows"] == {"train": 20, "validation": 20}
    assert facts["label_counts"]["train"] == [10, 10]
    examples = TaskFolder(tmp_path / "out").examples("train")
    assert examples.texts[3] == "a film 3"
    assert examples.labels[3] == 1
    assert examples.pairs is None
    assert TaskFolder(tmp_path / "out").num_labels == 2


def test_labels_by_name(tmp_path: Path) -> None:
    facts = prepared(tmp_path, both("sentence\tlabel\na\tno\nb\tyes\n", "tsv"), labels=["yes", "no"])
    assert TaskFolder(tmp_path / "out").examples("train").labels == [1, 0]
    assert facts["labels"] == ["yes", "no"]


def test_rows_without_text_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [{"sentence": "a", "other": "", "label": 0}, {"sentence": " ", "other": None, "label": 1}]
    rows.append({"sentence": "", "other": "b", "label": 1})
    facts = prepared(tmp_path, both(rows), text_pair="other")
    assert facts["dropped"] == 2  # one in each split
    assert TaskFolder(tmp_path / "out").examples("train").pairs == ["", "b"]


def test_ratings_become_labels_and_rows_inside_the_margin_are_counted(tmp_path: Path) -> None:
    table = "sentence\tlabel\na\t2.5\nb\t-0.4\nc\t-3\nd\t0.5\ne\t0\n"
    facts = prepared(tmp_path, both(table, "tsv"), binarize={"threshold": 0.0, "margin": 0.5})
    assert TaskFolder(tmp_path / "out").examples("train").texts == ["a", "c", "d"]
    assert TaskFolder(tmp_path / "out").examples("train").labels == [1, 0, 1]
    assert facts["dropped"] == 4  # two in each split


def test_carved_validation_split_is_disjoint_and_reproducible(tmp_path: Path) -> None:
    digests = []
    for _ in range(2):
        prepared(tmp_path, {"train.parquet": ROWS}, split={"validation": 5, "seed": 3})
        digests.append(sha256(tmp_path / "out/train.jsonl"))
    train, validation = (set(TaskFolder(tmp_path / "out").examples(split).texts) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (15, 5)
    assert not train & validation
    assert digests[0] == digests[1]


def test_pairs_are_balanced_and_labelled_by_equal_labels(tmp_path: Path) -> None:
    settings = {"split": {"validation": 6}, "pairs": {"train": 40, "validation": 10, "seed": 0}}
    facts = prepared(tmp_path, {"train.parquet": ROWS}, **settings)
    assert facts["label_counts"] == {"train": [20, 20], "validation": [5, 5]}
    examples = TaskFolder(tmp_path / "out").examples("train")
    assert examples.pairs is not None
    labels = {row["sentence"]: row["label"] for row in ROWS}
    for first, second, label in zip(examples.texts, examples.pairs, examples.labels, strict=True):
        assert label == int(labels[first] == labels[second])
    held_out = set(TaskFolder(tmp_path / "out").examples("validation").texts)
    assert not held_out & {*examples.texts, *examples.pairs}


def test_pairs_of_the_same_document(tmp_path: Path) -> None:
    rows = [{"sentence": f"{n} {m}", "label": f"{n}_{m}"} for n in range(12) for m in range(3)]
    settings = {"split": {"validation": 9}, "pairs": {"train": 20, "validation": 10, "seed": 0, "group": r"\d+"}}
    facts = prepared(tmp_path, {"train.parquet": rows}, **settings)
    assert facts["label_counts"] == {"train": [10, 10], "validation": [5, 5]}
    documents = {}
    for split in ("train", "validation"):
        examples = TaskFolder(tmp_path / "out").examples(split)
        assert examples.pairs is not None
        both = [(a.split()[0], b.split()[0]) for a, b in zip(examples.texts, examples.pairs, strict=True)]
        assert [int(a == b) for a, b in both] == examples.labels
        documents[split] = {name for pair in both for name in pair}
    assert len(documents["validation"]) == 3
    assert not documents["train"] & documents["validation"]


def test_many_groups_are_counted_once() -> None:
    class Label(str):
        """Counts how often it is compared or looked up."""

        looked_up = 0

        def __hash__(self) -> int:
            Label.looked_up += 1
            return super().__hash__()

    rows = [{"label": Label(number // 2)} for number in range(2000)]
    found = preparation._carved(rows, 999, whole_groups=True)
    assert len(found["validation"]) == 1000 and len(found["train"]) == 1000
    assert Label.looked_up < 10 * len(rows)


def test_numbers_of_a_regression(tmp_path: Path) -> None:
    rows = [{"sentence": f"a film {n}", "label": n / 4} for n in range(20)]
    more = {"other.parquet": rows[:3]}
    facts = prepared(tmp_path, {**both(rows), **more}, kind="regression", score="pearsonr", limit={"train": 9})
    assert facts == {
        "task": "regression", "rows": {"train": 9, "validation": 20, "other": 3}, "dropped": 0, "score": "pearsonr",
    }  # fmt: skip
    task = TaskFolder(tmp_path / "out")
    assert task.examples("validation").labels == [n / 4 for n in range(20)]
    assert (task.num_labels, task.score, task.splits) == (1, "pearsonr", ["train", "validation", "other"])


def test_a_score_that_is_not_named_is_accuracy_and_no_fact(tmp_path: Path) -> None:
    assert "score" not in prepared(tmp_path, both(ROWS))
    assert TaskFolder(tmp_path / "out").score == "accuracy"


def test_limit_draws_rows(tmp_path: Path) -> None:
    facts = prepared(tmp_path, both(ROWS), limit={"train": 7, "validation": None, "seed": 0})
    assert facts["rows"] == {"train": 7, "validation": 20}


def test_lines_of_running_text(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("one\n\n two \n")
    facts = prepare({"test": tmp_path / "test.txt"}, tmp_path / "out", TaskSettings(kind="language-model"))
    assert TaskFolder(tmp_path / "out").texts("test") == ["one", "", " two "]  # the papers' protocol counts every blank
    assert facts["rows"] == {"test": 3}


@pytest.mark.parametrize(
    ("tables", "settings", "message"),
    [
        (both(ROWS), {"text": "text"}, "no column 'text'; it has 'sentence', 'label'; name its columns by `text`"),
        (both(ROWS), {"label": "class"}, r"no column 'class'; it has 'sentence', 'label'"),
        (
            both([{"sentence": "a", "label": None}, {"sentence": "b", "label": 1}]),
            {},
            "train.parquet: row 1: column 'label' is empty",
        ),
        (both([{"sentence": "a", "label": -1}]), {}, "column 'label' holds '-1'; expected 0, 1"),
        (both("sentence\tlabel\na\tgood\n", "tsv"), {}, "column 'label' holds 'good'; expected 0, 1"),
        (both([{"sentence": "a", "label": 1}]), {}, "train: all rows have the same label"),
        (both([{"sentence": {"a": "b"}, "label": 0}]), {}, "column 'sentence' holds a dict, expected text"),
        (both([{"sentence": "a", "label": ["x"]}]), {}, "a list, expected text; a row has one label, so write"),
        (both("sentence\tlabel\na\t1_1\n", "tsv"), {}, "column 'label' holds '1_1'; expected 0, 1"),
        (both([{"sentence": "a", "label": n} for n in (1, 3)]), {}, "train: no row has label 0, but labels go up to 3"),
        (both("sentence\tlabel\na\tbad\n", "tsv"), {"binarize": {}}, "holds 'bad'; expected a number, as `binarize`"),
        (both([{"sentence": "a", "label": 0.2}]), {"binarize": {"margin": 1}}, "train: no rows are left"),
        (
            both("sentence\tlabel\na\t1\nb\t0\n", "tsv"),
            {"labels": ["1", "2"]},
            "row 3: column 'label' holds '0', which is",
        ),
        (
            both("sentence\tlabel\na\t0\nb\t1700000000\n", "tsv"),
            {},
            "train: no row has label 1, but labels go up to 17000",
        ),
        (
            both("sentence\tlabel\na\t0\nb\t1e999999999\n", "tsv"),
            {},
            "column 'label' holds '1e999999999'; expected 0, 1",
        ),
        (
            {"train.parquet": [{"sentence": str(n), "label": "a" * 40 + "!"} for n in range(9)]},
            {"split": {"validation": 4}, "pairs": {"train": 4, "validation": 4, "group": "(a|aa)+$"}},
            "which pairs.group '(a|aa)+$' takes too long to match; simplify it",
        ),
        (
            {"train.parquet": ROWS},
            {"split": {"validation": 4}, "pairs": {"train": 4, "validation": 4, "group": "("}},
            "pairs.group: found '(', no regular expression",
        ),
        (
            {"train.parquet": [{"sentence": str(n), "label": f"x{n % 2}"} for n in range(9)]},
            {"split": {"validation": 4}, "pairs": {"train": 4, "validation": 4, "group": "x"}},
            "split.validation: found 4, but whole groups leave no row for train",
        ),
        (both("sentence\tlabel\na\thigh\n", "tsv"), REGRESSION, "column 'label' holds 'high'; expected a number"),
        (both("sentence\tlabel\na\tNaN\n", "tsv"), REGRESSION, "column 'label' holds 'NaN'; expected a number, as the"),
        (both("sentence\tlabel\na\t-inf\n", "tsv"), REGRESSION, "column 'label' holds '-inf'; expected a number"),
        (both("sentence\tlabel\na\t1e999\n", "tsv"), REGRESSION, "column 'label' holds '1e999'; expected a number"),
        (both("sentence\tlabel\na\ttrue\n", "tsv"), REGRESSION, "column 'label' holds 'true'; expected a number"),
        (both([{"sentence": "a", "label": x} for x in (1.5, float("nan"))]), REGRESSION, "row 2: column"),
        (both([{"sentence": "a", "label": 2.5}]), REGRESSION, "train: all rows have the same label; there is nothing"),
        (both([{"sentence": "a", "label": n} for n in range(3)]), {"score": "f1"}, "score: f1 is for two labels, but"),
        (both('{"sentence": "a\\ud800", "label": 1}\n{"sentence": "b", "label": 0}', "jsonl"), {}, "half a character"),
        (both(ROWS), {"labels": ["only"]}, "labels: 1 names given, but the rows hold label 1"),
        (
            both([{"sentence": "a", "label": n} for n in (1, 2)]),
            {"labels": ["bad", "good"]},
            "labels: 2 names given, of the labels 0 to 1, but the rows count from 1 to 2, and none is 'bad'; number",
        ),
        ({"train.parquet": ROWS}, {"split": {"validation": 20}}, "split.validation: found 20, but there are 20 rows"),
        (  # there may be a 4, which these rows lack
            both([{"sentence": "a", "label": n} for n in (1, 2, 3)]),
            {"labels": ["World", "Sports", "Business", "Sci"]},
            "but the rows count from 1 to 3, and none is 'World'; number",
        ),
        (
            both([{"sentence": str(n), "label": f"{'x' * (n % 2)}{n}"} for n in range(9)]),
            {"pairs": {"train": 4, "validation": 4, "group": "x*"}},
            "row 1: column 'label' holds '0', in which pairs.group 'x*' finds nothing",
        ),
        (
            both('{"sentence": "a", "label": 1}\n\n\n{"sentence": "b", "label": "x"}\n', "jsonl"),
            {},
            "jsonl: row 4: column",
        ),
        (both("sentence,label\n\na,1\n\nb,x\n", "csv"), {}, "csv: row 5: column"),
        (both([{"sentence": "a", "label": 1e39}]), REGRESSION, "holds '1e+39'; expected a number below 1e+18 in size"),
    ],
)
def test_faulty_rows_are_one_line(
    tables: dict[str, Any], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        prepared(tmp_path, tables, **settings)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_not_a_number_is_missing_as_null_is(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"sentence": NaN, "label": 1}\n{"sentence": "a", "label": 1}\n' * 2)
    (tmp_path / "validation.jsonl").write_text('{"sentence": "b", "label": 0}\n{"sentence": null, "label": 1}\n')
    tables = {split: tmp_path / f"{split}.jsonl" for split in ("train", "validation")}
    settings = TaskSettings(kind="classification", text="sentence", label="label", labels=["x", "y"])
    with pytest.raises(UserError, match="train: all rows have the same label"):
        prepare(tables, tmp_path / "out", settings)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"sentence": "c", "label": 0}\n')
    facts = prepare(tables, tmp_path / "out", settings)
    assert (facts["rows"], facts["dropped"]) == ({"train": 3, "validation": 1}, 3)
    (tmp_path / "train.jsonl").write_text('{"sentence": "a", "label": NaN}\n')
    with pytest.raises(UserError, match="column 'label' is empty; every row needs a label"):
        prepare(tables, tmp_path / "out", settings)


def test_a_rating_at_the_margin_is_kept(tmp_path: Path) -> None:
    """In decimal arithmetic: 0.6 - 0.5 is less than 0.1 in binary."""
    rows = [{"sentence": "a", "label": label} for label in (0.4, 0.45, 0.6, 0.55, 0.9)]
    facts = prepared(tmp_path, both(rows), binarize={"threshold": 0.5, "margin": 0.1})
    assert facts["label_counts"]["train"] == [1, 2]


@pytest.mark.parametrize("settings", [{"kind": "regression"}, {"binarize": {"threshold": 0.5}}])
def test_ratings_that_are_all_the_same_are_not_scored(settings: dict[str, Any], tmp_path: Path) -> None:
    tables = both([{"sentence": "a", "label": label} for label in (0.1, 0.7)])
    tables["test.parquet"] = [{"sentence": "a", "label": -1}] * 2
    with pytest.raises(UserError, match=r"^test.parquet: column 'label' holds '-1.*' in every row, so "):
        prepared(tmp_path, tables, **settings)


def test_running_text_is_limited_in_order(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("one\ntwo\nthree\n")
    prepare({"test": tmp_path / "test.txt"}, tmp_path / "out", TaskSettings(kind="language-model", limit={"test": 2}))
    assert TaskFolder(tmp_path / "out").texts("test") == ["one", "two"]


def test_pairs_without_labels(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("a\tb\none\ttwo\nthree\t\n")
    settings = TaskSettings(kind="language-model", text="a", text_pair="b")
    facts = prepare({"train": tmp_path / "train.tsv"}, tmp_path / "out", settings)
    assert facts["rows"] == {"train": 2}
    rows = TaskFolder(tmp_path / "out").rows("train")
    assert rows == [{"text": "one", "text_pair": "two"}, {"text": "three", "text_pair": ""}]


def test_empty_text(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text(" \n\n")
    with pytest.raises(UserError, match=r"test\.txt: is empty"):
        prepare({"test": tmp_path / "test.txt"}, tmp_path / "out", TaskSettings(kind="language-model"))


def test_the_real_glue_files(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    sst2 = {split: data / f"sst2/{file}.tsv" for split, file in (("train", "train"), ("validation", "dev"))}
    facts = prepare(sst2, tmp_path / "sst2", TaskSettings(kind="classification", text="sentence", label="label"))
    assert facts["rows"] == {"train": 67349, "validation": 872}
    assert facts["label_counts"]["validation"] == [428, 444]
    mrpc = {split: data / f"mrpc/{file}.tsv" for split, file in (("train", "train"), ("validation", "dev"))}
    columns: dict[str, Any] = {"text": "#1 String", "text_pair": "#2 String", "label": "Quality"}
    facts = prepare(mrpc, tmp_path / "mrpc", TaskSettings(kind="classification", **columns))
    assert facts["rows"] == {"train": 3668, "validation": 408}
    assert facts["label_counts"]["validation"] == [129, 279]
    with (tmp_path / "mrpc/train.jsonl").open() as file:
        assert Counter(json.loads(line)["label"] for line in file) == {1: 2474, 0: 1194}


@pytest.mark.parametrize(
    ("values", "names", "labels"),
    [
        (["1", "2", "3"], ["1", "2", "3"], [0, 1, 2]),
        (["1", "0"], ["1", "0"], [0, 1]),
        (["2.0", "1.0"], ["1", "2"], [1, 0]),
        (["9007199254740993", "9007199254740992"], ["9007199254740992", "9007199254740993"], [1, 0]),
        (["1700000000", "0"], ["0", "1700000000"], [1, 0]),
        (["-1", "1"], ["-1", "1"], [0, 1]),
        (["1999", "2020"], ["1999", "2020"], [0, 1]),
        (["nan", "inf"], ["nan", "inf"], [0, 1]),
        (["0", "1", "good"], ["bad", "good"], [0, 1, 1]),
        (["True", "False"], ["False", "True"], [1, 0]),
        (["caf\u00e9", "cafe\u0301", "th\u00e9"], ["cafe\u0301", "th\u00e9"], [0, 0, 1]),
        (["True", "false"], None, [1, 0]),
        (["0", "1.0", "-0.0", "2e0"], None, [0, 1, 0, 2]),
    ],
)
def test_a_name_wins_over_a_number(
    values: list[str], names: list[str] | None, labels: list[int], tmp_path: Path
) -> None:
    table = "sentence\tlabel\n" + "".join(f"a\t{value}\n" for value in values)
    facts = prepared(tmp_path, both(table, "tsv"), labels=names)
    assert TaskFolder(tmp_path / "out").examples("train").labels == labels
    assert names is None or facts["labels"] == names


def test_pairs_of_rows_with_any_labels(tmp_path: Path) -> None:
    """The labels of the rows are only compared; `labels` names those of the pairs."""
    rows = [{"sentence": f"{n}", "label": ["sports", "3", "1e9"][n % 3]} for n in range(30)]
    settings = {"split": {"validation": 9}, "pairs": {"train": 20, "validation": 10}, "labels": ["0", "1"]}
    prepared(tmp_path, {"train.parquet": rows}, **settings)
    examples = TaskFolder(tmp_path / "out").examples("train")
    assert examples.pairs is not None
    same = [int(int(a) % 3 == int(b) % 3) for a, b in zip(examples.texts, examples.pairs, strict=True)]
    assert same == examples.labels


def test_separator_is_a_fact_of_the_task(tmp_path: Path) -> None:
    rows = [{"sentence": "a", "other": "b", "label": n} for n in (0, 1)]
    assert "separator" not in prepared(tmp_path, both(rows), text_pair="other")
    before = (tmp_path / "out/train.jsonl").read_bytes()
    assert prepared(tmp_path, both(rows), text_pair="other", separator="\n")["separator"] == "\n"
    assert (tmp_path / "out/train.jsonl").read_bytes() == before


def test_running_text_whose_first_lines_are_empty(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("\n \nthree\n")
    settings = TaskSettings(kind="language-model", limit={"test": 2})
    with pytest.raises(UserError, match=r"test\.txt: has no text in its first 2 rows \(limit\.test\)"):
        prepare({"test": tmp_path / "test.txt"}, tmp_path / "out", settings)


def test_dates_of_a_zero_shot_task_are_text(tmp_path: Path) -> None:
    pd.DataFrame({"day": pd.to_datetime(["2021-03-04"]), "x": [1]}).to_parquet(tmp_path / "test.parquet")
    prepare({"test": tmp_path / "test.parquet"}, tmp_path / "out", TaskSettings(kind="zero-shot"))
    assert TaskFolder(tmp_path / "out").rows("test") == [{"day": "2021-03-04 00:00:00", "x": 1}]
    pd.DataFrame({"image": [b"x"]}).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(UserError, match="a column holds bytes, which is no text; leave it out of the file"):
        prepare({"test": tmp_path / "test.parquet"}, tmp_path / "out", TaskSettings(kind="zero-shot"))


def test_numbers_that_the_file_itself_names(tmp_path: Path) -> None:
    """A file of the library datasets says what its numbers stand for; `labels` may have another order, and case."""
    named = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "maybe", "yes"])}
    )
    rows = {"sentence": ["a", "b", "c"], "label": [0, 1, 2]}
    datasets.Dataset.from_dict(rows, features=named).to_parquet(tmp_path / "rows.parquet")
    tables = both((tmp_path / "rows.parquet").read_bytes())
    for labels, expected in (
        (["Yes", "no", "maybe"], [1, 2, 0]),
        (["no", "maybe", "yes"], [0, 1, 2]),
        (None, [0, 1, 2]),
    ):
        facts = prepared(tmp_path, tables, labels=labels)
        assert TaskFolder(tmp_path / "out").examples("train").labels == expected
        assert facts["labels"] == (labels or ["0", "1", "2"])
    prepared(tmp_path, tables, labels=["bad", "fair", "good"])  # other words for the same numbers
    assert TaskFolder(tmp_path / "out").examples("train").labels == [0, 1, 2]


@pytest.mark.parametrize(
    ("labels", "values", "expected"),
    [
        (["true", "false"], [0, 1], [0, 1]),  # the numbers of these names
        (["true", "false"], ["true", "false"], [0, 1]),
        (["true", "false"], [True, False], [0, 1]),
        (["False", "True"], ["true", "false"], [1, 0]),
        (["false", "mixture", "true"], [0, 1, 2], [0, 1, 2]),
        (["no", "yes"], [True, False], [1, 0]),
        (["0", "1"], [True, False], [1, 0]),
    ],
)
def test_true_and_false(labels: list[str], values: list[Any], expected: list[int], tmp_path: Path) -> None:
    rows = [{"sentence": str(number), "label": value} for number, value in enumerate(values)]
    prepared(tmp_path, both(rows), labels=labels)
    assert TaskFolder(tmp_path / "out").examples("train").labels == expected


def test_rows_of_a_pair_have_a_label_in_common_as_it_is_written(tmp_path: Path) -> None:
    rows = "sentence\tlabel\na\t007\nb\t7\nc\t007\nd\tx\n"
    prepared(tmp_path, both(rows, "tsv"), pairs={"train": 40, "validation": 40})
    found = TaskFolder(tmp_path / "out").examples("train")
    equal = {
        frozenset(pair) for *pair, label in zip(found.texts, found.pairs or [], found.labels, strict=True) if label
    }
    assert equal == {frozenset("ac")}
