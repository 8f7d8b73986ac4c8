"""Each method on a 2x4 matrix, worked out by hand, and the exact count of every method."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_sparsity.storage.files import write_manifest
from llm_sparsity.study.sparsity import Sparsity
from tests.unit.pruning.helpers import prune
from tests.weights import load, save

torch.set_num_threads(1)

SINGLE = ("magnitude", "random", "uniform")  # methods that remove single weights

QUERY = "encoder.layer.0.attention.self.query.weight"
KEY = "encoder.layer.0.attention.self.key.weight"


def folder_of(folder: Path, tensors: dict[str, Tensor], model_type: str = "bert") -> Path:
    """A model folder with just these tensors: the minimum that pruning reads."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    save(folder, tensors, sparse=False)
    write_manifest(folder, kind="model", model_type=model_type)
    return folder


def pruned(tmp_path: Path, tensors: dict[str, Tensor], sparsity: str, method: str = "magnitude") -> dict[str, Tensor]:
    folder = tmp_path / "model"
    if not folder.exists():
        folder_of(folder, tensors)
    output = tmp_path / method / sparsity
    prune(folder, {sparsity: output}, method=method, scope="linear")
    return load(output / "model")


A = torch.tensor([[0.1, -0.9, 0.3, -0.05], [2.0, -0.2, 0.0, 0.4]])
B = torch.tensor([[9.0, -3.0, 5.0, 6.0], [-0.7, 0.8, 4.0, 2.0]])
BY_HAND = {
    # The 8 smallest of all 16: 0, .05, .1, .2, .3, .4 of A; .7 and .8 of B.
    ("magnitude", "0.5"): ([[0, -0.9, 0, 0], [2.0, 0, 0, 0]], [[9.0, -3, 5, 6], [0, 0, 4, 2]]),
    # The 4 smallest of each: 0, .05, .1, .2 of A; .7, .8, 2, 3 of B.
    ("uniform", "0.5"): ([[0, -0.9, 0.3, 0], [2.0, 0, 0, 0.4]], [[9.0, 0, 5, 6], [0, 0, 4, 0]]),
    # The 2 smallest of each row of four.
    ("magnitude", "2of4"): ([[0, -0.9, 0.3, 0], [2.0, 0, 0, 0.4]], [[9.0, 0, 0, 6], [0, 0, 4, 2]]),
    # The 3 smallest of each row of four.
    ("uniform", "1of4"): ([[0, -0.9, 0, 0], [2.0, 0, 0, 0]], [[9.0, 0, 0, 0], [0, 0, 4, 0]]),
}


@pytest.mark.parametrize(("method", "sparsity"), BY_HAND)
def test_by_hand(tmp_path: Path, method: str, sparsity: str) -> None:
    result = pruned(tmp_path, {QUERY: A, KEY: B}, sparsity, method)
    for name, expected in zip((QUERY, KEY), BY_HAND[method, sparsity], strict=True):
        assert torch.equal(result[name], torch.tensor(expected))


def test_random_ignores_the_weights_and_depends_on_seed_and_name_alone(tmp_path: Path) -> None:
    weights = {QUERY: torch.ones(40, 50), KEY: torch.ones(40, 50)}
    masks = {name: tensor == 0 for name, tensor in pruned(tmp_path / "both", weights, "0.25", "random").items()}
    assert sum(int(mask.sum()) for mask in masks.values()) == 1000
    assert not torch.equal(masks[QUERY], masks[KEY])
    other = {QUERY: torch.randn(40, 50), KEY: torch.randn(40, 50), KEY.replace("key", "value"): torch.ones(40, 50)}
    again = pruned(tmp_path / "scaled", {name: other[name] for name in weights}, "0.25", "random")
    assert all(torch.equal(again[name] == 0, masks[name]) for name in weights)
    more = pruned(tmp_path / "more", other, "0.25", "random")
    # A third tensor changes the threshold a little, never the draws.
    assert all(((more[name] == 0) == masks[name]).float().mean() > 0.95 for name in weights)
    prune(tmp_path / "both/model", {"0.25": tmp_path / "seed"}, method="random", scope="linear", seed=1)
    assert not torch.equal(load(tmp_path / "seed/model")[QUERY] == 0, masks[QUERY])


@pytest.mark.parametrize("method", SINGLE)
def test_scores_follow_the_contract(method: str) -> None:
    rule = importlib.import_module(f"llm_sparsity.pruning.methods.{method}")
    assert rule.COMPARISON in ("scope", "tensor")
    assert rule.__doc__ and "arXiv" in rule.__doc__
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
        before = weight.clone()
        scores = [rule.score(weight, torch.Generator().manual_seed(7)) for _ in range(2)]
        assert scores[0].dtype == torch.float32 and scores[0].shape == weight.shape
        assert bool((scores[0] >= 0).all()) and torch.equal(*scores) and torch.equal(weight, before)


@settings(max_examples=20, deadline=None)
@given(
    method=st.sampled_from(SINGLE),
    shapes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4),
    sparsity=st.decimals(0, 1, places=3).filter(lambda level: level < 1).map(lambda level: format(level, "f")),
    distinct=st.sampled_from([1, 3, 1000]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**32),
)
def test_the_count_is_the_count_asked_for(
    tmp_path_factory: pytest.TempPathFactory,
    method: str,
    shapes: list[tuple[int, int]],
    sparsity: str,
    distinct: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"encoder.layer.{i}.attention.self.query.weight": (
            torch.randint(1, distinct + 1, shape, generator=generator) / distinct
        ).to(dtype)
        for i, shape in enumerate(shapes)
    }
    result = pruned(tmp_path_factory.mktemp("count"), tensors, sparsity, method)
    removed = {name: int((tensor == 0).sum()) for name, tensor in result.items()}
    assert all(result[name].dtype == dtype for name in tensors)
    if importlib.import_module(f"llm_sparsity.pruning.methods.{method}").COMPARISON == "scope":
        assert sum(removed.values()) == Sparsity(sparsity).count(sum(tensor.numel() for tensor in tensors.values()))
    else:
        assert removed == {name: Sparsity(sparsity).count(tensor.numel()) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():  # survivors keep every bit
        kept = result[name] != 0
        assert torch.equal(result[name][kept], tensor[kept])
