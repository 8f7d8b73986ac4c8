"""Marks for the cases of a test."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(fast: Collection[str], cases: Iterable[str]) -> list[Any]:
    """The cases of a test, of which all but the fast ones are marked slow."""
    return [pytest.param(case, marks=() if case in fast else pytest.mark.slow) for case in cases]
