"""Schedules and teachers on hand-made tensors, and in whole runs of tiny models with RANDOM weights."""

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.loading import family, in_scope, load_classifier
from llm_sparsity.pruning.prune import prune
from llm_sparsity.storage import container as checkpoint
from llm_sparsity.storage.files import read_json, sha256
from llm_sparsity.study.config import RECIPES
from llm_sparsity.training import finetune
from llm_sparsity.training.mask import Mask
from llm_sparsity.training.recovery import Schedule, Teacher, dense_weights, without_dropout
from tests.kill import SETTINGS
from tests.tiny import save_mood_task

SCHEDULE = {"begin": 0.0, "end": 0.7, "scores": "magnitude"}
DISTILL = {"labels": 1.0, "logits": 1.0, "hidden": 10.0, "temperature": 2.0}


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    share=st.floats(0, 1),
    steps=st.integers(1, 300),
    begin=st.floats(0, 0.5),
    end=st.floats(0.6, 1),
    scores=st.sampled_from(["magnitude", "movement"]),
)
def test_a_schedule_ends_at_the_exact_counts_and_nothing_comes_back(
    sizes: list[int], share: float, steps: int, begin: float, end: float, scores: str
) -> None:
    torch.manual_seed(0)
    weights = {str(n): Parameter(torch.randn(size)) for n, size in enumerate(sizes)}
    counts = {name: round(share * weight.numel()) for name, weight in weights.items()}
    plan = Schedule(weights, counts, steps, begin=begin, end=end, scores=scores)
    gone = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    for step in range(1, steps + 1):
        for name, weight in weights.items():
            weight.grad = torch.randn_like(weight)
            weight.data += torch.randn_like(weight).masked_fill(gone[name], 0)  # a step with the mask held
        plan.observe()
        found = plan.removed(step) or gone
        for name, weight in weights.items():
            assert not (gone[name] & ~found[name]).any()
            assert int(found[name].sum()) <= counts[name]
            weight.data.masked_fill_(found[name], 0)
        gone = found
        if step <= begin * steps:
            assert not any(where.any() for where in gone.values())
    assert {name: int(where.sum()) for name, where in gone.items()} == counts


def test_the_curve_is_cubic() -> None:
    weights = {"w": Parameter(torch.arange(1.0, 1001))}
    plan = Schedule(weights, {"w": 800}, 20, begin=0.0, end=0.5, scores="magnitude")
    removed = [found for step in range(1, 21) if (found := plan.removed(step))]
    assert [int(found["w"].sum()) for found in removed] == [round(800 * (1 - (1 - n / 10) ** 3)) for n in range(1, 11)]
    assert all(found["w"][: int(found["w"].sum())].all() for found in removed)  # the smallest go


def test_of_equal_scores_the_earlier_go() -> None:
    plan = Schedule({"w": Parameter(torch.ones(2, 4))}, {"w": 3}, 1, begin=0.0, end=1.0, scores="magnitude")
    assert plan.removed(1)["w"].tolist() == [[True] * 3 + [False], [False] * 4]


def test_movement_is_the_sum_of_minus_weight_times_gradient() -> None:
    weight = Parameter(torch.tensor([1.0, -2.0, 3.0, 0.1]))
    plan = Schedule({"w": weight}, {"w": 2}, 2, begin=0.0, end=1.0, scores="movement")
    weight.grad = torch.tensor([1.0, 1.0, -1.0, -5.0])
    plan.observe()  # -1, 2, 3, 0.5
    weight.data += 1.0  # 2, -1, 4, 1.1
    weight.grad = torch.tensor([-1.0, 4.0, 2.0, 0.0])
    plan.observe()  # + 2, 4, -8, 0
    assert plan.state()["w movement"].tolist() == [1.0, 6.0, -5.0, 0.5]
    assert plan.removed(2)["w"].tolist() == [False, False, True, True]  # not the smallest: those that move least away
    again = Schedule({"w": weight}, {"w": 2}, 2, begin=0.0, end=1.0, scores="movement")
    again.restore(plan.state())
    assert torch.equal(again.removed(2)["w"], plan.removed(2)["w"])


def batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    ids = torch.tensor([[2, 8, 9, 10, 5], [2, 8, 5, 0, 0], [2, 11, 12, 5, 0]])  # BART needs its last token, 5
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}, torch.tensor([0, 1, 1])


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama", "bart"])
def test_a_model_that_equals_its_teacher_has_nothing_to_learn_from_it(
    kind: str, tiny_model: Callable[[str], Path]
) -> None:
    one, other = (load_classifier(tiny_model(kind), labels=2, seed=0).train() for _ in range(2))
    teacher = Teacher(one, **DISTILL | {"labels": 0.0})
    assert kind == "llama" or float(teacher.loss(other, *batch()).detach()) > 1e-3  # dropout; Llama has none
    without_dropout(other)
    assert float(teacher.loss(other, *batch()).detach()) == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.05)
    assert float(teacher.loss(other, *batch()).detach()) > 1e-3
    assert not any(weight.requires_grad for weight in one.parameters())


def test_a_teachers_loss_is_a_sum_over_examples(tiny_model: Callable[[str], Path]) -> None:
    net = load_classifier(tiny_model("bert"), labels=2, seed=1).eval()
    teacher = Teacher(load_classifier(tiny_model("bert"), labels=2, seed=0), **DISTILL)
    inputs, labels = batch()
    whole = teacher.loss(net, inputs, labels)
    alone = [
        teacher.loss(net, {key: value[row : row + 1] for key, value in inputs.items()}, labels[row : row + 1])
        for row in range(3)
    ]
    assert torch.allclose(whole, sum(alone))


def test_the_hidden_loss_by_hand_ignores_padding() -> None:
    def model(*layers: list[list[float]]) -> Any:
        states = tuple(torch.tensor([layer]) for layer in ([[9.0], [9.0]], *layers))

        class Net(torch.nn.Module):
            def forward(self, **_: Any) -> Any:
                return Output(logits=torch.zeros(1, 2), hidden_states=states)

        return Net()

    class Output(SimpleNamespace):
        def get(self, key: str) -> Any:
            return getattr(self, key, None)

    teacher = Teacher(model([[2.0], [7.0]], [[4.0], [1.0]]), labels=0.0, logits=0.0, hidden=3.0, temperature=1.0)
    inputs = {"input_ids": torch.tensor([[5, 0]]), "attention_mask": torch.tensor([[1, 0]])}
    loss = teacher.loss(model([[1.0], [0.0]], [[4.0], [0.0]]), inputs, torch.tensor([0]))
    assert float(loss) == pytest.approx(3.0 * (1 / 4 + 0) / 2)


def test_a_batch_without_padding_needs_no_mask(tiny_model: Callable[[str], Path]) -> None:
    net = load_classifier(tiny_model("bert"), labels=2, seed=1).eval()
    teacher = Teacher(load_classifier(tiny_model("bert"), labels=2, seed=0), **DISTILL)
    inputs, labels = batch()
    inputs = {key: value[:1] for key, value in inputs.items()}
    alone = {"input_ids": inputs["input_ids"]}
    assert torch.equal(teacher.loss(net, inputs, labels[:1]), teacher.loss(net, alone, labels[:1]))


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mood_task(tmp_path_factory.mktemp("mood"))


@pytest.fixture
def run(tiny_model: Callable[[str], Path], task: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Fine-tune a variant by a recipe, after the dense model; the metrics, and the last weights' folder."""

    def run(kind: str, folder: str, sparsity: str = "0.9", **recipe: Any) -> dict[str, Any]:
        common = SETTINGS | {"epochs": 2, "micro_batch_size": 16}
        dense, out = tmp_path / f"dense-{kind}", tmp_path / folder
        if not dense.exists():
            finetune.finetune(tiny_model(kind), task, dense, tmp_path / "work", code="x", **common)
        if not (out / "variant").exists():
            prune(tiny_model(kind), {sparsity: out / "variant"}, method="magnitude", scope="linear")
        chosen = common | {"epochs": 3} | recipe
        checkpoints = dense / "checkpoints.csv"
        finetune.finetune(out / "variant/model", task, out, out / "work", code="x", dense=checkpoints, **chosen)
        with (out / "checkpoints.csv").open() as file:
            weights = Path(list(csv.DictReader(file))[-1]["path"])
        return read_json(out / "metrics.json") | {"weights": weights, "model": out / "variant/model"}

    return run


def zeros(folder: Path) -> dict[str, torch.Tensor]:
    """Where a folder's scope is zero; names without the base model's prefix."""
    kind = family(folder)
    scoped = {name: w == 0 for name, w in checkpoint.load(folder).items() if in_scope(kind.place(name), "linear")}
    return {name.removeprefix("bert.").removeprefix("transformer."): where for name, where in scoped.items()}


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("scores", ["magnitude", "movement"])
def test_a_schedule_leaves_as_many_zeros_in_each_tensor_as_the_variant_has(
    kind: str, scores: str, run: Callable[..., dict[str, Any]]
) -> None:
    result = run(kind, "out", schedule=SCHEDULE | {"scores": scores}, distill=DISTILL)
    wanted, found = zeros(result["model"]), zeros(result["weights"])
    assert {name: int(where.sum()) for name, where in found.items()} == {
        name: int(where.sum()) for name, where in wanted.items()
    }
    assert any(not torch.equal(found[name], wanted[name]) for name in wanted)  # chosen anew
    assert result["measured_sparsity"] == pytest.approx(0.9, abs=1e-3)


def test_the_recipe_gradual_removes_all_in_the_first_third_of_the_steps(run: Callable[..., dict[str, Any]]) -> None:
    recipe = RECIPES["gradual"]
    result = run("bert", "out", **recipe.model_dump(exclude={"finetune"}), **recipe.finetune)
    with (result["weights"].parents[2] / "history.csv").open() as file:
        shares = [float(row["measured_sparsity"]) for row in csv.DictReader(file)]
    assert shares == pytest.approx([0.9] * 3, abs=1e-3)


def test_the_mask_is_exact_after_every_step(
    run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, shares = Mask.hold, []

    def checked(self: Mask) -> None:
        self.check()
        shares.append(sum(int((~kept).sum()) for kept in self.kept.values()))
        hold(self)

    monkeypatch.setattr(Mask, "hold", checked)
    run("bert", "out", schedule=SCHEDULE)
    plan = shares[-12:]  # three epochs of four steps; before them the dense model's
    assert plan == sorted(plan)
    assert 0 < plan[0] < plan[8] == plan[-1]


def test_a_teacher_without_a_schedule_keeps_the_variants_mask(run: Callable[..., dict[str, Any]]) -> None:
    result = run("bert", "out", distill=DISTILL)
    wanted, found = zeros(result["model"]), zeros(result["weights"])
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("scores", ["magnitude", "movement"])
def test_an_interrupted_schedule_goes_on_and_leaves_the_same_bytes(
    scores: str, run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"schedule": SCHEDULE | {"scores": scores}, "distill": DISTILL}
    whole = run("bert", "whole", **recipe)["weights"]
    hold, count = Mask.hold, 0

    def interrupted(self: Mask) -> None:
        nonlocal count
        count += 1
        if count == 7:  # in the second epoch of four steps, while weights still go
            raise KeyboardInterrupt
        hold(self)

    monkeypatch.setattr(Mask, "hold", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("bert", "cut", **recipe)
    resumed = run("bert", "cut", **recipe)["weights"]
    assert count == 7 + 8
    assert sha256(whole / "model.safetensors") == sha256(resumed / "model.safetensors")
    for file in ("metrics.json", "history.csv"):
        assert (whole.parents[2] / file).read_bytes() == (resumed.parents[2] / file).read_bytes()


def test_other_dense_weights_make_another_run(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    first = run("bert", "out", distill=DISTILL)["weights"]
    listed = tmp_path / "dense-bert/checkpoints.csv"
    lines = listed.read_text().splitlines(keepends=True)
    listed.write_text("".join(lines[:-1]))  # the dense model of an epoch earlier
    assert run("bert", "out", distill=DISTILL)["weights"].parent != first.parent


def test_a_recipe_without_the_dense_run_is_refused(
    tiny_model: Callable[[str], Path], task: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="dense: missing; a schedule and a teacher need the list"):
        finetune.finetune(tiny_model("bert"), task, tmp_path, tmp_path, code="x", **SETTINGS, distill=DISTILL)


def test_dense_weights_that_are_gone_are_said(tmp_path: Path) -> None:
    listed = tmp_path / "checkpoints.csv"
    listed.write_text(f"epoch,path,bytes,sha256\n1,{tmp_path / 'epoch-1'},10,abc\n")
    with pytest.raises(UserError, match=r"epoch-1: no weights, but they are listed in .*: delete that list"):
        dense_weights(listed)
    (tmp_path / "epoch-1").mkdir()
    (tmp_path / "epoch-1/model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match=r"epoch-1: other weights than listed in"):
        dense_weights(listed)
