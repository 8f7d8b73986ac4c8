"""Functions take turns."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from llm_sparsity.inference.timing import on_device, quartiles, take_turns


def test_functions_take_turns() -> None:
    calls: list[str] = []
    seconds = take_turns([lambda: calls.append("a"), lambda: calls.append("b")], 3)
    assert "".join(calls) == "abababab"  # the first turn warms up
    assert seconds.shape == (3, 2) and (seconds >= 0).all()


def test_quartiles() -> None:
    assert quartiles("seconds", np.arange(5.0)) == {"seconds": 2, "seconds_low": 1, "seconds_high": 3}


class Graph:
    """A stand-in for a CUDA graph: it replays what was called while it was recorded."""

    recording: Any = None

    def replay(self) -> None:
        self.replayed = True


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The graphs that were recorded, with stand-ins for torch's functions of a GPU."""
    graphs: list[Graph] = []

    @contextmanager
    def graph(made: Graph, pool: object) -> Iterator[None]:
        assert pool == "pool"
        yield
        graphs.append(made)

    for name, function in {
        "synchronize": lambda _: None, "CUDAGraph": Graph, "graph_pool_handle": lambda: "pool", "graph": graph
    }.items():  # fmt: skip
        monkeypatch.setattr(f"torch.cuda.{name}", function)
    return graphs


def failing(error: Exception) -> Callable[[], None]:
    """A function that fails when it is recorded, after two calls."""
    calls: list[None] = []

    def function() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise error

    return function


def test_graphs_share_a_pool(recorded: list[Graph]) -> None:
    for run in on_device([lambda: None] * 2, torch.device("cuda")):
        run()
    assert [graph.replayed for graph in recorded] == [True, True]


def test_one_that_cannot_be_recorded_has_all_called(recorded: list[Graph]) -> None:
    """A call beside a graph would be slower by the time of Python."""
    calls: list[str] = []
    with pytest.warns(UserWarning, match="timed without CUDA graphs: not permitted"):
        runs = on_device([lambda: calls.append("first"), failing(RuntimeError("not permitted"))], torch.device("cuda"))
    calls.clear()
    runs[0]()
    assert calls == ["first"]


def test_a_full_gpu_is_not_taken_for_that(recorded: list[Graph]) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        on_device([failing(torch.OutOfMemoryError("full"))], torch.device("cuda"))
