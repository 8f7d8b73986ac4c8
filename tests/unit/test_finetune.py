import csv
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_sparsity import checkpoint, finetune
from llm_sparsity.errors import UserError
from llm_sparsity.files import read_json, sha256, write_json, write_manifest
from llm_sparsity.finetune import Encoded
from llm_sparsity.models import family, in_scope
from llm_sparsity.prune import prune

SETTINGS: dict[str, Any] = {
    "mask": "kept", "seed": 0, "epochs": 2, "learning_rate": 5e-3, "batch_size": 16, "micro_batch_size": 16,
    "max_length": 32, "weight_decay": 0.01, "warmup_ratio": 0.1, "max_grad_norm": 1.0, "freeze_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up task that a tiny random model can learn: is the mood word a good one?"""
    folder = tmp_path_factory.mktemp("mood")
    generator = random.Random(0)
    lines = []
    for _ in range(96):
        label = generator.randrange(2)
        words = generator.choices(["the", "film", "story", "was"], k=generator.randrange(1, 9))
        lines.append({"text": " ".join([*words, ["bad", "good"][label]]), "label": label})
    for split, rows in (("train", lines[:64]), ("validation", lines[64:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(folder, kind="task", task="classification", labels=["bad", "good"])
    return folder


@pytest.fixture
def variant(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    def make(kind: str) -> Path:
        prune(tiny_model(kind), {"0.9": tmp_path / kind}, method="magnitude", scope="linear")
        return tmp_path / kind / "model"

    return make


def run(model: Path, task: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """Fine-tune; the metrics, and where the last epoch's weights lie."""
    finetune.finetune(model, task, folder / "out", folder / "work", code="x", **SETTINGS | changes)
    result = read_json(folder / "out/metrics.json")
    with (folder / "out/checkpoints.csv").open() as file:
        result["weights"] = Path(list(csv.DictReader(file))[-1]["path"])
    return result


def removed(model: Path) -> dict[str, torch.Tensor]:
    """Where a pruned model's scope is zero."""
    known = family(model)
    return {n: w == 0 for n, w in checkpoint.load(model).items() if in_scope(known.place(n), "linear")}


def after(result: dict[str, Any], name: str) -> torch.Tensor:
    """A weight after training; its name has the prefix that the classifier gives it."""
    return next(w for key, w in checkpoint.load(result["weights"]).items() if key.endswith(name))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama", "bart"])
def test_the_kept_mask_is_exact_in_the_saved_file(
    kind: str, variant: Callable[[str], Path], task: Path, tmp_path: Path
) -> None:
    model = variant(kind)
    result = run(model, task, tmp_path, micro_batch_size=8)
    assert result["measured_sparsity"] == pytest.approx(0.9, abs=1e-3)
    for name, gone in removed(model).items():
        assert not after(result, name)[gone].any()
    assert not any("_orig" in name or "_mask" in name for name in checkpoint.load(result["weights"]))


def test_a_negative_zero_is_not_a_removed_weight() -> None:
    weight = torch.nn.Parameter(torch.tensor([-0.0, 1.0]))
    masks = [(weight, weight == 0)]
    with pytest.raises(RuntimeError, match="has grown back"):
        finetune._assert_masked(masks)
    finetune._apply(masks)
    finetune._assert_masked(masks)


def test_moments_of_removed_weights_are_zero(variant: Callable[[str], Path], task: Path, tmp_path: Path) -> None:
    model = variant("bert")
    result = run(model, task, tmp_path)
    state = checkpoint.load(result["weights"].parent / "state-2")
    for name, gone in removed(model).items():
        for field in ("exp_avg", "exp_avg_sq"):
            moments = next(value for key, value in state.items() if key.endswith(f"{name} {field}"))
            assert not moments[gone].any()
            assert moments[~gone].any()


def test_released_zeros_grow_back_at_once(variant: Callable[[str], Path], task: Path, tmp_path: Path) -> None:
    """What the report did without noticing: after `prune.remove` the first steps undo the pruning."""
    result = run(variant("bert"), task, tmp_path, mask="released")
    assert result["measured_sparsity"] < 0.05
    with (tmp_path / "out/history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["epoch"] == "0"] == ["1", "2"]
    assert float(rows[0]["measured_sparsity"]) < 0.2


def test_a_model_learns(tiny_model: Callable[[str], Path], task: Path, tmp_path: Path) -> None:
    result = run(tiny_model("bert"), task, tmp_path, epochs=6)
    assert result["metrics"]["accuracy"] > 0.9
    assert result["measured_sparsity"] == 0


def test_frozen_embeddings_stay(tiny_model: Callable[[str], Path], task: Path, tmp_path: Path) -> None:
    model = tiny_model("bert")
    result = run(model, task, tmp_path, freeze_embeddings=True, epochs=1)
    for name, weight in checkpoint.load(model).items():
        if "_embeddings.weight" in name:
            assert torch.equal(after(result, name), weight)


def test_micro_batches_change_nothing_but_rounding(
    tiny_model: Callable[[str], Path], task: Path, tmp_path: Path
) -> None:
    results = [run(tiny_model("llama"), task, tmp_path / str(n), micro_batch_size=n, epochs=1) for n in (16, 5)]
    whole, split = (checkpoint.load(result["weights"]) for result in results)
    assert all(torch.allclose(whole[name], split[name], atol=1e-4) for name in whole)


def test_the_same_run_gives_the_same_bytes(variant: Callable[[str], Path], task: Path, tmp_path: Path) -> None:
    model = variant("bert")
    first, second = (run(model, task, tmp_path / name)["weights"] for name in ("1", "2"))
    assert sha256(first / "model.safetensors") == sha256(second / "model.safetensors")
    for file in ("metrics.json", "history.csv"):
        assert (tmp_path / "1/out" / file).read_bytes() == (tmp_path / "2/out" / file).read_bytes()


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "bart"])
def test_an_interrupted_run_goes_on_and_leaves_the_same_bytes(
    kind: str, variant: Callable[[str], Path], task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = variant(kind)
    whole = run(model, task, tmp_path / "whole", epochs=3)["weights"]
    step, count = finetune._step, 0

    def interrupted(*args: Any) -> None:
        nonlocal count
        count += 1
        if count == 7:  # in the second epoch of four steps
            raise KeyboardInterrupt
        step(*args)

    monkeypatch.setattr(finetune, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, task, tmp_path / "cut", epochs=3)
    assert not (tmp_path / "cut/out").exists()
    resumed = run(model, task, tmp_path / "cut", epochs=3)["weights"]
    assert count == 7 + 8  # the second epoch again, the third; not the first
    assert sha256(whole / "model.safetensors") == sha256(resumed / "model.safetensors")
    for file in ("metrics.json", "history.csv"):
        assert (tmp_path / "whole/out" / file).read_bytes() == (tmp_path / "cut/out" / file).read_bytes()


def test_another_setting_or_code_has_a_cache_of_its_own(tiny_model: Callable[[str], Path], task: Path) -> None:
    model = tiny_model("bert")
    keys = {
        finetune._key({"seed": 0}, "a", model, task),
        finetune._key({"seed": 1}, "a", model, task),
        finetune._key({"seed": 0}, "b", model, task),
        finetune._key({"seed": 0}, "a", tiny_model("gpt2"), task),
    }
    assert len(keys) == 4


def test_every_epoch_is_cached_and_one_optimizer_state(
    variant: Callable[[str], Path], task: Path, tmp_path: Path
) -> None:
    run(variant("bert"), task, tmp_path, epochs=3)
    with (tmp_path / "out/checkpoints.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        assert sha256(Path(row["path"]) / "model.safetensors") == row["sha256"]
    assert [path.name for path in Path(rows[0]["path"]).parent.glob("state-*")] == ["state-3"]


def test_a_loss_that_is_not_finite_stops_the_run(tiny_model: Callable[[str], Path], task: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss: is (nan|inf) at step \d+ of 8; lower learning_rate \(now 1e\+30\)"):
        run(tiny_model("bert"), task, tmp_path, learning_rate=1e30, max_grad_norm=1e30)


def test_a_sequence_longer_than_the_model_allows(tiny_model: Callable[[str], Path], task: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_length: found 65, but bert.* allows 64 tokens at most; lower it"):
        run(tiny_model("bert"), task, tmp_path, max_length=65)


def test_batches_hold_every_example_once_and_similar_lengths() -> None:
    generator = np.random.default_rng(0)
    ids = [np.zeros(length, np.int32) for length in generator.integers(1, 100, 1000)]
    split = Encoded(ids, None, np.zeros(1000, np.int64))
    batches = list(finetune._batches(split, 32, seed=1))
    assert sorted(np.concatenate(batches)) == list(range(1000))
    spread = [max(len(ids[i]) for i in batch) - min(len(ids[i]) for i in batch) for batch in batches]
    assert np.median(spread) < 10
    assert any(
        (a != b).any() for a, b in zip(batches, finetune._batches(split, 32, seed=2), strict=True) if len(a) == len(b)
    )


def test_padding_reaches_no_further_than_the_batch() -> None:
    ids = [np.array([7, 8, 9], np.int32), np.array([5], np.int32), np.arange(20, dtype=np.int32)]
    inputs, labels = Encoded(ids, None, np.array([1, 0, 1])).batch(np.array([0, 1]), pad=3)
    assert inputs["input_ids"].tolist() == [[7, 8, 9], [5, 3, 3]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert labels.tolist() == [1, 0]


def test_the_schedule_rises_and_falls() -> None:
    factors = [finetune._schedule(step, 10, 0.2) for step in range(1, 11)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[-1] == pytest.approx(1 / 8)
    assert finetune._schedule(1, 4, 0.0) == 1.0


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_two_processes_do_what_one_does(
    kind: str, variant: Callable[[str], Path], task: Path, tmp_path: Path, root: Path
) -> None:
    """Two CPU processes over gloo: the same global batch, so the same weights but for rounding."""
    model = variant(kind)
    config = read_json(model / "config.json")  # without dropout, whose draws differ between processes
    write_json(model / "config.json", {key: 0.0 if "drop" in key else value for key, value in config.items()})
    settings = SETTINGS | {"epochs": 1, "batch_size": 15, "micro_batch_size": 4}
    weights = []
    for processes in ("1", "2"):
        folder = tmp_path / processes
        arguments = ["--model", model, "--task", task, "--output", folder / "out", "--work", folder / "work"]
        arguments += ["--processes", processes, "--settings", json.dumps(settings)]
        done = subprocess.run(
            [sys.executable, root / "scripts/finetune.py", *arguments],
            env={"PYTHONPATH": str(root / "workflow"), "PATH": "/usr/bin:/bin", "ACCELERATE_USE_CPU": "true"},
            text=True, capture_output=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert read_json(folder / "out/runtime.json")["processes"] == int(processes)
        weights.append(checkpoint.load(next((folder / "work").glob("*/epoch-1"))))
    one, two = weights
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    for name, gone in removed(model).items():
        for found in weights:
            assert not next(w for key, w in found.items() if key.endswith(name))[gone].any()
    first, second = (read_json(tmp_path / p / "out/metrics.json") for p in ("1", "2"))
    assert first == second
