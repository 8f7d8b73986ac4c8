"""AdamW and its learning rate."""

import math

from torch.nn import Module
from torch.optim import AdamW


def adamw(net: Module, learning_rate: float, weight_decay: float) -> AdamW:
    """AdamW over the trainable parameters; weight decay applies to matrices only."""
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.dim() > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in trained if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=learning_rate, fused=True)


def learning_rate_factor(step: int, steps: int, warmup_ratio: float) -> float:
    """The factor of the learning rate at a step (from 1): linear warm-up to 1, then linear decay to 0."""
    warmup = math.ceil(warmup_ratio * steps)
    return step / warmup if step <= warmup else (steps - step + 1) / (steps - warmup)
