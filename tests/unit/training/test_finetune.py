import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from llm_sparsity.data.download import download_model
from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.evaluation.evaluate import evaluate
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.models.loading import load_classifier
from llm_sparsity.storage.files import read_json, sha256, write_json
from llm_sparsity.training.mask import Mask
from llm_sparsity.training.run_cache import RunCache
from tests import weights
from tests.kill import SETTINGS, kill
from tests.marks import slow, slow_but
from tests.unit.training.helpers import LORA, WINDOWS, after, removed, run, same_but_for_rounding, without_dropout

Make = Callable[[str], ModelFolder]


@pytest.mark.parametrize("kind", slow_but(["bert"], ["bert", "roberta", "distilbert", "gpt2", "llama", "bart"]))
def test_the_kept_mask_is_exact_in_the_saved_file(kind: str, variant: Make, task: TaskFolder, tmp_path: Path) -> None:
    model = variant(kind)
    result = run(model, task, tmp_path, micro_batch_size=8)
    assert result["measured_sparsity"] == pytest.approx(0.9, abs=1e-3)
    for name, gone in removed(model).items():
        assert not after(result, name)[gone].any()
    saved = weights.load(result["weights"])
    assert not any("_orig" in name or "_mask" in name for name in saved)
    loaded = load_classifier(
        ModelFolder(result["weights"]), labels=2, seed=1
    ).state_dict()  # another head would be drawn with it
    for name, weight in loaded.items():
        tied = "model.shared.weight" if name.endswith("embed_tokens.weight") and kind == "bart" else name
        assert torch.equal(weight, saved[tied]), name


def test_moments_of_removed_weights_are_zero(
    variant: Make, task: TaskFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunCache, "finish", lambda self: None)  # it would remove them
    model = variant("bert")
    result = run(model, task, tmp_path)
    state = weights.load(result["weights"].parent / "state-8")
    for name, gone in removed(model).items():
        for field in ("exp_avg", "exp_avg_sq"):
            moments = next(value for key, value in state.items() if key.endswith(f"{name} {field}"))
            assert not moments[gone].any()
            assert moments[~gone].any()


def test_released_zeros_grow_back_at_once(variant: Make, task: TaskFolder, tmp_path: Path) -> None:
    """What the report did without noticing: after `prune.remove` the first steps undo the pruning."""
    result = run(variant("bert"), task, tmp_path, mask="released")
    assert result["measured_sparsity"] < 0.05
    with (tmp_path / "out/history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["epoch"] == "0"] == ["1", "2"]
    assert float(rows[0]["measured_sparsity"]) < 0.2


def test_a_model_learns(dense: Make, task: TaskFolder, tmp_path: Path) -> None:
    result = run(dense("bert"), task, tmp_path, epochs=6)
    assert result["metrics"]["accuracy"] > 0.9
    assert result["measured_sparsity"] == 0


def test_frozen_embeddings_stay(dense: Make, task: TaskFolder, tmp_path: Path) -> None:
    model = dense("bert")
    result = run(model, task, tmp_path, freeze_embeddings=True, epochs=1)
    for name, weight in weights.load(model.path).items():
        if "_embeddings.weight" in name:
            assert torch.equal(after(result, name), weight)


def test_micro_batches_change_nothing_but_rounding(dense: Make, task: TaskFolder, tmp_path: Path) -> None:
    results = [run(dense("llama"), task, tmp_path / str(n), micro_batch_size=n, epochs=1) for n in (16, 5)]
    whole, split = (weights.load(result["weights"]) for result in results)
    assert all(torch.allclose(whole[name], split[name], atol=1e-4) for name in whole)


def test_the_same_run_gives_the_same_bytes(variant: Make, task: TaskFolder, tmp_path: Path) -> None:
    model = variant("bert")
    first, second = (run(model, task, tmp_path / name)["weights"] for name in ("1", "2"))
    assert sha256(first / "model.safetensors") == sha256(second / "model.safetensors")
    for file in ("metrics.json", "history.csv"):
        assert (tmp_path / "1/out" / file).read_bytes() == (tmp_path / "2/out" / file).read_bytes()


@pytest.mark.parametrize("kind", ["bert", slow("llama"), slow("gpt2"), slow("bart")])
def test_an_interrupted_run_goes_on_and_leaves_the_same_bytes(
    kind: str, variant: Make, task: TaskFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = variant(kind)
    whole = run(model, task, tmp_path / "whole", epochs=3)["weights"]
    hold, count = Mask.hold, 0

    def interrupted(self: Mask) -> None:
        nonlocal count
        count += 1
        if count == 7:  # in the second epoch of four steps
            raise KeyboardInterrupt
        hold(self)

    monkeypatch.setattr(Mask, "hold", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, task, tmp_path / "cut", epochs=3)
    assert not (tmp_path / "cut/out").exists()
    resumed = run(model, task, tmp_path / "cut", epochs=3)["weights"]
    assert count == 7 + 8  # the second epoch again, the third; not the first
    assert sha256(whole / "model.safetensors") == sha256(resumed / "model.safetensors")
    for file in ("metrics.json", "history.csv"):
        assert (tmp_path / "whole/out" / file).read_bytes() == (tmp_path / "cut/out" / file).read_bytes()


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_leaves_the_same_bytes(
    variant: Make, task: TaskFolder, tmp_path: Path
) -> None:
    """`python tests/kill.py` does it 50 times."""
    kill(variant("bert"), task, tmp_path, 6, seed=0)


def test_every_epoch_is_cached_and_no_optimizer_state_of_an_ended_run(
    variant: Make, task: TaskFolder, tmp_path: Path
) -> None:
    run(variant("bert"), task, tmp_path, epochs=3)
    with (tmp_path / "out/checkpoints.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        assert sha256(Path(row["path"]) / "model.safetensors") == row["sha256"]
    assert list(Path(rows[0]["path"]).parent.glob("state-*")) == []


@pytest.mark.parametrize(
    "recipe", [{}, slow({"schedule": {"begin": 0.0, "end": 0.5, "scores": "movement"}}), slow({"lora": LORA})]
)
def test_results_that_are_gone_are_written_again_without_training(
    recipe: dict[str, Any],
    variant: Make,
    dense: Make,
    task: TaskFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, teacher = variant("bert"), None
    if "schedule" in recipe:
        run(dense("bert"), task, tmp_path / "dense")
        teacher = ModelFolder(tmp_path / "dense/out/model")
    files = run(model, task, tmp_path, dense=teacher, **recipe)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    shutil.rmtree(tmp_path / "out")
    assert run(model, task, tmp_path, dense=teacher, **recipe) == files
    assert "going on after step 8" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {path.name for path in before if after[path] != before[path]} <= {"runtime.json"}


def test_the_last_epochs_model_is_an_output(variant: Make, task: TaskFolder, tmp_path: Path) -> None:
    result = run(variant("bert"), task, tmp_path)
    final = ModelFolder(tmp_path / "out/model")
    assert final.manifest == read_json(result["weights"] / "manifest.json")
    assert sha256(final.path / "model.safetensors") == final.manifest["files"]["model.safetensors"]["sha256"]
    assert load_classifier(final, labels=2, seed=0).num_labels == 2


def test_sigterm_saves_and_leaves_and_the_next_run_goes_on(
    variant: Make, task: TaskFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = variant("bert")
    whole = run(model, task, tmp_path / "whole")["weights"]
    hold, count = Mask.hold, 0

    def terminated(self: Mask) -> None:
        nonlocal count
        count += 1
        if count == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        hold(self)

    monkeypatch.setattr(Mask, "hold", terminated)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run(model, task, tmp_path / "cut")
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert count == 4  # the step in which it came has ended, and one more has noticed it
    resumed = run(model, task, tmp_path / "cut")["weights"]
    assert count == 8
    assert sha256(whole / "model.safetensors") == sha256(resumed / "model.safetensors")


def test_gradient_checkpointing_changes_memory_alone(dense: Make, task: TaskFolder, tmp_path: Path) -> None:
    results = [run(dense("bert"), task, tmp_path / str(n), epochs=1, gradient_checkpointing=n) for n in (0, 1)]
    one, other = (weights.load(result["weights"]) for result in results)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_saving_more_often_changes_nothing(variant: Make, task: TaskFolder, tmp_path: Path) -> None:
    model = variant("bert")
    seldom, often = (run(model, task, tmp_path / str(n), save_minutes=n)["weights"] for n in (15, 1e-9))
    assert seldom.parent.name == often.parent.name  # one key
    assert sha256(seldom / "model.safetensors") == sha256(often / "model.safetensors")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_batch_that_does_not_fit_the_memory(
    error: Exception, dense: Make, task: TaskFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.functional, "linear", Mock(side_effect=error))
    with pytest.raises(UserError, match=r"micro_batch_size: 16 sequences of \d+ tokens do not fit .* \(now 16"):
        run(dense("bert"), task, tmp_path)


@pytest.mark.parametrize("error", [NotImplementedError("no such kernel"), RuntimeError("shapes do not match")])
def test_other_errors_of_a_batch_are_not_about_memory(
    error: Exception, dense: Make, task: TaskFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.functional, "linear", Mock(side_effect=error))
    with pytest.raises(type(error), match=str(error)):
        run(dense("bert"), task, tmp_path)


def test_cached_weights_of_a_sparse_run_are_small_and_a_model_to_go_on_from(
    variant: Make, task: TaskFolder, tmp_path: Path
) -> None:
    """A branch point: the folder of any epoch is a variant, its mask included."""
    first = run(variant("bert"), task, tmp_path / "1")
    again = run(ModelFolder(first["weights"]), task, tmp_path / "2", learning_rate=1e-3)
    assert again["measured_sparsity"] == first["measured_sparsity"] == pytest.approx(0.9, abs=1e-3)
    manifest = read_json(first["weights"] / "manifest.json")
    assert manifest["pruned"]["measured_sparsity"] == first["measured_sparsity"]
    head = next(name for name in weights.load(first["weights"]) if name.endswith("classifier.weight"))
    moved = (weights.load(again["weights"])[head] - weights.load(first["weights"])[head]).abs().max()
    assert 0 < moved < 0.05  # the head goes on, it is not drawn anew


def test_a_head_of_another_task_is_drawn_anew(variant: Make, task: TaskFolder, tmp_path: Path) -> None:
    """Also where both tasks have two labels, and where the epoch of one is the downloaded model of the other."""
    first = run(variant("bert"), task, tmp_path / "1", epochs=1)
    shutil.copytree(task.path, tmp_path / "other")
    swapped = TaskFolder(shutil.copytree(task.path, tmp_path / "again" / task.name))
    manifest = read_json(swapped.path / "manifest.json")
    write_json(swapped.path / "manifest.json", manifest | {"labels": manifest["labels"][::-1]})
    download_model(tmp_path / "m", source={"folder": str(first["weights"])}, architecture="encoder")
    trained, fresh = (
        load_classifier(ModelFolder(path), labels=2, seed=0).classifier.weight
        for path in (first["weights"], variant("bert").path)
    )
    for folder in (ModelFolder(first["weights"]), ModelFolder(tmp_path / "m")):
        for found, expected in ((task, trained), (TaskFolder(tmp_path / "other"), fresh), (swapped, fresh)):
            net = load_classifier(folder, labels=2, seed=0, task=found.facts)
            assert torch.equal(net.classifier.weight, expected)


@pytest.mark.parametrize(("kind", "lora"), [("llama", LORA), ("gpt2", None), slow("llama", None), slow("gpt2", LORA)])
def test_a_sparse_language_model_recovers_and_keeps_its_mask(
    lora: Any, kind: str, variant: Make, text: TaskFolder, tmp_path: Path
) -> None:
    model = variant(kind)
    evaluate(model, text, tmp_path / "before", **WINDOWS, batch_size=4)
    rate = 0.1 if lora else 0.01
    result = run(model, text, tmp_path, evaluation=WINDOWS, lora=lora, learning_rate=rate, epochs=6)
    assert result["measured_sparsity"] == pytest.approx(0.9, abs=1e-3)
    for name, gone in removed(model).items():
        weight = after(result, name)
        assert not weight[gone].any()
        assert not weight[gone].signbit().any()
        assert not torch.equal(weight, weights.load(model.path)[name])
    assert not any("parametrizations" in name for name in weights.load(result["weights"]))
    evaluate(ModelFolder(result["weights"]), text, tmp_path / "after", **WINDOWS, batch_size=4)
    before, after_ = (
        read_json(tmp_path / part / "metrics.json")["metrics"]["perplexity"] for part in ("before", "after")
    )
    assert result["metrics"] == {"perplexity": pytest.approx(after_, rel=1e-4)}
    assert after_ < 0.8 * before
    assert result["baseline"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("pooled", [True, False])
def test_updates_train_a_classifiers_new_head_too(
    pooled: bool, variant: Make, task: TaskFolder, tmp_path: Path
) -> None:
    """The head is the classifier, and the pooler if the folder holds none, as one of BertForMaskedLM."""
    model = variant("bert")
    if not pooled:
        held = {name: weight for name, weight in weights.load(model.path).items() if "pooler" not in name}
        weights.save(model.path, held)
    result = run(model, task, tmp_path, lora=LORA, learning_rate=0.05, epochs=8)
    assert result["metrics"]["accuracy"] > 0.9
    assert result["measured_sparsity"] == pytest.approx(0.9, abs=1e-3)
    saved, pruned = weights.load(result["weights"]), weights.load(model.path)
    norm = next(name for name in pruned if name.endswith("LayerNorm.weight"))
    assert torch.equal(after(result, norm), pruned[norm])
    fresh = load_classifier(model, labels=2, seed=0)
    assert not torch.equal(saved["classifier.weight"], fresh.classifier.weight)
    assert torch.equal(saved["bert.pooler.dense.weight"], fresh.bert.pooler.dense.weight) == pooled


@pytest.mark.parametrize("lora", [slow(None), LORA])
def test_a_language_model_that_was_interrupted_ends_as_if_it_had_not_been(
    lora: Any, variant: Make, text: TaskFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings = variant("llama"), {"evaluation": WINDOWS, "lora": lora, "save_minutes": 1e-9}
    whole = run(model, text, tmp_path / "whole", **settings)
    hold, calls = Mask.hold, []

    def interrupted(self: Mask) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        hold(self)

    monkeypatch.setattr(Mask, "hold", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, text, tmp_path / "again", **settings)
    again = run(model, text, tmp_path / "again", **settings)
    assert sha256(whole["weights"] / "model.safetensors") == sha256(again["weights"] / "model.safetensors")
    assert whole["metrics"] == again["metrics"]


def test_a_language_model_learns_from_its_dense_self(
    variant: Make, dense: Make, text: TaskFolder, tmp_path: Path
) -> None:
    run(dense("llama"), text, tmp_path / "dense", evaluation=WINDOWS, learning_rate=1e-2)
    distill = {"labels": 1.0, "logits": 1.0, "hidden": 1.0, "temperature": 2.0}
    schedule = {"begin": 0.0, "end": 0.5, "scores": "magnitude"}
    more = {"dense": ModelFolder(tmp_path / "dense/out/model"), "schedule": schedule, "distill": distill}
    result = run(variant("llama"), text, tmp_path, evaluation=WINDOWS, learning_rate=1e-2, **more)
    assert result["measured_sparsity"] == pytest.approx(0.9, abs=1e-3)
    alone = run(variant("llama"), text, tmp_path / "alone", evaluation=WINDOWS, learning_rate=1e-2)
    assert result["metrics"]["perplexity"] < 1.5 * alone["metrics"]["perplexity"]


def test_a_text_shorter_than_a_window(variant: Make, text: TaskFolder, tmp_path: Path) -> None:
    model = variant("llama")
    shutil.copytree(text.path, tmp_path / "short")
    for split in ("train", "test"):
        (tmp_path / f"short/{split}.jsonl").write_text('{"text": "the film"}\n')
    with pytest.raises(UserError, match="max_length: found 32, but the split train of short has only 4 tokens"):
        run(model, TaskFolder(tmp_path / "short"), tmp_path, evaluation=WINDOWS)


def test_a_loss_that_is_not_finite_stops_the_run(dense: Make, task: TaskFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss: is (nan|inf) at step \d+ of 8; lower learning_rate \(now 1e\+30\)"):
        run(dense("bert"), task, tmp_path, learning_rate=1e30, max_grad_norm=1e30)


def test_a_sequence_longer_than_the_model_allows(dense: Make, task: TaskFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_length: found 65, but bert.* allows 64 tokens at most; lower it"):
        run(dense("bert"), task, tmp_path, max_length=65)


def start(*command: Any, folder: Path, root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment |= {"PYTHONPATH": f"{root / 'workflow'}:{root}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, text=True, capture_output=True, check=False, timeout=900,
        env=environment,
    )  # fmt: skip


@pytest.mark.exhaustive
def test_three_processes_that_go_on_leave_the_same_bytes(
    variant: Make, task: TaskFolder, tmp_path: Path, root: Path
) -> None:
    """From three processes on the order of their sums matters."""
    command = [root / "scripts/finetune.py", "--model", variant("bert").path, "--task", task.path, "--processes", 3]
    command += ["--settings", json.dumps(SETTINGS | {"epochs": 9, "batch_size": 15, "micro_batch_size": 5})]
    whole, stopped = (["--output", f"{name}/out", "--work", f"{name}/work"] for name in ("whole", "stopped"))
    assert start(*command, *whole, folder=tmp_path, root=root).returncode == 0
    with subprocess.Popen([sys.executable, *map(str, [*command, *stopped])], cwd=tmp_path) as process:
        while not list(tmp_path.glob("stopped/work/*/progress.json")):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
    done = start(*command, *stopped, folder=tmp_path, root=root)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on after" in done.stderr
    first, second = (next(tmp_path.glob(f"{name}/work/*/epoch-9")) for name in ("whole", "stopped"))
    assert sha256(first / "model.safetensors") == sha256(second / "model.safetensors")


@pytest.mark.slow
def test_a_run_over_several_machines_uses_all_of_each(root: Path, tmp_path: Path) -> None:
    (tmp_path / "any").mkdir()
    command = [root / "scripts/finetune.py", "--model", "any", "--task", "any", "--output", "out", "--settings", "{}"]
    machine = {"ON_EACH_NODE": "mpiexec -n 2", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    done = start(*command, "--gpus", 6, folder=tmp_path, root=root, **machine)
    assert done.returncode == 1
    assert done.stderr == "error: gpus: found 6, but a machine has 4, and a run over several uses all of each\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        pytest.param("bert", None, id="bert"),
        pytest.param("bart", None, id="bart", marks=pytest.mark.exhaustive),
        pytest.param("llama", LORA, id="llama-lora", marks=pytest.mark.exhaustive),
        pytest.param("llama", None, id="llama", marks=pytest.mark.exhaustive),
    ],
)
def test_weights_spread_over_processes_do_what_whole_ones_do(
    kind: str, lora: Any, variant: Make, task: TaskFolder, text: TaskFolder, tmp_path: Path, root: Path
) -> None:
    """FSDP on two CPU processes, killed and resumed: mask, moments and weights are held and saved shard by shard.

    Of the 15 sequences of a batch one process has two micro-batches, the other one.
    """
    model = without_dropout(variant(kind))
    settings: dict[str, Any] = SETTINGS | {"epochs": 1, "batch_size": 15, "micro_batch_size": 7, "lora": lora}
    if kind == "llama":
        task, settings = text, settings | {"evaluation": WINDOWS, "batch_size": 7}
    one = run(model, task, tmp_path / "1", **settings)
    command = ["-m", "llm_sparsity.training.launch", "--config", root / "profiles/accelerate/cpu.yaml"]
    command += ["--processes", 2, root / "tests/sharded.py", model.path, task.path, "out", "work"]
    assert start(*command, json.dumps(settings), 4, folder=tmp_path, root=root).returncode != 0
    assert read_json(next(tmp_path.glob("work/*/progress.json")))["step"] == 3
    done = start(*command, json.dumps(settings), 0, folder=tmp_path, root=root)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on after step 3" in done.stderr
    same_but_for_rounding(one, tmp_path, removed(model))
