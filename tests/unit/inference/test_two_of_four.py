"""2:4 kernels need a GPU: here torch's conversion is replaced, and everything around it is tested. RANDOM weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import Linear
from transformers.pytorch_utils import Conv1D

from llm_sparsity.inference import executions as module
from llm_sparsity.inference.executions import Executions
from llm_sparsity.inference.measure import measure
from llm_sparsity.inference.outputs import error
from llm_sparsity.inference.sparse_layers import layers_with_zeros
from llm_sparsity.inference.two_of_four import is_two_of_four, unsupported_reason, with_sparse_tensor_cores
from llm_sparsity.inference.workloads import Workload
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_base
from llm_sparsity.storage.files import read_json
from tests.unit.inference.conftest import Variant

CPU = torch.device("cpu")
BATCH = Workload("prefill", torch.arange(6, 15)[None], 9)


def test_a_cpu_has_no_2of4_kernels() -> None:
    assert "compute capability 8.0" in str(unsupported_reason(CPU))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Kernels that run here and, as those for float16 do, refuse fewer than 32 outputs or 64 inputs."""
    converted: list[Tensor] = []

    def convert(weight: Tensor) -> Tensor:
        if weight.shape[0] % 32 or weight.shape[1] % 32 or not weight.is_contiguous():
            raise RuntimeError(f"Error original_tensor.shape {weight.shape} is not supported! \nmultiple of (32, 32)")
        converted.append(weight)
        return weight.clone()

    monkeypatch.setattr("torch.sparse.to_sparse_semi_structured", convert)
    monkeypatch.setattr(module, "unsupported_reason", lambda _: None)
    return converted


def test_is_two_of_four() -> None:
    assert is_two_of_four(torch.tensor([[0.0, 1, 2, 0, 0, 0, 0, 3]]))
    assert not is_two_of_four(torch.tensor([[1.0, 1, 2, 0]]))
    assert not is_two_of_four(torch.tensor([[0.0, 0, 1, 1, 1, 1, 0, 0]]).T.contiguous())
    assert not is_two_of_four(torch.zeros(4, 6)), "six inputs are no groups of four"


@pytest.mark.parametrize(
    ("kind", "layers", "narrow"), [("bert", 12, 0), ("gpt2", 8, 0), ("llama", 10, 4), ("bart", 32, 0)]
)
def test_every_pruned_layer_runs_sparse(
    kind: str, layers: int, narrow: int, variant: Variant, kernels: list[Tensor]
) -> None:
    """GPT-2's Conv1D too, whose matrices are (inputs, outputs); Llama's keys and values are too narrow here."""
    folder = variant("2of4", kind=kind)
    model = load_base(folder)
    sparse, names, refused = with_sparse_tensor_cores(model, folder.structure)
    assert len(names) == layers == len(kernels) and len(refused) == narrow
    assert {*names, *refused} == {*layers_with_zeros(model, folder.structure)}
    assert all(
        name.endswith(("k_proj", "v_proj")) and "is not supported! multiple" in refused[name] for name in refused
    )
    assert all(isinstance(sparse.get_submodule(name), Linear) for name in names)
    assert error("2of4", sparse, model, BATCH) < 1e-6
    assert not any(isinstance(module, Conv1D) for name, module in sparse.named_modules() if name in names)
    shared = {id(weight) for weight in model.parameters()} & {id(weight) for weight in sparse.parameters()}
    assert len(shared) == len(list(sparse.parameters())) - len(names)


def test_the_number_of_sparse_layers(variant: Variant, kernels: list[Tensor]) -> None:
    folder = variant("2of4", kind="gpt2")
    ways = Executions(load_base(folder), folder)
    assert len(ways.of(BATCH)["2of4"].layers) == 8 and ways.notes == []


def test_layers_that_stay_dense_are_noted(variant: Variant, kernels: list[Tensor]) -> None:
    folder = variant("2of4", kind="bert")
    model = load_base(folder)
    for layer in model.encoder.layer:
        layer.intermediate.dense.weight.data[0] = 1
    ways = Executions(model, folder)
    assert len(ways.of(BATCH)["2of4"].layers) == 10
    assert ways.notes == [
        "2of4: 2 of 12 layers run dense (encoder.layer.0.intermediate.dense, encoder.layer.1.intermediate.dense): "
        "more than two weights in four consecutive inputs"
    ]


def test_a_dense_model_is_never_reported_as_sparse(
    variant: Variant, dense: Callable[[str], ModelFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here torch itself refuses all layers: they are not on a GPU."""
    monkeypatch.setattr(module, "unsupported_reason", lambda _: None)
    measure(variant("2of4"), dense("bert"), tmp_path, batch_sizes=[1, 2], sequence_length=8, repeats=1)
    cost = read_json(tmp_path / "cost.json")
    assert "2of4" not in {row["execution"] for row in cost["speed"]}
    first, second = cost["notes"]
    assert first.startswith("2of4: 12 of 12 layers run dense (encoder.layer.0.attention.self.query, ")
    assert "Only CUDA tensors are currently supported" in first and ", ...): " in first
    assert second == "2of4: left out, as no layer runs on sparse tensor cores"


def test_a_full_gpu_is_no_unsupported_shape(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(weight: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("torch.sparse.to_sparse_semi_structured", full)
    folder = variant("2of4")
    with pytest.raises(torch.OutOfMemoryError):
        with_sparse_tensor_cores(load_base(folder), folder.structure)
