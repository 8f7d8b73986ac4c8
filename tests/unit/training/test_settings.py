from dataclasses import asdict
from typing import Any

import pytest

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.training.settings import FinetuneSettings
from tests.kill import SETTINGS


def test_settings_are_read_from_json_values() -> None:
    none = dict.fromkeys(("schedule", "distill", "lora", "evaluation"))
    assert asdict(FinetuneSettings.from_dict(SETTINGS)) == {"start": "pretrained"} | SETTINGS | none


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({**SETTINGS, "epoch": 1}, r"settings: unknown key 'epoch'; known: start, mask, .*"),
        ({"mask": "kept"}, "settings: no 'seed'; add it"),
    ],
)
def test_a_wrong_key_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FinetuneSettings.from_dict(change)


def test_derived_seeds_differ() -> None:
    one, other = (FinetuneSettings.from_dict(SETTINGS | {"seed": seed}) for seed in (0, 1))
    seeds = [one.derived_seed(0), one.derived_seed(1), one.derived_seed(0, 1), one.derived_seed("lora")]
    assert len({*seeds, other.derived_seed(0)}) == 5
    assert seeds[0] == FinetuneSettings.from_dict(SETTINGS).derived_seed(0)
