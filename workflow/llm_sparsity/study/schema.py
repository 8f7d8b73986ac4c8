"""The config as a JSON schema, for editors, and as the page docs/configuration.md, for readers.

Both are made from the sections of a config, and committed; a test says when they are not up to date.

    python -m llm_sparsity.study.schema        writes both, in a checkout
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from llm_sparsity.study.config import Config
from llm_sparsity.study.fields import sections_in
from llm_sparsity.study.methods import CALIBRATED, METHODS, NOTES, STEPS
from llm_sparsity.study.settings import RECIPES

SCHEMA = Path(__file__).with_name("config.schema.json")
PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"
PLACES = {  # where a section stands in a config, in the order of the page
    "Config": "the file", "Grid": "study[]", "Model": "models.NAME", "Source": "models.NAME.source, tasks.NAME.source",
    "Task": "tasks.NAME", "Split": "tasks.NAME.split", "Limit": "tasks.NAME.limit", "Pairs": "tasks.NAME.pairs",
    "Binarize": "tasks.NAME.binarize", "Prune": "prune", "Calibration": "calibration", "Finetune": "finetune",
    "Recipe": "recipes.NAME", "Schedule": "recipes.NAME.schedule", "Distill": "recipes.NAME.distill",
    "Lora": "recipes.NAME.lora", "Evaluate": "evaluate", "Measure": "measure",
}  # fmt: skip
METHODS_HEAD = """Of `methods:`. *Calibrated* ones need `calibration:`. They, `block` and `structured` need scopes of
matrices of layers, such as `linear`: not `all`, the default, nor `embeddings`. Patterns such as `2of4` are for methods
that remove single weights: not for `block` and `structured`. Recipes with a `schedule`, such as `gradual`, are for
`magnitude` and `uniform`, without patterns and without `accelerate: fsdp`."""
HEAD = """# Configuration

A study is one YAML file. This page lists every key, recipe, method and step; it is made from the code that checks a
config (`python -m llm_sparsity.study.schema`), so it is complete. A key that is not listed here is refused, with the
closest known one, before any job starts. Start from a file that `llm-sparsity init MODEL` writes, or from one in
`studies/`.

Editors complete and check a config by its JSON schema, `workflow/llm_sparsity/study/config.schema.json`, if its first
line names it, as `llm-sparsity init` does:

```yaml
# yaml-language-server: $schema=workflow/llm_sparsity/study/config.schema.json
```
"""


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config."""
    schema = Config.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "A study of llm-sparsity"}


def sections() -> dict[str, type[BaseModel]]:
    """The classes of a config, by name, each once."""
    found: dict[str, type[BaseModel]] = {}
    waiting: list[type[BaseModel]] = [Config]
    while waiting:
        section = waiting.pop()
        if section.__name__ not in found:
            found[section.__name__] = section
            waiting += [part for field in section.model_fields.values() for part in sections_in(field.annotation)]
    return {name: found[name] for name in sorted(found, key=list(PLACES).index)}


def page() -> str:
    """docs/configuration.md: a table for each section, and the built-in recipes."""
    schemas = json_schema()["$defs"] | {"Config": json_schema()}
    parts = [HEAD]
    for name, section in sections().items():
        doc = " ".join((section.__doc__ or "").split())
        parts.append(f"## {PLACES[name]}\n\n{doc}\n\n| key | values | default | meaning |\n|---|---|---|---|")
        parts[-1] += "".join(
            f"\n| `{key}` | {_values(schemas[name]['properties'][key])} | {_default(field)} | {_cell(field)} |"
            for key, field in section.model_fields.items()
        )
    built = "\n".join(f"| `{name}` | `{_changes(recipe)}` |" for name, recipe in RECIPES.items())
    parts.append(
        "## Built-in recipes\n\nA study names them in `recipes:` without defining them.\n\n"
        "| name | values |\n|---|---|\n" + built
    )
    parts.append(f"## Methods\n\n{METHODS_HEAD}\n\n{_notes(METHODS)}")
    parts.append("## Steps\n\nAfter a method and a +; `int8` and `int4` stand alone, too.\n\n" + _notes(STEPS))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _notes(names: Iterable[str]) -> str:
    """A table of methods or steps, by the first paragraphs of their docstrings."""
    rows = [f"| `{name}` | {'yes' if name in CALIBRATED else ''} | {NOTES[name]} |" for name in names]
    return "\n".join(["| name | calibrated | what it does |", "|---|---|---|", *rows])


def _changes(recipe: BaseModel) -> str:
    return json.dumps(recipe.model_dump(exclude_defaults=True)).replace('"', "")


def _cell(field: FieldInfo) -> str:
    """What a key means; of a section, its first sentence."""
    inner = sections_in(field.annotation)
    text = field.description or (re.split(r"[.:] ", f"{inner[0].__doc__} ")[0] if inner else "")
    return f"{text[:1].upper()}{text[1:]}".rstrip(".").replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "see its section"
    return "none" if field.default is None else f"`{json.dumps(field.default, default=str)}`"


def _values(schema: dict[str, Any]) -> str:
    """What a key may hold, from its JSON schema."""
    if "$ref" in schema:
        return _link(schema["$ref"])
    kinds = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    return " or ".join(dict.fromkeys(_kind(part) for part in kinds))


def _link(reference: str) -> str:
    place = PLACES[reference.rpartition("/")[2]]
    return f"[{place}](#{re.sub(r'[^a-z0-9 -]', '', place.lower()).replace(' ', '-')})"


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _link(schema["$ref"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_values(schema['items'])}"
    if schema.get("type") == "object":
        inner = schema.get("additionalProperties")
        return f"NAME: {_values(inner)}" if isinstance(inner, dict) else "mapping"
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    limits = [f"{sign} {schema[key]:,}" for key, sign in signs.items() if key in schema]
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`"}
    return " ".join([words.get(schema.get("type", ""), "any value"), *([", ".join(limits)] if limits else [])])


def main() -> None:
    """Write the schema and the page."""
    SCHEMA.write_text(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
