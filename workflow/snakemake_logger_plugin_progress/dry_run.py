"""What a run would do: one line for the jobs of a rule that would run for the same reason."""

import ast
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate  # type: ignore[import-untyped]

NEW, AGAIN = "no result yet", "made from what is made again"
# A reason of Snakemake's, at its start, and what a reader is told.
REASONS = {
    "Missing output files": NEW,
    "Forced execution": "forced",
    "Incomplete output files": "its last run did not end",
    "Set of input files has changed": "other input files than before",
    "Code has changed": "its command has changed",
}
STRING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
NAMED, WIDTH = 2, 40  # settings, inputs and cells that a line names; characters of a value
HASH = re.compile("[0-9a-f]+")
CODE = 16  # characters of a hash of code; those of files are longer


class DryRun:
    """Collects the jobs of a dry run."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, str], list[str]] = {}  # rule and reason -> the cells of its jobs

    def add(self, rule: str, cell: str, reason: str) -> None:
        """Add a job.

        Args:
            rule: its rule.
            cell: what it works on, such as "minilm/magnitude-linear-0.5".
            reason: why it would run, in Snakemake's words.
        """
        self._cells.setdefault((rule, why(reason)), []).append(cell)

    def text(self) -> str:
        """The table; "" if there are no jobs."""
        if not self._cells:
            return ""
        table = tabulate(
            [
                ["jobs", "rule", "why", "cells"],
                *([len(cells), *key, _some(sorted(cells))] for key, cells in self._cells.items()),
            ],
            tablefmt="plain",
            disable_numparse=True,
            colalign=["right", "left", "left", "left"],
        )
        total = sum(map(len, self._cells.values()))
        return f"{total} job{'s' * (total != 1)} would run:\n\n{table}\n\n-n -p lists every job with its files."


def why(reason: str) -> str:
    """The reason of a job in a few words: its own ones; that its inputs are made again only where it has no other."""
    found = [text for start, text in REASONS.items() if re.search(rf"(^|; ){start}", reason)]
    if NEW in found:
        return NEW
    if updated := re.search(r"Updated input files: (.*?)(; |$)", reason):
        found.append(f"changed: {_some(updated[1].split(', '))}")
    if "Params have changed" in reason:
        before, now = ([ast.literal_eval(text) for text in STRING.findall(part)] for part in _sides(reason))
        found += _changes(before, now)
    return ", ".join(found) or (AGAIN if "updated by another job" in reason else reason)


def _sides(reason: str) -> tuple[str, str]:
    """What is written of the parameters of the last run, and of those of this one."""
    before, _, now = reason.partition("before: ")[2].partition(" now: ")
    return before, now


def _changes(before: Iterable[str], now: Iterable[str]) -> list[str]:
    """What has changed of the parameters of a job: its settings, its code, or the files that the config names."""
    sides = [{text: _settings(text) for text in side} for side in (before, now)]
    old, new = ({key: value for settings in side.values() for key, value in settings.items()} for side in sides)
    keys = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
    if len(keys) > NAMED:
        found = [f"{_some(keys)} changed"]
    else:
        found = [f"{key} {_value(new, key)} instead of {_value(old, key)}" for key in keys]
    hashes = {len(text) for side in sides for text in side if HASH.fullmatch(text)}
    return (
        found
        + ["its code has changed"] * (CODE in hashes)
        + ["files that the config names have changed"] * bool(hashes - {CODE})
    )


def _settings(text: str) -> Mapping[str, Any]:
    """The settings of a job, by dotted name, from its parameter; none if it is another parameter."""
    try:
        values = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)  # long ones lie in a file
    except (OSError, ValueError):
        return {}
    return dict(_flat("", values)) if isinstance(values, dict) and values else {}


def _flat(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flat(f"{name}.{key}" if name else key, part)
    else:
        yield name, value


def _value(settings: Mapping[str, Any], key: str) -> str:
    text = json.dumps(settings[key]) if key in settings else "none"
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}…"


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED] if more > 0 else names) + (f" and {more} more" if more > 0 else "")
