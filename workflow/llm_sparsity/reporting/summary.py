"""The summary that ends a run: the finding, what to take, and where to read more."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_sparsity.reporting.answers import NAMED, Question, answers, questions, ranked, title
from llm_sparsity.reporting.claims import Claims
from llm_sparsity.reporting.decisions import nothing
from llm_sparsity.reporting.numbers import versions
from llm_sparsity.reporting.tables import Tables
from llm_sparsity.reporting.wording import caveat, cost_of, name_of, name_of_metric, percent, shown, wrapped

VERDICTS = {"holds": "hold", "does not hold": "do not hold", "undecided": "are undecided"}
WIDTH = 100  # columns of a sentence


def summary(data: Tables, output: Path, claims: Claims | None = None, config: Mapping[str, Any] | None = None) -> str:
    """The last lines of a run.

    Args:
        data: the tables of the study.
        output: the folder of the study in `reports/`.
        claims: of an earlier study; None: the summary has no such line.
        config: of the study, for what a reader must know about a model.
    """
    asked = ranked(questions(data))
    lines = [*_wrapped(f"{title(asked)}.", ""), ""]
    for question in asked[:NAMED]:
        lines += [*_decisions(question), ""]
    for model in dict.fromkeys(question.model for question in asked[:NAMED]):
        if known := caveat(config or {}, model):
            lines += [*_wrapped(known, ""), ""]
    if len(asked) > NAMED:
        lines += [f"The page has {len(asked) - NAMED} more.", ""]
    for answer in answers(data, asked):
        lines += _wrapped(answer, "* ")
    if warning := versions(data):
        lines += ["", warning]
    verdicts = data["claims"].verdict.value_counts()
    counts = [f"{verdicts[verdict]} {words}" for verdict, words in VERDICTS.items() if verdict in verdicts]
    if claims and counts:
        lines += ["", f"Claims of {claims.source.name}, judged by these results: {', '.join(counts)}."]
    lines += ["", f"Read {output / 'report.html'}"]
    lines += [f"Figures: {output / 'figures'}   Tables: {output / 'tables'}"]
    return "\n".join(lines) + "\n"


def _wrapped(text: str, bullet: str) -> list[str]:
    return wrapped(text, WIDTH, initial_indent=bullet, subsequent_indent=" " * len(bullet), break_long_words=False)


def _decisions(question: Question) -> list[str]:
    """The decision table of one model on one task; below each row, the folder of the model."""
    metric = question.metric
    name = name_of_metric(metric)
    head = f"{question.model} on {question.task}: {name} {question.dense} dense"
    if reason := nothing(question.decisions):
        return [head, "", *_wrapped(reason, "  ")]
    rows: list[list[str]] = []
    for decision in question.decisions:
        option = decision.option
        if option is None:
            rows.append([decision.budget, decision.confirmed, "", "", "", ""])
            continue
        share = "" if math.isnan(option.share) else percent(round(option.share, 2))
        value, costs = shown(metric, option.value), cost_of(metric, decision.change)
        rows.append([decision.budget, name_of(option), value, costs, share, decision.confirmed])
        rows.append(["", str(option.folder), "", "", "", ""])
    return [head, "", *_table(rows, ["at most", "take", name, "costs", "bytes", "confirmed"])]


def _table(rows: list[list[str]], heads: list[str]) -> list[str]:
    """Aligned rows. A row with text in its first two columns alone runs over the others."""
    whole = [heads, *(row for row in rows if any(row[2:]))]
    widths = [max(len(row[0]) for row in rows), *(max(len(row[at]) for row in whole) for at in range(1, len(heads)))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [heads, *rows]
    ]
