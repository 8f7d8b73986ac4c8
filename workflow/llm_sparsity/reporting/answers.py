"""The answers of a study: its title, and sentences, each from one comparison of cells."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llm_sparsity.reporting.contrasts import by_recipe, differ, widest
from llm_sparsity.reporting.decisions import LATENCY, Decision, decisions, useless
from llm_sparsity.reporting.options import Option, options
from llm_sparsity.reporting.tables import CELL, UNTRAINED, Tables, are_masked, fractions, judged, scored, start_of
from llm_sparsity.reporting.tolerance import Cell, Verdict, tolerance, verdict
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
    times,
)

WHOLE = ("all", "linear")  # scopes that are whole models, not parts
NAMED = 4  # verdicts that become sentences; of more, the extremes
SEEN = 0.01  # a share of validation examples that are training examples, from which on it is said
LEFT = 0.99  # a share of zeros from which on they are said to remain


@dataclass(frozen=True)
class Question:
    """One model on one task: its options, the verdict on them, and a decision for each budget.

    Args:
        informative: whether the dense model has learned the task: it is better than always giving the same answer.
    """

    task: str
    metric: str
    model: str
    options: list[Option]
    verdict: Verdict | None
    decisions: list[Decision]
    informative: bool

    @property
    def dense(self) -> str:
        """Quality of the dense model, as text; of a text that is trained on as well, before and after."""
        means = {start_of(option.recipe): float(option.dense.mean()) for option in self.options}
        values = [shown(self.metric, means[recipe]) for recipe in sorted(means)]
        return values[0] if len(values) == 1 else f"{values[0]}, and {values[1]} trained,"


def questions(data: Tables) -> list[Question]:
    """Every model on every task, in the order of the tables. Of cells that diverged only that is known."""
    rows = judged(data)
    lost: dict[tuple[str, str, str], set[Cell]] = {}
    for row in rows[rows.value.isna()].itertuples():
        cell = ((row.method, row.scope, row.recipe), row.sparsity)
        lost.setdefault((row.task, row.metric, row.model), set()).add(cell)
    data = {**data, "metrics": scored(data["metrics"])}
    found: dict[tuple[str, str, str], list[Option]] = {}
    for option in options(data):
        found.setdefault((option.task, option.metric, option.model), []).append(option)
    asked = []
    for (task, metric, model), mine in found.items():
        starts = [option for option in mine if option.is_dense]
        learned = not starts or not all(useless(data, option) for option in starts)
        if len(starts) < len(mine):
            found_out = verdict(mine, lost.get((task, metric, model), ()))
            asked.append(Question(task, metric, model, mine, found_out, decisions(data, mine), learned))
    return asked


def ranked(asked: list[Question]) -> list[Question]:
    """Questions with the most telling first: proven by the fewest bytes, proven not to be, open."""
    return sorted(asked, key=_rank)


def title(asked: list[Question]) -> str:
    """The finding of the first question, in one sentence."""
    if not asked:
        return "This study names no model to take"
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
    """What the largest budget of bytes with a recommendation costs."""
    for decision in question.decisions:
        if decision.option is not None and decision.budget != LATENCY:
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
    found = [_seen(data), _without(asked), *(_verdict(question) for question in told), _method(pruned), _part(pruned)]
    found += [_bytes(data), _seconds(data), _recipe_gain(data, pruned), _recovery(pruned), _regrown(data)]
    return [line for line in found if line]


def _seen(data: Tables) -> str:
    """The task of which the largest share of the validation split was trained on."""
    runs = data["runs"][data["runs"].epochs > 0]
    shares = (runs.seen_examples / runs.validation_examples).astype(float)
    if not (shares >= SEEN).any():
        return ""
    worst = runs.loc[shares.idxmax()]
    return (
        f"Scores on {worst.task} flatter: {percent(round(shares.max(), 3))} of its {worst.validation_examples} "
        f"validation examples are training examples of the recipe {worst.recipe} too, which a model may remember; take "
        "them out of either."
    )


def _without(asked: Sequence[Question]) -> str:
    """Why a study has no verdict."""
    if asked:
        return ""
    return (
        "A verdict is about a pruned model and its dense one, on a task that is judged by one score. Zero-shot tasks, "
        "the control random, released masks and models of which the dense one diverged have figures and numbers alone."
    )


def _verdict(question: Question) -> str:
    found, where = question.verdict, f"On {question.task}, {question.model}"
    if not question.informative:
        answer = constant_answer(question.metric)
        return f"{where} shows nothing: the dense model is hardly better than always answering {answer}."
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
    if found.contradicted:
        return (
            f"This study does not decide whether {question.model} {near} on {question.task}: {name_of(option)} does, "
            f"with {values}, but {found.contradicted}."
        )
    return (
        f"This study does not decide whether {question.model} {near} on {question.task}: {name_of(option)} has "
        f"{values}, from {_evidence(found)}; it would take {found.lacking}."
    )


def _evidence(found: Verdict) -> str:
    example, seed = found.option.nouns
    counts = [number_of(found.option.count, example)]
    return " and ".join([*counts, *([number_of(found.change.seeds, seed)] if found.change.seeds else [])])


def _method(pruned: Sequence[Option]) -> str:
    """The widest gap of two methods at the same sparsity."""
    gap = widest(pruned, "method")
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
    gap = widest([option for option in pruned if option.scope not in WHOLE], "scope")
    if gap is None:
        return ""
    best, worst = gap
    return (
        f"The part matters: with {part_of(best.sparsity, 'one part')} of {best.model} removed, "
        f"{name_of_metric(best.metric)} on {best.task} is {shown(best.metric, best.value)} if that is "
        f"{scope_name(best.scope)}, {shown(best.metric, worst.value)} if it is {scope_name(worst.scope)}."
    )


def _recipe_gain(data: Tables, pruned: Sequence[Option]) -> str:
    """The largest gain in points of a recipe over plain fine-tuning, with the steps of both if it took more."""
    pairs = by_recipe([option for option in pruned if in_points(option.metric)], "kept")
    gains = [pair for pair in pairs if pair[1].value > pair[0].value and differ(*pair, len(pairs))]
    if not gains:
        return ""
    plain, best = max(gains, key=lambda pair: pair[1].value - pair[0].value)
    more, fewer = _steps(data, best), _steps(data, plain)
    return (
        f"The recipe matters: {best.model} without {best.sparsity.label} of {scope_name(best.scope)} reaches "
        f"{name_of_metric(best.metric)} {best.value:.3f} on {best.task} by {best.recipe}, {plain.value:.3f} by kept"
        f"{f', but in {more:,} steps, not {fewer:,}' if more > fewer else ''}."
    )


def _steps(data: Tables, option: Option) -> int:
    """The steps of an option's training; not those of the dense model, from which it may start."""
    runs = data["history"]
    keys = ["task", "recipe", *CELL]
    return int(runs.step[(runs[keys] == [getattr(option, key) for key in keys]).all(axis=1)].max())


def _recovery(pruned: Sequence[Option]) -> str:
    """The largest gain in perplexity of training, against a dense model that was trained too.

    Its interval is that of the seeds of training: what was trained is that very draw, scored on the same text.
    """
    pairs = by_recipe([option for option in pruned if not in_points(option.metric)], UNTRAINED)
    changes = {pair: pair[1].against(replace(pair[0].score, kind=""), len(pairs)) for pair in pairs}
    gains = [pair for pair, change in changes.items() if change and change.value + change.spread < 0]
    if not gains:
        return ""
    start, best = max(gains, key=lambda pair: pair[0].value / pair[1].value)
    return (
        f"Training recovers: on {best.task}, {best.model} at {best.sparsity.label} ({best.method}) goes from "
        f"perplexity {shown('perplexity', start.value)} to {shown('perplexity', best.value)} by {best.recipe}; the "
        f"dense model, trained by kept, has {shown('perplexity', float(best.dense.mean()))}."
    )


def _bytes(data: Tables) -> str:
    """The smallest file."""
    sizes = data["sizes"][data["sizes"].method != "dense"]
    if sizes.empty:
        return ""
    row = sizes.loc[sizes.ratio.idxmin()]
    return (
        f"The smallest file takes {percent(round(row.ratio, 3))} of the dense model in the same container, "
        f"{row.container_bytes / 1e6:,.1f} of {row.container_bytes / row.ratio / 1e6:,.1f} MB: "
        f"{row.model}, {name_of(row)}."
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
        f"The fastest runs {times(row.speedup)} as fast as dense, by {row.execution} execution on {row.device}, "
        f"batch {row.batch_size}{', decoding' * (row.phase == 'decode')}: {row.model}, {name_of(row)}."
    )


def _regrown(data: Tables) -> str:
    """The zeros that remain where the mask is released."""
    runs = data["runs"]
    released = runs[(runs["mask"] == "released") & (fractions(runs) > 0)]
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
