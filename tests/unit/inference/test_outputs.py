"""Outputs are finite, and executions give the same ones. Models are by hand or have RANDOM weights."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import Linear, Module, ReLU, Sequential

from llm_sparsity.inference.outputs import check_finite, error
from llm_sparsity.inference.sparse_layers import layers_with_zeros, sparse_layers, with_layers
from llm_sparsity.inference.ways import Ways
from llm_sparsity.inference.workloads import Workload
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_base
from tests.zoo import make


class Outputs(Module):
    """A model whose outputs are `values` times x."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.tensor(values))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.values * x,)


def one(model: Module) -> Tensor:
    with torch.inference_mode():
        outputs: Tensor = model(torch.ones(1))[0]
    return outputs


def half(model: Module) -> Tensor:
    with torch.inference_mode():
        outputs: Tensor = model(torch.ones(1).half())[0]
    return outputs


def test_an_error_is_a_share_of_the_largest_output() -> None:
    assert error("sparse", Outputs(4.0, 1.00004), Outputs(4.0, 1.0), one) == pytest.approx(1e-5, rel=1e-2)


def test_the_error_of_outputs_that_are_all_zero() -> None:
    assert error("sparse", Outputs(0.0, -0.0), Outputs(0.0, 0.0), one) == 0
    with pytest.raises(RuntimeError, match="outputs differ"):
        error("sparse", Outputs(0.0, 1.0), Outputs(0.0, 0.0), one)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 1.1])
def test_a_wrong_execution(wrong: float) -> None:
    with pytest.raises(RuntimeError, match=r"execution 'sparse': outputs differ .* this is a bug"):
        error("sparse", Outputs(1.0, wrong), Outputs(1.0, 1.0), one)


def test_largest_outputs_of_half_precision_do_not_overflow() -> None:
    with pytest.raises(RuntimeError, match=r"by 2\.0e\+00 of the largest output"):  # a difference of 131,008
        error("2of4", Outputs(-65504.0).half(), Outputs(65504.0).half(), half)


def test_rounding_errors_of_the_model_itself_are_no_fault(
    dense: Callable[[str], ModelFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large weights make softmax a step: one bit of a product changes outputs by more than the tolerance."""
    monkeypatch.setattr(Ways, "fastest", lambda *_: "product")  # sums in another order than the dense product
    folder = dense("bart")
    model = load_base(folder)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            weight.data *= 100
            if folder.structure.role(name):
                weight.data[torch.rand_like(weight) < 0.5] = 0
    names = layers_with_zeros(model, folder.structure)
    sparse = with_layers(model, dict(sparse_layers(model, folder.structure, names)))
    errors = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(6, 20, (2, 16), generator=generator)
        errors.append(error("sparse", sparse, model, Workload("prefill", ids, 16)))
    assert max(errors) > 1e-4


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "granitemoe"])
def test_the_rounding_error_of_a_mixture_of_experts_is_known(kind: str) -> None:
    """Its experts run in float64, too, and an error above it is a fault of the kernels."""
    model = make(kind).base_model
    wrong, batch = copy.deepcopy(model), Workload("prefill", torch.randint(6, 20, (2, 9)), 9)
    next(wrong.parameters()).data += 0.1
    with pytest.raises(RuntimeError, match=r"execution 'sparse': outputs differ .* this is a bug in llm_sparsity"):
        error("sparse", wrong, model, batch)
    assert model.config._experts_implementation != "eager"


def test_the_first_layer_whose_outputs_are_not_finite_is_named(dense: Callable[[str], ModelFolder]) -> None:
    folder = dense("bert")
    model = load_base(folder)
    batch = Workload("prefill", torch.randint(6, 20, (2, 9)), 9)
    check_finite(model, folder, batch)
    model.encoder.layer[1].intermediate.dense.weight.data.fill_(3e38)
    with pytest.raises(UserError) as caught:
        check_finite(model, folder, batch)
    assert "the outputs of layer encoder.layer.1.intermediate.dense are NaN or infinite in float32" in str(caught.value)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_layers(dense: Callable[[str], ModelFolder]) -> None:
    with pytest.raises(UserError, match="the outputs of the model are NaN or infinite"):
        check_finite(Outputs(math.inf), dense("bert"), one)


def test_activations_that_overflow_half_precision(dense: Callable[[str], ModelFolder]) -> None:
    class First(Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[None]

    model = First(Linear(1, 1, bias=False), ReLU())
    model[0].weight.data.fill_(1e5)
    check_finite(model, dense("bert"), one)
    with pytest.raises(UserError, match="in float16"):
        check_finite(model.half(), dense("bert"), half)
