"""Contrasts: pruned models that differ in one thing alone, and whether that matters."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from llm_sparsity.reporting.options import Option
from llm_sparsity.reporting.tables import UNTRAINED
from llm_sparsity.reporting.wording import in_points

Pair = tuple[Option, Option]


def differ(one: Option, other: Option, pairs: int) -> bool:
    """Whether the interval of a difference leaves out none, corrected for the pairs among which it was chosen."""
    change = one.against(other.score, pairs)
    return change is not None and abs(change.value) > change.margin


def _groups(pruned: Sequence[Option], axis: str) -> list[list[Option]]:
    """Options that differ in one thing alone, with the best first; those of a single one are left out."""
    same = [name for name in ("task", "metric", "model", "method", "scope", "sparsity", "recipe") if name != axis]
    found: dict[tuple[Any, ...], list[Option]] = {}
    for option in pruned:
        found.setdefault(tuple(getattr(option, name) for name in same), []).append(option)
    return [sorted(group, key=lambda option: -option.rank) for group in found.values() if len(group) > 1]


def widest(pruned: Sequence[Option], axis: str) -> Pair | None:
    """The best and the worst of options at one sparsity that differ in one thing alone, the pair of the largest ratio.

    Of texts, those that were not trained on.
    """
    plain = [option for option in pruned if in_points(option.metric) or option.recipe == UNTRAINED]
    groups = _groups([option for option in plain if option.sparsity.fraction > 0], axis)
    pairs = sum(math.comb(len(group), 2) for group in groups)
    found = [(group[0], group[-1]) for group in groups if min(group[0].value, group[-1].value) > 0]
    found = [pair for pair in found if differ(*pair, pairs)]
    return max(found, key=lambda pair: abs(math.log(pair[0].value / pair[1].value)), default=None)


def by_recipe(pruned: Sequence[Option], plain: str) -> list[Pair]:
    """Options of a recipe, each beside the same variant by another one."""
    return [
        (start, other)
        for group in _groups(pruned, "recipe")
        for start, other in itertools.permutations(group, 2)
        if start.recipe == plain
    ]
