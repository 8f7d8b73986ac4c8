"""Exact selection: counts, ties, thresholds and minimum densities."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.pruning import scores
from llm_sparsity.pruning.selection import lowest, shares
from llm_sparsity.pruning.structured import _kept
from llm_sparsity.study.sparsity import Sparsity
from tests.tiny import model_of, query
from tests.unit.pruning.helpers import prune
from tests.weights import load


@pytest.mark.parametrize(
    ("size", "sparsity", "count"),
    [(10, "0.1", 1), (10, "0.25", 2), (10, "0.35", 4), (3, "0.5", 2), (1, "0.5", 0), (100, "0.29", 29),
     (100, "0.57", 57), (124_439_808, "0.95", 118217818), (7, "0", 0), (10**9, "0.1", 10**8)],
)  # fmt: skip
def test_the_count_is_decimal_arithmetic(size: int, sparsity: str, count: int) -> None:
    assert Sparsity(sparsity).count(size) == count


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000), max_size=20), st.integers(0, 99))
def test_shares_add_up_to_the_count_of_the_whole(sizes: list[int], level: int) -> None:
    sparsity = Sparsity(f"0.{level:02d}")
    found = shares(sizes, sparsity)
    assert sum(found) == sparsity.count(sum(sizes))
    assert all(abs(share - size * level / 100) <= 1 for share, size in zip(found, sizes, strict=True))


def test_the_lowest_of_equal_scores_are_the_first() -> None:
    scores = torch.tensor([[2.0, 1, 1, 1], [0, 0, 0, 0]])
    assert lowest(scores, 2).tolist() == [[False, True, True, False], [True, True, False, False]]
    assert lowest(scores, torch.tensor([[0], [3]])).tolist() == [[False] * 4, [True, True, True, False]]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_the_lowest_are_those_that_a_stable_sort_puts_first(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(5, (rows, columns), generator=generator).float()  # many are equal
    counts = torch.randint(columns + 1, (rows, 1), generator=generator)
    ranks = scores.argsort(stable=True).argsort()
    assert torch.equal(lowest(scores, counts), ranks < counts)
    assert torch.equal(lowest(scores.t().contiguous().t(), counts), ranks < counts)
    assert torch.equal(lowest(scores[0], int(counts[0])), ranks[0] < counts[0])


def test_min_density_keeps_a_part_of_every_tensor(tmp_path: Path) -> None:
    small, large = torch.arange(1, 9.0).reshape(1, 8), torch.arange(101, 109.0).reshape(1, 8)
    model = model_of({query(0): small, query(1): large}, tmp_path / "model")
    prune(model, {"0.5": tmp_path / "without"}, method="magnitude", scope="linear")
    without = load(tmp_path / "without" / "model")
    assert [int(without[query(n)].count_nonzero()) for n in (0, 1)] == [0, 8]
    prune(model, {"0.5": tmp_path / "with"}, method="magnitude", scope="linear", min_density=0.25)
    after = load(tmp_path / "with" / "model")
    assert after[query(0)].tolist() == [[0, 0, 0, 0, 0, 0, 7, 8]]
    assert after[query(1)].tolist() == [[0, 0, 103, 104, 105, 106, 107, 108]]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(1, 20), min_size=2, max_size=4),
    sparsity=st.integers(1, 60),
    min_density=st.integers(1, 39),
    scale=st.sampled_from([1.0, 10.0]),
    few=st.booleans(),
)
def test_min_density_changes_no_count_that_it_allows(
    rows: list[int], sparsity: int, min_density: int, scale: float, few: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("min_density")
    generator = torch.Generator().manual_seed(sparsity)
    tensors = {query(n): torch.randn(row, 8, generator=generator) * scale**n for n, row in enumerate(rows)}
    if few:  # many ties
        tensors = {name: weight.round() + 0.25 for name, weight in tensors.items()}
    level = f"0.{sparsity:02d}"
    prune(
        model_of(tensors, folder / "m"),
        {level: folder},
        method="magnitude",
        scope="linear",
        min_density=min_density / 100,
    )
    zeros = {name: int((weight == 0).sum()) for name, weight in load(folder / "model").items()}
    limits = {name: weight.numel() * (100 - min_density) // 100 for name, weight in tensors.items()}
    count = Sparsity(level).count(sum(weight.numel() for weight in tensors.values()))
    assert sum(zeros.values()) == min(count, sum(limits.values()))
    assert all(zeros[name] <= limit for name, limit in limits.items())


@pytest.mark.parametrize("method", ["magnitude", "uniform", "structured"])
@pytest.mark.parametrize(("rows", "floor", "removed"), [(10, 0.25, 7), (7, 0.5, 3)])
def test_min_density_is_not_violated_by_one_weight(
    method: str, rows: int, floor: float, removed: int, tmp_path: Path
) -> None:
    """0.75 of 10 is 7.5 and 0.5 of 7 is 3.5, which round to 8 and to 4."""
    if method == "structured":
        scores = torch.arange(1.0, rows + 1)
        assert len(_kept("encoder.0.mlp", scores, Sparsity(str(1 - floor)), floor)) == rows - removed
        return
    model = model_of({query(0): torch.arange(1.0, rows + 1).reshape(1, rows)}, tmp_path / "model")
    prune(model, {str(1 - floor): tmp_path / "out"}, method=method, scope="linear", min_density=floor)
    assert int((load(tmp_path / "out/model")[query(0)] == 0).sum()) == removed


def test_a_pattern_that_contradicts_min_density_is_refused(tmp_path: Path) -> None:
    model = model_of({query(0): torch.ones(4, 4)}, tmp_path / "model")
    with pytest.raises(UserError, match=r"sparsity 1of4: min_density 0.5 keeps this fraction"):
        prune(model, {"1of4": tmp_path / "out"}, method="magnitude", scope="linear", min_density=0.5)


def test_a_sparsity_that_contradicts_min_density_is_refused(tmp_path: Path) -> None:
    model = model_of({query(0): torch.ones(4, 4)}, tmp_path / "model")
    with pytest.raises(UserError, match=r"sparsity 0.9: min_density 0.2 keeps this fraction"):
        prune(model, {"0.9": tmp_path / "out"}, method="magnitude", scope="linear", min_density=0.2)


@pytest.mark.parametrize("bad", [-1.0, float("nan")])
def test_scores_that_are_no_non_negative_numbers_are_an_error(
    bad: float, tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_sparsity.pruning.methods.magnitude.score", lambda weight, _: torch.full(weight.shape, bad))
    with pytest.raises(ValueError, match=r"methods\.magnitude: scores must be non-negative numbers"):
        prune(tiny_model("bert"), {"0.5": tmp_path}, method="magnitude", scope="linear")


def test_the_size_of_strips_does_not_matter(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = ["0.2", "0.8", "1of4"]
    prune(tiny_model("bert"), {level: tmp_path / "whole" / level for level in levels}, method="magnitude", scope="mlp")
    monkeypatch.setattr(scores, "STRIP", 77)
    prune(tiny_model("bert"), {level: tmp_path / "parts" / level for level in levels}, method="magnitude", scope="mlp")
    for level in levels:
        whole, parts = (load(tmp_path / way / level / "model") for way in ("whole", "parts"))
        assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("level", ["0.5", "2of4"])
def test_a_method_of_ones_own_scores_whole_matrices_in_any_dtype(
    level: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ModuleType("llm_sparsity.pruning.methods.own")
    own.GRANULARITY, own.COMPARISON = (1, 1), "tensor"  # type: ignore[attr-defined]
    own.score = lambda weight, _: weight.abs() / weight.abs().sum(0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, own.__name__, own)
    monkeypatch.setattr("llm_sparsity.study.methods.METHODS", ("own",))
    monkeypatch.setattr(scores, "STRIP", 16)
    weight = (torch.rand(16, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 17)[:, None]).to(dtype)
    prune(model_of({query(0): weight}, tmp_path / "dense"), {level: tmp_path}, method="own", scope="linear")
    share = own.score(weight, None).float()
    groups = share.reshape((-1, 4) if level == "2of4" else (1, -1))
    expected = lowest(groups, groups.shape[1] // 2).reshape(weight.shape)
    assert torch.equal(load(tmp_path / "model")[query(0)] == 0, expected)


def test_single_weights_that_are_few_are_called_no_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of({query(0): torch.ones(1, 3)}, tmp_path / "dense")
    prune(model, {"0.5": tmp_path}, method="uniform", scope="linear")
    assert capsys.readouterr().out == "sparsity 0.5: 0.6667 reached\n"
