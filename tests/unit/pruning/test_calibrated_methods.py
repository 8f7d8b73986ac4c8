"""Calibrated methods on one matrix, beside slow references."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_sparsity.pruning.methods import admm, sparsegpt, wanda
from llm_sparsity.study.sparsity import Sparsity
from tests.unit.pruning.references import SLOW


def test_wanda_by_hand() -> None:
    weight = torch.tensor([[1.0, -2, 3, -4], [5, 1, -2, 2]])
    inputs = torch.tensor([[4.0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0.6, 0.3], [0, 0, -0.8, 0.4]])
    norms = wanda.prepare(wanda.observe(inputs))
    assert norms.tolist() == pytest.approx([4, 3, 1, 0.5])
    # Scores: 4 6 3 2 and 20 3 2 1. The size alone would keep the last two of the first row.
    assert wanda.prune(weight, norms, Sparsity("0.5")).tolist() == [[1, -2, 0, 0], [5, 1, 0, 0]]
    assert wanda.prune(weight, norms, Sparsity("1of2")).tolist() == [[0, -2, 3, 0], [5, 0, -2, 0]]
    assert wanda.prune(weight, norms, Sparsity("0.25")).tolist() == [[1, -2, 3, 0], [5, 1, -2, 0]]


def test_sparsegpt_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs 0 and 1 are correlated, as are 2 and 3.

    For each pair H = [[2, 1], [1, 2]], and the inverse of H is [[2, -1], [-1, 2]] / 3.
    To remove a weight w of the first input costs 1.5 w^2, and the second compensates with half of it; to remove a
    weight of the second costs 2 w^2.
    """
    monkeypatch.setattr(sparsegpt, "DAMPING", 1e-9)
    weight = torch.tensor([[1.0, 2, 3, 4], [4, -1, 2, 1]])
    hessian = torch.tensor([[2.0, 1, 0, 0], [1, 2, 0, 0], [0, 0, 2, 1], [0, 0, 1, 2]])
    upper = sparsegpt.prepare(hessian)
    # Costs: 1.5 8 13.5 32 and 24 2 6 2; the four lowest are removed.
    expected = torch.tensor([[0, 2.5, 3, 4], [4, 0, 0, 0]])
    torch.testing.assert_close(sparsegpt.prune(weight, upper, Sparsity("0.5")), expected)
    # Of each pair the cheaper one: 1 of (1, 2), 3 of (3, 4); -1 of (4, -1), 1 of (2, 1).
    expected = torch.tensor([[0, 2.5, 0, 5.5], [4, 0, 2, 0]])
    torch.testing.assert_close(sparsegpt.prune(weight, upper, Sparsity("1of2")), expected)


@pytest.mark.parametrize("method", [wanda, sparsegpt])
@pytest.mark.parametrize(("rows", "columns"), [(5, 12), (16, 200), (3, 260)])
@pytest.mark.parametrize("level", ["0.5", "0.3", "0.95", "2of4", "1of4"])
def test_a_matrix_is_pruned_as_the_paper_says(method: Any, rows: int, columns: int, level: str) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, columns, generator=generator)
    mixed = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(4 * columns, columns, generator=generator) @ mixed
    batches = [method.observe(part) for part in inputs.split(50)]
    before = weight.clone()
    result = method.prune(weight, method.prepare(sum(batches)), Sparsity(level))
    expected = SLOW[method.__name__.rpartition(".")[2]](weight.double().numpy(), inputs.double().numpy(), level)
    assert torch.equal(result == 0, torch.from_numpy(expected) == 0)
    torch.testing.assert_close(result, torch.from_numpy(expected).float(), rtol=1e-3, atol=1e-4)
    assert torch.equal(weight, before)


def test_admm_by_hand() -> None:
    """Uncorrelated inputs leave nothing to fit: the weights that Wanda keeps do not change."""
    weight = torch.tensor([[1.0, -2, 3, -4], [5, 1, -2, 2]])
    hessian = torch.diag(torch.tensor([16.0, 9, 1, 0.25]))  # scores: 4 6 3 2 and 20 3 2 1
    result = admm.prune(weight, admm.prepare(hessian), Sparsity("2of4"))
    torch.testing.assert_close(result, torch.tensor([[1.0, -2, 0, 0], [5, 1, 0, 0]]), rtol=0.05, atol=0)
    result = admm.prune(weight, admm.prepare(hessian), Sparsity("0.625"))
    torch.testing.assert_close(result, torch.tensor([[1.0, -2, 0, 0], [5, 0, 0, 0]]), rtol=0.05, atol=0)
    result = admm.prune(weight, admm.prepare(hessian), Sparsity("1of2"))
    torch.testing.assert_close(result, torch.tensor([[0, -2.0, 3, 0], [5, 0, -2, 0]]), rtol=0.05, atol=0)


@pytest.mark.parametrize("level", ["0.5", "0.7", "2of4"])
def test_the_order_of_output_errors_is_that_of_the_papers(level: str) -> None:
    """The papers' order, in the error that they minimise: ADMM, SparseGPT, Wanda."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(64, 128, generator=generator)
    inputs = torch.randn(2000, 128, generator=generator) @ torch.randn(128, 128, generator=generator)
    outputs = inputs @ weight.t()
    errors = []
    for method in (admm, sparsegpt, wanda):
        result = method.prune(weight, method.prepare(method.observe(inputs)), Sparsity(level))
        assert int((result == 0).sum()) == Sparsity(level).count(weight.numel())
        errors.append(float((inputs @ result.t() - outputs).square().sum() / outputs.square().sum()))
    assert errors[0] < 0.8 * min(errors[1:])
    if level != "0.7":  # SparseGPT compares all rows, which here are equally important by chance
        assert errors[1] < errors[2]
    # No weight that stays can be moved to make the error of ADMM much smaller: least squares on its mask.
    result = admm.prune(weight, admm.prepare(admm.observe(inputs)), Sparsity(level))
    x = inputs.double().numpy()
    gram = x.T @ x
    for row, dense in zip(result.double().numpy(), weight.double().numpy(), strict=True):
        kept = np.flatnonzero(row)
        best = np.zeros_like(row)
        best[kept] = np.linalg.solve(gram[np.ix_(kept, kept)], gram[kept] @ dense)
        error, least = ((found - dense) @ gram @ (found - dense) for found in (row, best))
        assert error < 1.5 * least


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 300), level=st.integers(0, 99), same=st.booleans(),
    method=st.sampled_from([wanda, sparsegpt, admm]),
)  # fmt: skip
def test_the_count_is_the_count_asked_for(rows: int, columns: int, level: int, same: bool, method: Any) -> None:
    generator = torch.Generator().manual_seed(level)
    weight = torch.ones(rows, columns) if same else torch.randn(rows, columns, generator=generator)
    inputs = torch.ones(3, columns) if same else torch.randn(3, columns, generator=generator)  # a singular Hessian
    sparsity = Sparsity(f"0.{level:02d}")
    result = method.prune(weight, method.prepare(method.observe(inputs)), sparsity)
    assert int((result == 0).sum()) == sparsity.count(rows * columns)
    if method is wanda:
        counts = (result == 0).sum(1)
        assert int(counts.max() - counts.min()) <= 1
        assert torch.equal(result[result != 0], weight[result != 0])


def test_a_singular_hessian_is_damped_more_and_a_line_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sparsegpt, "DAMPING", 1e-12)  # nothing beside what float32 can tell apart
    inputs = torch.ones(4, 50)
    upper = sparsegpt.prepare(sparsegpt.observe(inputs))
    assert "a Hessian of 50 inputs is singular; its damping is raised to" in capsys.readouterr().out
    assert bool(upper.isfinite().all()) and bool((upper.diagonal() > 0).all())
    assert torch.equal(upper, upper.triu())


def test_weights_of_an_input_that_is_always_zero_are_removed_first() -> None:
    inputs = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    inputs[:, 3] = 0
    weight = torch.ones(4, 8)
    weight[:, 3] = 100
    result = sparsegpt.prune(weight, sparsegpt.prepare(sparsegpt.observe(inputs)), Sparsity("0.125"))
    assert result[:, 3].tolist() == [0] * 4
    torch.testing.assert_close(result[:, :3], weight[:, :3])  # nothing to compensate
    nothing = sparsegpt.prune(weight, sparsegpt.prepare(torch.zeros(8, 8)), Sparsity("0.5"))
    assert int((nothing == 0).sum()) == 16
