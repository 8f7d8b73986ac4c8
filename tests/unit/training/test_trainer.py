"""The precision of training and evaluation, and runs whose numbers are not finite. Models are tiny and RANDOM."""

import csv
import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.evaluation.evaluate import evaluate
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage.files import read_json
from llm_sparsity.training import gradients, objective
from llm_sparsity.training.mask import Mask
from tests import weights
from tests.kill import SETTINGS
from tests.unit.training.helpers import WINDOWS, run

Make = Callable[[str], ModelFolder]
PERPLEXITY = importlib.import_module("llm_sparsity.evaluation.perplexity")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_training_uses_autocast_and_evaluation_float32(
    kind: str, dense: Make, task: TaskFolder, text: TaskFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: bfloat16 autocast on the CPU stands for it, also if accelerate's own configuration asks for it."""
    seen: dict[str, set[torch.dtype]] = {"train": set(), "evaluate": set()}
    loss = gradients.summed_loss
    made = objective.NextTokens if kind == "llama" else objective.Labels
    predictions = made.predictions

    def trained(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen["train"].add(logits.dtype)
        return loss(logits, labels)

    def evaluated(self: objective.Objective, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen["evaluate"].add(logits.dtype)
        return predictions(self, logits, labels)  # type: ignore[arg-type]

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr(gradients, "autocast", lambda device: torch.autocast(device.type, torch.bfloat16))
    monkeypatch.setattr(gradients, "summed_loss", trained)
    monkeypatch.setattr(made, "predictions", evaluated)
    more = {"evaluation": WINDOWS} if kind == "llama" else {}
    result = run(dense(kind), text if kind == "llama" else task, tmp_path, epochs=1, **more)
    assert seen == {"train": {torch.bfloat16}, "evaluate": {torch.float32}}
    if kind == "llama":  # one precision before and after training: the same number
        evaluate(ModelFolder(result["weights"]), text, tmp_path / "after", **WINDOWS, batch_size=4)
        after = read_json(tmp_path / "after/metrics.json")["metrics"]["perplexity"]
        assert result["metrics"]["perplexity"] == pytest.approx(after, rel=1e-6)


def test_what_torch_cannot_compute_deterministically_is_said_and_trained(
    dense: Make, task: TaskFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a GPU, where torch refuses `cumsum` of float32; a stand-in, as a CPU refuses nothing."""
    attention, refused = torch.nn.functional.scaled_dot_product_attention, []

    def refuses(*arguments: Any, **options: Any) -> torch.Tensor:
        if not refused:
            refused.append(torch.get_deterministic_debug_mode())
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set 'error'")
        return attention(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuses)
    assert run(dense("bert"), task, tmp_path, epochs=1)["metrics"]
    said = "cumsum_cuda_kernel does not have a deterministic implementation: two equal runs may differ by rounding\n"
    assert refused and said in capsys.readouterr().err


@pytest.mark.parametrize("rate", [1e20, 1e30, 1e38])
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_run_that_diverges_at_its_last_step_is_not_scored(
    kind: str, rate: float, dense: Make, task: TaskFolder, text: TaskFolder, tmp_path: Path
) -> None:
    more = {"evaluation": WINDOWS} if kind == "gpt2" else {}
    with pytest.raises(
        UserError, match=r"^loss: a (weight or moment|prediction) is not finite after step 1 of 1; lower learning_rate"
    ):
        run(
            dense(kind), text if kind == "gpt2" else task, tmp_path, epochs=1, learning_rate=rate, warmup_ratio=0.0,
            batch_size=999, micro_batch_size=999, **more,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_last_finite_save_stays(
    value: float, dense: Make, task: TaskFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, calls = Mask.hold, []

    def damaged(self: Mask) -> None:
        hold(self)
        calls.append(1)
        if len(calls) == 8:  # the last step
            next(iter(self._weights.values())).detach()[0, 0] = value

    monkeypatch.setattr(Mask, "hold", damaged)
    model = dense("bert")
    (tmp_path / "pruned").mkdir()
    from llm_sparsity.pruning.prune import prune
    from llm_sparsity.study.sparsity import Sparsity

    prune(model, {Sparsity("0.5"): tmp_path / "pruned"}, method="magnitude", scope="linear")
    with pytest.raises(UserError, match=r"not finite after step 8 of 8; .* holds the run up to step 4$"):
        run(ModelFolder(tmp_path / "pruned/model"), task, tmp_path)
    cache = next((tmp_path / "work").glob("*/progress.json")).parent
    assert read_json(cache / "progress.json")["step"] == 4
    assert all(weight.isfinite().all() for weight in weights.load(cache / "epoch-1").values())
    assert not (cache / "epoch-2").exists()
    assert not (tmp_path / "out").exists()


def test_a_perplexity_that_no_float_holds_is_null(
    dense: Make, text: TaskFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PERPLEXITY, "LARGEST_NLL", 0.5)
    result = run(dense("gpt2"), text, tmp_path, epochs=1, evaluation=WINDOWS)
    assert result["metrics"] == {"perplexity": None}
    assert result["note"].startswith("perplexity: null")
    with (tmp_path / "out/history.csv").open() as file:
        assert [row["perplexity"] for row in csv.DictReader(file)] == [""]
    evaluate(dense("gpt2"), text, tmp_path / "alone", **WINDOWS, batch_size=4)
    alone = read_json(tmp_path / "alone/metrics.json")
    assert alone["metrics"]["perplexity"] is None
    assert alone["metrics"]["nll"] > 0.5 and "note" in alone


@pytest.mark.slow
def test_a_home_that_nobody_can_write_to(dense: Make, task: TaskFolder, tmp_path: Path, root: Path) -> None:
    settings = json.dumps(SETTINGS | {"epochs": 1})
    command = [root / "scripts/finetune.py", "--model", dense("bert").path, "--task", task.path, "--output", "out"]
    (tmp_path / "tmp").mkdir()
    environment = {"PYTHONPATH": str(root / "workflow"), "PATH": os.environ["PATH"], "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(
        [sys.executable, *map(str, command), "--settings", settings], cwd=tmp_path, text=True, capture_output=True,
        check=False, env=environment | {"HOME": "/proc/none"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "accuracy" in read_json(tmp_path / "out/metrics.json")["metrics"]
    assert not [path.name for path in (tmp_path / "tmp").iterdir() if not path.name.startswith("torchinductor_")]
