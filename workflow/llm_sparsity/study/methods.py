"""The pruning methods and steps that a config may name, read from the files of `pruning/methods/` and `pruning/steps/`.

The files are parsed, not imported: importing a method imports torch, which a laptop that plans a study need not have.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llm_sparsity.jobs.errors import guess

_PRUNING = Path(__file__).parents[1] / "pruning"
_METHODS, _STEPS = (
    {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((_PRUNING / folder).glob("[!_.]*.py"))}
    for folder in ("methods", "steps")
)


def _names(module: ast.Module) -> Iterator[tuple[str, str]]:
    """The names that a module defines or imports; of a variable with the text of its value, else with ""."""
    for node in module.body:
        match node:
            case ast.FunctionDef(name=name):
                yield name, ""
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from ((each.asname or each.name, "") for each in names)
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                yield name, ast.unparse(value)


_NAMES = {name: dict(_names(module)) for name, module in (_METHODS | _STEPS).items()}


def _with(name: str, value: str | None = None) -> tuple[str, ...]:
    """The methods and steps that have a name, with any value or with this one."""
    return tuple(part for part, names in _NAMES.items() if name in names and value in (None, names[name]))


METHODS, STEPS = tuple(_METHODS), tuple(_STEPS)
REPAIRING, TRAINING, QUANTISING = map(_with, ("repair", "train", "quantize"))  # steps
EXCHANGING = _with("EXCHANGES", "True")  # steps that move single weights
KINDS = {"calibrated": REPAIRING, "reconstruction": TRAINING, "quantization": QUANTISING}  # module -> its steps
CALIBRATED = (*_with("observe"), *TRAINING)  # methods and steps that need calibration text
UPDATING = (*_with("UPDATES", "True"), *TRAINING)  # change the weights that are kept, too
SINGLE = _with("GRANULARITY", "(1, 1)")  # remove single weights
WITHOUT_MASK = _with("GRANULARITY", "None")  # shrink tensors
SCHEDULED = ("magnitude", "uniform")  # methods whose choice a training schedule can make as well
NOTES = {  # the first paragraph of a docstring: what a method or a step does, and its paper
    name: " ".join((ast.get_docstring(module) or "").split("\n\n")[0].split())
    for name, module in (_METHODS | _STEPS).items()
}


def is_calibrated(chain: str) -> bool:
    """Whether any part of a chain needs calibration text."""
    return not set(CALIBRATED).isdisjoint(chain.split("+"))


@dataclass(frozen=True)
class Chain:
    """A method and the steps that follow it, in their order, as a config writes them: `wanda`, `wanda+swaps+int8`.

    A quantising step may stand alone: `int8` is the dense model, quantised.

    Raises:
        ValueError: a name is unknown, or names that do not go together.
    """

    text: str

    def __post_init__(self) -> None:
        first, *others = self.parts
        for name in others:
            if name in METHODS:
                raise ValueError(f"{self}: {name} is a method, which comes first; write {name}+...")
        for number, name in enumerate(self.parts):
            known = (*METHODS, *QUANTISING) if number == 0 else STEPS
            if name in STEPS and name not in known:
                raise ValueError(f"{self}: {name} repairs what a method leaves; put one before it, as in wanda+{name}")
            if name not in known:
                raise ValueError(f"found {name!r}, which is not defined{guess(name, known)}")
            if not re.fullmatch(r"[a-z]\w*", name, re.ASCII):  # as rules/common.smk finds it in a folder's name
                raise ValueError(
                    f"found {name!r}, which becomes a part of a folder's name; rename {name}.py: a small letter first, "
                    "then letters, digits and _"
                )
        for name in self.steps:
            if self.steps.count(name) > 1:
                raise ValueError(f"{self}: {name} is given twice; remove one")
            if name in QUANTISING and name != self.steps[-1]:
                raise ValueError(f"{self}: {name} fixes the stored values, so nothing follows it; put it last")
            if name in CALIBRATED and first in WITHOUT_MASK:
                raise ValueError(f"{self}: {name} keeps a mask, but {first} shrinks tensors; remove one of them")
            if name in EXCHANGING and first not in SINGLE:
                raise ValueError(f"{self}: {name} moves single weights, but {first} removes more; remove one of them")

    def __str__(self) -> str:
        return self.text

    @property
    def parts(self) -> tuple[str, ...]:
        """The method and the steps."""
        return tuple(self.text.split("+"))

    @property
    def method(self) -> str | None:
        """The method; None if only a quantising step is given, so that nothing is removed."""
        return self.parts[0] if self.parts[0] in METHODS else None

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps, in their order."""
        return self.parts[1:] if self.method else self.parts

    @property
    def is_calibrated(self) -> bool:
        """Whether any part needs calibration text."""
        return is_calibrated(self.text)

    @property
    def is_quantised(self) -> bool:
        """Whether the weights are stored as whole numbers and scales."""
        return self.parts[-1] in QUANTISING

    @property
    def modules(self) -> list[str]:
        """The modules of the library that these parts alone need: a change in one affects no other chain."""
        kinds = KINDS | {"calibrated": CALIBRATED}
        found = [f"methods.{name}" if name in METHODS else f"steps.{name}" for name in self.parts]
        found += [kind for kind, names in kinds.items() if set(names) & set(self.parts)]
        return [f"llm_sparsity.pruning.{module}" for module in found]
