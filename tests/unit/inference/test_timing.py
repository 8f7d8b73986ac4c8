"""Functions take turns."""

import numpy as np

from llm_sparsity.inference.timing import quartiles, take_turns


def test_functions_take_turns() -> None:
    calls: list[str] = []
    seconds = take_turns([lambda: calls.append("a"), lambda: calls.append("b")], 3)
    assert "".join(calls) == "abababab"  # the first turn warms up
    assert seconds.shape == (3, 2) and (seconds >= 0).all()


def test_quartiles() -> None:
    assert quartiles("seconds", np.arange(5.0)) == {"seconds": 2, "seconds_low": 1, "seconds_high": 3}
