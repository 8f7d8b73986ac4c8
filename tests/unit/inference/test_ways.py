"""The way of multiplying is measured once for each kind of layer and number of tokens."""

import copy
from unittest.mock import patch

import pytest
import torch
from torch.nn import Linear

from llm_sparsity.inference.packed import Packed
from llm_sparsity.inference.sparse_layers import SparseLinear, layers_with_zeros, sparse_layers
from llm_sparsity.inference.ways import Ways, possible
from llm_sparsity.models.loading import load_base
from tests.unit.inference.conftest import Variant


def layer(density: float = 0.5) -> SparseLinear:
    dense = Linear(96, 64)
    dense.weight.data *= torch.rand(64, 96) < density
    return SparseLinear(dense)


def timed(fastest: str) -> object:
    """Stands in for the clock: one way takes less time than the others."""

    def take_turns(calls: list[object], turns: int) -> object:
        names = [call.args[1] for call in calls]  # type: ignore[attr-defined]
        return torch.tensor([[0.0 if name == fastest else 1.0 for name in names]] * turns).numpy()

    return patch("llm_sparsity.inference.timing.take_turns", side_effect=take_turns)


@pytest.mark.parametrize(
    ("path", "density", "tokens", "expected"),
    [
        ("avx512", 0.1, 1, {"expanded", "product", "gathered", "skipped"}),
        ("avx2", 0.1, 1, {"expanded", "product", "skipped"}),
        ("portable", 0.1, 1, {"expanded", "product", "skipped"}),
        ("avx512", 0.9, 1, {"expanded", "product"}),
        ("avx512", 0.1, 32, {"expanded", "product", "gathered", "skipped"}),
        ("avx512", 0.1, 33, {"expanded", "skipped"}),
        ("avx2", 0.1, 17, {"expanded", "skipped"}),
        ("avx512", 0.9, 33, {"expanded"}),
    ],
)
def test_ways_that_cannot_be_fastest_are_not_tried(path: str, density: float, tokens: int, expected: set[str]) -> None:
    weight = torch.randn(63, 96) * (torch.rand(63, 96) < density)
    assert set(possible(Packed(weight, path), tokens)) == expected


@pytest.mark.parametrize("fastest", ["product", "expanded", "skipped"])
def test_the_fastest_way_is_remembered(fastest: str) -> None:
    made = layer()
    with timed(fastest) as clock:  # type: ignore[attr-defined]
        for tokens in (5, 8, 7, 5):  # one power of two
            assert made.ways.fastest(torch.randn(tokens, 96)) == fastest
        assert clock.call_count == 1
        made.ways.fastest(torch.randn(9, 96))
        made.ways.fastest(torch.randn(3, 3, 96))
        assert clock.call_count == 2


def test_each_number_of_threads_has_its_own() -> None:
    made, before = layer(), torch.get_num_threads()
    with timed("product") as clock:  # type: ignore[attr-defined]
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            made.ways.fastest(torch.randn(1, 96))
        assert clock.call_count == 2
    torch.set_num_threads(before)


def test_columns_are_held_only_where_zeros_are_skipped() -> None:
    made = layer()
    made.skipped(torch.randn(1, 96))
    with timed("product"):  # type: ignore[attr-defined]
        made.ways.fastest(torch.randn(4, 96))
    assert made.matrix.columns is None
    made.skipped(torch.randn(1, 96))
    with timed("skipped"):  # type: ignore[attr-defined]
        made.ways.fastest(torch.randn(64, 96))
    assert made.matrix.columns is not None


def test_lists_of_columns_are_made_before_the_clock_starts() -> None:
    """Each multiplication that is timed may be of another layer, and its first one would make the layer's list."""
    layers = [layer() for _ in range(40)]
    without: list[str] = []

    def skipped(self: SparseLinear, x: torch.Tensor) -> None:
        without.extend(["list"] * (self.matrix.columns is None))

    with patch.object(SparseLinear, "skipped", skipped):
        Ways(layers).fastest(torch.randn(64, 96))
    assert without == []


def test_a_product_of_many_passes_is_not_tried() -> None:
    with patch.object(SparseLinear, "product", side_effect=AssertionError):
        layer(0.9).ways.fastest(torch.randn(200, 96))


def test_layers_of_one_kind_share_what_is_known(variant: Variant) -> None:
    folder = variant("0.5")
    model = load_base(folder)
    made = dict(sparse_layers(model, folder.structure, layers_with_zeros(model, folder.structure)))
    first, second = (made[f"encoder.layer.{number}.attention.self.query"].ways for number in (0, 1))
    assert first is second and first is not made["encoder.layer.0.output.dense"].ways
    assert copy.deepcopy(made["encoder.layer.0.output.dense"]).ways is made["encoder.layer.0.output.dense"].ways


def test_no_tokens_are_not_timed() -> None:
    with patch.object(Ways, "_measured", side_effect=AssertionError):
        assert layer()(torch.randn(0, 96)).shape == (0, 64)
