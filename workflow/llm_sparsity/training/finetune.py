"""Fine-tune a variant on a task with one seed: a classifier, or a language model on running text.

With the mask `kept`, removed weights stay zero (`mask.py`). With `released`, training starts from the pruned weights
and zeros may grow back, as after torch's `prune.remove`. A recipe may start from a model that was fine-tuned before it
was pruned, and then need not train at all: without epochs, the pruned model is evaluated as it is. A recipe may also
add a gradual schedule (`schedule.py`), a teacher (`distillation.py`), or low-rank updates (`lora.py`).
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.data.tokens import seen, tokenize
from llm_sparsity.evaluation.perplexity import overflow_note
from llm_sparsity.jobs.environment import environment
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage.container import WEIGHTS
from llm_sparsity.storage.files import read_manifest, write_csv, write_json
from llm_sparsity.training import sigterm, tracking
from llm_sparsity.training.final_model import link_model
from llm_sparsity.training.run_cache import RunCache
from llm_sparsity.training.settings import FinetuneSettings
from llm_sparsity.training.setup import is_main_process, make_accelerator
from llm_sparsity.training.trainer import Trainer

METRICS = ["accuracy", "f1", "combined", "perplexity"]  # columns of every run; a task may have others
EPOCH = ["epoch", "step", "train_loss", "measured_sparsity"]  # other columns of the history
CHECKPOINT = ["epoch", "path", "bytes", "sha256"]


def finetune(
    model: ModelFolder,
    task: TaskFolder,
    output: Path,
    work: Path,
    settings: FinetuneSettings,
    *,
    code: str,
    text: TaskFolder | None = None,
    dense: ModelFolder | None = None,
    save_minutes: float = 15,
    tracker: str | None = None,
) -> None:
    """Fine-tune one variant on one task with one seed.

    Args:
        model: a variant.
        task: a task with labels, or a language-model task with the splits train and test.
        output: gets model/ (the final model), metrics.json, predictions.csv, history.csv, checkpoints.csv and
            runtime.json.
        work: the folder of caches.
        settings: everything else that the result depends on.
        code: the hash of the code.
        text: another task. A language model is trained on its split train instead; a classifier also learns its
            teacher's answers to these sentences.
        dense: the dense model, fine-tuned on this task with this seed; for a schedule or a teacher, which need it.
        save_minutes: minutes between saves within an epoch; SIGTERM and the end of an epoch save in any case.
        tracker: where loss, scores and sparsity are written to while the run trains, see `tracking`.

    Raises:
        UserError: sequences longer than the model allows, labels that the task does not have, a loss that is not
            finite, a batch that does not fit the memory, a full disk, no dense model, or one that nothing reads.
        SystemExit: 143 after SIGTERM, once everything is saved.
    """
    begun = time.perf_counter()
    _check(model, settings, dense, text)
    folders: dict[str, ModelFolder | TaskFolder | None] = {"task": task, "text": text, "dense": dense}
    inputs = {name: folder for name, folder in folders.items() if folder}
    cache = RunCache(work, output, model, inputs, settings=asdict(settings), code=code, main=is_main_process())
    with cache.opened(), sigterm.deferred() as terminated:
        accelerator = make_accelerator(tracker)
        if tracker:
            tracking.start(accelerator, tracker, output)
        with accelerator.main_process_first():
            tokens = tokenize(
                model, task, work, max_length=settings.max_length, code=code, text=text, evaluation=settings.evaluation
            )
        cache.uses(tokens.key)
        trainer = Trainer(
            model, tokens, settings, cache, accelerator, terminated,
            dense=dense, save_minutes=save_minutes, begun=begun,
        )  # fmt: skip
        trainer.fit()
        if accelerator.is_main_process:
            link_model(cache.epoch_folder(settings.epochs) if settings.epochs else model.path, output / "model")
            _report(trainer, output)
            if settings.epochs:
                cache.finish()
        accelerator.end_training()


def _check(model: ModelFolder, settings: FinetuneSettings, dense: ModelFolder | None, text: TaskFolder | None) -> None:
    model.check_length("max_length", settings.max_length)
    if settings.evaluation:
        model.check_length("sequence_length", settings.evaluation["sequence_length"])
    if settings.needs_dense and dense is None:
        raise UserError("dense: missing; a schedule and a teacher need the model folder of the dense run")
    if text is not None and not settings.evaluation and settings.distill is None:
        raise UserError(f"text: found {text}, but only a teacher can answer sentences without labels; leave it out")
    if dense is not None and not settings.needs_dense:
        raise UserError(f"dense: found {dense}, but only a schedule or a teacher reads it; leave it out")


def _report(trainer: Trainer, output: Path) -> None:
    """Write the run's tables. Their bytes depend on settings, code and inputs alone, except those of runtime.json."""
    state, settings, tokens, accelerator = trainer.state, trainer.settings, trainer.tokens, trainer.accelerator
    last = state.history[-1]
    names = [*METRICS, *sorted(last.keys() - {*METRICS, *EPOCH})]
    write_csv(output / "history.csv", state.history, [*EPOCH[:-1], *names, EPOCH[-1]])
    write_csv(output / "checkpoints.csv", _checkpoints(state.history, names, trainer.cache), [*CHECKPOINT, *names])
    write_csv(output / "predictions.csv", trainer.objective.rows(state.predictions))
    seconds = asdict(state.seconds)
    write_json(
        output / "runtime.json",
        {
            **{f"{part}_seconds": value for part, value in seconds.items()},
            "samples_per_second": len(tokens.train) * settings.epochs / seconds["train"] if settings.epochs else None,
            **environment(accelerator.device, accelerator.num_processes),
        },
    )
    metrics = {key: last[key] for key in names if key in last}
    others = {name: len(split) for name, split in tokens.others.items()}
    if unlabelled := tokens.train.unlabelled:
        others["unlabelled"] = unlabelled
    write_json(
        output / "metrics.json",
        {
            "metrics": metrics,
            **({} if tokens.score == "accuracy" else {"score": tokens.score}),
            **overflow_note(metrics),
            "baseline": trainer.objective.baseline(),
            "measured_sparsity": last["measured_sparsity"],
            "examples": {"train": len(tokens.train) - unlabelled, "validation": len(tokens.validation), **others},
            "seen": seen(tokens),
            "settings": asdict(settings),
        },
    )


def _checkpoints(history: list[dict[str, Any]], names: list[str], cache: RunCache) -> list[dict[str, Any]]:
    """The weights after each epoch, with their metrics."""
    rows = []
    for row in history:
        if row["epoch"]:
            folder = cache.epoch_folder(row["epoch"])
            weights = read_manifest(folder)["files"][WEIGHTS]
            metrics = {key: row[key] for key in names if key in row}
            rows.append({"epoch": row["epoch"], "path": str(folder), **weights, **metrics})
    return rows
