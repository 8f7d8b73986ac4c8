import pytest

from llm_sparsity.training.optimizer import learning_rate_factor


def test_the_learning_rate_rises_and_falls() -> None:
    factors = [learning_rate_factor(step, 10, 0.2) for step in range(1, 11)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[-1] == pytest.approx(1 / 8)
    assert learning_rate_factor(1, 4, 0.0) == 1.0
