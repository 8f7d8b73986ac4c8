"""A finished study of tiny models with RANDOM weights: pruned, quantised, fine-tuned, evaluated."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.pruning.prune import prune
from llm_sparsity.study.sparsity import Sparsity
from llm_sparsity.training.finetune import finetune
from llm_sparsity.training.settings import FinetuneSettings
from tests.kill import SETTINGS
from tests.once import once
from tests.tiny import save_mood_task, save_text_task, save_tiny_model

KINDS = ("bert", "gpt2", "llama", "bart")
VARIANTS = (
    ("magnitude", "linear", "0.5"), ("structured", "mlp", "0.5"), ("structured", "linear", "0.5"),
    ("structured", "layers.0", "0.5"), ("int8", "linear", "0"),
)  # fmt: skip


def add_run(study: Path, model: str, variant: str, task: str, seed: int, **changes: Any) -> None:
    """Fine-tune a variant in a study, with very few steps."""
    folder = study / "results" / model / variant
    source = study / "resources/models" / model if variant == "dense" else folder / "model"
    output = folder / task / "kept" / f"seed-{seed}"
    settings = FinetuneSettings.from_dict(SETTINGS | {"epochs": 1, "seed": seed} | changes)
    finetune(
        ModelFolder(source), TaskFolder(study / "resources/tasks" / task), output, study / "work", settings, code="x"
    )


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study, with results/ and resources/, which tests only read."""
    return once("study", tmp_path_factory, _make)


def _make(root: Path) -> None:
    for kind in KINDS:
        folder = save_tiny_model(kind, root / "resources/models" / kind)
        for method, scope, sparsity in VARIANTS:
            variant = root / "results" / kind / f"{method}-{scope}-{sparsity}"
            prune(ModelFolder(folder), {Sparsity(sparsity): variant}, method=method, scope=scope)
    save_mood_task(root / "resources/tasks/mood")
    save_text_task(root / "resources/tasks/text")
    prune(
        ModelFolder(root / "resources/models/llama"), {Sparsity("0.5"): root / "results/llama/wanda-linear-0.5"},
        method="wanda", scope="linear", calibration={"samples": 2, "sequence_length": 16, "seed": 0},
        text=TaskFolder(root / "resources/tasks/text"),
    )  # fmt: skip
    for seed in (0, 1):
        add_run(root, "bert", "magnitude-linear-0.5", "mood", seed)
        add_run(root, "bert", "dense", "mood", seed)
    for kind in ("gpt2", "bart"):
        add_run(root, kind, "magnitude-linear-0.5", "mood", 0)
    add_run(root, "bert", "structured-mlp-0.5", "mood", 0)
    windows = {"max_length": 16, "evaluation": {"sequence_length": 16, "max_tokens": None}}
    for variant in ("magnitude-linear-0.5", "dense"):
        add_run(root, "llama", variant, "text", 0, **windows)
    for variant, perplexity in (("dense", 20.0), ("int8-linear-0", 21.5)):  # MADE UP numbers, in the form of the stage
        place = root / "results/llama" / variant / "text"
        place.mkdir(parents=True, exist_ok=True)
        found = {"metrics": {"perplexity": perplexity, "nll": 3.0}, "tokens": 1000, "settings": {}}
        (place / "metrics.json").write_text(json.dumps(found))
