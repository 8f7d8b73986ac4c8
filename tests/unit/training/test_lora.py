from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_causal, load_classifier
from llm_sparsity.pruning.prune import prune
from llm_sparsity.study.sparsity import Sparsity
from llm_sparsity.training.lora import LowRankUpdate, attach, factors, merged, plain_name

Make = Callable[[str], tuple[ModelFolder, Any, list[str]]]


def test_an_update_by_hand() -> None:
    """W + alpha / rank * B A where W is not zero: rank 1, alpha 2."""
    weight = torch.tensor([[1.0, 0.0], [0.0, -0.0], [3.0, 4.0]])
    delta = LowRankUpdate(weight, rank=1, alpha=2.0)
    with torch.no_grad():
        delta.a.copy_(torch.tensor([[10.0, 20.0]]))
        delta.b.copy_(torch.tensor([[1.0], [2.0], [-1.0]]))
    found = delta(weight)
    assert torch.equal(found, torch.tensor([[21.0, 0.0], [0.0, 0.0], [-17.0, -36.0]]))
    assert not found[1].signbit().any()


@pytest.fixture
def sparse(dense: Callable[[str], ModelFolder], tmp_path: Path) -> Make:
    def make(kind: str) -> tuple[ModelFolder, Any, list[str]]:
        prune(dense(kind), {Sparsity("0.5"): tmp_path / kind}, method="uniform", scope="linear")
        model = ModelFolder(tmp_path / kind / "model")
        net = load_causal(model)
        return model, net, [name for name, _ in net.named_parameters() if model.in_scope(name, "linear")]

    return make


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_training_starts_at_the_model_itself(kind: str, sparse: Make) -> None:
    folder, net, names = sparse(kind)
    tokens = torch.arange(16)[None]
    before = net.eval()(input_ids=tokens).logits
    attach(net, names, rank=4, alpha=8.0, seed=0)
    assert torch.equal(net(input_ids=tokens).logits, before)
    assert all(torch.equal(weight, load_causal(folder).get_parameter(name)) for name, weight in merged(net).items())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_merged_model_is_as_sparse_and_computes_the_same(kind: str, sparse: Make) -> None:
    folder, net, names = sparse(kind)
    attach(net, names, rank=4, alpha=8.0, seed=0)
    trained = dict(factors(net))
    assert {name for name, weight in net.named_parameters() if weight.requires_grad} == trained.keys()
    assert len(trained) == 2 * len(names)
    optimizer = torch.optim.AdamW(trained.values(), lr=0.1)
    tokens = torch.arange(16)[None]
    for _ in range(3):
        net(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    plainly = load_causal(folder)
    for name, weight in merged(net).items():
        base = plainly.get_parameter(name)
        assert torch.equal(weight == 0, base == 0), name
        assert not torch.equal(weight, base), name
        base.data.copy_(weight)
    assert merged(net).keys() == set(names)
    assert torch.allclose(net.eval()(input_ids=tokens).logits, plainly.eval()(input_ids=tokens).logits, atol=1e-5)


def test_a_plain_update_would_fill_the_zeros(sparse: Make) -> None:
    """Why the product is masked: B A is dense."""
    _, net, names = sparse("llama")
    weight = net.get_parameter(names[0]).detach()
    update = torch.randn(weight.shape[0], 4) @ torch.randn(4, weight.shape[1])
    assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert int((weight + update == 0).sum()) == 0


def test_updates_are_drawn_with_the_seed(dense: Callable[[str], ModelFolder]) -> None:
    draws = []
    for seed in (0, 0, 1):
        net = load_classifier(dense("bert"), labels=2, seed=0)
        attach(net, ["bert.encoder.layer.0.output.dense.weight"], rank=2, alpha=2.0, seed=seed)
        draws.append(next(weight for _, weight in factors(net)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_plain_names_are_those_before_attach() -> None:
    assert plain_name("a.b.parametrizations.weight.original") == "a.b.weight"
    assert plain_name("a.b.bias") == "a.b.bias"
