"""Documents: the YAML or JSON that a person writes, read so that what runs is what stands on the screen.

Three spellings say one thing to a reader and another to a program, and are refused: a key that is given twice, of which
the first would be dropped; a whole number that begins with 0, which YAML 1.1 reads in base eight; and a number with
colons, which it reads in base sixty.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from llm_sparsity.jobs.errors import UserError

UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError)  # what `read_document` raises beside a UserError


def read_document(path: Path) -> Any:
    """The values of a document.

    Raises:
        OSError: there is no such file.
        ValueError, RecursionError, yaml.YAMLError, UserError: see `parsed`.
    """
    return parsed(path.read_text(encoding="utf-8"), str(path))


def read_config(file: Path) -> Mapping[str, Any]:
    """The keys and values of a config, not validated.

    Raises:
        UserError: the file is no YAML of a config.
    """
    try:
        values = read_document(file)
    except UNREADABLE as error:
        raise UserError(f"{file}: no config of a study: {' '.join(str(error).split())}") from None
    if not isinstance(values, Mapping):
        raise UserError(f"{file}: no config of a study: it has no keys such as `models:`")
    return values


def parsed(text: str, name: str) -> Any:
    """The values of the text of a document: of JSON if it is that, as Snakemake reads it, else of YAML.

    Args:
        text: of the document.
        name: of its file, for messages.

    Raises:
        ValueError, RecursionError, yaml.YAMLError: it cannot be read.
        UserError: it holds one of the spellings above.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise UserError(f"{name}: {twice[0]} is given twice; remove one")
        return dict(pairs)

    with suppress(json.JSONDecodeError):
        return json.loads(text, object_pairs_hook=once)
    loader = _Loader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML's safe loader without the spellings that mislead."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """A mapping as it is written. Keys that `<<` merges into it may be given again, so they come later."""
        node = super().compose_mapping_node(anchor)
        given = set[object]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                value = str(self.construct_object(key))  # 1.1 and 1.10 are one, and 1 and "1" one name
                if value in given:
                    raise _error(key, f"{key.value} is given twice; remove one")
                given.add(value)
        return node

    def plain_number(self, node: yaml.ScalarNode) -> int | float:
        """A number in base ten, or in base sixteen as 0xff."""
        text = self.construct_scalar(node)
        if ":" in text or re.fullmatch(r"[-+]?0[0-9_]+", text):
            base = "sixty" if ":" in text else "eight"
            raise _error(node, f"YAML reads {text} in base {base}; write it in base ten, or in quotes as a word")
        is_int = node.tag == "tag:yaml.org,2002:int"
        number: int | float = self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)
        return number


for kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{kind}", _Loader.plain_number)


def _error(node: yaml.Node, message: str) -> UserError:
    return UserError(f"{node.start_mark.name}: line {node.start_mark.line + 1}: {message}")
