"""Sparse layers compute what dense layers compute."""

import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Linear
from transformers.pytorch_utils import Conv1D

from llm_sparsity.inference import kernels
from llm_sparsity.inference.sparse_layers import (
    InMemoryOrder,
    SparseLinear,
    layers_with_zeros,
    sparse_layers,
    with_layers,
)
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.loading import load_base
from tests.unit.inference.conftest import Variant


def layer(inputs: int, outputs: int, density: float, bias: bool = True) -> Linear:
    torch.manual_seed(inputs * outputs)
    made = Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        made.weight[torch.rand(outputs, inputs) > density] = 0
    return made


SHAPES = [(), (0,), (1,), (7,), (0, 5), (3, 0), (3, 5), (1, 63), (2, 64), (3, 100), (1, 200), (1, 257), (2, 2, 3)]
LAYOUTS: dict[str, Callable[[tuple[int, ...], int], Tensor]] = {
    "contiguous": lambda shape, inputs: torch.randn(*shape, inputs),
    "transposed": lambda shape, inputs: torch.randn(inputs, *shape).movedim(0, -1),
    "every second": lambda shape, inputs: torch.randn(*shape, 2 * inputs)[..., ::2],
    "part": lambda shape, inputs: torch.randn(*shape, inputs + 3)[..., 3:],
    "repeated": lambda shape, inputs: torch.randn(inputs).expand(*shape, inputs),
}


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What `torch.empty` may return."""
    return torch.full(shape, math.nan if dtype.is_floating_point else 7, dtype=dtype)


WAYS = ["product", "expanded", "skipped", *(["gathered"] if kernels.instructions()[0] in kernels.GATHERING else [])]


@settings(max_examples=150, deadline=None)
@given(
    inputs=st.integers(1, 70) | st.sampled_from([16, 48, 128]),
    outputs=st.integers(1, 40) | st.sampled_from([16, 48, 128]),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    shape=st.sampled_from(SHAPES),
    layout=st.sampled_from(sorted(LAYOUTS)),
    conv=st.booleans(),
    bias=st.booleans(),
    keep_layout=st.booleans(),
    way=st.sampled_from(WAYS),
)
def test_a_sparse_layer_computes_what_float64_does(
    inputs: int, outputs: int, density: float, shape: tuple[int, ...], layout: str, conv: bool, bias: bool,
    keep_layout: bool, way: str,
) -> None:  # fmt: skip
    """Within the rounding error of float32 sums, (inputs + 1) times half a bit of the sum of absolute values."""
    torch.manual_seed(inputs * outputs)
    weight = torch.randn(outputs, inputs) * (torch.rand(outputs, inputs) < density)
    dense: Any = Conv1D(outputs, inputs) if conv else Linear(inputs, outputs, bias)
    dense.weight.data = weight.t() if conv else weight
    offset = torch.zeros(outputs) if dense.bias is None else dense.bias.detach()
    x = LAYOUTS[layout](shape, inputs)
    made = SparseLinear(dense, keep_layout)
    with patch("torch.empty", poisoned), torch.inference_mode(), patch.object(made.ways, "fastest", lambda x: way):
        found = made(x)
    assert found.shape == (*shape, outputs) and (keep_layout or found.is_contiguous())
    expected = x.double() @ weight.double().t() + offset.double()
    bound = (inputs + 1) * 2**-24 * (x.double().abs() @ weight.double().abs().t() + offset.double().abs()) + 1e-40
    assert ((found.double() - expected).abs() <= bound).all()  # no NaN either


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16])
def test_outputs_have_the_dtype_of_activations(weights: torch.dtype, dtype: torch.dtype, way: str) -> None:
    dense = layer(70, 12, 0.5).to(weights)
    x = torch.randn(2, 3, 70).to(dtype)
    found = getattr(SparseLinear(dense), way)(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), dense.float()(x.float()), rtol=2e-2, atol=2e-2)


def test_by_hand() -> None:
    dense = Linear(3, 2)
    dense.weight.data = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, -3.0]])
    dense.bias.data = torch.tensor([10.0, 20.0])
    assert SparseLinear(dense)(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[14.0, 12.0]]


def test_a_layer_with_a_transposed_matrix() -> None:
    conv = Conv1D(8, 6)  # 6 inputs, 8 outputs
    conv.weight.data[::2] = 0
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(SparseLinear(conv)(x), conv(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_of_the_model_does_not_change_weights(cast: torch.dtype) -> None:
    dense, x = layer(60, 30, 0.5), torch.randn(4, 60)
    made = SparseLinear(dense)
    made.to(cast)
    torch.testing.assert_close(made(x), dense(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_it_runs_where_gradients_are_kept(way: str) -> None:
    dense, x = layer(60, 30, 0.5), torch.randn(4, 60, requires_grad=True)
    made = SparseLinear(dense)
    with patch.object(made.ways, "fastest", lambda x: way):
        found = made(x)
    assert not found.requires_grad
    torch.testing.assert_close(found, dense(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_model_around_it_can_be_compiled(backend: str) -> None:
    dense = torch.nn.Sequential(layer(60, 30, 0.5), torch.nn.ReLU(), layer(30, 60, 0.5))
    sparse = torch.nn.Sequential(SparseLinear(dense[0]), torch.nn.ReLU(), SparseLinear(dense[2]))
    x = torch.randn(4, 60)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(sparse, backend=backend)(x), dense(x), rtol=1e-4, atol=1e-5)


def test_it_takes_no_weights() -> None:
    made = torch.nn.Sequential(SparseLinear(layer(60, 30, 0.5)), Linear(30, 2))
    with pytest.raises(UserError, match="takes no weights: load the model with execution='dense'"):
        made.load_state_dict(made.state_dict())
    made.load_state_dict({f"1.{name}": weight for name, weight in made[1].state_dict().items()}, strict=False)


def test_another_device_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="a sparse layer runs on a CPU, not on meta"):
        SparseLinear(layer(8, 8, 0.5))(torch.randn(2, 8, device="meta"))


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_sparse_layer_is_saved_as_the_dense_one(dtype: torch.dtype, conv: bool) -> None:
    dense: Any = (Conv1D(30, 60) if conv else layer(60, 30, 1.0)).to(dtype)
    dense.weight.data[::2] = 0
    found = SparseLinear(dense).state_dict()
    expected = dense.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) and found[name].dtype == dtype for name in expected)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "bart"])
@pytest.mark.parametrize("method", ["magnitude", "block"])
def test_a_sparse_model_gives_the_same_outputs(kind: str, method: str, variant: Variant) -> None:
    folder = variant("0.5", method, kind=kind)
    model = load_base(folder)
    names = layers_with_zeros(model, folder.structure)
    sparse = with_layers(model, dict(sparse_layers(model, folder.structure, names)))
    assert names and all(isinstance(sparse.get_submodule(name), SparseLinear) for name in names)
    assert all(not isinstance(module, SparseLinear) for module in model.modules())
    inputs = {"input_ids": torch.randint(6, 20, (3, 9))}
    with torch.inference_mode():
        torch.testing.assert_close(sparse(**inputs)[0], model(**inputs)[0], rtol=1e-4, atol=1e-5)
    shared = {id(weight) for weight in model.parameters()} & {id(weight) for weight in sparse.parameters()}
    assert len(shared) == len(list(sparse.parameters()))


def test_only_the_input_of_the_activation_keeps_its_layout(variant: Variant) -> None:
    folder = variant("0.5")
    model = load_base(folder)
    names = layers_with_zeros(model, folder.structure)
    sparse = with_layers(model, dict(sparse_layers(model, folder.structure, names)))
    for layer in sparse.modules():
        if isinstance(layer, SparseLinear):
            layer.ways.fastest = lambda x: "skipped"  # type: ignore[method-assign]
    kept = {name for name, module in sparse.named_modules() if isinstance(module, SparseLinear) and module.keep_layout}
    assert kept == {f"encoder.layer.{layer}.intermediate.dense" for layer in (0, 1)}
    inputs = []
    activation = sparse.get_submodule("encoder.layer.0.intermediate.intermediate_act_fn.function")
    activation.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    sparse(input_ids=torch.randint(6, 20, (2, 64)))
    assert inputs[0].is_contiguous()  # (sequences, outputs, tokens)


@pytest.mark.parametrize("shape", [(2, 3), (64,), (5, 7, 9)])
def test_a_function_in_memory_order_is_the_function(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    for view in (x, x.mT) if x.dim() > 1 else (x,):
        torch.testing.assert_close(InMemoryOrder(torch.nn.GELU())(view), torch.nn.functional.gelu(view))
