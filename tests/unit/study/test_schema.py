"""The schema for editors and the page for readers are made from the classes that check a config."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_sparsity.study.schema import PAGE, SCHEMA, json_schema, page, sections

ROOT = Path(__file__).parents[3]
AGAIN = "run `python -m llm_sparsity.study.schema`, which writes both"


def test_the_committed_schema_is_up_to_date() -> None:
    assert json.loads(SCHEMA.read_text()) == json_schema(), AGAIN


def test_the_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), AGAIN


def test_every_key_is_explained() -> None:
    for name, section in sections().items():
        lines = _section(name)
        for key in section.model_fields:
            (row,) = [line for line in lines if line.startswith(f"| `{key}` |")]
            assert len(row.split("|")[4].strip()) > 3, f"{name}.{key}: give its Field a description"


def _section(name: str) -> list[str]:
    from llm_sparsity.study.schema import PLACES

    return PAGE.read_text().split(f"\n## {PLACES[name]}\n")[1].split("\n## ")[0].splitlines()


def as_editors_read(value: Any) -> Any:
    """Editors read YAML 1.2, where 22.7e6 is a number; PyYAML reads YAML 1.1, where it is text."""
    if isinstance(value, dict):
        return {key: as_editors_read(each) for key, each in value.items()}
    if isinstance(value, list):
        return [as_editors_read(each) for each in value]
    number = isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value)
    return float(value) if number else value


STUDIES = sorted([ROOT / "config.yaml", *(ROOT / "studies").glob("*.yaml")])


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies_fit_the_schema(study: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")  # Snakemake brings it
    jsonschema.validate(as_editors_read(yaml.safe_load(study.read_text())), json_schema())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nmae", "x"),
        ("study", []),
        ("finetune", {"epochs": -1}),
        ("prune", {"layerwise": "all"}),
        ("measure", {"repeats": 2}),
    ],
)
def test_an_editor_underlines_what_the_program_refuses(key: str, value: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    config = as_editors_read(yaml.safe_load((ROOT / "studies/embedded.yaml").read_text())) | {key: value}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, json_schema())
