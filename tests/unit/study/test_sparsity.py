import itertools

import pytest

from llm_sparsity.study.sparsity import ZERO, Sparsity


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (0, "0"), (0.0, "0"), ("0.50", "0.5"), (".5", "0.5"), (0.95, "0.95"), (1e-3, "0.001"), ("1E-2", "0.01"),
        ("2of4", "2of4"), (" 4of8 ", "4of8"), ("02of04", "2of4"),
    ],
)  # fmt: skip
def test_it_has_one_spelling(given: object, text: str) -> None:
    assert str(Sparsity.of(given)) == text
    assert Sparsity.of(given) == Sparsity(text)


@pytest.mark.parametrize(
    "given", [1, 1.5, -0.1, "4of2", "0of4", "4of4", "half", "", None, True, "nan", "inf", "0." + "9" * 20]
)
def test_anything_else_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="expected a fraction"):
        Sparsity.of(given)


def test_a_pattern_is_no_fraction() -> None:
    half, pattern, other = Sparsity("0.5"), Sparsity("2of4"), Sparsity("4of8")
    assert half.fraction == pattern.fraction == other.fraction == 0.5
    assert len({half, pattern, other}) == 3
    assert not any(one == two for one, two in itertools.combinations((half, pattern, other), 2))


def test_they_sort_by_fraction_then_kind() -> None:
    ordered = list(map(Sparsity, ["0", "0.3", "0.5", "2of4", "4of8", "0.7", "1of4", "0.9"]))
    assert sorted(ordered, key=str) != ordered
    assert sorted(sorted(ordered, key=str)) == ordered


def test_labels() -> None:
    assert [Sparsity(text).label for text in ("0", "0.5", "0.955", "0.99999999", "2of4")] == [
        "0 %", "50 %", "95.5 %", "99.999999 %", "2of4",
    ]  # fmt: skip
    assert ZERO.is_dense
    assert not Sparsity("0.1").is_dense


@pytest.mark.parametrize(
    ("text", "size", "count"),
    [("0.5", 7, 4), ("0.5", 5, 2), ("0.5", 10**9 + 1, 500000000), ("0.3", 10, 3), ("0.9", 0, 0), ("1of4", 8, 6),
     ("2of4", 10, 4)],
)  # fmt: skip
def test_counts_are_exact(text: str, size: int, count: int) -> None:
    assert Sparsity(text).count(size) == count
