"""Fine-tune a variant on a task, its mask kept or released: a classifier, or a language model on running text.

`kept`: removed weights stay removed (`mask.py`). `released`: what happens after torch's `prune.remove`: training starts
from the pruned weights, and the zeros may grow back. A recipe may add a schedule and a teacher (`recovery.py`), or
train low-rank updates instead of the weights (`lora.py`).

The loop is plain and short, around accelerate: one process, several, sharded, CPU or GPU. A step is over `batch_size`
sequences however they are split over processes and micro-batches, and draws its random numbers from the seed and its
own number. So a run that was interrupted goes on from its cache (`cache.py`) and leaves the same bytes.
"""

import copy
import hashlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Module, Parameter
from tqdm import tqdm

from llm_sparsity.data import tokens as encoded
from llm_sparsity.data.tokens import Encoded
from llm_sparsity.jobs.environment import machine
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.loading import check_length, family, in_scope
from llm_sparsity.storage.files import read_manifest, write_csv, write_json
from llm_sparsity.training import recovery
from llm_sparsity.training.lora import PARTS, added, attach, merged, plain, updated
from llm_sparsity.training.mask import Mask, local, zeros
from llm_sparsity.training.objective import Labels, NextTokens, objective, summed_loss
from llm_sparsity.training.recovery import Schedule, Teacher
from llm_sparsity.training.run_cache import Cache

METRICS = ["accuracy", "f1", "combined", "perplexity"]  # of a classifier; of a language model
HISTORY = ["epoch", "step", "train_loss", *METRICS, "measured_sparsity"]
CHECKPOINTS = ["epoch", "path", "bytes", "sha256", *METRICS]
OUTSIDE = ("model", "task", "output", "work", "code", "text", "dense", "save_minutes")  # of the arguments: no settings
FIRST_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # where the regrowth of released weights is measured
VALUE = "value"  # in a saved state: of a parameter that the saved weights do not hold, a low-rank update's
TERMINATED = 128 + signal.SIGTERM  # the exit code of a process that SIGTERM ended


def finetune(
    model: Path,
    task: Path,
    output: Path,
    work: Path,
    *,
    code: str,
    text: Path | None = None,
    dense: Path | None = None,
    save_minutes: float = 15,
    mask: str,
    schedule: Mapping[str, Any] | None = None,
    distill: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    seed: int,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    micro_batch_size: int,
    max_length: int,
    weight_decay: float,
    warmup_ratio: float,
    max_grad_norm: float,
    freeze_embeddings: bool,
    gradient_checkpointing: bool,
) -> None:
    """Fine-tune one variant on one task with one seed.

    Args:
        model: folder of a variant.
        task: folder of a prepared task: classification, or a language model's, with the splits train and test.
        output: gets metrics.json, history.csv, checkpoints.csv and runtime.json.
        work: the folder of caches.
        code: the hash of the code that runs.
        text: folder of another language-model task, on whose split train the model is trained instead.
        dense: checkpoints.csv of the dense model's run on this task with this seed; a schedule and a teacher need it.
        save_minutes: within an epoch, save whenever so many have passed; on SIGTERM and after every epoch in any case.
        mask: "kept" or "released".
        schedule: arguments of `recovery.Schedule`; none: all weights are removed before training.
        distill: arguments of `recovery.Teacher`; none: the labels alone teach.
        lora: rank and alpha of `lora.attach`, for the matrices of layers; none: the weights themselves are trained.
        evaluation: of a language model: sequence_length and max_tokens, with which perplexity is measured.
        seed: decides the head's first weights, the order of sentences and dropout; nothing else is random.
        epochs: passes over the training split.
        learning_rate: of AdamW, at its highest; falls linearly to 0.
        batch_size: sequences per optimizer step, over all processes.
        micro_batch_size: sequences in memory at once, per process.
        max_length: tokens per sentence or pair, longer ones are cut; of a language model, per window of text.
        weight_decay: decoupled, on matrices only.
        warmup_ratio: the part of all steps over which the learning rate rises.
        max_grad_norm: gradients are clipped to this norm.
        freeze_embeddings: leave embeddings as they are.
        gradient_checkpointing: compute activations twice instead of keeping them: less memory, more time.

    Raises:
        UserError: sequences longer than the model allows, labels that the task does not have, a loss that is not
            finite, a batch that does not fit the memory, a disk that is full, a dense model whose weights are gone.
        SystemExit: 143 after SIGTERM, once everything is saved.
    """
    settings = {key: value for key, value in locals().items() if key not in OUTSIDE}
    begun = time.perf_counter()
    check_length(model, "max_length", max_length)
    if evaluation:
        check_length(model, "sequence_length", evaluation["sequence_length"])
    main = os.environ.get("RANK", "0") == "0"
    if (schedule or distill) and dense is None:
        raise UserError("dense: missing; a schedule and a teacher need the list of the dense run's checkpoints")
    start = recovery.dense_weights(dense) if dense else None
    folders = {"model": model, "task": task, "text": text, "dense": start}
    inputs = {name: folder for name, folder in folders.items() if folder}
    cache = Cache(work, output, inputs, settings=settings, code=code, main=main)
    with cache.opened(), _termination() as terminated:
        gpu = torch.cuda.is_available()
        accelerator = Accelerator(
            mixed_precision="bf16" if gpu and torch.cuda.is_bf16_supported() else None, cpu=not gpu
        )
        torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms imports the whole compiler: a second
        # New tensors need not be filled with NaN, a safeguard of that mode which costs a pass over all of them.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        with accelerator.main_process_first():
            tokens = encoded.encode(
                model, task, work, max_length=max_length, code=code, text=text, evaluation=evaluation
            )
        cache.uses(tokens)
        train, validation = encoded.load(tokens)
        goal = objective(train, validation)

        net = goal.load(model, seed)
        lacking, teacher = zeros(_scoped(model, net)), None
        if start:
            net = goal.load(start, seed)
            if distill:
                teacher = Teacher(copy.deepcopy(net).to(accelerator.device), **distill)
                recovery.without_dropout(net)
            if not schedule:
                for name, weight in _scoped(model, net).items():
                    weight.detach().masked_fill_(lacking[name], 0)
        if gradient_checkpointing:
            net.gradient_checkpointing_enable({"use_reentrant": False})
        if freeze_embeddings:
            _freeze_embeddings(model, net)
        if lora:
            attach(net, _matrices(model, net), seed=_number(seed, "lora"), **lora)
            for name, weight in net.named_parameters():
                if goal.is_new(net, name):
                    weight.requires_grad_()
        net.train()
        optimizer = _optimizer(net, learning_rate, weight_decay)
        if sharding := getattr(accelerator.state, "fsdp_plugin", None):
            sharding.transformer_cls_names_to_wrap = _repeated(net)
        wrapped, prepared = accelerator.prepare(net, optimizer)
        net = accelerator.unwrap_model(wrapped)
        scoped = _scoped(model, net)
        held = Mask(scoped)
        if mask == "kept":
            held.remove(zeros(scoped), optimizer)
        steps = math.ceil(len(train) / batch_size)
        plan = None
        if schedule:
            counts = {name: int(gone.sum()) for name, gone in lacking.items()}
            plan = Schedule(scoped, counts, epochs * steps, **schedule)
        if saved := cache.resume():
            _restore(net, optimizer, *saved)
            if plan:
                plan.restore(saved[1])
                held.remove(zeros(scoped), optimizer)  # what had been removed by then
        progress, saved_at = cache.progress, time.monotonic()

        bar = tqdm(total=epochs * steps, initial=progress["step"], unit="step", disable=not main)
        progress["setup_seconds"] += time.perf_counter() - begun
        for epoch in range(_evaluated(progress), epochs):
            begun = time.perf_counter()
            batches = list(train.shuffled(batch_size, _number(seed, epoch)))
            for batch in batches[progress["step"] - epoch * steps :]:
                step = progress["step"] + 1
                torch.manual_seed(_number(seed, step, accelerator.process_index))
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * _schedule(step, epochs * steps, warmup_ratio)
                due = time.monotonic() - saved_at > 60 * save_minutes
                loss, due, stop = _backward(
                    accelerator, wrapped, goal, teacher, train, batch, micro_batch_size, due, terminated()
                )
                if not math.isfinite(loss):
                    raise UserError(
                        f"loss: is {loss} at step {step} of {epochs * steps}; lower learning_rate (now "
                        f"{learning_rate}). {cache.folder} holds what was good, up to step {cache.saved_step()}"
                    )
                if plan:
                    plan.observe()
                    if (gone := plan.removed(step)) is not None:
                        held.remove(gone, optimizer)
                held.hold()
                accelerator.clip_grad_norm_(wrapped.parameters(), max_grad_norm)
                prepared.step()
                prepared.zero_grad()
                progress["step"], progress["loss"] = step, progress["loss"] + loss
                if mask == "released" and scoped and step in FIRST_STEPS and step < steps:
                    found = _sparsity(model, net, accelerator)
                    progress["history"].append({"epoch": 0, "step": step, "measured_sparsity": found})
                if due or stop or step == (epoch + 1) * steps:
                    weights = _weights(net)
                    held.check(weights)
                    progress["train_seconds"] += time.perf_counter() - begun
                    begun = time.perf_counter()
                    cache.save(
                        weights,
                        _moments(net, optimizer) | (plan.state() if plan else {}),
                        epoch=epoch + 1 if step == (epoch + 1) * steps else None,
                        config=net.config,
                        pruned=_pruned(model, weights, accelerator),
                    )
                    del weights  # with LoRA another model's worth
                    progress["save_seconds"] += time.perf_counter() - begun
                    begun, saved_at = time.perf_counter(), time.monotonic()
                if stop:
                    _leave(accelerator)
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            size = 2 * micro_batch_size
            if evaluation:  # as many tokens at once as in training
                size = max(1, micro_batch_size * max_length // evaluation["sequence_length"])
            metrics = _evaluate(accelerator, wrapped, goal, validation, size, terminated)
            progress["history"].append(
                {"epoch": epoch + 1, "step": progress["step"], "train_loss": progress["loss"] / steps, **metrics}
                | {"measured_sparsity": _sparsity(model, net, accelerator)}
            )
            progress["checkpoints"][-1] |= metrics
            progress["loss"] = 0.0
            progress["eval_seconds"] += time.perf_counter() - begun
            cache.record()
        bar.close()
        if main:
            _report(output, settings, progress, goal, train, validation, accelerator)
        accelerator.end_training()


@contextmanager
def _termination() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether SIGTERM has come, which no longer ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may handle signals
        return
    came = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        print("SIGTERM: everything is saved; the same command goes on from here", file=sys.stderr)
    accelerator.end_training()
    raise SystemExit(TERMINATED)


def _evaluated(progress: dict[str, Any]) -> int:
    """How many epochs have ended, evaluation included."""
    return sum(not row.keys().isdisjoint(METRICS) for row in progress["checkpoints"])


def _number(*parts: int | str) -> int:
    """A seed from several numbers and words; neighbours share nothing."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "little")


def _schedule(step: int, steps: int, warmup_ratio: float) -> float:
    """The learning rate's factor at a step (from 1): up linearly over the warm-up, then down linearly to 0."""
    warmup = math.ceil(warmup_ratio * steps)
    return step / warmup if step <= warmup else (steps - step + 1) / (steps - warmup)


def _backward(
    accelerator: Accelerator,
    net: Module,
    goal: Labels | NextTokens,
    teacher: Teacher | None,
    split: Encoded,
    batch: NDArray[np.int64],
    size: int,
    *asked: bool,
) -> tuple[float, bool, bool]:
    """Gradients of the batch's mean loss, whatever processes and micro-batches it is split into.

    Returns:
        That loss; and for each flag of `asked` whether any process has set it, so that all do the same.
    """
    mine = batch[accelerator.process_index :: accelerator.num_processes]
    share = 1.0 if len(mine) else 0.0  # a last batch may be smaller than the number of processes
    pieces = [mine[at : at + size] for at in range(0, len(mine), size)] or [batch[:1]]
    total = torch.tensor([0.0, *asked], device=accelerator.device)
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        with _told(split, piece, size), accelerator.autocast(), nullcontext() if last else accelerator.no_sync(net):
            inputs, labels = _batch(goal, split, piece, accelerator.device)
            loss = teacher.loss(net, inputs, labels) if teacher else summed_loss(net(**inputs).logits, labels)
            loss = loss * share / len(batch)
            accelerator.backward(loss * accelerator.num_processes)  # processes are averaged, this is a sum
        total[0] += loss.detach()
    found, due, stop = accelerator.reduce(total, "sum").tolist()
    return found, due > 0, stop > 0


def _batch(
    goal: Labels | NextTokens, split: Encoded, indices: NDArray[np.int64], device: torch.device
) -> tuple[dict[str, Any], Tensor]:
    """The model's arguments and the labels of a batch, on a device."""
    inputs, labels = split.batch(indices)
    return {key: value.to(device) for key, value in inputs.items()} | goal.options, labels.to(device)


@contextmanager
def _told(split: Encoded, batch: NDArray[np.int64], size: int) -> Iterator[None]:
    """Name the setting to lower where a batch does not fit the memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and "can't allocate memory" not in str(error):  # what torch says without a GPU
            raise
        raise UserError(
            f"micro_batch_size: {len(batch)} sequences of {split.lengths[batch].max()} tokens do not fit the memory; "
            f"lower it (now {size}; batch_size, the optimizer's, stays), or set gradient_checkpointing"
        ) from error


def _evaluate(
    accelerator: Accelerator,
    net: Module,
    goal: Labels | NextTokens,
    split: Encoded,
    size: int,
    terminated: Callable[[], bool],
) -> dict[str, float]:
    """The metrics of a split; batches of similar length, split over the processes."""
    from accelerate.utils import gather_object

    batches = split.by_length(size)
    found: list[tuple[int, Any]] = []
    net.eval()
    with torch.no_grad(), accelerator.autocast():
        for start in range(0, len(batches), accelerator.num_processes):
            if terminated():
                _leave(accelerator)
            batch = batches[min(start + accelerator.process_index, len(batches) - 1)]  # as many for each: FSDP needs it
            inputs, labels = _batch(goal, split, batch, accelerator.device)
            found += zip(batch.tolist(), goal.answers(net(**inputs).logits, labels), strict=True)
    net.train()
    answers = dict(gather_object(found))
    return goal.metrics([answers[i] for i in range(len(split))])


def _scoped(model: Path, net: Module) -> dict[str, Parameter]:
    """The parameters of the scope that a variant was pruned in; none for a dense model."""
    pruned = read_manifest(model).get("pruned")
    if not pruned:
        return {}
    kind = family(model)
    named = ((plain(name), weight) for name, weight in net.named_parameters())
    return {name: weight for name, weight in named if in_scope(kind.place(name), pruned["scope"])}


def _matrices(model: Path, net: Module) -> list[str]:
    """The names of the matrices of a model's layers."""
    kind = family(model)
    return [name for name, _ in net.named_parameters() if in_scope(kind.place(name), "linear")]


def _pruned(model: Path, weights: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, Any] | None:
    """What a variant's manifest says about removed weights, measured anew: zero or gone; None for a dense model."""
    pruned: dict[str, Any] | None = read_manifest(model).get("pruned")
    if not pruned:
        return None
    kind = family(model)
    scoped = [weight for name, weight in weights.items() if in_scope(kind.place(name), pruned["scope"])]
    left = sum(local(weight).count_nonzero() for weight in scoped)
    if any(isinstance(weight, DTensor) for weight in scoped):
        left = accelerator.reduce(left, "sum")
    removed = pruned["size"] - int(left)
    return pruned | {"removed": removed, "measured_sparsity": removed / pruned["size"]}


def _sparsity(model: Path, net: Module, accelerator: Accelerator) -> float:
    """The measured share of the scope's weights that are zero or gone; 0 for a dense model."""
    pruned = _pruned(model, _weights(net), accelerator)
    return float(pruned["measured_sparsity"]) if pruned else 0.0


def _repeated(net: Module) -> list[str]:
    """The classes of a model's layers: what FSDP spreads and gathers as one.

    What transformers names for it holds the embeddings of some models too, and accelerate shards those by itself.
    """
    lists = (module for module in net.modules() if type(module) is torch.nn.ModuleList)  # which updates' lists are not
    return sorted({type(layer).__name__ for layers in lists for layer in layers})


def _freeze_embeddings(model: Path, net: Module) -> None:
    kind = family(model)
    for name, weight in net.named_parameters():
        place = kind.place(name)
        weight.requires_grad_(not (place and place.part == "embeddings"))


def _optimizer(net: Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.dim() > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in trained if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def _weights(net: Module) -> dict[str, Tensor]:
    """A model's tensors, those that are tied once; matrices that have low-rank updates as they compute."""
    names: dict[int, str] = {}
    tensors = net.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), name)
    return {name: tensors[name].detach() for name in names.values() if PARTS not in name} | merged(net)


def _moments(net: Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as tensors: "{parameter} {field}"; and low-rank updates themselves."""
    moments = {
        f"{name} {field}": value
        for name, weight in net.named_parameters()
        for field, value in optimizer.state.get(weight, {}).items()
    }
    return moments | {f"{name} {VALUE}": weight.detach() for name, weight in added(net)}


@torch.no_grad()
def _restore(
    net: Module, optimizer: torch.optim.Optimizer, weights: dict[str, Tensor], moments: dict[str, Tensor]
) -> None:
    """The inverse of `_weights` and `_moments`."""
    tensors, parameters = net.state_dict(keep_vars=True), dict(net.named_parameters())
    frozen = updated(net)  # beneath low-rank updates weights are as they were pruned
    for name, value in weights.items():
        if name not in frozen:
            tensors[name].copy_(_like(value, tensors[name]))
    for key, value in moments.items():
        name, field = key.split(" ")
        if field == recovery.MOVEMENT:  # a schedule's
            continue
        if field == VALUE:
            parameters[name].copy_(_like(value, parameters[name]))
            continue
        optimizer.state[parameters[name]][field] = _like(value, parameters[name])


def _like(value: Tensor, tensor: Tensor) -> Tensor:
    """A tensor where another one is: on its device, or spread over the processes as it is."""
    if isinstance(tensor, DTensor) and value.shape == tensor.shape:
        return distribute_tensor(value, tensor.device_mesh, tensor.placements)
    return value.to(tensor.device)


def _report(
    output: Path,
    settings: dict[str, Any],
    progress: dict[str, Any],
    goal: Labels | NextTokens,
    train: Encoded,
    validation: Encoded,
    accelerator: Accelerator,
) -> None:
    """Write what the run leaves: bytes that depend on its settings, code and inputs, and runtime.json apart."""
    last = progress["history"][-1]
    write_csv(output / "history.csv", progress["history"], HISTORY)
    write_csv(output / "checkpoints.csv", progress["checkpoints"], CHECKPOINTS)
    seconds = {key: value for key, value in progress.items() if key.endswith("_seconds")}
    write_json(
        output / "runtime.json",
        {
            **seconds,
            "samples_per_second": len(train) * settings["epochs"] / progress["train_seconds"],
            **machine(accelerator.device, accelerator.num_processes),
        },
    )
    write_json(
        output / "metrics.json",
        {
            "metrics": {key: last[key] for key in METRICS if key in last},
            "baseline": goal.baseline(),
            "measured_sparsity": last["measured_sparsity"],
            "examples": {"train": len(train), "validation": len(validation)},
            "settings": settings,
        },
    )
