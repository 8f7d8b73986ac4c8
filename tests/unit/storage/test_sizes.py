"""Bytes of weights: plain, in the sparse container, and at the bound. Weights are RANDOM or by hand."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.pruning.prune import prune
from llm_sparsity.storage.sizes import weight_sizes
from llm_sparsity.study.sparsity import Sparsity
from tests.marks import slow
from tests.tiny import model_of, query
from tests.weights import load, save


def sizes_of(folder: ModelFolder) -> dict[str, int]:
    with folder.open() as reader:
        return weight_sizes(reader, reader.names, folder)


def test_the_bound_of_known_weights(tmp_path: Path) -> None:
    # 1.0 and 2.0 are the float16 0x3C00 and 0x4000: one byte is always 0, the other is one of two, equally often.
    weight = torch.tensor([[0.0, 1.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]])
    sizes = sizes_of(ModelFolder(model_of({query(0): weight}, tmp_path)))
    positions = 8 * -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert (sizes["plain_bytes"], sizes["bound_bytes"]) == (32, round((positions + 2) / 8))


@pytest.mark.parametrize("kind", ["bert", slow("gpt2"), slow("llama"), "bart"])
@pytest.mark.parametrize(
    ("method", "sparsity"),
    [("magnitude", "0.9"), ("magnitude", "2of4"), ("structured", "0.5"), ("int8", "0"), ("magnitude+int4", "0.5")],
)
def test_the_container_of_a_pruned_model_is_its_file(
    kind: str, method: str, sparsity: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    prune(ModelFolder(tiny_model(kind)), {Sparsity(sparsity): tmp_path}, method=method, scope="linear")
    folder = ModelFolder(tmp_path / "model")
    sizes = sizes_of(folder)
    assert sizes["bound_bytes"] < sizes["container_bytes"] == folder.weight_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_container_of_a_dense_model_is_the_file_that_would_be_written(
    dtype: torch.dtype, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("bert"), folder)
    tensors = {name: tensor.to(dtype) for name, tensor in load(folder).items()}
    tensors["integers"], tensors["empty"] = torch.arange(5), torch.zeros(0, 3)
    save(folder, tensors, sparse=False)
    found = sizes_of(ModelFolder(folder))
    save(folder, tensors)
    assert found["container_bytes"] == (folder / "model.safetensors").stat().st_size
    assert found["plain_bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    assert found == sizes_of(ModelFolder(folder)), "sizes do not depend on how the folder is stored"


def test_a_model_that_is_all_zero(tmp_path: Path) -> None:
    sizes = sizes_of(ModelFolder(model_of({query(0): torch.zeros(64, 64)}, tmp_path)))
    assert sizes["bound_bytes"] == 0 < sizes["container_bytes"] < sizes["plain_bytes"] == 4 * 64 * 64


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [query(0), query(0).replace("weight", "bias"), "embeddings.LayerNorm.weight"])
def test_a_weight_that_is_not_finite_is_refused_by_name(name: str, value: float, tmp_path: Path) -> None:
    tensors = {query(0): torch.ones(4, 4), name: torch.tensor([1.0, value])}
    with pytest.raises(UserError, match=f"tensor {name} has NaN or infinite weights; use a sound checkpoint$"):
        sizes_of(ModelFolder(model_of(tensors, tmp_path)))
