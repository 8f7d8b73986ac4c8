"""The three known ways to lose a mask, and that `Mask` loses none."""

from typing import Any

import pytest
import torch
from torch.nn.utils import prune

from llm_sparsity.training.mask import Mask, zeros


def trained(seed: int = 0) -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    """A layer, and an optimizer that has moments of it."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(40, 40)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    step(layer, optimizer)
    return layer, optimizer


def step(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer, mask: Mask | None = None) -> None:
    layer(torch.randn(8, 40)).square().sum().backward()
    if mask:
        mask.hold()
    torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def smallest(layer: torch.nn.Linear, share: float = 0.9) -> torch.Tensor:
    weight = layer.weight.detach().abs()
    return weight <= weight.flatten().kthvalue(round(share * weight.numel())).values


def sparsity(layer: torch.nn.Linear) -> float:
    return float((layer.weight == 0).float().mean())


def test_without_a_mask_the_zeros_are_gone_after_one_step() -> None:
    """The report's procedure: torch's `prune.remove` leaves nothing that holds the zeros."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(40, 40)
    prune.l1_unstructured(layer, "weight", 0.9)  # type: ignore[no-untyped-call]
    prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
    assert sparsity(layer) == pytest.approx(0.9)
    step(layer, torch.optim.AdamW(layer.parameters()))
    assert sparsity(layer) < 0.1


def test_a_mask_set_in_mid_training_holds_although_the_optimizer_has_moments() -> None:
    layer, optimizer = trained()
    gone = smallest(layer)
    with torch.no_grad():
        layer.weight.masked_fill_(gone, 0)
    layer(torch.randn(8, 40)).square().sum().backward()
    layer.weight.grad.masked_fill_(gone, 0)  # type: ignore[union-attr]
    optimizer.step()
    assert sparsity(layer) < 0.1  # gradients alone: AdamW's moments bring the weights back

    layer, optimizer = trained()
    mask = Mask({"weight": layer.weight})
    mask.remove({"weight": smallest(layer)}, optimizer)
    for _ in range(5):
        step(layer, optimizer, mask)
        mask.check()
    assert sparsity(layer) == pytest.approx(0.9)


def test_a_mask_may_change_from_step_to_step() -> None:
    layer, optimizer = trained()
    mask = Mask({"weight": layer.weight})
    for share in (0.2, 0.5, 0.9):
        mask.remove({"weight": smallest(layer, share)}, optimizer)
        step(layer, optimizer, mask)
        mask.check()
        assert sparsity(layer) == pytest.approx(share)
    back = ~mask.kept["weight"] & (torch.arange(40) % 2 == 0)  # and give half of them back
    mask.remove({"weight": ~mask.kept["weight"] & ~back}, optimizer)
    step(layer, optimizer, mask)
    assert layer.weight[back].all()
    mask.check()


def test_moments_of_removed_weights_are_zero() -> None:
    layer, optimizer = trained()
    mask = Mask({"weight": layer.weight})
    gone = smallest(layer)
    mask.remove({"weight": gone}, optimizer)
    for _ in range(3):
        step(layer, optimizer, mask)
    state: dict[str, Any] = optimizer.state[layer.weight]
    for moment in (state["exp_avg"], state["exp_avg_sq"]):
        assert not moment[gone].any()
        assert moment[~gone].all()


def test_a_mask_holds_under_autocast_to_bfloat16_and_accumulation() -> None:
    layer, optimizer = trained()
    mask = Mask({"weight": layer.weight})
    mask.remove({"weight": smallest(layer)}, optimizer)
    for _ in range(3):
        for _ in range(4):
            with torch.autocast("cpu", torch.bfloat16):
                loss = layer(torch.randn(8, 40)).float().square().sum()
            loss.backward()
        mask.hold()
        optimizer.step()
        optimizer.zero_grad()
        mask.check()
    assert sparsity(layer) == pytest.approx(0.9)


def test_a_negative_zero_is_not_a_removed_weight() -> None:
    weight = torch.nn.Parameter(torch.tensor([-0.0, 1.0]))
    mask = Mask({"weight": weight})
    mask.kept = {"weight": weight.detach() != 0}
    with pytest.raises(RuntimeError, match="has grown back"):
        mask.check()
    mask.remove(zeros({"weight": weight}), torch.optim.AdamW([weight]))
    mask.check()
    assert not weight.signbit().any()


def test_a_weight_that_has_grown_back_is_found() -> None:
    layer, optimizer = trained()
    mask = Mask({"weight": layer.weight})
    mask.remove({"weight": smallest(layer)}, optimizer)
    step(layer, optimizer)
    with pytest.raises(RuntimeError, match="weight: a removed weight has grown back"):
        mask.check()
