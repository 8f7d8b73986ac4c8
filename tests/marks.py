"""Marks for the cases of a test."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """Values of a parametrised test that `./run test` leaves out, as it has others of their kind."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_but(fast: Collection[str], cases: Iterable[str]) -> list[Any]:
    """The cases of a test, of which all but the fast ones are marked slow."""
    return [case if case in fast else slow(case) for case in cases]
