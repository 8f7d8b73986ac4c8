"""Preparation: the tables of a source become the JSON lines of a task folder, one file a split.

A row is {"text", "text_pair", "label"} in classification and regression, {"text"} or, of pairs without labels, {"text",
"text_pair"} in language modelling, where blanks and empty lines are kept, and all columns of the source in a zero-shot
task, which lm-evaluation-harness reads. All random draws come from `random.Random(seed)`, so a source gives the same
bytes on every machine.
"""

import json
import math
import random
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_sparsity.data.tables import Row, Table, plain, read_table, shown
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.storage.files import write_text

BOOLEANS = {"true": "1", "false": "0"}
LARGEST = 1e18  # of a number to be learned: float32 holds the square of an error of ten times this
SECONDS = 1.0  # after which a match of `pairs.group` counts as endless
Splits = dict[str, list[Row]]


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """How the tables of a task are read, and how rows become examples: the keys of a task's entry in the config.

    Attributes:
        kind: "classification", "regression", "language-model" or "zero-shot".
        format: format of the tables; the default follows each file's suffix.
        columns: names of the columns, for tables without a header.
        text, text_pair, label: names of columns.
        labels: names of the labels 0, 1, ...; the label column holds names, or numbers if no name is a number.
        binarize: {"threshold", "margin"}: the label is 1 above the threshold and 0 below it; rows at the threshold, or
            nearer to it than the margin, are dropped.
        split: {"validation": number of training rows that become the validation split, "seed"}.
        pairs: {split: number of pairs, "seed", "group"}: pairs of a split's rows, with label 1 if both rows have the
            same label. `group` is a regular expression; what it matches at the start of the label column replaces the
            label, and all rows of a group stay in one split.
        limit: {split: maximum number of rows, "seed"}: drawn at random, but the first rows in language modelling.
        score: what the task is judged by; default: accuracy.
        separator: text between the two sentences of a pair for a decoder; default: what its tokenizer puts there.
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
    score: str | None = None
    separator: str | None = None

    @property
    def group(self) -> str | None:
        """The regular expression of `pairs.group`."""
        return (self.pairs or {}).get("group")

    @property
    def used(self) -> list[str] | None:
        """The columns that the task uses; None for all of them."""
        if self.kind == "zero-shot":
            return None
        return [column for column in (self.text, self.text_pair, self.label) if column]

    @property
    def texts(self) -> dict[str, str]:
        """Key of a row -> the column that holds its text."""
        return {"text": self.text} | ({"text_pair": self.text_pair} if self.text_pair else {})

    @cached_property
    def positions(self) -> dict[str | Decimal, int]:
        """Name -> label; a name that is a number also counts as this number, so that "1" is "1.0"."""
        names = [_composed(name) for name in self.labels or ()]
        found: dict[str | Decimal, int] = {
            name.lower(): label for label, name in enumerate(names) if name.lower() in BOOLEANS
        }
        found.update({name: label for label, name in enumerate(names)})
        numbers = {_number(name): label for label, name in enumerate(names) if name.lower() not in BOOLEANS}
        return found | {number: label for number, label in numbers.items() if number is not None}

    @property
    def numbered(self) -> bool:
        """Whether a name is a number, so that numbers in the label column are names."""
        return any(isinstance(name, Decimal) for name in self.positions)


def prepare(
    paths: Mapping[str, Path], folder: Path, settings: TaskSettings, max_bytes: int | None = None
) -> dict[str, Any]:
    """Write each split as JSON lines.

    Args:
        paths: split -> table.
        folder: receives `{split}.jsonl`.
        settings: of the task.
        max_bytes: of a decompressed table, see `compressed.Budget`.

    Returns:
        Facts for the manifest: `task` (the kind) and `rows` by split; of a task with labels also `dropped`, the number
        of rows without text or inside the margin, `separator`, and `score` if given; in classification `labels` (names)
        and `label_counts` by split.

    Raises:
        UserError: a table is not readable, a column is missing, a label is invalid, or there are too few rows.
    """
    tables = {
        split: read_table(path, settings.format, settings.columns, used=settings.used, max_bytes=max_bytes)
        for split, path in paths.items()
    }
    facts: dict[str, Any] = {}
    if settings.kind == "language-model":
        splits = _lines(tables, settings)
    elif settings.kind == "zero-shot":
        filled = {
            split: [row for row in table.rows if any(value not in (None, "") for value in row.values())]
            for split, table in tables.items()
        }
        splits = _limited(filled, settings.limit)
    else:
        splits, facts = _labelled(tables, settings)
    for split, rows in splits.items():
        lines = [json.dumps(row, ensure_ascii=False, default=plain) + "\n" for row in rows]
        for number, line in enumerate(lines, start=1):
            try:
                line.encode()
            except UnicodeEncodeError as error:
                half = shown(line[error.start])
                raise UserError(f"{split}: example {number} holds {half}, half a character; correct the text") from None
        write_text(folder / f"{split}.jsonl", "".join(lines))
    facts |= {key: value for key in ("separator", "score") if (value := getattr(settings, key)) is not None}
    return {"task": settings.kind, "rows": {split: len(rows) for split, rows in splits.items()}, **facts}


def _lines(tables: Mapping[str, Table], settings: TaskSettings) -> Splits:
    """The lines of running text; a limit keeps the first ones."""
    splits, limit = {}, settings.limit or {}
    for split, table in tables.items():
        texts = {key: table.texts(column)[: limit.get(split)] for key, column in settings.texts.items()}
        if not any(line.strip() for lines in texts.values() for line in lines):
            first = f" in its first {limit[split]} rows (limit.{split})" if limit.get(split) else ""
            raise UserError(f"{table.name}: has no text{first}; expected lines to measure perplexity on")
        splits[split] = [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]
    return splits


def _labelled(tables: Mapping[str, Table], settings: TaskSettings) -> tuple[Splits, dict[str, Any]]:
    """Labelled examples, and the facts about their labels."""
    splits = {split: _examples(table, settings) for split, table in tables.items()}
    if settings.kind == "classification" and settings.labels:
        _check_start(splits, tables, settings)
    dropped = sum(len(table.rows) - len(splits[split]) for split, table in tables.items())
    if settings.split:
        splits = _carved(splits["train"], **settings.split, whole_groups=bool(settings.group))
        if not splits["train"]:
            raise UserError(
                f"split.validation: found {settings.split['validation']}, but whole groups leave no row for train; "
                "ask for fewer, or shorten the matches of pairs.group"
            )
    if pairs := settings.pairs:
        splits = {
            split: _pairs(rows, pairs[split], f"{pairs.get('seed', 0)} {split}") for split, rows in splits.items()
        }
    splits = _limited(splits, settings.limit)
    _check_splits(splits)
    if settings.kind == "regression":
        return splits, {"dropped": dropped}
    names = _label_names(splits, settings.labels)
    if settings.score == "f1" and len(names) > 2:
        raise UserError(f"score: f1 is for two labels, but there are {len(names)}; use macro_f1, the mean over all")
    counts = {split: Counter(int(row["label"]) for row in rows) for split, rows in splits.items()}
    return splits, {
        "labels": names,
        "label_counts": {split: [count[label] for label in range(len(names))] for split, count in counts.items()},
        "dropped": dropped,
    }


def _examples(table: Table, settings: TaskSettings) -> list[Row]:
    """The labelled examples of a table, without rows that have no text or a rating inside the margin."""
    assert settings.label is not None, "sources.py refuses a classification task without a label"
    texts = {key: table.texts(column) for key, column in settings.texts.items()}
    values = table.texts(settings.label, "a row has one label, so write a task for each of several, or name another")
    names = _class_names(table, settings)
    known: dict[str, float | str | None] = {}  # by value: there are few, and a group takes time to match
    examples = []
    for position, value in enumerate(_composed(value.strip()) for value in values):
        example: Row = {key: column[position].strip() for key, column in texts.items()}
        if not any(example.values()):
            continue
        if not value:
            raise UserError(f"{table.where(position, settings.label)} is empty; every row needs a label")
        if value not in known:
            found = f"{table.where(position, settings.label)} holds {shown(value)}"
            known[value] = _label(names.get(value, value), settings, found)
        if (label := known[value]) is not None:
            examples.append({**example, "label": label})
    if len(known) == 1 < len(examples) and (settings.kind == "regression" or settings.binarize is not None):
        (value,) = known
        raise UserError(
            f"{table.name}: column {settings.label!r} holds {shown(value)} in every row, so nothing can be scored; "
            "GLUE's test split has no labels, remove it from `files`"
        )
    return examples


def _class_names(table: Table, settings: TaskSettings) -> dict[str, str]:
    """Number -> name, spelled as in `labels`, where the file itself says which names its numbers stand for."""
    given = table.classes.get(settings.label or "", ())
    wanted = {_composed(name).lower(): name for name in settings.labels or ()}
    if len(given) != len(wanted) or {_composed(name).lower() for name in given} != wanted.keys():
        return {}
    return {str(number): _composed(wanted[_composed(name).lower()]) for number, name in enumerate(given)}


def _check_start(splits: Splits, tables: Mapping[str, Table], settings: TaskSettings) -> None:
    """Refuse rows that are numbered from 1, as far as that shows: none of any split has the label 0."""
    if settings.pairs or settings.binarize or not all(splits.values()):
        return
    lowest, highest = (choose(row["label"] for rows in splits.values() for row in rows) for choose in (min, max))
    if not lowest or settings.numbered or any(_class_names(table, settings) for table in tables.values()):
        return
    labels = settings.labels or ()
    if any(_number(value.strip()) for table in tables.values() for value in table.texts(settings.label or "")):
        raise UserError(
            f"labels: {len(labels)} names given, of the labels 0 to {len(labels) - 1}, but the rows count from "
            f"{lowest} to {highest}, and none is {labels[0]!r}; number the rows from 0, or name them by their numbers, "
            'in quotes: ["1", "2", ...]'
        )


def _label(value: str, settings: TaskSettings, found: str) -> float | str | None:
    """The label that a value stands for: a number, or the name of a group; None for a rating inside the margin.

    Args:
        value: the text in the label column.
        settings: of the task.
        found: start of an error message: file, row, column and value.
    """
    if settings.group:
        return _group(value, settings.group, found)
    number = _number(value)
    if settings.kind == "regression":
        if number is None or not math.isfinite(float(number)) or value.lower() in BOOLEANS:
            raise UserError(f"{found}; expected a number, as the task is a regression")
        if abs(number) > LARGEST:
            raise UserError(f"{found}; expected a number below {LARGEST:g} in size; leave out what marks missing ones")
        return float(number)
    if settings.binarize is not None:
        if number is None or not math.isfinite(float(number)):
            raise UserError(f"{found}; expected a number, as `binarize` is given")
        threshold, margin = (Decimal(str(settings.binarize.get(key, 0))) for key in ("threshold", "margin"))
        distance = number - threshold
        inside = abs(distance) < margin or distance == 0
        return None if inside else int(distance > 0)
    for name in (value, value.lower() if value.lower() in BOOLEANS else None, number):
        if name is not None and name in settings.positions:
            return settings.positions[name]
    if settings.pairs:
        return value
    if number is not None and 0 <= number < 2**63 and number % 1 == 0 and not settings.numbered:
        return int(number)
    if settings.numbered:
        raise UserError(f"{found}, which is none of `labels`; name all of them")
    raise UserError(
        f"{found}; expected 0, 1, ... or a name from `labels`; a rating needs `binarize`, and GLUE's test split has no "
        "labels"
    )


def _number(value: str) -> Decimal | None:
    """The finite number that a text spells, exactly; true is 1, false is 0. None for any other text."""
    spelled = BOOLEANS.get(value.lower(), value)
    try:
        number = Decimal(spelled.replace("_", "?"))  # Python reads "1_1", the name of a sentence, as 11
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _composed(text: str) -> str:
    """A text in the one spelling of its accented letters that compares equal."""
    return unicodedata.normalize("NFC", text)


def _group(value: str, pattern: str, found: str) -> str:
    """What `pairs.group` matches at the start of a label."""
    import regex  # type: ignore[import-untyped]  # in place of re, whose matches nothing can stop

    try:
        group = regex.match(pattern, value, timeout=SECONDS)
    except regex.error as error:
        raise UserError(f"pairs.group: found {pattern!r}, no regular expression ({error}); correct it") from None
    except TimeoutError:
        raise UserError(f"{found}, which pairs.group {pattern!r} takes too long to match; simplify it") from None
    if not group or not group.group():
        raise UserError(f"{found}, in which pairs.group {pattern!r} finds nothing; correct it")
    return str(group.group())


def _carved(rows: list[Row], validation: int, seed: int = 0, *, whole_groups: bool) -> Splits:
    """Training rows divided into train and validation; with `whole_groups`, rows of equal label stay together."""
    if validation >= len(rows):
        raise UserError(f"split.validation: found {validation}, but there are {len(rows)} rows; ask for fewer")
    shuffled = random.Random(seed).sample(rows, len(rows))
    if not whole_groups:
        return {"train": shuffled[validation:], "validation": shuffled[:validation]}
    sizes = Counter(row["label"] for row in rows)
    drawn, count = set[str](), 0
    for label in dict.fromkeys(row["label"] for row in shuffled):
        if count >= validation:
            break
        drawn.add(label)
        count += sizes[label]
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


def _check_splits(splits: Splits) -> None:
    """Raise UserError if a split is empty, or the training rows have one label."""
    for split, rows in splits.items():
        if not rows:
            raise UserError(f"{split}: no rows are left; lower binarize.margin, or name another column for the text")
    if len({row["label"] for row in splits["train"]}) < 2:
        raise UserError("train: all rows have the same label; there is nothing to learn")


def _label_names(splits: Splits, labels: Sequence[str] | None) -> list[str]:
    """The names of the labels.

    Raises:
        UserError: the training rows do not use the labels.
    """
    rows = [row for rows in splits.values() for row in rows]
    highest = max(row["label"] for row in rows)  # may be any number: it sizes nothing
    if labels is not None and highest >= len(labels):
        raise UserError(f"labels: {len(labels)} names given, but the rows hold label {highest}; name all of them")
    seen = {row["label"] for row in splits["train"]}
    lowest_unseen = next(label for label in range(len(seen) + 1) if label not in seen)
    if labels is None and lowest_unseen <= highest:
        raise UserError(
            f"train: no row has label {lowest_unseen}, but labels go up to {highest}; number them from 0, or name all "
            "of them in `labels`"
        )
    return list(labels) if labels is not None else [str(number) for number in range(highest + 1)]
