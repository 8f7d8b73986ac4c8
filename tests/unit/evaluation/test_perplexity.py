import math

import pytest

from llm_sparsity.evaluation.perplexity import overflow_note, perplexity


def test_perplexity() -> None:
    assert perplexity(0.0) == 1
    assert perplexity(math.log(50)) == pytest.approx(50)
    assert perplexity(1e4) is None
    assert overflow_note({"perplexity": None})["note"].startswith("perplexity: null")
    assert overflow_note({"perplexity": 3.0}) == overflow_note({"accuracy": 0.5}) == {}
