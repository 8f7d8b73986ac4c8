"""The step `reconstruct`: one matrix, training that diverges, and whole models with random weights."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.pruning.steps import reconstruct
from tests.marks import slow
from tests.unit.pruning.helpers import DRAW, calibrated, prune, rows_of
from tests.weights import load


def problem() -> tuple[Parameter, list[Tensor], list[Tensor]]:
    """A pruned matrix, and correlated inputs with the dense matrix's outputs; one token is 100 times as large."""
    generator = torch.Generator().manual_seed(0)
    dense, mix = (torch.randn(16, 16, generator=generator) for _ in range(2))
    inputs = [torch.randn(2, 32, 16, generator=generator) @ mix for _ in range(9)]
    for each in inputs:
        each[0, 0] *= 100
    return Parameter(dense * (dense.abs() > dense.abs().median())), inputs, [each @ dense.t() for each in inputs]


def train() -> tuple[Parameter, float, float]:
    weight, inputs, wanted = problem()
    start, best = reconstruct.train([weight], lambda number: inputs[number] @ weight.t(), wanted, seed=0)
    return weight, start, best


def test_the_error_of_held_out_batches_falls_and_zeros_stay() -> None:
    pruned, inputs, wanted = problem()
    weight, start, best = train()
    assert torch.equal(weight == 0, pruned == 0)
    assert best < 0.7 * start

    def error(of: Tensor) -> float:  # of batches 0 and 8, which are held out; a token counts by its relative error
        parts = [((inputs[n] @ of.t() - wanted[n]).norm(dim=-1) / wanted[n].norm(dim=-1)).square() for n in (0, 8)]
        return float(torch.stack(parts).mean())

    assert error(pruned.detach()) == pytest.approx(start, rel=1e-4)
    assert error(weight.detach()) == pytest.approx(best, rel=1e-4)
    assert torch.equal(weight, train()[0])


def test_training_that_diverges_keeps_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruct, "RATE", 1e30)
    pruned, _, _ = problem()
    weight, start, best = train()
    assert start == best
    assert torch.equal(weight, pruned)


def test_an_empty_matrix_stays_empty() -> None:
    _, inputs, wanted = problem()
    weight = Parameter(torch.zeros(16, 16))
    start, best = reconstruct.train([weight], lambda number: inputs[number] @ weight.t(), wanted, seed=0)
    assert start == best == pytest.approx(1.0)
    assert not weight.any()


@pytest.mark.parametrize(
    ("method", "level", "kind"),
    [
        ("magnitude", "0.5", "llama"),
        *(slow("magnitude", "0.5", kind) for kind in ("bart", "gpt2", "bert", "distilbert")),
        *(slow("block", "0.5", kind) for kind in ("llama", "gpt2")),
        *(slow("wanda+swaps", "2of4", kind) for kind in ("llama", "gpt2")),
    ],
)
def test_a_model_has_the_same_zeros_and_less_error(
    method: str, level: str, kind: str, tiny_model: Callable[[str], Path], text: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(reconstruct, "STEPS", 40)
    model, opened = tiny_model(kind), ModelFolder(tiny_model(kind))
    drawn = {"calibration": DRAW, "text": text} if method == "wanda+swaps" else {}
    prune(model, {level: tmp_path / "alone"}, method=method, scope="linear", **drawn)
    before = load(tmp_path / "alone/model")
    after = calibrated(model, text, tmp_path / "both", level, f"{method}+reconstruct")
    for name, weight in after.items():
        if opened.in_scope(name, "linear"):
            assert torch.equal(weight == 0, before[name] == 0)
        else:
            assert torch.equal(weight, before[name])
    said = [line for line in capsys.readouterr().out.splitlines() if "relative squared error" in line]
    roles = opened.roles(list(after), "linear")
    assert {line.partition(":")[0] for line in said} == {opened.structure.axis(name).block for name in roles}  # type: ignore[union-attr]
    changes = [[float(error) for error in re.findall(r"[\d.e-]+(?= -> )|(?<= -> )[\d.e-]+", line)] for line in said]
    assert all(best <= start for start, best in changes)
    assert all(best == start for line, (start, best) in zip(said, changes, strict=True) if "stay" in line)
    assert method == "block" or any(best < 0.95 * start for start, best in changes)  # blocks leave nothing here
    rows = rows_of(tmp_path / "both")
    assert all(row["error"] and row["block_error"] for row in rows)
    assert [row["removed"] for row in rows] == [row["removed"] for row in rows_of(tmp_path / "alone")]


def test_only_the_scope_is_trained_and_runs_are_equal(
    tiny_model: Callable[[str], Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruct, "STEPS", 20)
    model = tiny_model("llama")
    first, second = (
        calibrated(model, text, tmp_path / run, "0.5", "uniform+reconstruct", "layers.1") for run in ("a", "b")
    )
    dense = load(model)
    for name, weight in first.items():
        assert torch.equal(weight, second[name])
        assert torch.equal(weight, dense[name]) != ModelFolder(model).in_scope(name, "layers.1")


def test_a_single_sequence_cannot_be_held_out(tiny_model: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^calibration.samples: found 1, but reconstruct holds a sequence out; give "):
        prune(
            tiny_model("llama"), {"0.5": tmp_path}, method="uniform+reconstruct", scope="linear",
            calibration=DRAW | {"samples": 1}, text=text,
        )  # fmt: skip
