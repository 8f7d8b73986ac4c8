"""The large chart of the page: quality against bytes, as positions that a browser lays out at any width.

Positions are percent of the plot, from the left and from the bottom. Text stays text, so it keeps its size on a phone,
is read aloud, and follows the colours of the page.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.markers import MarkerStyle
from matplotlib.path import Path as Outline

from llm_sparsity.reporting.figures.frontier import names
from llm_sparsity.reporting.figures.style import COLOURS, ROOM, marker_of, plain, ticks, widened
from llm_sparsity.reporting.intervals import Estimate
from llm_sparsity.reporting.options import Option, comparisons, front
from llm_sparsity.reporting.tables import Tables, baseline
from llm_sparsity.reporting.wording import (
    constant_answer,
    cost_of,
    in_points,
    name_of,
    name_of_metric,
    percent,
    ratio_of,
    shown,
    times,
)

LETTER, LINE = 1.05, 5.0  # width and height of a name's letters, in percent of the plot of a desktop's page


def chart(data: Tables, options: Sequence[Option], models: Sequence[str]) -> dict[str, Any]:
    """What the template needs to draw the options of all models on one task.

    Args:
        data: the tables, for the score of a constant answer.
        options: of one task and metric, dense models among them.
        models: of the study; the place of a model is the number of its colour.
    """
    shown_options = [option for option in options if not math.isnan(option.share)]
    task, metric = shown_options[0].task, shown_options[0].metric
    base = baseline(data, task, metric) if in_points(metric) else None
    best = [option for model in models for option in front(shown_options, model)]
    tests = {model: comparisons(option for option in options if option.model == model) for model in models}
    changes = {option: option.change(tests[option.model]) for option in shown_options}
    intervals = {option: _interval(option, changes[option]) for option in best}
    ends = [end for interval in intervals.values() for end in interval]
    low, high, marks = _axis([option.value for option in shown_options], ends, metric, base)
    widest = max(1.0, *(option.share for option in shown_options)) * 1.06

    def place(option: Option) -> tuple[float, float]:
        return round(100 * option.share / widest, 2), _position(option.value, low, high, metric)

    named = _fitting(names(list(dict.fromkeys([*best, *shown_options])), best), place)
    colours = {model: number % len(COLOURS) for number, model in enumerate(models)}
    return {
        "task": task,
        "metric": name_of_metric(metric),
        "better": "higher is better" if in_points(metric) else "lower is better, log scale",
        "x_ticks": [(round(share / widest, 2), f"{share} %") for share in (0, 10, 25, 50, 75, 100)],
        "y_ticks": [(_position(tick, low, high, metric), _tick(tick, metric)) for tick in marks],
        "base": None if base is None or not low <= base <= high else _position(base, low, high, metric),
        "constant": constant_answer(metric),
        "lines": [
            {
                "colour": colours[model],
                "points": " ".join(f"{x},{100 - y:.2f}" for x, y in map(place, front(shown_options, model))),
            }
            for model in models
        ],
        "points": [
            _point(option, changes[option], place(option), colours[option.model])
            | {"best": option in best, "name": named.get(option, "")}
            | {"whisker": [_position(min(max(end, low), high), low, high, metric) for end in intervals.get(option, ())]}
            for option in sorted(shown_options, key=lambda option: (option.share, option.value))
        ],
        "methods": [
            (method, marker_of(method))
            for method in dict.fromkeys(o.method.partition("+")[0] for o in shown_options if not o.is_dense)
        ],
        "models": [(model, colours[model]) for model in models if any(o.model == model for o in shown_options)],
    }


def _point(option: Option, change: Estimate | None, place: tuple[float, float], colour: int) -> dict[str, Any]:
    size = f"{option.bytes / 1e6:,.1f} MB"
    costs = "worse than" if in_points(option.metric) else "the perplexity of"
    lines = [
        f"{name_of_metric(option.metric)} {shown(option.metric, option.value)}"
        + ("" if option.is_dense or change is None else f", {cost_of(option.metric, change)} {costs} dense"),
        f"{size}, {percent(round(option.share, 3))} of the dense bytes"
        + ("" if math.isnan(option.speedup) or option.is_dense else f"; {times(option.speedup)} as fast"),
    ]
    return {
        "x": place[0],
        "y": place[1],
        "colour": colour,
        "marker": marker_of(option.method),
        "title": f"{option.model}, {name_of(option)}",
        "lines": lines,
        "folder": str(option.folder),
    }


def _interval(option: Option, change: Estimate | None) -> tuple[float, ...]:
    """The ends of the interval of an option's quality, as far as it is that of its difference; () if there is none."""
    if option.is_dense or change is None or math.isnan(change.margin) or not change.margin:
        return ()
    if in_points(option.metric):
        return option.value - change.margin, option.value + change.margin
    factor = ratio_of(change.margin)
    return option.value / factor, option.value * factor


def _axis(
    values: Sequence[float], ends: Sequence[float], metric: str, base: float | None
) -> tuple[float, float, list[float]]:
    """The ends and the ticks of the y axis. Intervals widen it at most by the range of the values, each way."""
    if metric == "perplexity":
        low, high = min(values), max(values)
        factor = max(high / low, 1.5)
        low, high = widened(max(min([low, *ends]), low / factor), min(max([high, *ends]), high * factor))
        return low, high, ticks(low, high, log=True)
    least = min(values)
    low, high = min([least, *([] if base is None else [base])]), max(values)
    span = max(high - low, 0.05)
    low, high = max(min([low, *ends]), low - span), min(max([high, *ends]), high + span)
    room = max(ROOM * (high - low), 0.01)
    low, high = max(low - room, -1.0 if least < 0 else 0.0), min(high + room, 1.0)
    return low, high, ticks(low, high)


def _position(value: float, low: float, high: float, metric: str) -> float:
    """Percent of the plot from the bottom."""
    if metric == "perplexity":
        value, low, high = math.log(value), math.log(low), math.log(high)
    return round(100 * (value - low) / (high - low), 2)


def _tick(value: float, metric: str) -> str:
    return plain(value) if metric == "perplexity" else f"{value:.2f}"


def _fitting(names: Mapping[Option, str], place: Callable[[Option], tuple[float, float]]) -> dict[Option, str]:
    """The names that fit above their points, the first ones first."""
    taken: list[tuple[float, float, float]] = []
    fitting = {}
    for option, name in names.items():
        x, y = place(option)
        half = LETTER * len(name) / 2
        if all(abs(y - other) > LINE or abs(x - at) > half + width for at, other, width in taken):
            fitting[option] = name
            taken.append((x, y, half))
    return fitting


def marker_paths(markers: Sequence[str]) -> dict[str, str]:
    """The outlines of markers as SVG paths in a box from -0.5 to 0.5: the same shapes as in the figures."""
    return {marker: _svg(MarkerStyle(marker)) for marker in dict.fromkeys(markers)}


def _svg(style: MarkerStyle) -> str:
    outline = style.get_path().transformed(style.get_transform())
    commands = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}
    parts = []
    for points, code in outline.iter_segments(simplify=False):
        numbers = " ".join(f"{sign * number:.3f}" for number, sign in zip(points, (1, -1) * len(points), strict=False))
        parts.append("Z" if code == Outline.CLOSEPOLY else f"{commands[code]}{numbers}")
    return "".join(parts)
