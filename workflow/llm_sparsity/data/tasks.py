"""Tasks: rows of any table become labelled sentences, one `{split}.jsonl` a split.

Prepared once, when a task is downloaded: {"text": ..., "text_pair": ..., "label": 0} a line; {"text": ...} for
language modelling, as the source has it, blanks and all; all columns of a zero-shot task, which the harness reads.
Every draw is from `random.Random(seed)`, so the same source gives the same bytes everywhere.
"""

import csv
import gzip
import io
import json
import logging
import math
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import read_manifest, write_text

FORMATS = {
    ".parquet": "parquet", ".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".txt": "text",
    ".raw": "text",
}  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class Examples:
    """A split of a classification task."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[int]


class TaskFolder:
    """The folder of a prepared task, read once and passed on in place of its path.

    Args:
        path: a folder that `prepare` has filled.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The folder's own name, for messages."""
        return self.path.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What manifest.json holds.

        Raises:
            UserError: there is none, so the task has not been downloaded.
        """
        return read_manifest(self.path)

    @property
    def num_labels(self) -> int:
        """The number of labels of a classification task."""
        return len(self.manifest["labels"])

    def rows(self, split: str) -> list[Row]:
        """The rows of a split, of a task of any kind.

        Raises:
            UserError: the task has no such split.
        """
        try:
            with (self.path / f"{split}.jsonl").open(encoding="utf-8") as file:
                return [json.loads(line) for line in file]
        except FileNotFoundError:
            raise UserError(
                f"{self.path}: no {split}.jsonl; the task has no such split, or was not downloaded"
            ) from None

    def examples(self, split: str) -> Examples:
        """A split of a classification task."""
        rows = self.rows(split)
        pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
        return Examples([row["text"] for row in rows], pairs, [row["label"] for row in rows])

    def texts(self, split: str) -> list[str]:
        """The lines of a split of a language-model task."""
        return [row["text"] for row in self.rows(split)]


def prepare(
    paths: Mapping[str, Path],
    folder: Path,
    *,
    kind: str,
    text: str = "text",
    text_pair: str | None = None,
    label: str | None = None,
    labels: Sequence[str] | None = None,
    format: str | None = None,
    columns: Sequence[str] | None = None,
    binarize: Mapping[str, float] | None = None,
    split: Mapping[str, int] | None = None,
    pairs: Mapping[str, Any] | None = None,
    limit: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Write each split as JSON lines.

    Args:
        paths: split -> table.
        folder: gets `{split}.jsonl`.
        kind: "classification", "language-model", or "zero-shot": rows are kept as they are, with all their columns.
        text, text_pair, label: names of columns.
        labels: names of the labels 0, 1, ...; the label column may hold either.
        format: of the tables; from the file name where it is not given.
        columns: names, for tables without a header.
        binarize: {"threshold", "margin"}: label 1 above the threshold; rows at it or nearer than the margin go.
        split: {"validation", "seed"}: that many training rows become the validation split.
        pairs: {split: count, "seed", "group"}: pairs drawn from a split's rows, label 1 where both have the same label.
            With a group, a pattern, the label may be any text: what the pattern finds at its beginning counts, and
            rows that share it stay in one split.
        limit: {split: count, "seed"}: at most so many rows, drawn after a shuffle; of running text, the first ones.

    Returns:
        What the manifest says: kind, labels, rows and label counts by split, dropped rows (those without text too).

    Raises:
        UserError: a missing column, a label that is none, a file that is no text, too few rows.
    """
    tables = {name: _table(path, format, columns) for name, path in paths.items()}
    if kind == "language-model":
        splits = {name: [{"text": _value(row, text, paths[name])} for row in rows] for name, rows in tables.items()}
        for name, rows in splits.items():
            if not any(row["text"].strip() for row in rows):
                raise UserError(f"{paths[name].name}: has no text; expected lines to measure perplexity on")
        splits = {name: rows[: (limit or {}).get(name) or len(rows)] for name, rows in splits.items()}
        facts: dict[str, Any] = {"task": kind, "rows": {name: len(rows) for name, rows in splits.items()}}
    elif kind == "zero-shot":
        seed = (limit or {}).get("seed", 0)
        splits = {name: _limit(rows, (limit or {}).get(name), seed) for name, rows in tables.items()}
        facts = {"task": kind, "rows": {name: len(rows) for name, rows in splits.items()}}
    else:
        assert label is not None, "config.py refuses a classification task without a label"
        splits, dropped, group = {}, 0, (pairs or {}).get("group")
        for name, rows in tables.items():
            made = [_example(row, text, text_pair, label, labels, binarize, group, paths[name]) for row in rows]
            splits[name] = [example for example in made if example]
            dropped += len(made) - len(splits[name])
        if split:
            splits = _carve(splits["train"], split["validation"], split.get("seed", 0), whole_groups=bool(group))
        if pairs:
            splits = {
                name: _pairs(rows, pairs[name], f"{pairs.get('seed', 0)} {name}") for name, rows in splits.items()
            }
        if limit:
            splits = {name: _limit(rows, limit.get(name), limit.get("seed", 0)) for name, rows in splits.items()}
        names = _names(splits, labels)
        counts = {name: Counter(int(row["label"]) for row in rows) for name, rows in splits.items()}
        facts = {
            "task": kind,
            "labels": names,
            "rows": {name: len(rows) for name, rows in splits.items()},
            "label_counts": {name: [count[i] for i in range(len(names))] for name, count in counts.items()},
            "dropped": dropped,
        }
    for name, rows in splits.items():
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return facts


def _table(path: Path, form: str | None, columns: Sequence[str] | None) -> list[Row]:
    """The rows of a table as dictionaries."""
    form = form or FORMATS.get(path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix)
    if form is None:
        raise UserError(
            f"{path.name}: format unknown; add `format:`, one of {', '.join(sorted(set(FORMATS.values())))}"
        )
    if form != "parquet":
        data = path.read_bytes()
        try:
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
        except gzip.BadGzipFile:
            raise UserError(f"{path.name}: is no gzip file; download it again, or correct its name") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path.name}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
        if not text.strip():
            raise UserError(f"{path.name}: is empty; expected a table with at least one row")
    rows = _separated(path, text, form, columns) if form in ("csv", "tsv") else _read_by_datasets(path, form)
    if not rows:
        raise UserError(f"{path.name}: has no rows; expected a table with at least one")
    return rows


def _separated(path: Path, text: str, form: str, columns: Sequence[str] | None) -> list[Row]:
    """The rows of a CSV or TSV file, every value as it is written there.

    In a TSV file quotation marks are text, as in GLUE's.
    """
    lines: Iterable[list[str]]
    if form == "csv":
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


def _read_by_datasets(path: Path, form: str) -> list[Row]:
    """The rows of a parquet, JSON or text file."""
    import datasets  # heavy, and a prepared task is read without it

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # what it has to say is in the exception
    with tempfile.TemporaryDirectory() as cache:
        try:
            table = datasets.load_dataset(
                {"jsonl": "json"}.get(form, form),
                data_files=str(path),
                split="train",
                cache_dir=cache,
                keep_in_memory=True,
            )
        except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
            why = str(error.__cause__ or error).splitlines()[0]
            raise UserError(f"{path.name}: not readable as {form} ({why}); correct the file or `format`") from None
        return list(table.to_list())


def _text(row: Row, column: str, path: Path) -> str:
    return _value(row, column, path).strip()


def _value(row: Row, column: str, path: Path) -> str:
    if column not in row:
        raise UserError(f"{path.name}: no column {column!r}; it has {', '.join(map(repr, row))}")
    value = row[column]
    if not isinstance(value, str | int | float | None):
        raise UserError(f"{path.name}: column {column!r} holds a {type(value).__name__}, expected text; name another")
    return str(value if value is not None else "")


def _example(
    row: Row,
    text: str,
    text_pair: str | None,
    label: str,
    labels: Sequence[str] | None,
    binarize: Mapping[str, float] | None,
    group: str | None,
    path: Path,
) -> Row | None:
    """One labelled example; None where a rating is too near to the threshold, or where there is no text."""
    example: Row = {"text": _text(row, text, path)}
    if text_pair:
        example["text_pair"] = _text(row, text_pair, path)
    if not any(example.values()):
        return None
    value = _text(row, label, path)
    if not value:
        raise UserError(f"{path.name}: column {label!r} is empty in a row; every row needs a label")
    if group:
        found = re.match(group, value)
        if not found:
            raise UserError(
                f"{path.name}: column {label!r} holds {value!r}, in which pairs.group {group!r} finds nothing"
            )
        return example | {"label": found.group()}
    try:
        number = float(value.replace("_", "?"))  # to Python 1_1, the name of a sentence, is 11
    except ValueError:
        number = math.nan
    if binarize is not None:
        if not math.isfinite(number):
            raise UserError(f"{path.name}: column {label!r} holds {value!r}; expected a number, as `binarize` is given")
        distance = number - binarize.get("threshold", 0.0)
        if abs(distance) < binarize.get("margin", 0.0) or distance == 0:
            return None
        example["label"] = int(distance > 0)
    elif number >= 0 and number % 1 == 0:
        example["label"] = int(number)
    elif value in (labels or ()):
        example["label"] = list(labels or ()).index(value)
    else:
        raise UserError(
            f"{path.name}: column {label!r} holds {value!r}; expected 0, 1, ... or a name from `labels`; a rating "
            "needs `binarize`, and GLUE's test split has no labels"
        )
    return example


def _carve(rows: list[Row], count: int, seed: int, whole_groups: bool) -> dict[str, list[Row]]:
    if count >= len(rows):
        raise UserError(f"split.validation: found {count}, but there are {len(rows)} rows; ask for fewer")
    shuffled = random.Random(seed).sample(rows, len(rows))
    if whole_groups:
        drawn: set[str] = set()
        for label in dict.fromkeys(row["label"] for row in shuffled):
            if sum(row["label"] in drawn for row in rows) < count:
                drawn.add(label)
        parts = {"train": False, "validation": True}
        return {name: [row for row in shuffled if (row["label"] in drawn) == inside] for name, inside in parts.items()}
    return {"train": shuffled[count:], "validation": shuffled[:count]}


def _limit(rows: list[Row], count: int | None, seed: int) -> list[Row]:
    if count is None or count >= len(rows):
        return rows
    return random.Random(seed).sample(rows, count)


def _pairs(rows: list[Row], count: int, seed: str) -> list[Row]:
    """Pairs of rows, half of them with equal labels."""
    generator = random.Random(seed)
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["label"], []).append(row)
    labels = list(groups)
    several = [label for label in labels if len(groups[label]) > 1]
    if len(labels) < 2 or not several:
        raise UserError("pairs: needs rows of two labels at least, and a label that two rows share")
    drawn = []
    for number in range(count):
        equal = number % 2
        if equal:
            first, second = generator.sample(groups[generator.choice(several)], 2)
        else:
            first, second = (generator.choice(groups[label]) for label in generator.sample(labels, 2))
        drawn.append({"text": first["text"], "text_pair": second["text"], "label": equal})
    generator.shuffle(drawn)
    return drawn


def _names(splits: Mapping[str, list[Row]], labels: Sequence[str] | None) -> list[str]:
    """The names of the labels; checks that the rows use them."""
    for name, rows in splits.items():
        if not rows:
            raise UserError(f"{name}: no rows are left; lower binarize.margin, or name another column for the text")
    highest = max(row["label"] for rows in splits.values() for row in rows)
    if labels is not None and highest >= len(labels):
        raise UserError(f"labels: {len(labels)} names given, but the rows hold label {highest}; name all of them")
    seen = {row["label"] for row in splits["train"]}
    if len(seen) < 2:
        raise UserError("train: all rows have the same label; there is nothing to learn")
    if labels is None and (unseen := sorted(set(range(highest + 1)) - seen)):
        raise UserError(
            f"train: no row has label {unseen[0]}, but labels go up to {highest}; number them from 0, or name all of "
            "them in `labels`"
        )
    return list(labels) if labels is not None else [str(number) for number in range(highest + 1)]
