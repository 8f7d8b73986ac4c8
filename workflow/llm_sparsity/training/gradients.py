"""The gradients of a batch, over micro-batches and processes."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from llm_sparsity.data.tokens import TokenSplit
from llm_sparsity.jobs.errors import UserError, is_out_of_memory
from llm_sparsity.training.distillation import Teacher
from llm_sparsity.training.objective import Objective, summed_loss
from llm_sparsity.training.setup import autocast


def accumulate_gradients(
    accelerator: Accelerator,
    net: Module,
    objective: Objective,
    teacher: Teacher | None,
    split: TokenSplit,
    batch: NDArray[np.int64],
    size: int,
    flags: tuple[bool, ...],
) -> tuple[float, list[bool]]:
    """Compute the gradients of a batch's mean loss. How the batch is split changes them by rounding, and draws another
    dropout.

    Args:
        net: the model, wrapped by the accelerator.
        batch: indices of the sequences of all processes.
        size: sequences in a micro-batch.
        flags: of this process.

    Returns:
        The mean loss; each flag, True if any process has set it, so that all processes act alike.
    """
    mine = batch[accelerator.process_index :: accelerator.num_processes]
    pieces = [(mine[at : at + size], 1.0) for at in range(0, len(mine), size)]
    # FSDP needs equally many forward passes in each process: for a missing one, a sequence is repeated with weight 0.
    most = math.ceil(math.ceil(len(batch) / accelerator.num_processes) / size)
    pieces += [(batch[:1], 0.0)] * (most - len(pieces))
    total = torch.tensor([0.0, *flags], device=accelerator.device)
    for number, (piece, share) in enumerate(pieces):
        last = number == len(pieces) - 1
        with (
            _memory_advice(split, piece, size),
            autocast(accelerator.device),
            nullcontext() if last else accelerator.no_sync(net),
        ):
            inputs, labels = device_batch(objective, split, piece, accelerator.device)
            if teacher:
                loss = _computed(partial(teacher.loss, net, inputs, labels))
            else:
                loss = summed_loss(_computed(partial(net, **inputs)).logits, labels)
            loss = loss * share / len(batch)
            accelerator.backward(loss * accelerator.num_processes)  # processes are averaged, this is a sum
        total[0] += loss.detach()
    found, *counts = accelerator.reduce(total, "sum").tolist()
    return found, [count > 0 for count in counts]


def _computed(forward: Callable[[], Any]) -> Any:
    """A forward pass. On a GPU torch has no deterministic form of some operations, as of Mamba-2's; that is said."""
    try:
        return forward()
    except RuntimeError as error:
        if "deterministic implementation" not in str(error):
            raise
        torch.set_deterministic_debug_mode("warn")
        print(f"{str(error).partition(',')[0]}: two equal runs may differ by rounding", file=sys.stderr)
        return forward()


def device_batch(
    objective: Objective, split: TokenSplit, indices: NDArray[np.int64], device: torch.device
) -> tuple[dict[str, Any], Tensor]:
    """The arguments of the model's forward pass and the labels of a batch, on a device."""
    inputs, labels = split.batch(indices)
    return {key: value.to(device) for key, value in inputs.items()} | objective.options, labels.to(device)


@contextmanager
def _memory_advice(split: TokenSplit, batch: NDArray[np.int64], size: int) -> Iterator[None]:
    """Turn out-of-memory errors into advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"micro_batch_size: {len(batch)} sequences of {split.lengths[batch].max()} tokens do not fit the memory; "
            f"lower it (now {size}; batch_size, the optimizer's, stays), or set gradient_checkpointing"
        ) from error
