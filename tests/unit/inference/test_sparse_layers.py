"""Sparse layers compute what dense ones do; which of them are used is what was measured."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Linear
from transformers.pytorch_utils import Conv1D

from llm_sparsity.inference.sparse_layers import (
    InMemoryOrder,
    Sparse,
    gains,
    holding_zeros,
    sparse,
    take_turns,
    two_of_four_missing,
)
from llm_sparsity.models.loading import family, load_base
from llm_sparsity.pruning.prune import prune


def layer(inputs: int, outputs: int, density: float, bias: bool = True) -> Linear:
    torch.manual_seed(inputs * outputs)
    made = Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        made.weight[torch.rand(outputs, inputs) > density] = 0
    return made


@settings(max_examples=60, deadline=None)
@given(
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    shape=st.sampled_from([(1,), (7,), (3, 5), (2, 64), (3, 100), (1, 200), (2, 2, 3)]),
    bias=st.booleans(),
    keep_layout=st.booleans(),
)
def test_a_sparse_layer_computes_what_the_dense_one_does(
    inputs: int, outputs: int, density: float, shape: tuple[int, ...], bias: bool, keep_layout: bool
) -> None:
    dense = layer(inputs, outputs, density, bias)
    x = torch.randn(*shape, inputs)
    with torch.inference_mode():
        found = Sparse(dense, keep_layout)(x)
        assert found.shape == (*shape, outputs)
        torch.testing.assert_close(found, dense(x), rtol=1e-4, atol=1e-5)
        if not keep_layout:
            assert found.is_contiguous()


def test_by_hand() -> None:
    dense = Linear(3, 2)
    dense.weight.data = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, -3.0]])
    dense.bias.data = torch.tensor([10.0, 20.0])
    made = Sparse(dense)
    assert (made.ends.tolist(), made.columns.tolist(), made.values.flatten().tolist()) == (
        [0, 1, 3],
        [1, 0, 2],
        [2, 1, -3],
    )
    assert made(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[14.0, 12.0]]


def test_rows_that_share_their_survivors_go_together() -> None:
    dense = layer(48, 32, 1.0)
    with torch.no_grad():
        dense.weight[:16, 16:] = 0
        dense.weight[16:, :32] = 0
    made = Sparse(dense)
    assert made.rows == 4 and len(made.columns) == 8 * 16
    x = torch.randn(2, 70, 48)
    torch.testing.assert_close(made(x), dense(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        dense.weight[0, 0] = 0
    assert Sparse(dense).rows == 1


def test_a_transposed_layer_is_one_too() -> None:
    conv = Conv1D(8, 6)  # 6 inputs, 8 outputs
    conv.weight.data[::2] = 0
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(Sparse(conv)(x), conv(x), rtol=1e-4, atol=1e-5)


def test_threads_change_nothing() -> None:
    dense, x = layer(60, 30, 0.2), torch.randn(3, 150, 60)
    made = Sparse(dense)
    alone = made(x)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(made(x), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "bart"])
@pytest.mark.parametrize("method", ["magnitude", "block"])
def test_a_sparse_model_gives_the_same_outputs(
    kind: str, method: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    prune(tiny_model(kind), {"0.5": tmp_path}, method=method, scope="linear")
    model, known = load_base(tmp_path / "model"), family(tmp_path / "model")
    names = holding_zeros(model, known)
    quick = sparse(model, known, names)
    assert names and all(isinstance(quick.get_submodule(name), Sparse) for name in names)
    assert all(not isinstance(module, Sparse) for module in model.modules())
    inputs = {"input_ids": torch.randint(6, 20, (3, 9))}
    with torch.inference_mode():
        torch.testing.assert_close(quick(**inputs)[0], model(**inputs)[0], rtol=1e-4, atol=1e-5)
    shared = {id(weight) for weight in model.parameters()} & {id(weight) for weight in quick.parameters()}
    assert len(shared) == len(list(quick.parameters()))


def test_only_what_feeds_the_activation_keeps_its_layout(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    prune(tiny_model("bert"), {"0.5": tmp_path}, method="magnitude", scope="linear")
    model, known = load_base(tmp_path / "model"), family(tmp_path / "model")
    quick = sparse(model, known, holding_zeros(model, known))
    kept = {name for name, module in quick.named_modules() if isinstance(module, Sparse) and module.keep_layout}
    assert kept == {f"encoder.layer.{layer}.intermediate.dense" for layer in (0, 1)}
    given = []
    activation = quick.get_submodule("encoder.layer.0.intermediate.intermediate_act_fn.function")
    activation.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    quick(input_ids=torch.randint(6, 20, (2, 64)))
    assert given[0].is_contiguous()  # (sequences, outputs, tokens)


@pytest.mark.parametrize("shape", [(2, 3), (64,), (5, 7, 9)])
def test_a_function_in_memory_order_is_the_function(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    for laid in (x, x.mT) if x.dim() > 1 else (x,):
        torch.testing.assert_close(InMemoryOrder(torch.nn.GELU())(laid), torch.nn.functional.gelu(laid))


def test_gains_are_of_layers_that_hold_zeros(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune(tiny_model("bert"), {"0.5": tmp_path}, method="magnitude", scope="layers.1")
    model, known = load_base(tmp_path / "model"), family(tmp_path / "model")
    found = gains(model, known, {"input_ids": torch.randint(6, 20, (2, 9))})
    assert len(found) == 6 and all("layer.1." in name and gain > 0 for name, gain in found.items())


def test_all_take_turns() -> None:
    calls: list[str] = []
    seconds = take_turns([lambda: calls.append("a"), lambda: calls.append("b")], 3)
    assert "".join(calls) == "abababab"  # the first turn warms up
    assert seconds.shape == (3, 2) and (seconds >= 0).all()


def test_why_there_are_no_2of4_kernels() -> None:
    assert "compute capability 8.0" in str(two_of_four_missing(torch.device("cpu")))
