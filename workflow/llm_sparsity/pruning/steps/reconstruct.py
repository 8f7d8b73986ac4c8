"""Reconstruction: trains the remaining weights of one sub-block at a time, attention or feed-forward, to give the dense
model's output on the calibration sequences; no labels are needed (Wagner et al. 2025, arXiv:2510.14444).

The squared error of each token is divided by the squared norm of its dense output: a few tokens with massive
activations would decide a plain mean. Some sequences are held out: training ends once their error has stopped falling,
and the weights with the smallest one are kept, those from before training included. The learning rate of a matrix is a
fraction of the size of its weights, so that one number fits any family.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

GRANULARITY = (1, 1)
STEPS = 200  # of one batch each
RATE = 0.005  # learning rate, as a fraction of the root mean square of a matrix's weights
HELD_OUT = 8  # one in this many batches is held out
CHECKS = 20  # held-out errors that are computed in `STEPS`
PATIENCE = 4  # checks without a smaller error after which training ends


def train(
    weights: Sequence[Parameter], output: Callable[[int], Tensor], wanted: Sequence[Tensor], seed: int
) -> tuple[float, float]:
    """Train the matrices of a sub-block in place; zeros stay zeros.

    Args:
        weights: float32.
        output: number of a batch -> the output of the sub-block, (sequences, tokens, width), with its gradients.
        wanted: the output of the dense model for each batch; at least two.
        seed: of the order of the batches.

    Returns:
        The relative squared error on the held-out batches before and after. If they are equal, nothing has changed.
    """
    masks = [weight.detach() != 0 for weight in weights]
    rates = [
        RATE * float(weight.detach()[mask].square().mean().sqrt()) if mask.any() else 0.0
        for weight, mask in zip(weights, masks, strict=True)
    ]
    optimizer = torch.optim.Adam(
        [{"params": [weight], "lr": rate} for weight, rate in zip(weights, rates, strict=True)], betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=STEPS + 1, pct_start=0.1, cycle_momentum=False
    )
    held_out = range(0, len(wanted), HELD_OUT)
    others = [number for number in range(len(wanted)) if number not in held_out]
    generator = torch.Generator().manual_seed(seed)

    def error(number: int) -> Tensor:
        target = wanted[number]
        difference = output(number) - target.to(weights[0].device)
        return (difference.square().sum(-1) / target.to(difference).square().sum(-1).clamp_min(1e-12)).mean()

    def held_out_error() -> float:
        with torch.no_grad():
            return sum(float(error(number)) for number in held_out) / len(held_out)

    start = best = held_out_error()
    kept = [weight.detach().clone() for weight in weights]
    since, order = 0, list[int]()
    for step in range(1, STEPS + 1):
        order = order or torch.randperm(len(others), generator=generator).tolist()
        optimizer.zero_grad()
        error(others[order.pop()]).backward()
        for weight, mask in zip(weights, masks, strict=True):
            if weight.grad is not None:  # of an expert that no token of the batch has chosen
                weight.grad.mul_(mask)
        optimizer.step()
        schedule.step()
        if step % (STEPS // CHECKS) == 0:
            found = held_out_error()
            since += 1
            if found < best:
                best, since = found, 0
                kept = [weight.detach().clone() for weight in weights]
            if since == PATIENCE:
                break
    with torch.no_grad():
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)
    return start, best
