"""Preparation: the tables of a source become the JSON lines of a task folder, one file a split.

A row is {"text", "text_pair", "label"} in classification, {"text"} in language modelling, where blanks and empty lines
are kept, and all columns of the source in a zero-shot task, which lm-evaluation-harness reads. All random draws come
from `random.Random(seed)`, so a source gives the same bytes on every machine.
"""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_sparsity.data.tables import Row, Table, read_table
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import write_text

Splits = dict[str, list[Row]]


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """How the tables of a task are read, and how rows become examples: the keys of a task's entry in the config.

    Attributes:
        kind: "classification", "language-model" or "zero-shot".
        format: format of the tables; the default follows each file's suffix.
        columns: names of the columns, for tables without a header.
        text, text_pair, label: names of columns.
        labels: names of the labels 0, 1, ...; the label column may hold numbers or names.
        binarize: {"threshold", "margin"}: the label is 1 above the threshold and 0 below it; rows at the threshold, or
            nearer to it than the margin, are dropped.
        split: {"validation": number of training rows that become the validation split, "seed"}.
        pairs: {split: number of pairs, "seed", "group"}: pairs of a split's rows, with label 1 if both rows have the
            same label. `group` is a regular expression; what it matches at the start of the label column replaces the
            label, and all rows of a group stay in one split.
        limit: {split: maximum number of rows, "seed"}: drawn at random, but the first rows in language modelling.
    """

    kind: str
    format: str | None = None
    columns: Sequence[str] | None = None
    text: str = "text"
    text_pair: str | None = None
    label: str | None = None
    labels: Sequence[str] | None = None
    binarize: Mapping[str, float] | None = None
    split: Mapping[str, int] | None = None
    pairs: Mapping[str, Any] | None = None
    limit: Mapping[str, int] | None = None

    @property
    def group(self) -> str | None:
        """The regular expression of `pairs.group`."""
        return (self.pairs or {}).get("group")


def prepare(paths: Mapping[str, Path], folder: Path, settings: TaskSettings) -> dict[str, Any]:
    """Write each split as JSON lines.

    Args:
        paths: split -> table.
        folder: receives `{split}.jsonl`.
        settings: of the task.

    Returns:
        Facts for the manifest: `task` (the kind) and `rows` by split; in classification also `labels` (names),
        `label_counts` by split, and `dropped`, the number of rows without text or inside the margin.

    Raises:
        UserError: a table is not readable, a column is missing, a label is invalid, or there are too few rows.
    """
    tables = {split: read_table(path, settings.format, settings.columns) for split, path in paths.items()}
    facts: dict[str, Any] = {}
    if settings.kind == "language-model":
        splits = _lines(tables, settings)
    elif settings.kind == "zero-shot":
        splits = _limited({split: table.rows for split, table in tables.items()}, settings.limit)
    else:
        splits, facts = _classification(tables, settings)
    for split, rows in splits.items():
        write_text(folder / f"{split}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {"task": settings.kind, "rows": {split: len(rows) for split, rows in splits.items()}, **facts}


def _lines(tables: Mapping[str, Table], settings: TaskSettings) -> Splits:
    """The lines of running text; a limit keeps the first ones."""
    splits, limit = {}, settings.limit or {}
    for split, table in tables.items():
        lines = [{"text": table.text(row, settings.text)} for row in table.rows]
        if not any(line["text"].strip() for line in lines):
            raise UserError(f"{table.name}: has no text; expected lines to measure perplexity on")
        splits[split] = lines[: limit.get(split) or len(lines)]
    return splits


def _classification(tables: Mapping[str, Table], settings: TaskSettings) -> tuple[Splits, dict[str, Any]]:
    """Labelled examples, and the facts about their labels."""
    splits = {split: _examples(table, settings) for split, table in tables.items()}
    dropped = sum(len(table.rows) - len(splits[split]) for split, table in tables.items())
    if settings.split:
        splits = _carved(splits["train"], **settings.split, whole_groups=bool(settings.group))
    if pairs := settings.pairs:
        splits = {
            split: _pairs(rows, pairs[split], f"{pairs.get('seed', 0)} {split}") for split, rows in splits.items()
        }
    splits = _limited(splits, settings.limit)
    names = _label_names(splits, settings.labels)
    counts = {split: Counter(int(row["label"]) for row in rows) for split, rows in splits.items()}
    return splits, {
        "labels": names,
        "label_counts": {split: [count[label] for label in range(len(names))] for split, count in counts.items()},
        "dropped": dropped,
    }


def _examples(table: Table, settings: TaskSettings) -> list[Row]:
    """The labelled examples of a table, without rows that have no text or a rating inside the margin."""
    assert settings.label is not None, "config.py refuses a classification task without a label"
    examples = []
    for row in table.rows:
        example: Row = {"text": table.text(row, settings.text).strip()}
        if settings.text_pair:
            example["text_pair"] = table.text(row, settings.text_pair).strip()
        if not any(example.values()):
            continue
        value = table.text(row, settings.label).strip()
        if not value:
            raise UserError(f"{table.name}: column {settings.label!r} is empty in a row; every row needs a label")
        label = _label(value, settings, f"{table.name}: column {settings.label!r} holds {value!r}")
        if label is not None:
            examples.append({**example, "label": label})
    return examples


def _label(value: str, settings: TaskSettings, found: str) -> int | str | None:
    """The label that a value stands for: a number, or the name of a group; None for a rating inside the margin.

    Args:
        value: the text in the label column.
        settings: of the task.
        found: start of an error message: file, column and value.
    """
    if settings.group:
        group = re.match(settings.group, value)
        if not group:
            raise UserError(f"{found}, in which pairs.group {settings.group!r} finds nothing")
        return group.group()
    try:
        number = float(value.replace("_", "?"))  # Python reads "1_1", the name of a sentence, as 11
    except ValueError:
        number = math.nan
    if settings.binarize is not None:
        if not math.isfinite(number):
            raise UserError(f"{found}; expected a number, as `binarize` is given")
        distance = number - settings.binarize.get("threshold", 0.0)
        inside = abs(distance) < settings.binarize.get("margin", 0.0) or distance == 0
        return None if inside else int(distance > 0)
    if number >= 0 and number % 1 == 0:
        return int(number)
    if value in (settings.labels or ()):
        return list(settings.labels or ()).index(value)
    raise UserError(
        f"{found}; expected 0, 1, ... or a name from `labels`; a rating needs `binarize`, and GLUE's test split has no "
        "labels"
    )


def _carved(rows: list[Row], validation: int, seed: int = 0, *, whole_groups: bool) -> Splits:
    """Training rows divided into train and validation; with `whole_groups`, rows of equal label stay together."""
    if validation >= len(rows):
        raise UserError(f"split.validation: found {validation}, but there are {len(rows)} rows; ask for fewer")
    shuffled = random.Random(seed).sample(rows, len(rows))
    if not whole_groups:
        return {"train": shuffled[validation:], "validation": shuffled[:validation]}
    drawn: set[str] = set()
    for label in dict.fromkeys(row["label"] for row in shuffled):
        if sum(row["label"] in drawn for row in rows) < validation:
            drawn.add(label)
    return {
        "train": [row for row in shuffled if row["label"] not in drawn],
        "validation": [row for row in shuffled if row["label"] in drawn],
    }


def _limited(splits: Splits, limit: Mapping[str, int] | None) -> Splits:
    """At most `limit[split]` rows of each split, drawn at random."""
    limit = limit or {}
    drawn = {}
    for split, rows in splits.items():
        count = limit.get(split) or len(rows)
        drawn[split] = random.Random(limit.get("seed", 0)).sample(rows, count) if count < len(rows) else rows
    return drawn


def _pairs(rows: list[Row], count: int, seed: str) -> list[Row]:
    """Pairs of rows; half of them (rounded down) have equal labels."""
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


def _label_names(splits: Splits, labels: Sequence[str] | None) -> list[str]:
    """The names of the labels.

    Raises:
        UserError: a split is empty, or the training rows do not use the labels.
    """
    for split, rows in splits.items():
        if not rows:
            raise UserError(f"{split}: no rows are left; lower binarize.margin, or name another column for the text")
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
