"""What a run starts from: accelerator, initial weights, teacher, trainable parameters."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, ProjectConfiguration
from torch.nn import Module

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.classes import drawn_parameters
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.training import lora, tracking
from llm_sparsity.training.distillation import Teacher, disable_dropout
from llm_sparsity.training.mask import zeros
from llm_sparsity.training.objective import Objective
from llm_sparsity.training.scope import PrunedScope
from llm_sparsity.training.settings import FinetuneSettings

WAIT = timedelta(hours=2)  # for the first process, which tokenises, and writes tens of GB for the largest models


def is_main_process() -> bool:
    """Whether this process writes, known before an accelerator exists."""
    return os.environ.get("RANK", "0") == "0"


def make_accelerator(tracker: str | None = None) -> Accelerator:
    """CPU or GPU, one process or several; deterministic; with a tracker or, by default, without.

    accelerate's mixed precision is off: it wraps the model, so that evaluation would use it too. See `autocast`.
    """
    on_gpu = torch.cuda.is_available()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS is not deterministic
    project = ProjectConfiguration(logging_dir=str(tracking.FOLDER))
    # Otherwise DDP orders the gradients anew after a process's first step, and with them the sums over three or more
    # processes: a run that was resumed would differ from one that was not.
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True), InitProcessGroupKwargs(timeout=WAIT)]
    accelerator = Accelerator(
        mixed_precision="no", cpu=not on_gpu, log_with=tracker, project_config=project, kwargs_handlers=handlers
    )
    # torch.use_deterministic_algorithms would import the whole compiler, which takes a second. On a GPU, kernels of
    # attention are deterministic under "error" only.
    torch.set_deterministic_debug_mode("error" if on_gpu else "warn")
    # That mode also fills new tensors with NaN, a safeguard that costs a pass over all of them.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return accelerator


def autocast(device: torch.device) -> torch.autocast:
    """The precision of a training step: bfloat16 autocast on a GPU that supports it, else float32."""
    enabled = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def initial_model(
    model: ModelFolder,
    dense: ModelFolder | None,
    objective: Objective,
    settings: FinetuneSettings,
    scope: PrunedScope,
    accelerator: Accelerator,
) -> tuple[Any, dict[str, list[int]], Teacher | None]:
    """The model that training starts from.

    It is the variant. With a schedule or a teacher, unless it was fine-tuned before it was pruned, it is the fine-tuned
    dense model, with the variant's mask unless a schedule removes the weights. If weights are sharded, the first
    process reads them and hands each other one its shards, but all hold a teacher.

    Returns:
        The model on the CPU; the number of removed weights in each tensor of the variant's scope, of experts that
        transformers packs in each; the teacher.
    """
    values = accelerator.is_main_process or getattr(accelerator.state, "fsdp_plugin", None) is None
    net = objective.load(model, settings.seed, values=values)
    removed = zeros(scope.parameters(net))
    with model.open() as reader:
        fused = {model.structure.body_name(name) for name in reader.names if model.structure.is_fused(name)}
    counts = {}
    for name, gone in removed.items():
        experts = len(gone) if gone.dim() == 3 and model.structure.body_name(name) in fused else 1
        counts[name] = gone.reshape(experts, -1).sum(1).tolist()
    if dense is None:
        return net, counts, None
    finetuned, teacher = objective.load(dense, settings.seed, values=values or settings.distill is not None), None
    if settings.start == "pretrained":
        net = finetuned
    if settings.distill:
        own = copy.deepcopy(finetuned) if net is finetuned else finetuned  # the teacher does not train
        teacher = Teacher(own.to(accelerator.device), **settings.distill)
        disable_dropout(net)
    if net is finetuned and not settings.schedule:
        for name, weight in scope.parameters(net).items():
            weight.detach().masked_fill_(removed[name], 0)
    return net, counts, teacher


def set_trainable(net: Any, model: ModelFolder, objective: Objective, settings: FinetuneSettings) -> None:
    """Freeze and add parameters, in place, as the settings ask."""
    if settings.gradient_checkpointing:
        try:
            net.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError:
            raise UserError(f"gradient_checkpointing: {model.model_type} has none in transformers; remove it") from None
    if settings.freeze_embeddings:
        for name, weight in net.named_parameters():
            weight.requires_grad_(not model.in_scope(name, "embeddings"))
    if settings.lora:
        known = {name: model.structure.matrix(name) for name, _ in net.named_parameters()}
        matrices = [name for name, matrix in known.items() if matrix and matrix.is_linear]  # no packed experts
        drawn = drawn_parameters(net, model)  # a new pooler too
        lora.attach(net, matrices, seed=settings.derived_seed("lora"), **settings.lora)
        for name, weight in net.named_parameters():
            if objective.is_new(net, name) or name in drawn:
                weight.requires_grad_()
    net.train()


def layer_classes(net: Module) -> list[str]:
    """The class names of a model's layers, which FSDP shards and gathers one at a time.

    The classes that transformers names hold the embeddings of some models too, which accelerate shards by itself.
    """
    lists = (module for module in net.modules() if type(module) is torch.nn.ModuleList)  # not LoRA's subclass of it
    return sorted({type(layer).__name__ for layers in lists for layer in layers})


@contextmanager
def whole_embeddings(net: Any) -> Iterator[None]:
    """Keep accelerate from sharding embeddings apart from others that share their weights: the stacks' of BART and T5.

    torch refuses a parameter in two groups. Those that the output layer alone shares, accelerate puts into one.
    """
    weight, head = net.get_input_embeddings().weight, net.get_output_embeddings()
    holders = sum(other is weight for _, other in net.named_parameters(remove_duplicate=False))
    if holders > 1 and (head is None or head.weight is not weight):
        net.get_input_embeddings = lambda: None
    try:
        yield
    finally:
        vars(net).pop("get_input_embeddings", None)
