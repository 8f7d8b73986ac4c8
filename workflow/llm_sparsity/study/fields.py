"""Types of config values, and how a mistake in a config reads."""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from llm_sparsity.jobs.errors import guess
from llm_sparsity.storage.paths import climbs
from llm_sparsity.study.sparsity import Sparsity

SCOPES = ("all", "linear", "attention", "mlp", "embeddings", "encoder", "decoder")


def _matches(pattern: str, expected: str) -> BeforeValidator:
    def check(value: Any) -> str:
        if not re.fullmatch(pattern, str(value)):
            raise ValueError(expected)
        return str(value)

    return BeforeValidator(check)


def _as_written(value: Any) -> Any:
    if isinstance(value, float):
        raise ValueError("a number has no one spelling; write the name in quotes")
    return value


def _inside(value: str) -> str:
    if climbs(value) or not PurePosixPath(value).parts:
        raise ValueError("a path inside the source is expected, neither absolute nor with '..'")
    return value


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"no regular expression ({error}); correct it") from None
    return value


def scope_of(value: Any) -> str:
    """The canonical spelling of a scope: its word, or layers.0.3 for a list of layers."""
    if re.fullmatch(r"layers(\.\d+)+", str(value)):
        value = [int(layer) for layer in value.split(".")[1:]]
    if isinstance(value, list):
        if not value or any(isinstance(layer, bool) or not isinstance(layer, int) or layer < 0 for layer in value):
            raise ValueError("expected a list of layers, counted from 0, such as [0, 3]")
        return ".".join(["layers", *map(str, sorted(set(value)))])
    if value in SCOPES:
        return str(value)
    raise ValueError(f"expected {', '.join(SCOPES)} or a list of layers such as [0, 3]{guess(str(value), SCOPES)}")


Architecture = Literal["encoder", "decoder", "encoder-decoder"]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every generator takes
Fraction = Annotated[float, Field(ge=0, lt=1)]
ScopeName = Annotated[
    str,
    BeforeValidator(scope_of),
    WithJsonSchema({"anyOf": [{"enum": list(SCOPES)}, {"type": "array", "items": {"type": "integer", "minimum": 0}}]}),
]
SparsityValue = Annotated[
    InstanceOf[Sparsity],
    BeforeValidator(Sparsity.of),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}, {"type": "string"}]}),
]
NAME = r"[A-Za-z0-9][\w.-]{0,79}"
Name = Annotated[
    str,
    _matches(
        NAME,
        "a name becomes a folder: use letters, digits, '.', '_' and '-' only, 80 of them at most",
    ),
    BeforeValidator(_as_written),  # the last one comes first
]
Pattern = Annotated[str, AfterValidator(_pattern)]
Commit = Annotated[
    str, _matches(r"[0-9a-f]{40}", "expected a commit: 40 hex digits, not a branch or tag that can move")
]
Pinned = Annotated[str, _matches(r"[\w.-]+==[\w.+!-]+", "expected name==version")]
Inside = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, _matches(r"[0-9a-f]{64}", "expected the 64 hex digits of a sha256")]


class Section(BaseModel):
    """A part of the config: unknown keys and numbers that are not finite are errors, and values never change later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_word_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true for 1, as pydantic takes it: YAML reads yes, no, on and off as true and false."""
        given = value if isinstance(value, list) else [value]
        is_word = any(isinstance(each, bool) for each in given)
        if is_word and not _holds_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("yes, no, on and off are true and false in YAML; write a number, or the word in quotes")
        return value


def _holds_bool(annotation: Any) -> bool:
    """Whether an annotation allows true or false, as `bool | None` and `Literal[True]` do."""
    return annotation is bool or isinstance(annotation, bool) or any(map(_holds_bool, get_args(annotation)))


def refuse_repeats(section: Section) -> None:
    """Raise ValueError for a list that holds a value twice."""
    for key in type(section).model_fields:
        values = getattr(section, key)
        if isinstance(values, list) and (twice := [value for value in values if values.count(value) > 1]):
            raise ValueError(f"{key}: {twice[0]} is given twice; remove one")


def refuse_unknown(key: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for a name that is not defined."""
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"{key}: found {name!r}, which is not defined{guess(name, known)}")


def override(section: Section, changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of a section after changes, validated.

    Raises:
        ValueError: a change that the section does not allow; `where` names the place of the changes.
    """
    try:
        return type(section).model_validate({**section.model_dump(), **changes}).model_dump()
    except ValidationError as error:
        raise ValueError("; ".join(f"{where}.{line}" for line in lines(error, type(section)))) from None


def lines(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line for each fault of a config: key, value found, fix."""
    found = []
    for fault in error.errors():
        path = tuple(step for step in fault["loc"] if step != "[key]")
        key = ".".join(map(str, path))
        value = repr(fault["input"])
        value = value if len(value) <= 60 else f"{value[:57]}..."
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            found.append(f"{key}: unknown key{guess(str(path[-1]), _keys(root, path[:-1]))}")
        elif fault["type"] == "missing":
            found.append(f"{key}: missing; add it")
        elif fault["type"] == "too_short":
            found.append(f"{key}: found nothing; give at least one")
        elif fault["input"] is None:
            found.append(f"{key}: found nothing; give a value, or remove it")
        elif isinstance(fault["input"], Mapping | BaseModel):
            found.append(f"{key}: {message}" if key else message)
        else:
            found.append(f"{key}: found {value}; {message[0].lower()}{message[1:]}")
    return found


def _keys(section: type[BaseModel] | None, path: tuple[Any, ...]) -> list[str]:
    """The keys of the section at a path, to guess a misspelled one from."""
    for step in path:
        field = section.model_fields.get(str(step)) if section else None
        if field is not None:
            section = next(iter(sections_in(field.annotation)), None)
    return list(section.model_fields) if section else []


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation holds, as `Section | None` or `dict[str, Section]` do."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]
