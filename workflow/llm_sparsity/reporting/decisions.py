"""Decisions: what to take for a budget of bytes or of latency, what it costs, and whether the choice would hold again.

The best of many options is partly lucky. A choice is confirmed if every seed, left out in turn, is left out without
changing it: then each seed's value is one that did not choose, and their mean is the cost. Its interval is corrected as
that of the verdict is, so one option has one interval. All seeds are scored on the same examples, whose chance no seed
shows.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from llm_sparsity.reporting.intervals import Estimate
from llm_sparsity.reporting.options import Option, best, comparisons
from llm_sparsity.reporting.tables import Tables, baseline
from llm_sparsity.reporting.wording import constant_answer, in_points, name_of, number_of, percent

SHARES = (0.75, 0.5, 0.25, 0.1)  # budgets of bytes, as shares of the dense model's
FASTER, LATENCY = 2.0, "half the latency"  # the budget of latency
# A score has learned next to nothing if it is less above that of always giving the same answer: by two points, or by a
# tenth of what that lacks to 1.
ABOVE_CONSTANT, OF_MISSING = 0.02, 0.1
USELESS = 10.0  # times the dense model's perplexity


@dataclass(frozen=True)
class Decision:
    """What to take for one budget.

    Args:
        budget: in words.
        option: None: there is nothing to recommend.
        change: of the option's quality against the dense model, with its interval, see `options.comparisons`.
        confirmed: whether the choice would hold again, in words; the reason if there is no option.
    """

    budget: str
    option: Option | None
    change: Estimate | None
    confirmed: str


def decisions(data: Tables, options: Sequence[Option]) -> list[Decision]:
    """A decision for each budget, for the options of one model on one task.

    Budgets of latency are left out where no speed was measured.
    """
    pruned = [option for option in options if not option.is_dense]
    found: list[Decision] = []
    tests = comparisons(pruned)
    for share in SHARES:
        small = [option for option in pruned if option.share <= share]
        decision = _decide(data, f"{percent(share)} of the bytes", small, "small", tests)
        if found and (found[-1].option, found[-1].confirmed) == (decision.option, decision.confirmed):
            others = found.pop().budget.removesuffix(" of the bytes").replace(" or ", ", ")
            decision = dataclasses.replace(decision, budget=f"{others} or {decision.budget}")
        found.append(decision)
    if any(not math.isnan(option.speedup) for option in pruned):
        fast = [option for option in pruned if option.speedup >= FASTER]
        found.append(_decide(data, LATENCY, fast, "fast", tests))
    return found


def _decide(data: Tables, budget: str, allowed: list[Option], quality: str, tests: int) -> Decision:
    """The decision among the options that fit a budget, all of which are as "small" or "fast" as it asks."""
    chosen = best(allowed)
    if chosen is None:
        return Decision(budget, None, None, f"nothing in this study is as {quality}")
    if reason := useless(data, chosen):
        return Decision(budget, None, None, f"nothing: {name_of(chosen)} is the best and {reason}")
    return Decision(budget, chosen, chosen.change(tests), _confirmed(chosen, allowed))


def nothing(found: Sequence[Decision]) -> str:
    """Why there is nothing to recommend, in a sentence; "" if there is something."""
    if any(decision.option for decision in found):
        return ""
    reasons = dict.fromkeys(decision.confirmed.removeprefix("nothing: ") for decision in found)
    return f"This study has nothing to recommend here: {'; '.join(reasons)}."


def useless(data: Tables, option: Option) -> str:
    """Why nobody should take an option, in words; "" if somebody may."""
    if in_points(option.metric):
        constant = baseline(data, option.task, option.metric)
        if option.value < constant + min(ABOVE_CONSTANT, OF_MISSING * (1 - constant)):
            return f"hardly better than always answering {constant_answer(option.metric)}"
        return ""
    times = option.value / float(option.dense.mean())
    return f"has {times:,.0f} times the perplexity of the dense model" if times > USELESS else ""


def _confirmed(chosen: Option, allowed: list[Option]) -> str:
    """Whether each seed, left out, leaves the choice as it is.

    Options that have no such seeds, or one alone, keep their value.
    """
    if len(allowed) == 1:
        return "the only choice"
    kind, seeds = chosen.score.kind, list(chosen.values.index)
    if len(seeds) < 2:
        only = chosen.nouns[1] if kind else "validation split" if in_points(chosen.metric) else "text"
        return f"no: one {only}"

    def known(option: Option, seed: int) -> float:
        varies = option.score.kind == kind and len(option.values) > 1
        values = option.values.drop(seed, errors="ignore") if varies else option.values
        return float(values.mean()) * (1 if in_points(option.metric) else -1)

    for seed in seeds:
        again = max(allowed, key=lambda option: (known(option, seed), -option.bytes))
        if again is not chosen:
            return f"no: without {chosen.nouns[1]} {seed}, {name_of(again)} is chosen"
    return f"by {number_of(len(seeds), chosen.nouns[1])}"
