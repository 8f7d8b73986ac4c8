"""The sparsity of a variant: a value type, so that the pattern 2of4 and the fraction 0.5 never fall together."""

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import total_ordering
from typing import Any


@total_ordering
@dataclass(frozen=True)
class Sparsity:
    """How much of a scope is removed: a fraction ("0.5"), or a pattern N of M kept ("2of4").

    Equal only to the same kind with the same value. Sorts by the fraction removed; at equal fractions, the fraction
    comes before patterns.

    Args:
        text: any spelling; it is normalised, so that "0.50" and ".5" are "0.5".

    Raises:
        ValueError: no fraction in [0, 1) and no pattern with 0 < N < M.
    """

    text: str

    def __post_init__(self) -> None:
        text = str(self.text).strip()
        if found := re.fullmatch(r"(\d+)of(\d+)", text):
            kept, group = int(found[1]), int(found[2])
            if 0 < kept < group:
                object.__setattr__(self, "text", f"{kept}of{group}")
                return
        elif re.fullmatch(r"\d*\.?\d+([eE][-+]?\d+)?", text) and 0 <= float(fraction := Decimal(text)) < 1:
            object.__setattr__(self, "text", format(fraction.normalize(), "f"))
            return
        raise ValueError("expected a fraction in [0, 1) such as 0.5, or a pattern N of M kept such as 2of4")

    def __str__(self) -> str:
        return self.text

    def __lt__(self, other: "Sparsity") -> bool:
        return (self.fraction, self.pattern or (0, 0)) < (other.fraction, other.pattern or (0, 0))

    @property
    def pattern(self) -> tuple[int, int] | None:
        """(N, M) of a pattern: N of every M weights are kept; None for a fraction."""
        kept, of, group = self.text.partition("of")
        return (int(kept), int(group)) if of else None

    @property
    def is_pattern(self) -> bool:
        """Whether this is a pattern N of M."""
        return self.pattern is not None

    @property
    def is_dense(self) -> bool:
        """Whether nothing is removed."""
        return self.text == "0"

    @property
    def fraction(self) -> float:
        """The fraction removed: 0.5 for "0.5" and for "2of4"."""
        if self.pattern:
            kept, group = self.pattern
            return 1 - kept / group
        return float(self.text)

    def fits(self, min_density: float) -> bool:
        """Whether it leaves the fraction `min_density` of a tensor, in decimal arithmetic: 0.1 fits 0.9."""
        return Decimal(str(self.fraction)) <= 1 - Decimal(str(min_density))

    @property
    def label(self) -> str:
        """For readers: "50 %", or "2of4"."""
        return self.text if self.pattern else f"{(100 * Decimal(self.text)).normalize():f} %"

    def count(self, size: int) -> int:
        """The number of weights removed from `size`: the nearest whole number, halves to even; of a pattern, M - N of
        each whole group of M.
        """
        if self.pattern:
            kept, group = self.pattern
            return size // group * (group - kept)
        return round(Decimal(self.text) * size)

    @classmethod
    def of(cls, value: Any) -> "Sparsity":
        """A sparsity from a string, a number, or a sparsity."""
        return value if isinstance(value, cls) else cls(value)


ZERO = Sparsity("0")
