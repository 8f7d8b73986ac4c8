"""One process of a fine-tuning run whose weights are sharded over CPU processes (FSDP2 over gloo).

accelerate offers FSDP on GPUs only, although torch has it on CPUs as well. So this worker sets accelerate's distributed
type to FSDP and gives it the plugin that profiles/accelerate/fsdp.yaml describes; the rest is as on GPUs. The last
argument is the step in which the process kills itself; 0 for never.
"""

import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.models.checkpoint import ModelReader
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.training import setup
from llm_sparsity.training.finetune import finetune
from llm_sparsity.training.mask import Mask
from llm_sparsity.training.settings import FinetuneSettings


def sharded(**kwargs: Any) -> accelerate.Accelerator:
    made = accelerate.Accelerator(**kwargs)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=True
    )
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    return made


if __name__ == "__main__":
    torch.set_num_threads(1)
    setup.Accelerator = sharded  # type: ignore[misc]
    model, task, output, work, settings, killed = sys.argv[1:]
    hold, steps = Mask.hold, itertools.count(1)

    def held(self: Mask) -> None:
        if next(steps) == int(killed):
            os.kill(os.getpid(), signal.SIGKILL)
        hold(self)

    Mask.hold = held  # type: ignore[method-assign]
    if os.environ["RANK"] != "0":
        ModelReader.tensor = None  # type: ignore[assignment, method-assign]  # only the first process reads a model
    finetune(
        ModelFolder(Path(model)), TaskFolder(Path(task)), Path(output), Path(work),
        FinetuneSettings.from_dict(json.loads(settings)), code="", save_minutes=1e-9,
    )  # fmt: skip
