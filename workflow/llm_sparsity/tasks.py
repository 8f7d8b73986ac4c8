"""Tasks: rows of any table become labelled sentences, one `{split}.jsonl` a split.

Prepared once, when a task is downloaded: {"text": ..., "text_pair": ..., "label": 0} a line, or {"text": ...} for
language modelling. Every draw is from `random.Random(seed)`, so the same source gives the same bytes everywhere.
"""

import csv
import json
import math
import random
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from llm_sparsity.errors import UserError
from llm_sparsity.files import read_manifest, write_text

FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".txt": "text"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Examples:
    """A split of a classification task."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[int]


def load(folder: Path, split: str) -> Examples:
    """Read a split of a prepared classification task."""
    rows = _read(folder, split)
    pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
    return Examples([row["text"] for row in rows], pairs, [row["label"] for row in rows])


def load_text(folder: Path, split: str = "test") -> list[str]:
    """Read the lines of a prepared language-model task."""
    return [row["text"] for row in _read(folder, split)]


def label_count(folder: Path) -> int:
    """How many labels a prepared task has."""
    return len(read_manifest(folder)["labels"])


def _read(folder: Path, split: str) -> list[Row]:
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


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
        kind: "classification" or "language-model".
        text, text_pair, label: names of columns.
        labels: names of the labels 0, 1, ...
        format: of the tables; from the file name where it is not given.
        columns: names, for tables without a header.
        binarize: {"threshold", "margin"}: label 1 above the threshold; rows nearer than the margin are dropped.
        split: {"validation", "seed"}: that many training rows become the validation split.
        pairs: {split: count, "seed", "group"}: pairs drawn from a split's rows, label 1 where both have the same label.
            With a group, a pattern, the label may be any text: what the pattern finds at its beginning counts, and
            rows that share it stay in one split.
        limit: {split: count, "seed"}: at most so many rows, drawn after a shuffle.

    Returns:
        What the manifest says: kind, labels, rows and label counts by split, dropped rows.

    Raises:
        UserError: a missing column, a label that is none, a file that is no text, too few rows.
    """
    tables = {name: _table(path, format, columns) for name, path in paths.items()}
    if kind == "language-model":
        lines = {name: [_text(row, text, paths[name]) for row in rows] for name, rows in tables.items()}
        splits = {name: [{"text": line} for line in texts if line] for name, texts in lines.items()}
        for name, rows in splits.items():
            if not rows:
                raise UserError(f"{paths[name].name}: has no text; expected lines to measure perplexity on")
        splits = {name: rows[: (limit or {}).get(name) or len(rows)] for name, rows in splits.items()}
        facts: dict[str, Any] = {"task": kind, "rows": {name: len(rows) for name, rows in splits.items()}}
    else:
        assert label is not None, "config.py refuses a classification task without a label"
        splits, dropped, group = {}, 0, (pairs or {}).get("group")
        for name, rows in tables.items():
            made = [_example(row, text, text_pair, label, binarize, group, paths[name]) for row in rows]
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
    form = form or FORMATS.get(path.suffix)
    if form is None:
        raise UserError(
            f"{path.name}: format unknown; add `format:`, one of {', '.join(sorted(set(FORMATS.values())))}"
        )
    if form != "parquet":
        try:
            empty = not path.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{path.name}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
        if empty:
            raise UserError(f"{path.name}: is empty; expected a table with at least one row")
    datasets.disable_progress_bars()
    plain: dict[str, Any] = {"names": columns, "keep_default_na": False}  # "NA" and "null" are words
    options = {
        "csv": plain,
        "tsv": {**plain, "sep": "\t", "quoting": csv.QUOTE_NONE},  # GLUE's: a bare quotation mark is text
    }.get(form, {})
    builder = {"jsonl": "json", "tsv": "csv"}.get(form, form)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as cache, suppress(ValueError):  # a header alone is "no data" to datasets
        try:
            table = datasets.load_dataset(
                builder, data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True, **options
            )
        except datasets.exceptions.DatasetGenerationError as error:
            why = str(error.__cause__).splitlines()[0]
            raise UserError(f"{path.name}: not readable as {form} ({why}); correct the file or `format`") from None
        rows = table.to_list()
    if not rows:
        raise UserError(f"{path.name}: has no rows; expected a table with at least one")
    return rows


def _text(row: Row, column: str, path: Path) -> str:
    if column not in row:
        raise UserError(f"{path.name}: no column {column!r}; it has {', '.join(map(repr, row))}")
    return str(row[column] if row[column] is not None else "").strip()


def _example(
    row: Row,
    text: str,
    text_pair: str | None,
    label: str,
    binarize: Mapping[str, float] | None,
    group: str | None,
    path: Path,
) -> Row | None:
    """One labelled example; None where a rating is too near to the threshold."""
    example: Row = {"text": _text(row, text, path)}
    if text_pair:
        example["text_pair"] = _text(row, text_pair, path)
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
        number = float(value)
    except ValueError:
        number = math.nan
    if binarize:
        distance = number - binarize.get("threshold", 0.0)
        if abs(distance) < binarize.get("margin", 0.0) or distance == 0:
            return None
        example["label"] = int(distance > 0)
    elif not (number >= 0 and number % 1 == 0):
        raise UserError(
            f"{path.name}: column {label!r} holds {value!r}; expected 0, 1, ...; a rating needs `binarize`, and GLUE's "
            "test split has no labels"
        )
    else:
        example["label"] = int(number)
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
    highest = max(row["label"] for rows in splits.values() for row in rows)
    if labels is not None and highest >= len(labels):
        raise UserError(f"labels: {len(labels)} names given, but the rows hold label {highest}; name all of them")
    if len({row["label"] for row in splits["train"]}) < 2:
        raise UserError("train: all rows have the same label; there is nothing to learn")
    return list(labels) if labels is not None else [str(number) for number in range(highest + 1)]
