"""Fine-tune a variant on a classification task, its mask kept or released.

`kept`: removed weights stay removed. Their gradients are zeroed before clipping and before the optimizer sees them, so
its moments of them are zero too, and the weights are zeroed again after every step. `released`: what happens after
torch's `prune.remove`: training starts from the pruned weights, and the zeros may grow back.

The loop is plain and short, around accelerate: one process, several, CPU or GPU. A step is over `batch_size` sentences
however they are split over processes and micro-batches. Batches hold sentences of similar length. Every epoch's
weights are cached in a work folder, with what is needed to go on from there; a run that is repeated goes on where the
last one stopped and leaves the same bytes.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from llm_sparsity import checkpoint, tasks
from llm_sparsity.errors import UserError
from llm_sparsity.files import MANIFEST, read_json, read_manifest, sha256, write_csv, write_json
from llm_sparsity.machine import machine
from llm_sparsity.models import check_length, family, in_scope, load_classifier, load_tokenizer

HISTORY = ["epoch", "step", "train_loss", "accuracy", "f1", "combined", "measured_sparsity"]
CHECKPOINTS = ["epoch", "path", "bytes", "sha256", "accuracy", "f1", "combined"]
FIRST_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # where the regrowth of released weights is measured


Mask = tuple[Parameter, Tensor]  # a weight, and where it is removed


@dataclass(frozen=True)
class Encoded:
    """A split as token ids: one array an example."""

    ids: list[NDArray[np.int32]]
    types: list[NDArray[np.int32]] | None
    labels: NDArray[np.int64]

    def batch(self, indices: NDArray[np.int64], pad: int) -> tuple[dict[str, Tensor], Tensor]:
        """Model inputs (batch, longest), int64, padded no further than these examples need; labels (batch,)."""
        longest = max(len(self.ids[i]) for i in indices)

        def padded(rows: list[NDArray[np.int32]], value: int) -> Tensor:
            out = np.full((len(indices), longest), value, np.int64)
            for row, i in enumerate(indices):
                out[row, : len(rows[i])] = rows[i]
            return torch.from_numpy(out)

        lengths = torch.tensor([len(self.ids[i]) for i in indices])
        inputs = {
            "input_ids": padded(self.ids, pad),
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        }
        if self.types:
            inputs["token_type_ids"] = padded(self.types, 0)
        return inputs, torch.from_numpy(self.labels[indices])


def finetune(
    model: Path,
    task: Path,
    output: Path,
    work: Path,
    *,
    code: str,
    mask: str,
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
) -> None:
    """Fine-tune one variant on one task with one seed.

    Args:
        model: folder of a variant.
        task: folder of a prepared classification task.
        output: gets metrics.json, history.csv, checkpoints.csv and runtime.json.
        work: the cache; this run uses the folder whose name is the hash of its settings, code and inputs.
        code: the hash of the code that runs, part of that name.
        mask: "kept" or "released".
        seed: decides the head's first weights, the order of sentences and dropout; nothing else is random.
        epochs: passes over the training split.
        learning_rate: of AdamW, at its highest; falls linearly to 0.
        batch_size: sentences per optimizer step, over all processes.
        micro_batch_size: sentences in memory at once, per process.
        max_length: tokens per sentence or pair; longer ones are cut.
        weight_decay: decoupled, on matrices only.
        warmup_ratio: the part of all steps over which the learning rate rises.
        max_grad_norm: gradients are clipped to this norm.
        freeze_embeddings: leave embeddings as they are.

    Raises:
        UserError: sequences longer than the model allows, or a loss that is not finite.
    """
    settings = {key: value for key, value in locals().items() if key not in ("model", "task", "output", "work", "code")}
    begun = time.perf_counter()
    check_length(model, "max_length", max_length)
    gpu = torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision="bf16" if gpu and torch.cuda.is_bf16_supported() else "no", cpu=not gpu)
    torch.use_deterministic_algorithms(True, warn_only=True)
    work = work / _key(settings, code, model, task)
    labels = tasks.label_count(task)
    tokenizer = load_tokenizer(model)
    train, validation = (_encode(tokenizer, tasks.load(task, split), max_length) for split in ("train", "validation"))

    progress = _progress(work)
    done = progress["epoch"]
    net = load_classifier(work / f"epoch-{done}" if done else model, labels=labels, seed=seed)
    if done:
        net.config.pad_token_id = tokenizer.pad_token_id
    scoped, size = _scoped(model, net)
    masks = [(weight, weight == 0) for weight in scoped] if mask == "kept" else []
    _apply(masks)  # a -0.0 in the file becomes 0.0
    if freeze_embeddings:
        kind = family(model)
        for name, weight in net.named_parameters():
            place = kind.place(name)
            weight.requires_grad_(not (place and place.part == "embeddings"))
    optimizer = _optimizer(net, learning_rate, weight_decay)
    if done:
        _restore(optimizer, net, work / f"state-{done}")
    net.train()
    wrapped, prepared = accelerator.prepare(net, optimizer)

    steps = math.ceil(len(train.ids) / batch_size)
    bar = tqdm(total=epochs * steps, initial=done * steps, unit="step", disable=not accelerator.is_main_process)
    progress["setup_seconds"] += time.perf_counter() - begun
    for epoch in range(done, epochs):
        begun = time.perf_counter()
        torch.manual_seed(_number(seed, epoch, accelerator.process_index))
        losses: list[float] = []
        for batch in _batches(train, batch_size, _number(seed, epoch)):
            step = epoch * steps + len(losses) + 1
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(step, epochs * steps, warmup_ratio)
            loss = _backward(accelerator, wrapped, train, batch, micro_batch_size, tokenizer.pad_token_id)
            if not math.isfinite(loss):
                raise UserError(
                    f"loss: is {loss} at step {step} of {epochs * steps}; lower learning_rate (now {learning_rate}). "
                    f"The last good weights are in {work}"
                )
            _step(accelerator, wrapped, prepared, masks, max_grad_norm)
            losses.append(loss)
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            if scoped and mask == "released" and epoch == 0 and step in FIRST_STEPS and step < steps:
                progress["history"].append({"epoch": 0, "step": step, "measured_sparsity": _sparsity(scoped, size)})
        _assert_masked(masks)
        progress["train_seconds"] += time.perf_counter() - begun
        begun = time.perf_counter()
        metrics = _evaluate(accelerator, wrapped, validation, 2 * micro_batch_size, tokenizer.pad_token_id, labels)
        progress["eval_seconds"] += time.perf_counter() - begun
        mean = float(np.mean(losses))
        progress["history"].append(
            {"epoch": epoch + 1, "step": (epoch + 1) * steps, "train_loss": mean, **metrics}
            | {"measured_sparsity": _sparsity(scoped, size)}
        )
        if accelerator.is_main_process:
            _save(work, epoch + 1, model, net, optimizer, progress, metrics)
        accelerator.wait_for_everyone()
    bar.close()
    if accelerator.is_main_process:
        _report(output, task, settings, progress, len(train.ids), accelerator)
    accelerator.end_training()


def _key(settings: dict[str, Any], code: str, model: Path, task: Path) -> str:
    """The name of a run's cache: what its result depends on, and nothing else."""
    parts = [json.dumps(settings, sort_keys=True), code, sha256(model / MANIFEST), sha256(task / MANIFEST)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _number(*parts: int) -> int:
    """A seed from several numbers; neighbours share nothing."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "little")


def _encode(tokenizer: Any, examples: tasks.Examples, max_length: int) -> Encoded:
    """Tokenise a split, pairs together; no padding."""
    encoded = tokenizer(examples.texts, examples.pairs, truncation=True, max_length=max_length)
    types = encoded.get("token_type_ids") if "token_type_ids" in tokenizer.model_input_names else None
    return Encoded(
        [np.array(row, np.int32) for row in encoded["input_ids"]],
        [np.array(row, np.int32) for row in types] if types else None,
        np.array(examples.labels, np.int64),
    )


def _batches(split: Encoded, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Indices of each batch of an epoch: shuffled, then sorted by length within stretches of 32 batches."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(split.ids))
    lengths = np.array([len(row) for row in split.ids])
    batches = []
    for start in range(0, len(order), 32 * size):
        stretch = order[start : start + 32 * size]
        stretch = stretch[np.argsort(-lengths[stretch], kind="stable")]
        batches += [stretch[at : at + size] for at in range(0, len(stretch), size)]
    for number in generator.permutation(len(batches)):
        yield batches[number]


def _schedule(step: int, steps: int, warmup_ratio: float) -> float:
    """The learning rate's factor at a step (from 1): up linearly over the warm-up, then down linearly to 0."""
    warmup = math.ceil(warmup_ratio * steps)
    return step / warmup if step <= warmup else (steps - step + 1) / (steps - warmup)


def _backward(
    accelerator: Accelerator, net: Module, split: Encoded, batch: NDArray[np.int64], size: int, pad: int
) -> float:
    """Gradients of the batch's mean loss, whatever processes and micro-batches it is split into; returns that loss."""
    mine = batch[accelerator.process_index :: accelerator.num_processes]
    share = 1.0 if len(mine) else 0.0  # a last batch may be smaller than the number of processes
    pieces = [mine[at : at + size] for at in range(0, len(mine), size)] or [batch[:1]]
    total = torch.zeros((), device=accelerator.device)
    for number, piece in enumerate(pieces):
        inputs, labels = split.batch(piece, pad)
        last = number == len(pieces) - 1
        with accelerator.autocast(), nullcontext() if last else accelerator.no_sync(net):
            logits = net(**{key: value.to(accelerator.device) for key, value in inputs.items()}).logits
            loss = cross_entropy(logits.float(), labels.to(accelerator.device), reduction="sum") * share / len(batch)
            accelerator.backward(loss * accelerator.num_processes)  # processes are averaged, this is a sum
        total += loss.detach()
    return float(accelerator.reduce(total, "sum"))


def _step(accelerator: Accelerator, net: Module, optimizer: Any, masks: list[Mask], max_grad_norm: float) -> None:
    """One optimizer step that leaves removed weights, their gradients and their moments at zero."""
    for weight, removed in masks:
        if weight.grad is not None:
            weight.grad.masked_fill_(removed, 0)
    accelerator.clip_grad_norm_(net.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    _apply(masks)


def _evaluate(
    accelerator: Accelerator, net: Module, split: Encoded, size: int, pad: int, labels: int
) -> dict[str, float]:
    """The metrics of a split; batches of similar length, split over the processes."""
    from llm_sparsity.metric import score  # heavy; not needed before the first epoch has ended

    order = np.argsort([len(row) for row in split.ids], kind="stable")
    batches = [order[at : at + size] for at in range(0, len(order), size)]
    found: list[tuple[int, int]] = []
    net.eval()
    with torch.no_grad(), accelerator.autocast():
        for batch in batches[accelerator.process_index :: accelerator.num_processes]:
            inputs, _ = split.batch(batch, pad)
            logits = net(**{key: value.to(accelerator.device) for key, value in inputs.items()}).logits
            found += zip(batch.tolist(), logits.argmax(-1).tolist(), strict=True)
    net.train()
    predictions = dict(gather_object(found))
    return score([predictions[i] for i in range(len(order))], split.labels.tolist(), labels)


def _scoped(model: Path, net: Module) -> tuple[list[Parameter], int]:
    """The parameters of the scope that a variant was pruned in, none for a dense model; how many weights it had."""
    pruned = read_manifest(model).get("pruned")
    if not pruned:
        return [], 0
    kind = family(model)
    return [weight for name, weight in net.named_parameters() if in_scope(kind.place(name), pruned["scope"])], pruned[
        "size"
    ]


def _sparsity(weights: list[Parameter], size: int) -> float:
    """The measured share of weights that are zero or gone."""
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / size if size else 0.0


def _apply(masks: list[Mask]) -> None:
    """Zero what is removed."""
    with torch.no_grad():
        for weight, removed in masks:
            weight.masked_fill_(removed, 0)


def _assert_masked(masks: list[Mask]) -> None:
    for weight, removed in masks:
        found = weight[removed]
        if bool(found.any() or found.signbit().any()):  # -0.0 is equal to 0, but its bits are not: a larger file
            raise RuntimeError(
                "a removed weight has grown back although the mask is kept; this is a fault of the program"
            )


def _optimizer(net: Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.dim() > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in trained if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def _progress(work: Path) -> dict[str, Any]:
    """How far this run has come in earlier attempts."""
    path = work / "progress.json"
    if path.exists():
        progress: dict[str, Any] = read_json(path)
        return progress
    times = {"setup_seconds": 0.0, "train_seconds": 0.0, "eval_seconds": 0.0}
    return {"epoch": 0, "history": [], "checkpoints": [], **times}


def _save(
    work: Path,
    epoch: int,
    model: Path,
    net: Any,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    metrics: dict[str, float],
) -> None:
    """Cache an epoch: weights, optimizer, then the file that says so. Older optimizer states go."""
    folder = work / f"epoch-{epoch}"
    checkpoint.copy_companions(model, folder)  # the tokenizer: a decoder's folder cannot be loaded without it
    checkpoint.save(folder, net.state_dict())
    net.config.save_pretrained(folder)
    checkpoint.save(work / f"state-{epoch}", _moments(optimizer, net))
    weights = folder / checkpoint.WEIGHTS
    progress["checkpoints"].append(
        {"epoch": epoch, "path": str(folder), "bytes": weights.stat().st_size, "sha256": sha256(weights), **metrics}
    )
    progress["epoch"] = epoch
    write_json(work / "progress.json", progress)
    for old in work.glob("state-*"):
        if old.name != f"state-{epoch}":
            shutil.rmtree(old)


def _moments(optimizer: torch.optim.Optimizer, net: Module) -> dict[str, Tensor]:
    """The optimizer's state as tensors: "{parameter} {field}"."""
    names: dict[Any, str] = {weight: name for name, weight in net.named_parameters()}
    return {
        f"{names[weight]} {field}": value for weight, state in optimizer.state.items() for field, value in state.items()
    }


def _restore(optimizer: torch.optim.Optimizer, net: Module, folder: Path) -> None:
    """The inverse of `_moments`."""
    weights = dict(net.named_parameters())
    for key, value in checkpoint.load(folder).items():
        name, field = key.split(" ")
        optimizer.state[weights[name]][field] = value.to(weights[name].device)


def _report(
    output: Path,
    task: Path,
    settings: dict[str, Any],
    progress: dict[str, Any],
    examples: int,
    accelerator: Accelerator,
) -> None:
    """Write what the run leaves: bytes that depend on its settings, code and inputs, and runtime.json apart."""
    from llm_sparsity.metric import majority

    last = progress["history"][-1]
    train, validation = (tasks.load(task, split).labels for split in ("train", "validation"))
    write_csv(output / "history.csv", progress["history"], HISTORY)
    write_csv(output / "checkpoints.csv", progress["checkpoints"], CHECKPOINTS)
    seconds = {key: progress[key] for key in ("setup_seconds", "train_seconds", "eval_seconds")}
    write_json(
        output / "runtime.json",
        {
            **seconds,
            "samples_per_second": examples * settings["epochs"] / progress["train_seconds"],
            **machine(accelerator.device, accelerator.num_processes),
        },
    )
    write_json(
        output / "metrics.json",
        {
            "metrics": {key: last[key] for key in ("accuracy", "f1", "combined")},
            "baseline": majority(train, validation, tasks.label_count(task)),
            "measured_sparsity": last["measured_sparsity"],
            "examples": {"train": len(train), "validation": len(validation)},
            "settings": settings,
        },
    )
