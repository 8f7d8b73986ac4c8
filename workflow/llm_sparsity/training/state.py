"""The state of a run: everything that changes while a model trains."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Module
from torch.optim import Optimizer

from llm_sparsity.training.lora import PARTS, factors, merged, updated_modules
from llm_sparsity.training.mask import Mask, local
from llm_sparsity.training.run_cache import RunCache
from llm_sparsity.training.schedule import MOVEMENT, GradualSchedule
from llm_sparsity.training.scope import PrunedScope

VALUE = "value"  # field of a LoRA factor among the saved tensors, where the optimizer's fields are exp_avg, ...


@dataclass
class Seconds:
    """Wall-clock seconds of each part of a run, over all its attempts."""

    setup: float = 0.0
    train: float = 0.0
    save: float = 0.0
    eval: float = 0.0


class TrainState:
    """Model, optimizer, mask and progress; saves and restores itself through the run cache.

    Args:
        net: the model, as `accelerator.prepare` left it, without its wrapper.
        optimizer: of `net`.
        mask: holds removed weights.
        scope: the pruned scope.
        schedule: removes weights during training; None: they are removed before.

    Attributes:
        step: optimizer steps done.
        epoch: epochs done, evaluation included.
        loss: the sum of the mean losses of the current epoch's steps.
        history: rows of history.csv.
        predictions: for the validation split, after the last epoch that ended.
        seconds: of each part of the run.
    """

    def __init__(
        self, net: Any, optimizer: Optimizer, mask: Mask, scope: PrunedScope, schedule: GradualSchedule | None
    ) -> None:
        self.net, self.optimizer, self.mask, self.scope, self.schedule = net, optimizer, mask, scope, schedule
        self.step = 0
        self.epoch = 0
        self.loss = 0.0
        self.history: list[dict[str, Any]] = []
        self.predictions: list[float] = []
        self.seconds = Seconds()

    def save(self, cache: RunCache, *, ended_epoch: int | None) -> None:
        """Save to the cache; every process calls this.

        Args:
            ended_epoch: the epoch (from 1) that has just ended, whose weights stay; None within an epoch.
        """
        weights = model_tensors(self.net)
        self.mask.check(weights)
        if ended_epoch is None:
            cache.save(self._progress(), weights, self._other_tensors())
            return
        facts = {"config": self.net.config, "pruned": self.scope.facts(weights)}
        cache.save_epoch(ended_epoch, self._progress(), weights, self._other_tensors(), **facts)

    def record(self, cache: RunCache) -> None:
        """Save what was measured since the last save of the same step."""
        cache.record(self._progress())

    def resume(self, cache: RunCache) -> None:
        """Restore the last save, if there is one."""
        saved = cache.load()
        if saved is None:
            return
        self.step, self.epoch, self.loss, self.history, self.predictions = (
            saved.progress[key] for key in ("step", "epoch", "loss", "history", "predictions")
        )
        self.seconds = Seconds(**saved.progress["seconds"])
        self._restore_model(saved.weights)
        self._restore_others(saved.state)
        if self.schedule and saved.state:
            self.schedule.restore(saved.state)
            self.mask.remove_zeros(self.optimizer)

    def is_finite(self, accelerator: Accelerator) -> bool:
        """Whether all that is trained or saved is finite, in all processes; a collective call."""
        tensors = [*(weight.detach() for weight in self.net.parameters()), *self._other_tensors().values()]
        broken = sum((~local(tensor).isfinite().all()).float().to(accelerator.device) for tensor in tensors)
        return not float(accelerator.reduce(broken, "sum"))

    def sparsity(self) -> float:
        """The measured sparsity of the pruned scope."""
        return self.scope.sparsity(model_tensors(self.net))

    def _progress(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": self.epoch,
            "loss": self.loss,
            "history": self.history,
            "predictions": self.predictions,
            "seconds": asdict(self.seconds),
        }

    def _other_tensors(self) -> dict[str, Tensor]:
        """Moments ("{parameter} {field}"), LoRA factors ("{parameter} value"), movement ("{parameter} movement")."""
        moments = {
            f"{name} {field}": value
            for name, weight in self.net.named_parameters()
            for field, value in self.optimizer.state.get(weight, {}).items()
        }
        lora = {f"{name} {VALUE}": weight.detach() for name, weight in factors(self.net)}
        return moments | lora | (self.schedule.state() if self.schedule else {})

    @torch.no_grad()
    def _restore_model(self, weights: Mapping[str, Tensor]) -> None:
        tensors = self.net.state_dict(keep_vars=True)
        merged_names = updated_modules(self.net)  # saved with their updates merged, while the model holds frozen W
        for name, value in weights.items():
            if name not in merged_names:
                tensors[name].copy_(_like(value, tensors[name]))

    @torch.no_grad()
    def _restore_others(self, tensors: Mapping[str, Tensor]) -> None:
        parameters = dict(self.net.named_parameters())
        for key, value in tensors.items():
            name, field = key.split(" ")
            if field == VALUE:
                parameters[name].copy_(_like(value, parameters[name]))
            elif field != MOVEMENT:
                self.optimizer.state[parameters[name]][field] = _like(value, parameters[name])


def model_tensors(net: Module) -> dict[str, Tensor]:
    """The tensors of a model, tied ones once; LoRA updates are merged."""
    names: dict[int, str] = {}
    tensors = net.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), name)
    return {name: tensors[name].detach() for name in names.values() if PARTS not in name} | merged(net)


def _like(value: Tensor, tensor: Tensor) -> Tensor:
    """A value on the device of a tensor, and sharded like it if the shapes are equal."""
    if isinstance(tensor, DTensor) and value.shape == tensor.shape:
        return distribute_tensor(value, tensor.device_mesh, tensor.placements)
    return value.to(tensor.device, copy=True)  # not a part of the save's file, which the next save removes
