"""The step `swaps`: by hand, against a search of all exchanges, and on whole models with random weights."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_sparsity.pruning.methods import wanda
from llm_sparsity.pruning.selection import lowest
from llm_sparsity.pruning.steps import swaps
from llm_sparsity.storage.files import read_manifest
from llm_sparsity.study.sparsity import Sparsity
from tests.marks import slow
from tests.unit.pruning.helpers import DRAW, calibrated, prune, rows_of
from tests.weights import load

HALF = Sparsity("0.5")


def error(dense: Tensor, weight: Tensor, gram: Tensor) -> Tensor:
    """The squared output error of each row."""
    change = (weight - dense).double()
    return ((change @ gram.double()) * change).sum(dim=1)


def test_by_hand() -> None:
    # Inputs 0 and 1 are equal, so to remove both halves of 1 + 1 costs 4; to remove 0 and 2 costs 1 + 0.25.
    gram = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    dense = torch.tensor([[1.0, 1.0, 0.5]])
    pruned = torch.tensor([[0.0, 0.0, 0.5]])
    repaired = swaps.repair(dense, pruned, swaps.prepare(gram), Sparsity("0.6667"))
    assert repaired.tolist() in ([[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    assert pruned.tolist() == [[0.0, 0.0, 0.5]]  # arguments do not change


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), columns=st.sampled_from([4, 8, 12]), level=st.sampled_from(["0.25", "0.5", "2of4"]),
)  # fmt: skip
def test_no_exchange_is_left(seed: int, columns: int, level: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense, inputs = (torch.randn(rows, columns, generator=generator) for rows in (5, 20))
    gram, sparsity = swaps.observe(inputs), Sparsity(level)
    kept, group = sparsity.pattern or (round(columns * (1 - sparsity.fraction)), columns)
    removed = lowest(dense.abs().reshape(5, -1, group), group - kept).reshape(dense.shape)
    pruned = dense.masked_fill(removed, 0)
    repaired = swaps.repair(dense, pruned, gram, sparsity)
    assert torch.equal((repaired == 0).view(5, -1, group).sum(2), removed.view(5, -1, group).sum(2))
    assert torch.equal(repaired[repaired != 0], dense[repaired != 0])
    reached = error(dense, repaired, gram)
    assert (reached <= error(dense, pruned, gram) * (1 + 1e-5)).all()
    for row, start in itertools.product(range(5), range(0, columns, group)):
        columns_of_group = range(start, start + group)
        for out, into in itertools.product(columns_of_group, columns_of_group):
            if repaired[row, out] and not repaired[row, into]:
                other = repaired[row : row + 1].clone()
                other[0, out], other[0, into] = 0, dense[row, into]
                assert error(dense[row : row + 1], other, gram) >= reached[row] * (1 - 1e-4) - 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_it_ends_where_rounding_is_all_that_is_left(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer tokens than inputs, and inputs that are sums of others: many exchanges change nothing."""
    rounds, best = 0, swaps._best

    def counted(*arguments: Any) -> Any:
        nonlocal rounds
        rounds += 1
        assert rounds < 200, "exchanges of rounding errors go on"
        return best(*arguments)

    monkeypatch.setattr(swaps, "_best", counted)
    generator = torch.Generator().manual_seed(seed)
    dense, inputs = torch.randn(32, 24, generator=generator), torch.randn(3, 24, generator=generator)
    inputs[:, 1::2] = inputs[:, ::2]
    dense[:, 1::2] = dense[:, ::2]
    gram = swaps.observe(inputs * 100)
    pruned = wanda.prune(dense, wanda.prepare(gram.diagonal()), HALF)
    repaired = swaps.repair(dense, pruned, gram, HALF)
    before, after = error(dense, pruned, gram), error(dense, repaired, gram)
    assert (after <= before * (1 + 1e-5)).all() and after.sum() < 0.3 * before.sum()


def test_few_candidates_still_only_lower_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swaps, "CANDIDATES", 4)
    monkeypatch.setattr(swaps, "ROWS", 3)
    generator = torch.Generator().manual_seed(0)
    dense, inputs = torch.randn(10, 64, generator=generator), torch.randn(200, 64, generator=generator)
    inputs[:, 1::2] += inputs[:, ::2]
    gram = swaps.observe(inputs)
    pruned = wanda.prune(dense, wanda.prepare(gram.diagonal()), HALF)
    repaired = swaps.repair(dense, pruned, gram, HALF)
    assert (error(dense, repaired, gram) <= error(dense, pruned, gram)).all()
    assert error(dense, repaired, gram).sum() < 0.8 * error(dense, pruned, gram).sum()


def test_a_dense_zero_is_never_restored() -> None:
    dense = torch.tensor([[0.0, 3.0, 1.0, -1.0]])
    inputs = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    repaired = swaps.repair(dense, torch.tensor([[0.0, 3.0, 0.0, 0.0]]), swaps.observe(inputs), Sparsity("0.75"))
    assert int((repaired != 0).sum()) == 1


@pytest.mark.parametrize("kind", ["llama", slow("gpt2"), slow("bert"), slow("bart")])
@pytest.mark.parametrize(("method", "level"), [("wanda", "0.5"), ("magnitude", "0.5"), ("admm", "2of4")])
def test_a_model_has_as_many_zeros_and_less_error(
    kind: str, method: str, level: str, tiny_model: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    model = tiny_model(kind)
    alone, both = tmp_path / "alone", tmp_path / "both"
    drawn = {} if method == "magnitude" else {"calibration": DRAW, "text": text}
    prune(model, {level: alone}, method=method, scope="linear", **drawn)
    before, after = load(alone / "model"), calibrated(model, text, both, level, f"{method}+swaps")
    rows, repaired = rows_of(alone), rows_of(both)
    assert [row["removed"] for row in rows] == [row["removed"] for row in repaired]
    assert [row["zeros"] for row in rows] == [row["zeros"] for row in repaired]
    assert any(not torch.equal(before[name] == 0, after[name] == 0) for name in before)
    assert all(torch.equal(before[name].count_nonzero(), after[name].count_nonzero()) for name in before)
    if method == "wanda":
        assert sum(float(row["error"]) for row in repaired) < sum(float(row["error"]) for row in rows)
    assert read_manifest(both / "model")["pruned"]["method"] == f"{method}+swaps"


def test_several_sparsities_at_once(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    outputs = {level: tmp_path / level for level in ("0.3", "0.5")}
    draw = {"calibration": DRAW, "text": text}
    prune(tiny_model("llama"), outputs, method="uniform+swaps", scope="mlp", **draw)
    prune(tiny_model("llama"), {"0.5": tmp_path / "one"}, method="uniform+swaps", scope="mlp", **draw)
    files = [path / "model" / "model.safetensors" for path in (tmp_path / "0.5", tmp_path / "one")]
    assert files[0].read_bytes() == files[1].read_bytes()
