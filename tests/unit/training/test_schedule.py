"""The gradual schedule on hand-made tensors."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Parameter

from llm_sparsity.training.schedule import GradualSchedule


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
    counts = {name: [round(share * weight.numel())] for name, weight in weights.items()}
    plan = GradualSchedule(weights, counts, steps, begin=begin, end=end, scores=scores)
    gone = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    for step in range(1, steps + 1):
        for name, weight in weights.items():
            weight.grad = torch.randn_like(weight)
            weight.data += torch.randn_like(weight).masked_fill(gone[name], 0)  # a step with the mask held
        plan.observe()
        found = plan.removed(step) or gone
        for name, weight in weights.items():
            assert not (gone[name] & ~found[name]).any()
            assert int(found[name].sum()) <= counts[name][0]
            weight.data.masked_fill_(found[name], 0)
        gone = found
        if step <= begin * steps:
            assert not any(where.any() for where in gone.values())
    assert {name: [int(where.sum())] for name, where in gone.items()} == counts


def test_the_curve_is_cubic() -> None:
    weights = {"w": Parameter(torch.arange(1.0, 1001))}
    plan = GradualSchedule(weights, {"w": [800]}, 20, begin=0.0, end=0.5, scores="magnitude")
    removed = [found for step in range(1, 21) if (found := plan.removed(step))]
    assert [int(found["w"].sum()) for found in removed] == [round(800 * (1 - (1 - n / 10) ** 3)) for n in range(1, 11)]
    assert all(found["w"][: int(found["w"].sum())].all() for found in removed)  # the smallest go


def test_of_equal_scores_the_earlier_go() -> None:
    plan = GradualSchedule({"w": Parameter(torch.ones(2, 4))}, {"w": [3]}, 1, begin=0.0, end=1.0, scores="magnitude")
    assert plan.removed(1)["w"].tolist() == [[True] * 3 + [False], [False] * 4]


def test_parts_of_a_tensor_are_ranked_apart() -> None:
    weights = {"w": Parameter(torch.arange(1.0, 13).view(3, 2, 2))}
    plan = GradualSchedule(weights, {"w": [2, 0, 3]}, 1, begin=0.0, end=1.0, scores="magnitude")
    assert plan.removed(1)["w"].flatten(1).tolist() == [[True] * 2 + [False] * 2, [False] * 4, [True] * 3 + [False]]


def test_movement_is_the_sum_of_minus_weight_times_gradient() -> None:
    weight = Parameter(torch.tensor([1.0, -2.0, 3.0, 0.1]))
    plan = GradualSchedule({"w": weight}, {"w": [2]}, 2, begin=0.0, end=1.0, scores="movement")
    weight.grad = torch.tensor([1.0, 1.0, -1.0, -5.0])
    plan.observe()  # -1, 2, 3, 0.5
    weight.data += 1.0  # 2, -1, 4, 1.1
    weight.grad = torch.tensor([-1.0, 4.0, 2.0, 0.0])
    plan.observe()  # + 2, 4, -8, 0
    assert plan.state()["w movement"].tolist() == [1.0, 6.0, -5.0, 0.5]
    assert plan.removed(2)["w"].tolist() == [False, False, True, True]  # not the smallest: those that move least away
    again = GradualSchedule({"w": weight}, {"w": [2]}, 2, begin=0.0, end=1.0, scores="movement")
    again.restore(plan.state())
    assert torch.equal(again.removed(2)["w"], plan.removed(2)["w"])
