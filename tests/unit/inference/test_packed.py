"""Packed matrices compute what float64 does, on every set of instructions that this machine has."""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_sparsity.inference import kernels, packed, threads
from llm_sparsity.inference.kernels import BLOCK, GATHERING
from llm_sparsity.inference.packed import Packed


def of_each_block(kept: int, rows: int, columns: int) -> Tensor:
    """A number of weights in each row of a block, anywhere."""
    blocks = -(-columns // BLOCK)
    places = torch.rand(rows, blocks, BLOCK).argsort(-1)
    return (places < kept).view(rows, BLOCK * blocks)[:, :columns]


KEPT: dict[str, Callable[[int, int], Tensor]] = {
    "none": torch.zeros,
    "one": lambda rows, columns: (torch.arange(rows * columns) == rows * columns // 2).view(rows, columns),
    "few": lambda rows, columns: torch.rand(rows, columns) < 0.05,
    "half": lambda rows, columns: torch.rand(rows, columns) < 0.5,
    "some rows": lambda rows, columns: (torch.rand(rows, 1) < 0.4).expand(rows, columns),
    "some columns": lambda rows, columns: (torch.rand(columns) < 0.4).expand(rows, columns),
    "fours of rows": lambda rows, columns: (torch.rand(rows // 4 + 1, columns) < 0.4).repeat_interleave(4, 0)[:rows],
    "all": torch.ones,
    **{f"{kept} of a block": partial(of_each_block, kept) for kept in (15, 16, 17, 31, 32, 33, 48, 49, 64)},
}
WAYS: dict[str, Callable[[Packed, Tensor, Tensor], Tensor]] = {
    "product": lambda matrix, x, bias: matrix.product(x, bias),
    "gathered": lambda matrix, x, bias: matrix.gathered(x, bias),
    "expanded": lambda matrix, x, bias: matrix.expanded(x, bias.to(matrix.dtype)),
    "skipped": lambda matrix, x, bias: matrix.skipped(x.float().t().contiguous()[None], bias)[0].t(),
}
RUNS = [  # on this machine
    (way, path)
    for way, path in itertools.product(WAYS, kernels.instructions())
    if way != "gathered" or path in GATHERING
]
FEW_TOKENS = [run for run in RUNS if run[0] in ("product", "gathered")]
DTYPES = [torch.float32, torch.bfloat16]


def made(outputs: int, inputs: int, kept: str, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(outputs * inputs)
    return (torch.randn(outputs, inputs) * KEPT[kept](outputs, inputs)).to(dtype)


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What `torch.empty` may return."""
    return torch.full(shape, math.nan if dtype.is_floating_point else 7, dtype=dtype)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@settings(max_examples=200, deadline=None)
@given(
    outputs=st.integers(1, 40) | st.sampled_from([64, 129]),
    inputs=st.integers(1, 140) | st.sampled_from([64, 128, 320]),
    kept=st.sampled_from(sorted(KEPT)),
    scale=st.sampled_from([1e-20, 1.0, 1e15]),
    tokens=st.integers(0, 18) | st.sampled_from([33, 64, 100, 257]),
    dtype=st.sampled_from(DTYPES),
    run=st.sampled_from(RUNS),
)
def test_a_product_is_that_of_float64(
    outputs: int, inputs: int, kept: str, scale: float, tokens: int, dtype: torch.dtype, run: tuple[str, str]
) -> None:
    """Within the rounding error of float32 sums, (inputs + 1) times half a bit of the sum of absolute values.

    torch's bfloat16 product rounds its outputs once more. What follows the last value is NaN.
    """
    way, path = run
    weight = (made(outputs, inputs, kept) * scale).to(dtype)
    x, bias = torch.randn(tokens, inputs).to(dtype), torch.randn(outputs).to(dtype).float()
    with patch("torch.empty", poisoned), patch.object(packed, "SLAB", 1 << 12):
        matrix = Packed(weight, path)
        matrix.values[int(matrix.starts[-1]) :] = -1
        found = WAYS[way](matrix, x, bias)
    assert found.shape == (tokens, outputs)
    expected = x.double() @ weight.double().t() + bias.double()
    bound = (inputs + 1) * 2**-24 * (x.double().abs() @ weight.double().abs().t() + bias.double().abs()) + 1e-40
    if way == "expanded" and dtype == torch.bfloat16:
        bound += 2**-8 * expected.abs()
    assert ((found.double() - expected).abs() <= bound).all()  # no NaN either


@pytest.mark.parametrize("path", kernels.instructions())
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("kept", sorted(KEPT))
def test_the_dense_matrix_comes_back(kept: str, dtype: torch.dtype, path: str) -> None:
    weight = made(37, 75, kept, dtype)
    with patch("torch.empty", poisoned):
        matrix = Packed(weight, path)
        assert torch.equal(matrix.dense(), weight.to(matrix.dtype))
    assert matrix.density == weight.count_nonzero() / weight.numel()


@pytest.mark.parametrize("dtype", DTYPES)
def test_denormal_weights_have_room_where_torch_counts_them_as_zeros(dtype: torch.dtype) -> None:
    weight = torch.full((8, 64), 1e-40).to(dtype)
    weight[0] = -0.0
    torch.set_flush_denormal(True)
    try:
        matrix = Packed(weight)
    finally:
        torch.set_flush_denormal(False)
    assert len(matrix.values) - 8 * kernels.PADDING // matrix.bits == int(matrix.starts[-1]) == 7 * 64
    assert torch.equal(matrix.dense(), weight)


def test_a_mask_and_values_are_all_it_holds() -> None:
    weight = made(128, 256, "half")
    held = sum(tensor.nbytes for tensor in Packed(weight).buffers())
    kept = int(weight.count_nonzero())
    assert held == 4 * kept + weight.numel() // 8 + 8 * (128 + 1) + kernels.PADDING


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("way", "path"), RUNS)
@pytest.mark.parametrize("kept", [0, 1, 16, 63])
def test_weights_of_the_next_row_do_not_matter(kept: int, way: str, path: str, dtype: torch.dtype) -> None:
    weight = torch.full((8, 64), math.nan).to(dtype)
    weight[::2] = torch.arange(64) < kept
    found = WAYS[way](Packed(weight, path), torch.ones(2, 64).to(dtype), torch.zeros(8))
    assert (found[:, ::2] == kept).all() and found[:, 1::2].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("way", "path"), [run for run in RUNS if run[0] in ("gathered", "skipped")])
def test_zeros_are_not_multiplied(way: str, path: str, dtype: torch.dtype) -> None:
    weight, x = torch.zeros(5, 150).to(dtype), torch.full((1, 150), math.inf).to(dtype)
    weight[:, 130], x[:, 130] = 2, 3
    assert (WAYS[way](Packed(weight, path), x, torch.zeros(5)) == 6).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("way", "path"), FEW_TOKENS)
def test_an_infinite_activation_is_not_lost(way: str, path: str, dtype: torch.dtype) -> None:
    """A zero times infinity is NaN, as in a dense product; columns after the last one do not matter."""
    weight = torch.zeros(3, 65).to(dtype)
    weight[0, 64] = 1
    x = torch.ones(1, 65).to(dtype)
    x[0, 64] = math.inf
    found = WAYS[way](Packed(weight, path), x, torch.zeros(3))
    assert found[0, 0] == math.inf


@pytest.mark.parametrize(("way", "path"), RUNS)
@pytest.mark.parametrize("kept", ["few", "half"])
def test_the_number_of_threads_does_not_change_outputs(
    kept: str, way: str, path: str, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "SHARE", 1)
    matrix, x, bias = Packed(made(203, 130, kept), path), torch.randn(70, 130), torch.randn(203)
    together = WAYS[way](matrix, x, bias)
    monkeypatch.setattr(threads, "_openmp", lambda: None)
    assert torch.equal(WAYS[way](matrix, x, bias), together), "threads of Python"
    torch.set_num_threads(1)
    alone = WAYS[way](matrix, x, bias)
    assert torch.equal(alone, together) if way != "expanded" else torch.allclose(alone, together, atol=1e-4)


@pytest.mark.parametrize(("way", "path"), FEW_TOKENS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_tokens_does_not_change_the_product_of_each(way: str, path: str, dtype: torch.dtype) -> None:
    matrix, x, bias = Packed(made(21, 100, "half", dtype), path), torch.randn(23, 100).to(dtype), torch.randn(21)
    together = WAYS[way](matrix, x, bias)
    for first, last in [(0, 1), (1, 3), (3, 6), (6, 11), (11, 23)]:
        assert torch.equal(WAYS[way](matrix, x[first:last], bias), together[first:last])


def test_rows_that_keep_the_same_columns_share_their_list() -> None:
    weight = torch.randn(32, 48)
    weight[:16, 16:] = 0
    weight[16:, :32] = 0
    matrix = Packed(weight)
    matrix.skipped(torch.randn(1, 48, 3), torch.zeros(32))
    assert matrix.rows == 4 and matrix.columns is not None and len(matrix.columns) == 8 * 16
    weight[0, 0] = 0
    assert Packed(weight).rows == 1


def test_torch_has_an_openmp_library_on_linux() -> None:
    if "OpenMP" not in torch.__config__.parallel_info() or not list(threads.LIBRARIES.glob("libgomp*")):
        pytest.skip("torch has another library")
    assert threads._openmp() is not None
