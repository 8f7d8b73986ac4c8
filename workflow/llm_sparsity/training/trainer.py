"""The training loop: plain PyTorch around accelerate, for one process, several or sharded ones, on CPU or GPU.

A step covers `batch_size` sequences, however they are split over processes and micro-batches, and draws its random
numbers from the seed and its own number. So an interrupted run continues from its cache and leaves the same bytes.

Training steps use bfloat16 autocast on a GPU. Evaluation, of classifiers and of language models, computes in float32,
as `evaluate` does before training: a difference of the two is an effect of training.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from tqdm import tqdm

from llm_sparsity.data.tokens import Tokens, TokenSplit
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.training import setup, sigterm, tracking
from llm_sparsity.training.gradients import accumulate_gradients, device_batch
from llm_sparsity.training.mask import Mask
from llm_sparsity.training.objective import objective
from llm_sparsity.training.optimizer import adamw, learning_rate_factor
from llm_sparsity.training.run_cache import RunCache
from llm_sparsity.training.schedule import GradualSchedule
from llm_sparsity.training.scope import PrunedScope
from llm_sparsity.training.settings import FinetuneSettings
from llm_sparsity.training.state import TrainState

FIRST_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500)  # at which the regrowth of released weights is measured


class Trainer:
    """Trains one model on one task.

    Args:
        model: the variant.
        tokens: the tokenised task.
        settings: of the run.
        cache: where the run is saved, open.
        accelerator: device and processes.
        terminated: whether SIGTERM has arrived.
        dense: the fine-tuned dense model, for a schedule or a teacher.
        save_minutes: minutes between saves within an epoch.
        begun: when setting up began, of `time.perf_counter`.

    Attributes:
        state: model, optimizer and progress.
        objective: loss inputs and metrics.
    """

    def __init__(
        self,
        model: ModelFolder,
        tokens: Tokens,
        settings: FinetuneSettings,
        cache: RunCache,
        accelerator: Accelerator,
        terminated: Callable[[], bool],
        *,
        dense: ModelFolder | None,
        save_minutes: float,
        begun: float,
    ) -> None:
        self.settings, self.tokens, self.cache = settings, tokens, cache
        self.accelerator, self.terminated, self.save_minutes = accelerator, terminated, save_minutes
        self.objective = objective(tokens)
        self.steps_per_epoch = math.ceil(len(tokens.train) / settings.batch_size)
        self.steps = settings.epochs * self.steps_per_epoch

        scope = PrunedScope(model, accelerator)
        net, counts, self.teacher = setup.initial_model(model, dense, self.objective, settings, scope, accelerator)
        setup.set_trainable(net, model, self.objective, settings)
        optimizer = adamw(net, settings.learning_rate, settings.weight_decay)
        if sharding := getattr(accelerator.state, "fsdp_plugin", None):
            sharding.transformer_cls_names_to_wrap = setup.layer_classes(net)
        with setup.whole_embeddings(net) if sharding else nullcontext():
            self.wrapped, self.prepared_optimizer = accelerator.prepare(net, optimizer)

        net = accelerator.unwrap_model(self.wrapped)
        scoped = scope.parameters(net)
        self.has_scope = bool(scoped)
        mask, schedule = Mask(scoped), None
        if settings.mask == "kept":
            mask.remove_zeros(optimizer)
        if settings.schedule:
            schedule = GradualSchedule(scoped, counts, self.steps, **settings.schedule)
        self.state = TrainState(net, optimizer, mask, scope, schedule)
        self.state.resume(cache)
        self.saved_at = time.monotonic()
        self.state.seconds.setup += time.perf_counter() - begun

    def fit(self) -> None:
        """Train all epochs, or those that are left; save and evaluate after each. Without epochs, evaluate once."""
        state = self.state
        if not self.settings.epochs:
            self.evaluate_epoch({"epoch": 0, "step": 0})
            return
        quiet = not self.accelerator.is_main_process
        with tqdm(total=self.steps, initial=state.step, unit="step", disable=quiet) as bar:
            for epoch in range(state.epoch, self.settings.epochs):
                self.train_epoch(epoch, bar)
                mean = state.loss / self.steps_per_epoch
                self.evaluate_epoch({"epoch": epoch + 1, "step": state.step, "train_loss": mean})
                state.epoch, state.loss = epoch + 1, 0.0
                state.record(self.cache)

    def evaluate_epoch(self, row: dict[str, Any]) -> None:
        """Add a row to the history: what is given, the metrics, and the sparsity."""
        begun = time.perf_counter()
        row = row | self.evaluate() | {"measured_sparsity": self.state.sparsity()}
        self.state.history.append(row)
        self.accelerator.log(tracking.numbers(row), row["step"])
        self.state.seconds.eval += time.perf_counter() - begun

    def train_epoch(self, epoch: int, bar: Any) -> None:
        """Take the steps of an epoch (from 0) that have not been taken; save when it is time to."""
        state = self.state
        first, end = epoch * self.steps_per_epoch, (epoch + 1) * self.steps_per_epoch
        begun = time.perf_counter()
        batches = list(self.tokens.train.shuffled(self.settings.batch_size, self.settings.derived_seed(epoch)))
        for batch in batches[state.step - first :]:
            loss, due, stop = self.train_step(batch)
            if due or stop or state.step == end:
                state.seconds.train += time.perf_counter() - begun
                self.save(epoch + 1 if state.step == end else None)
                begun = time.perf_counter()
            if stop:
                sigterm.leave(self.accelerator)
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

    def train_step(self, batch: NDArray[np.int64]) -> tuple[float, bool, bool]:
        """Take one optimizer step.

        Returns:
            The mean loss; whether a save is due; whether SIGTERM has arrived.
        """
        state, settings = self.state, self.settings
        step = state.step + 1
        torch.manual_seed(settings.derived_seed(step, self.accelerator.process_index))
        factor = learning_rate_factor(step, self.steps, settings.warmup_ratio)
        for group in state.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor

        due = time.monotonic() - self.saved_at > 60 * self.save_minutes
        loss, (due, stop) = accumulate_gradients(
            self.accelerator, self.wrapped, self.objective, self.teacher, self.tokens.train, batch,
            settings.micro_batch_size, (due, self.terminated()),
        )  # fmt: skip
        if not math.isfinite(loss):
            raise self.diverged(f"is {loss} at", step)

        if state.schedule:
            state.schedule.observe()
            if (removed := state.schedule.removed(step)) is not None:
                state.mask.remove(removed, state.optimizer)
        state.mask.hold()
        self.accelerator.clip_grad_norm_(self.wrapped.parameters(), settings.max_grad_norm)
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()

        state.step, state.loss = step, state.loss + loss
        if settings.mask == "released" and self.has_scope and step in FIRST_STEPS and step < self.steps_per_epoch:
            state.history.append({"epoch": 0, "step": step, "measured_sparsity": state.sparsity()})
        if self.accelerator.trackers:
            changing = {"measured_sparsity": state.sparsity()} if state.schedule or settings.mask == "released" else {}
            self.accelerator.log({"loss": loss, "learning_rate": settings.learning_rate * factor} | changing, step)
        return loss, due, stop

    def save(self, ended_epoch: int | None) -> None:
        """Save the state; the weights after an epoch (from 1) stay.

        Raises:
            UserError: a weight or moment is not finite; the last save stays.
        """
        begun = time.perf_counter()
        if not self.state.is_finite(self.accelerator):
            raise self.diverged("a weight or moment is not finite after")
        self.state.save(self.cache, ended_epoch=ended_epoch)
        self.saved_at = time.monotonic()
        self.state.seconds.save += time.perf_counter() - begun

    def evaluate(self) -> dict[str, float | None]:
        """Metrics of the validation split, and of others that the task has."""
        metrics: dict[str, float | None] = {}
        for ending, split in self.objective.scored.items():
            predictions = self.predictions(split)
            metrics |= self.objective.metrics(predictions, ending)
            if split is self.tokens.validation:
                self.state.predictions = predictions
        return metrics

    def predictions(self, split: TokenSplit) -> list[float]:
        """The predictions for a split, in its order; batches of similar length, split over the processes.

        Raises:
            UserError: a prediction is not finite.
        """
        accelerator = self.accelerator
        batches = split.by_length(self.evaluation_batch_size())
        found = torch.zeros(len(split), dtype=torch.float64, device=accelerator.device)
        self.wrapped.eval()
        with torch.no_grad():
            for start in range(0, len(batches), accelerator.num_processes):
                if self.terminated():
                    sigterm.leave(accelerator)
                # Every process takes as many batches, which FSDP needs: the last batch may be computed several times.
                number = start + accelerator.process_index
                batch = batches[min(number, len(batches) - 1)]
                inputs, labels = device_batch(self.objective, split, batch, accelerator.device)
                predictions = self.objective.predictions(self.wrapped(**inputs).logits, labels)
                if number < len(batches):
                    found[torch.from_numpy(batch).to(found.device)] = predictions
        self.wrapped.train()
        found = accelerator.reduce(found, "sum")  # a sequence is predicted by one process; tensors, as pickle runs code
        if not found.isfinite().all():
            raise self.diverged("a prediction is not finite after")
        return [float(prediction) for prediction in found.tolist()]

    def evaluation_batch_size(self) -> int:
        """Sequences at once in evaluation; of a language model, as many tokens as in training."""
        settings = self.settings
        if settings.evaluation is None:
            return 2 * settings.micro_batch_size
        return max(1, settings.micro_batch_size * settings.max_length // int(settings.evaluation["sequence_length"]))

    def diverged(self, found: str, step: int | None = None) -> UserError:
        """The error of a run whose numbers are not finite.

        Args:
            found: ends in a preposition, for the step.
            step: default: the last one.
        """
        return UserError(
            f"loss: {found} step {step or self.state.step} of {self.steps}; lower learning_rate (now "
            f"{self.settings.learning_rate}). {self.cache.folder} holds the run up to step {self.cache.saved_step()}"
        )
