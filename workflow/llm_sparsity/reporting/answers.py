"""The answers of a study: its title, and sentences, each from one comparison of cells."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from llm_sparsity.reporting.decisions import Decision, decisions, useless
from llm_sparsity.reporting.options import Option, options
from llm_sparsity.reporting.tables import CELL, UNTRAINED, Tables, are_masked, scored
from llm_sparsity.reporting.tolerance import Verdict, tolerance, verdict
from llm_sparsity.reporting.wording import (
    constant_answer,
    cost_of,
    in_points,
    name_of,
    name_of_metric,
    number_of,
    part_of,
    percent,
    scope_name,
    shown,
)

WHOLE = ("all", "linear")  # scopes that are whole models, not parts
NAMED = 4  # verdicts that become sentences; of more, the extremes
LEFT = 0.99  # a share of zeros from which on they are said to remain
Pair = tuple[Option, Option]


@dataclass(frozen=True)
class Question:
    """One model on one task: its options, the verdict on them, and a decision for each budget.

    Args:
        informative: whether the dense model has learned the task: it beats always giving the same answer.
    """

    task: str
    metric: str
    model: str
    options: list[Option]
    verdict: Verdict | None
    decisions: list[Decision]
    informative: bool

    @property
    def dense(self) -> float:
        """Quality of the dense model, of the best where several recipes trained it."""
        values = [float(option.dense.mean()) for option in self.options]
        return max(values) if in_points(self.metric) else min(values)


def questions(data: Tables) -> list[Question]:
    """Every model on every task, in the order of the tables. Cells that diverged have no part in it."""
    data = {**data, "metrics": scored(data["metrics"])}
    found: dict[tuple[str, str, str], list[Option]] = {}
    for option in options(data):
        found.setdefault((option.task, option.metric, option.model), []).append(option)
    asked = []
    for (task, metric, model), mine in found.items():
        starts = [option for option in mine if option.is_dense]
        learned = not starts or not all(useless(data, option) for option in starts)
        if len(starts) < len(mine):
            asked.append(Question(task, metric, model, mine, verdict(mine), decisions(data, mine), learned))
    return asked


def ranked(asked: list[Question]) -> list[Question]:
    """Questions with the most telling first: proven by the fewest bytes, proven not to be, open."""
    return sorted(asked, key=_rank)


def title(asked: list[Question]) -> str:
    """The finding of the first question, in one sentence."""
    if not asked:
        return "This study scores no pruned model on any task"
    first = asked[0]
    limit, metric = tolerance(first.metric), name_of_metric(first.metric)
    found = first.verdict
    if not first.informative or found is None:
        return f"This study cannot tell how much of {first.model} can be removed"
    if found.decided:
        return (
            f"{first.model} stays within {limit} of its dense {metric} on {first.task} "
            f"{_size(found.option)}: {name_of(found.option)}"
        )
    costs = _mildest(first)
    if found.decided is None:
        return f"This study does not decide how much of {first.model} can be removed on {first.task}{costs}"
    return f"No pruned {first.model} stays within {limit} of its dense {metric} on {first.task}{costs}"


def _mildest(question: Question) -> str:
    """What the largest budget with a recommendation costs."""
    for decision in question.decisions:
        if decision.option is not None:
            unit = f"of {name_of_metric(question.metric)}" if in_points(question.metric) else "the perplexity"
            return f"; the best {_size(decision.option)} costs {cost_of(question.metric, decision.change)} {unit}"
    return ""


def _rank(question: Question) -> tuple[int, float]:
    found = question.verdict
    if found is None or not question.informative:
        return 3, 0.0
    saved = -found.option.sparsity.fraction if math.isnan(found.option.share) else found.option.share - 1
    order = {True: 0, False: 1, None: 2}[found.decided]
    return order, saved if found.decided else 0.0


def _size(option: Option) -> str:
    if math.isnan(option.share):
        return f"without {option.sparsity.label} of its weights"
    return f"at {percent(round(option.share, 2))} of its bytes"


def answers(data: Tables, asked: list[Question]) -> list[str]:
    """The sentences of the study, the verdicts first.

    Args:
        data: the tables of the study.
        asked: its questions, see `ranked`.
    """
    told = asked if len(asked) <= NAMED else [*asked[: NAMED // 2], *asked[-NAMED // 2 :]]
    pruned = [option for question in asked for option in question.options if not option.is_dense]
    found = [*(_verdict(question) for question in told), _method(pruned), _part(pruned), _bytes(data), _seconds(data)]
    found += [_recipe_gain(pruned), _recovery(pruned), _regrown(data)]
    return [line for line in found if line]


def _verdict(question: Question) -> str:
    found, where = question.verdict, f"On {question.task}, {question.model}"
    if not question.informative:
        answer = constant_answer(question.metric)
        return f"{where} shows nothing: the dense model is no better than always answering {answer}."
    if found is None:
        return ""
    option, metric = found.option, name_of_metric(question.metric)
    values = (
        f"{metric} {shown(question.metric, option.value)} against "
        f"{shown(question.metric, float(option.dense.mean()))} of the dense model"
    )
    near = f"stays within {tolerance(question.metric)} of its dense {metric}"
    if found.decided:
        return f"{where} {near} {_size(option)}: {name_of(option)}, with {values}."
    if found.decided is False:
        none = f"On {question.task}, no pruned {question.model} {near}"
        return f"{none}; the mildest is {name_of(option)}, with {values}."
    return (
        f"This study does not decide whether {question.model} {near} on {question.task}: {name_of(option)} has "
        f"{values}, from {_evidence(found)}; it would take {found.lacking}."
    )


def _evidence(found: Verdict) -> str:
    example, seed = found.option.nouns
    counts = [number_of(found.option.count, example)]
    return " and ".join([*counts, *([number_of(found.change.seeds, seed)] if found.change.seeds else [])])


def _differ(one: Option, other: Option, pairs: int) -> bool:
    """Whether the interval of a difference leaves out none, corrected for the pairs among which it was chosen."""
    change = one.against(other.score, pairs)
    return change is not None and abs(change.value - (0 if in_points(one.metric) else 1)) > change.margin


def _groups(pruned: Sequence[Option], axis: str) -> list[list[Option]]:
    """Options that differ in one thing alone, with the best first; those of a single one are left out."""
    same = [name for name in ("task", "metric", "model", "method", "scope", "sparsity", "recipe") if name != axis]
    found: dict[tuple[Any, ...], list[Option]] = {}
    for option in pruned:
        found.setdefault(tuple(getattr(option, name) for name in same), []).append(option)
    return [sorted(group, key=lambda option: -option.rank) for group in found.values() if len(group) > 1]


def _widest(pruned: Sequence[Option], axis: str) -> Pair | None:
    """The best and the worst of options at one sparsity that differ in one thing alone, the pair of the largest ratio.

    Of texts, those that were not trained on.
    """
    plain = [option for option in pruned if in_points(option.metric) or option.recipe == UNTRAINED]
    groups = _groups([option for option in plain if option.sparsity.fraction > 0], axis)
    pairs = sum(math.comb(len(group), 2) for group in groups)
    found = [(group[0], group[-1]) for group in groups if min(group[0].value, group[-1].value) > 0]
    found = [pair for pair in found if _differ(*pair, pairs)]
    return max(found, key=lambda pair: abs(math.log(pair[0].value / pair[1].value)), default=None)


def _method(pruned: Sequence[Option]) -> str:
    """The widest gap of two methods at the same sparsity."""
    gap = _widest(pruned, "method")
    if gap is None:
        return ""
    best, worst = gap
    return (
        f"The method matters: with {part_of(best.sparsity, scope_name(best.scope))} of {best.model} removed, "
        f"{best.method} has {name_of_metric(best.metric)} {shown(best.metric, best.value)} on {best.task}, "
        f"{worst.method} {shown(best.metric, worst.value)}."
    )


def _part(pruned: Sequence[Option]) -> str:
    """The widest gap of two parts at the same sparsity."""
    gap = _widest([option for option in pruned if option.scope not in WHOLE], "scope")
    if gap is None:
        return ""
    best, worst = gap
    return (
        f"The part matters: with {part_of(best.sparsity, 'one part')} of {best.model} removed, "
        f"{name_of_metric(best.metric)} on {best.task} is {shown(best.metric, best.value)} if that is "
        f"{scope_name(best.scope)}, {shown(best.metric, worst.value)} if it is {scope_name(worst.scope)}."
    )


def _trained(pruned: Sequence[Option], plain: str) -> list[Pair]:
    """Options of a recipe, each beside the same variant by another one."""
    return [
        (start, other)
        for group in _groups(pruned, "recipe")
        for start, other in itertools.permutations(group, 2)
        if start.recipe == plain
    ]


def _recipe_gain(pruned: Sequence[Option]) -> str:
    """The largest gain in points of a recipe over plain fine-tuning."""
    pairs = _trained([option for option in pruned if in_points(option.metric)], "kept")
    gains = [pair for pair in pairs if pair[1].value > pair[0].value and _differ(*pair, len(pairs))]
    if not gains:
        return ""
    plain, best = max(gains, key=lambda pair: pair[1].value - pair[0].value)
    return (
        f"The recipe matters: {best.model} without {best.sparsity.label} of {scope_name(best.scope)} reaches "
        f"{name_of_metric(best.metric)} {best.value:.3f} on {best.task} by {best.recipe}, {plain.value:.3f} by kept."
    )


def _recovery(pruned: Sequence[Option]) -> str:
    """The largest gain in perplexity of training, against a dense model that was trained too.

    Its interval is that of the seeds: both models are scored on the same text.
    """
    pairs = _trained([option for option in pruned if not in_points(option.metric)], UNTRAINED)
    changes = {pair: pair[1].against(pair[0].score, len(pairs)) for pair in pairs}
    gains = [pair for pair, change in changes.items() if change and change.value + change.spread < 1]
    if not gains:
        return ""
    start, best = max(gains, key=lambda pair: pair[0].value / pair[1].value)
    return (
        f"Training recovers: on {best.task}, {best.model} at {best.sparsity.label} ({best.method}) goes from "
        f"perplexity {shown('perplexity', start.value)} to {shown('perplexity', best.value)} by {best.recipe}; the "
        f"dense model, trained by kept, has {shown('perplexity', float(best.dense.mean()))}."
    )


def _variant(row: Any) -> str:
    """A variant of the tables of sizes and speed, which no recipe trained."""
    return f"{row.model}, {name_of(pd.Series({**row, 'recipe': UNTRAINED}))}"


def _bytes(data: Tables) -> str:
    """The smallest file."""
    sizes = data["sizes"]
    if not (sizes.method != "dense").any():
        return ""
    row = sizes.loc[sizes.ratio.idxmin()]
    return (
        f"The smallest file takes {percent(round(100 * row.ratio, 1) / 100)} of the dense model in the same container, "
        f"{row.bytes / 1e6:,.1f} of {row.container_bytes / row.ratio / 1e6:,.1f} MB: {_variant(row)}."
    )


def _seconds(data: Tables) -> str:
    """The fastest execution. A masked model in dense execution is the dense model, and differs from it by chance."""
    pruned = data["speed"][data["speed"].method != "dense"]
    if pruned.empty:
        return ""
    faster = pruned[(pruned.speedup_low > 1) & ~(are_masked(pruned) & (pruned.execution == "dense"))]
    if faster.empty:
        return f"No variant runs measurably faster than its dense model on this machine, {pruned.device.iloc[0]}."
    row = faster.loc[faster.speedup.idxmax()]
    return (
        f"The fastest runs {row.speedup:.1f} times as fast as dense, by {row.execution} execution on {row.device}, "
        f"batch {row.batch_size}{', decoding' * (row.phase == 'decode')}: {_variant(row)}."
    )


def _regrown(data: Tables) -> str:
    """The zeros that remain where the mask is released."""
    runs = data["runs"]
    released = runs[(runs["mask"] == "released") & (runs.method != "dense")]
    if released.empty:
        return ""
    row = released[released.sparsity == max(released.sparsity)].iloc[0]
    same = (released[["task", "recipe", *CELL]] == row[["task", "recipe", *CELL]]).all(axis=1)
    left = float(released.measured_sparsity[same].mean()) / row.sparsity.fraction
    if left > LEFT:
        return ""
    return (
        f"Released zeros grow back: of the {row.sparsity.label} removed of {row.model}, {percent(round(left, 3))} are "
        f"still zero after fine-tuning{', so what was measured is a dense model' if left < 0.1 else ''}."
    )
