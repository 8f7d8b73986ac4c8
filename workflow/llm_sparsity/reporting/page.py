"""The page of a study, one HTML file."""

import base64
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from llm_sparsity.reporting.answers import Question, answers, questions, ranked, title
from llm_sparsity.reporting.chart import chart, marker_paths
from llm_sparsity.reporting.claims import Claims
from llm_sparsity.reporting.decisions import Decision, nothing
from llm_sparsity.reporting.figures.drawing import PICK
from llm_sparsity.reporting.figures.style import COLOURS
from llm_sparsity.reporting.numbers import results, versions
from llm_sparsity.reporting.tables import CELL, MACHINE, SECONDS, VERSIONS, Tables
from llm_sparsity.reporting.wording import (
    begin,
    caveat,
    cost_of,
    name_of,
    name_of_metric,
    number_of,
    percent,
    scope_name,
    shown,
    times,
)

TEMPLATE = Path(__file__).with_name("report.html.jinja")
FILES = ("metrics", "claims", "weights", "history", "tensors")  # on the page as links: two have sections of their own
ROWS = 500  # of a table on the page: browsers show so many at once
FIGURES = 5e6  # bytes of SVG on the page; if a study has more, the page loads its figures from their files


def page(
    data: Tables,
    config: Mapping[str, Any],
    methods: Mapping[str, str],
    sections: Mapping[str, list[dict[str, str]]],
    claims: Claims | None = None,
) -> str:
    """The report as one HTML file.

    Args:
        data: the tables of the study.
        config: of the study.
        methods: of the study: name -> what it does, and its paper.
        sections: title -> figures: name, caption, width, height (pixels), svg.
        claims: of an earlier study; None: the page has no such section.
    """
    asked = ranked(questions(data))
    charts = _charts(data, asked, config)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"begin": begin, "unbroken": _unbroken}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    html: str = template.render(
        name=config["name"],
        title=title(asked),
        answers=answers(data, asked),
        questions=[_asked(question, config) for question in asked],
        charts=charts,
        markers=marker_paths([marker for each in charts for marker in [point["marker"] for point in each["points"]]]),
        colours=COLOURS,
        sections=_with_sources({name: drawn for name, drawn in sections.items() if name != PICK}),
        pictures={each["task"]: _picture(sections[PICK], each["task"]) for each in charts},
        results=results(data),
        rows=ROWS,
        claims=_claims(data["claims"], claims) if claims else None,
        tables={
            name: _html_table(_means(table) if name == "runs" else table)
            for name, table in data.items()
            if name not in FILES
        },
        files=list(data),
        config=yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False, default_flow_style=None, width=110),
        methods=methods,
        machines=_machines(data),
        versions=versions(data),
    )
    return html


def _unbroken(text: str) -> str:
    """A text whose lines do not end between a number and its percent sign."""
    return re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", text)


def _with_sources(sections: Mapping[str, list[dict[str, str]]]) -> dict[str, list[dict[str, str]]]:
    """The sections that have figures, and in `source` what a browser loads for each: the figure itself, or its file.

    The file is the PNG: browsers take seconds to read an SVG of tens of thousands of points.
    """
    alone = sum(len(figure["svg"]) for figures in sections.values() for figure in figures) <= FIGURES
    return {
        name: [
            figure | {"source": _data_uri(figure["svg"]) if alone else f"figures/{figure['name']}.png"}
            for figure in figures
        ]
        for name, figures in sections.items()
        if figures
    }


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _picture(drawn: Iterable[Mapping[str, str]], task: str) -> str:
    """The file of the figure that a chart of the page shows as well."""
    return next((figure["name"] for figure in drawn if figure["name"] == f"frontier-{task}"), "")


def _charts(data: Tables, asked: list[Question], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A chart for each task and metric, the first one that of the title."""
    models = list(dict.fromkeys(model for grid in config["study"] for model in grid["models"]))
    tasks = dict.fromkeys((question.task, question.metric) for question in asked)
    found = []
    for task, metric in tasks:
        options = [
            o for question in asked if (question.task, question.metric) == (task, metric) for o in question.options
        ]
        if any(not math.isnan(option.share) for option in options):
            found.append(chart(data, options, models))
    return found


def _decision(question: Question, decision: Decision) -> dict[str, Any]:
    """A row of the decision table, as text."""
    option = decision.option
    if option is None:
        return {"budget": decision.budget, "take": "", "reason": decision.confirmed}
    return {
        "budget": decision.budget,
        "take": name_of(option),
        "value": shown(question.metric, option.value),
        "costs": cost_of(question.metric, decision.change),
        "share": "" if math.isnan(option.share) else percent(round(option.share, 3)),
        "bytes": f"{option.bytes / 1e6:,.1f} MB",
        "plain": "" if math.isnan(option.plain) else percent(round(option.plain, 3)),
        "speed": "" if math.isnan(option.speedup) else times(option.speedup),
        "confirmed": decision.confirmed,
        "folder": str(option.folder),
    }


def _asked(question: Question, config: Mapping[str, Any]) -> dict[str, Any]:
    """A question and its decision table."""
    return {
        "model": question.model,
        "task": question.task,
        "metric": name_of_metric(question.metric),
        "dense": question.dense,
        "nothing": nothing(question.decisions),
        "rows": [_decision(question, decision) for decision in question.decisions],
        "caveats": [*filter(None, [caveat(config, question.model)])],
    }


def _claims(table: pd.DataFrame, claims: Claims) -> dict[str, Any]:
    """The earlier study, its claims that were judged, with cells and ranges as text, and the others by name."""
    rows, units = [], {claim.claim: claim.function.points for claim in claims.claims}
    for row in table[table.verdict != "not studied"].itertuples():
        points = units[row.claim]
        rows.append(
            {
                "claim": row.claim,
                "place": ", ".join(filter(None, [row.model, row.task, scope_name(row.scope), row.recipe])),
                "quantity": row.quantity,
                "here": _with_margin(row.value, row.margin, points=points) + _seeds(row.seeds),
                "earlier": "" if pd.isna(row.earlier) else _with_margin(row.earlier, 0, points=points),
                "range": _range(row.low, row.high, points=points),
                "verdict": row.verdict,
            }
        )
    others = list(dict.fromkeys(table.claim[table.verdict == "not studied"]))
    return {"title": begin(claims.source.name), "summary": claims.source.summary, "rows": rows, "others": others}


def _with_margin(value: float, about: float, *, points: bool) -> str:
    """A value, ± half the width of its interval; of scores in points, hundredths of 1."""
    number = (f"{100 * value:+.1f}" if points else f"{value:.3g}").replace("-", "\N{MINUS SIGN}")
    if math.isnan(about) or not about:
        return number
    return f"{number} ± {100 * about:.1f}" if points else f"{number} ± {about:.2g}"


def _seeds(seeds: Any) -> str:
    return "" if pd.isna(seeds) else f" ({number_of(int(seeds), 'seed')})"


def _range(low: float, high: float, *, points: bool) -> str:
    """The range in which a claim is true, as text."""
    low_text, high_text = (
        (f"{100 * edge:+g}" if points else f"{edge:g}").replace("-", "\N{MINUS SIGN}") for edge in (low, high)
    )
    unit = " points" if points else ""
    if low == high:
        return low_text
    if math.isinf(low):
        return f"≤ {high_text}{unit}"
    return f"≥ {low_text}{unit}" if math.isinf(high) else f"{low_text} to {high_text}{unit}"


def _machines(data: Tables) -> list[str]:
    """The distinct machines and versions of the fine-tunings, as text."""
    runs = data["runs"][[*MACHINE, *VERSIONS]].drop_duplicates().to_dict("records")
    return [", ".join(f"{key} {value}" for key, value in row.items()) for row in runs]


def _means(runs: pd.DataFrame) -> pd.DataFrame:
    """The table of runs for the page: means over seeds."""
    cells = runs.groupby(["task", *CELL, "recipe"], sort=False)
    means = cells[[*SECONDS, "measured_sparsity", "bytes"]].mean()
    return means.assign(seeds=cells.seed.nunique()).reset_index()


def _html_table(table: pd.DataFrame) -> dict[str, Any]:
    """The first rows of a table for the page: heads, rows as text, which columns are numeric, the number of all."""
    formats: dict[str, Callable[[Any], str]] = {
        column: (lambda value: f"{value:.6g}") if table[column].dtype == float else str for column in table
    }
    rows: Iterable[Any] = table.head(ROWS).itertuples(index=False)
    return {
        "heads": list(table),
        "count": len(table),
        "rows": [
            ["" if pd.isna(value) else formats[column](value) for column, value in zip(table, row, strict=True)]
            for row in rows
        ],
        "numeric": [bool(pd.api.types.is_numeric_dtype(table[column])) for column in table],
    }
