"""Schedules and teachers in whole runs of tiny models with RANDOM weights."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_sparsity.data.tasks import TaskFolder
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.pruning.prune import prune
from llm_sparsity.storage.files import sha256
from llm_sparsity.study.settings import RECIPES
from llm_sparsity.study.sparsity import Sparsity
from llm_sparsity.training.mask import Mask
from tests import weights, zoo
from tests.marks import slow
from tests.unit.training.helpers import WINDOWS, removed, run

SCHEDULE = {"begin": 0.0, "end": 0.7, "scores": "magnitude"}
DISTILL = {"labels": 1.0, "logits": 1.0, "hidden": 10.0, "temperature": 2.0}
Trained = Callable[..., dict[str, Any]]


@pytest.fixture
def trained(dense: Callable[[str], ModelFolder], task: TaskFolder, tmp_path: Path) -> Trained:
    """Fine-tune a variant by a recipe, after the dense model; the result of `run`, and the variant as `model`."""

    def trained(kind: str, folder: str, **recipe: Any) -> dict[str, Any]:
        first, out = tmp_path / f"dense-{kind}", tmp_path / folder
        if not first.exists():
            run(dense(kind), task, first)
        if not (out / "variant").exists():
            prune(dense(kind), {Sparsity("0.9"): out / "variant"}, method="magnitude", scope="linear")
        model = ModelFolder(out / "variant/model")
        result = run(model, task, out, dense=ModelFolder(first / "out/model"), **{"epochs": 3} | recipe)
        return result | {"model": model.path}

    return trained


def zeros(folder: Path) -> dict[str, torch.Tensor]:
    """The zeros of a folder's matrices; names without the base model's prefix."""
    scoped = removed(ModelFolder(folder))
    return {name.removeprefix("bert.").removeprefix("transformer."): where for name, where in scoped.items()}


@pytest.mark.parametrize("kind", ["bert", slow("gpt2")])
@pytest.mark.parametrize("scores", ["magnitude", "movement"])
def test_a_schedule_leaves_as_many_zeros_in_each_tensor_as_the_variant_has(
    kind: str, scores: str, trained: Trained
) -> None:
    result = trained(kind, "out", schedule=SCHEDULE | {"scores": scores}, distill=DISTILL)
    wanted, found = zeros(result["model"]), zeros(result["weights"])
    assert {name: int(where.sum()) for name, where in found.items()} == {
        name: int(where.sum()) for name, where in wanted.items()
    }
    assert any(not torch.equal(found[name], wanted[name]) for name in wanted)  # chosen anew
    assert result["measured_sparsity"] == pytest.approx(0.9, abs=1e-3)


def test_a_schedule_takes_as_many_weights_of_each_expert(
    tiny_model: Callable[[str], Path], text: TaskFolder, tmp_path: Path
) -> None:
    """Their files hold a tensor for each expert, of which `uniform` takes half; models pack them."""
    model = ModelFolder(zoo.save("mixtral", tmp_path / "dense", tiny_model("llama")))
    prune(model, {Sparsity("0.5"): tmp_path / "0.5"}, method="uniform", scope="mlp")
    run(model, text, tmp_path / "first", evaluation=WINDOWS, epochs=1)
    variant, dense = ModelFolder(tmp_path / "0.5/model"), ModelFolder(tmp_path / "first/out/model")
    result = run(variant, text, tmp_path, evaluation=WINDOWS, dense=dense, schedule=SCHEDULE, epochs=1)
    packed = {name: weight for name, weight in weights.load(result["weights"]).items() if weight.dim() == 3}
    assert len(packed) == 4
    assert all((weight == 0).flatten(1).sum(1).tolist() == [weight[0].numel() // 2] * 4 for weight in packed.values())


def test_the_recipe_gradual_removes_all_in_the_first_third_of_the_steps(trained: Trained) -> None:
    recipe = RECIPES["gradual"]
    result = trained("bert", "out", **recipe.training(), **recipe.finetune)
    with (result["weights"].parents[2] / "out/history.csv").open() as file:
        shares = [float(row["measured_sparsity"]) for row in csv.DictReader(file)]
    assert shares == pytest.approx([0.9] * 3, abs=1e-3)


def test_the_mask_is_exact_after_every_step(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    hold, shares = Mask.hold, []

    def checked(self: Mask) -> None:
        self.check()
        shares.append(sum(int((~kept).sum()) for kept in self.kept.values()))
        hold(self)

    monkeypatch.setattr(Mask, "hold", checked)
    trained("bert", "out", schedule=SCHEDULE)
    plan = shares[-12:]  # three epochs of four steps; before them the dense model's
    assert plan == sorted(plan)
    assert 0 < plan[0] < plan[8] == plan[-1]


def test_a_teacher_without_a_schedule_keeps_the_variants_mask(trained: Trained) -> None:
    result = trained("bert", "out", distill=DISTILL)
    wanted, found = zeros(result["model"]), zeros(result["weights"])
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("scores", ["magnitude", "movement"])
def test_an_interrupted_schedule_goes_on_and_leaves_the_same_bytes(
    scores: str, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"schedule": SCHEDULE | {"scores": scores}, "distill": DISTILL}
    whole = trained("bert", "whole", **recipe)["weights"]
    hold, count = Mask.hold, 0

    def interrupted(self: Mask) -> None:
        nonlocal count
        count += 1
        if count == 7:  # in the second epoch of four steps, while weights still go
            raise KeyboardInterrupt
        hold(self)

    monkeypatch.setattr(Mask, "hold", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained("bert", "cut", **recipe)
    resumed = trained("bert", "cut", **recipe)["weights"]
    assert count == 7 + 8
    assert sha256(whole / "model.safetensors") == sha256(resumed / "model.safetensors")
    for file in ("metrics.json", "history.csv"):
        assert (whole.parents[2] / "out" / file).read_bytes() == (resumed.parents[2] / "out" / file).read_bytes()


@pytest.mark.slow
def test_other_dense_weights_make_another_run(
    trained: Trained, dense: Callable[[str], ModelFolder], task: TaskFolder, tmp_path: Path
) -> None:
    first = trained("bert", "out", distill=DISTILL)["weights"]
    run(dense("bert"), task, tmp_path / "dense-bert", epochs=1)
    assert trained("bert", "out", distill=DISTILL)["weights"].parent != first.parent


def test_a_recipe_without_the_dense_run_is_refused(
    dense: Callable[[str], ModelFolder], task: TaskFolder, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="dense: missing; a schedule and a teacher need the model folder"):
        run(dense("bert"), task, tmp_path, distill=DISTILL)
    with pytest.raises(UserError, match=r"dense: found .*, but only a schedule or a teacher reads it; leave it out"):
        run(dense("bert"), task, tmp_path, dense=dense("bert"))
