"""Code fingerprints: a job runs again if code that can shape its result has changed, and only then.

Snakemake sees neither imported modules nor the difference between a message and a computation. Therefore each rule
carries `params.code`, a hash of the definitions (top-level functions, classes and assignments) that its script reaches:

1. Parse files without comments, docstrings, annotations and messages, see `syntax`. Nothing is imported.
2. From the script, follow the names in a definition to the definitions of this library that they stand for.
3. Hash the text of every definition reached, and what the names in it stand for.

Where syntax leaves a doubt, too much counts rather than too little: a local variable counts as a mention of the
definition of the same name. Code that is looked up at run time has no name in the source, so the rule names it.

Parsing takes a second or two, so hashes are kept beside the compiled modules, and are those of exactly these files.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.util import cache_from_source
from pathlib import Path
from typing import NamedTuple

from llm_sparsity.storage.files import read_json, sha256, write_json
from llm_sparsity.study.syntax import STATEMENTS, Definition, Module, parse

PACKAGE = Path(__file__).parents[1]

# What shapes no result. The jobs' environment, which is beside them, does: it measures columns of tables.
_JOBS = ("command", "driver", "errors", "failures", "forkserver", "lease", "lock", "process")
IGNORED = {f"llm_sparsity.jobs.{name}" for name in _JOBS} | {"llm_sparsity.training.tracking"}

EVERYTHING = "*"  # instead of the name of a definition: the whole module


class Symbol(NamedTuple):
    """A definition of a file of this library. For a dotted name of another library, `path` is None."""

    path: Path | None
    name: str

    def __str__(self) -> str:
        return f"{_dotted(self.path)}:{self.name}" if self.path else self.name


@cache
def code_hash(script: Path, *, modules: tuple[str, ...] = (), files: tuple[Path, ...] = ()) -> str:
    """Hash the code that can shape a job's result.

    Args:
        script: the stage's script. All of it counts.
        modules: modules chosen at run time, such as "llm_sparsity.pruning.methods.magnitude". All of each counts.
        files: other files that shape the result, such as a template; compared byte for byte.

    Returns:
        16 hex digits.

    Raises:
        ValueError: a module does not exist.
    """
    library, kept = _kept()
    asked = json.dumps([script.stem, *map(sha256, (script, *files)), *modules])
    if asked not in kept:
        kept[asked] = _computed(script, modules, files)
        if not sys.dont_write_bytecode and library == _library():  # nobody has edited it meanwhile
            with suppress(OSError):  # it may be read-only, which Python bears as well
                write_json(_file(), {"library": library, "hashes": kept})
    return kept[asked]


def _computed(script: Path, modules: tuple[str, ...], files: tuple[Path, ...]) -> str:
    waiting = [Symbol(script, EVERYTHING), *map(_chosen_module, modules)]
    reached: set[Symbol] = set()
    while waiting:
        symbol = waiting.pop()
        if symbol not in reached:
            reached.add(symbol)
            waiting.extend(target for _, target in _mentions(symbol))
            waiting.extend(_run_by_import(symbol))
    texts = sorted(filter(None, map(_text, reached)))
    digest = hashlib.sha256("\n".join(texts).encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


@cache
def _kept() -> tuple[str, dict[str, str]]:
    """A digest of the library, and the hashes that were computed of the same, by what was asked of `code_hash`."""
    library = _library()
    with suppress(OSError, ValueError, LookupError, TypeError):
        found = read_json(_file())
        if found["library"] == library:
            return library, dict(found["hashes"])
    return library, {}


def _file() -> Path:
    """Where hashes are kept: where Python keeps a compiled module."""
    return Path(cache_from_source(str(PACKAGE / "code-hashes.py"))).with_suffix(".json")


def _library() -> str:
    """A digest of all files of the library, and of their names."""
    files = [f"{file.relative_to(PACKAGE)} {sha256(file)}" for file in sorted(PACKAGE.rglob("*.py"))]
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def _chosen_module(name: str) -> Symbol:
    path = _path(name)
    if path is None:
        raise ValueError(f"{name}: this library has no such module")
    return Symbol(path, EVERYTHING)


@cache
def _text(symbol: Symbol) -> str:
    """The part of the hashed text that a symbol contributes."""
    definition = _definition(symbol)
    lines = [definition.text] if definition.text else []
    lines += [f"{name} = {target}" for name, target in _mentions(symbol)]
    return "\n".join([str(symbol), *lines]) if lines else ""


@cache
def _mentions(symbol: Symbol) -> list[tuple[str, Symbol]]:
    """The names in a definition that stand for something of this library, or are imported from another."""
    if symbol.path is None:
        return []
    module, definition = _module(symbol.path), _definition(symbol)
    names = definition.names
    if symbol.name == EVERYTHING:
        names = {*module.definitions, *module.exports}
    found: set[tuple[str, Symbol]] = set()
    for name in names:
        first, *rest = name.split(".")
        if first in module.definitions or first in module.imports:
            found.update((name, target) for target in _inside(symbol.path, [first, *rest]))
        for imported in definition.imports.get(first, ()):
            found.update((name, target) for target in _targets(imported, rest))
    for imported in module.imports.get(EVERYTHING, ()):  # any name may come from a star import
        found.update((EVERYTHING, target) for target in _targets(imported))
    return sorted(found, key=lambda mention: (mention[0], str(mention[1])))


def _run_by_import(symbol: Symbol) -> Iterator[Symbol]:
    """The statements that run before a symbol is used: of its module, of the package, of modules imported there."""
    if symbol.path is None:
        return
    yield Symbol(symbol.path, STATEMENTS)
    if symbol.name == STATEMENTS:
        if package := _path(_package(symbol.path)):
            yield Symbol(package, STATEMENTS)
        for imported in _module(symbol.path).imports.values():
            yield from (Symbol(target.path, STATEMENTS) for name in imported for target in _targets(name))


def _targets(name: str, attributes: Iterable[str] = ()) -> Iterator[Symbol]:
    """The symbols that an absolute dotted name stands for; several if an import depends on a condition."""
    package, *parts = [*name.split("."), *attributes]
    if package == PACKAGE.name:
        yield from _inside(PACKAGE / "__init__.py", parts)
    else:
        yield Symbol(None, ".".join([package, *parts]))


def _inside(path: Path, parts: list[str]) -> Iterator[Symbol]:
    """The symbols that a dotted name stands for inside a module; all of the module if the name is not found."""
    if parts in ([], [EVERYTHING]):
        yield Symbol(path, EVERYTHING)
        return
    first, *rest = parts
    name = f"{_dotted(path)}.{first}"
    if name in IGNORED:
        return
    module = _module(path)
    imported = module.imports.get(first, set()) - {name}  # a package may import its own submodule
    if first in module.definitions:
        yield Symbol(path, first)
    for target in imported:
        yield from _targets(target, rest)
    if first not in module.definitions and not imported:
        inner = _path(name)
        yield from _inside(inner, rest) if inner else [Symbol(path, EVERYTHING)]


def _definition(symbol: Symbol) -> Definition:
    module = _module(symbol.path) if symbol.path else None
    return (module and module.definitions.get(symbol.name)) or Definition([], "")


@cache
def _module(path: Path) -> Module:
    return parse(path.read_text(encoding="utf-8") if path.is_file() else "", _package(path))


@cache
def _path(module: str) -> Path | None:
    """The file of a module of this library, or of a package, where it need not exist; None if there is none."""
    package, *parts = module.split(".")
    folder = PACKAGE.joinpath(*parts)
    file, init = folder.with_suffix(".py"), folder / "__init__.py"
    if package != PACKAGE.name or not (file.is_file() or folder.is_dir()):
        return None
    return file if file.is_file() and not init.is_file() else init


@cache
def _dotted(path: Path) -> str:
    """The dotted name of a file of this library; the bare name of a script."""
    if not path.is_relative_to(PACKAGE):
        return path.stem
    module = path.parent if path.stem == "__init__" else path.with_suffix("")
    return ".".join(module.relative_to(PACKAGE.parent).parts)


@cache
def _package(path: Path) -> str:
    """The package of a file of this library; for a package's `__init__`, itself; "" for a script."""
    return _dotted(path.parent / "__init__.py") if path.is_relative_to(PACKAGE) else ""
