"""What code a stage runs, as a hash: a stage runs again when its own code changes, and only then.

Snakemake sees neither imported modules nor the difference between a comment and a statement. So each rule carries
`params.code`: the hash of its script and of every module of this library that the script reaches, read as syntax.
Comments, docstrings and layout do not count.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def code_hash(script: Path, *, modules: tuple[str, ...] = (), files: tuple[Path, ...] = ()) -> str:
    """Hash a script, the library modules it imports (directly or not), and what is named beside them.

    Args:
        script: the stage's script.
        modules: modules that are chosen at run time, such as "llm_sparsity.pruning.methods.magnitude".
        files: other files that shape the result, such as a template; compared byte for byte.
    """
    reached = {"": script}
    waiting = [*modules, *_imports(script)]
    while waiting:
        module = waiting.pop()
        path = _path(module)
        if module not in reached and path is not None:
            reached[module] = path
            waiting.extend(_imports(path))
    digest = hashlib.sha256()
    for module in sorted(reached):
        digest.update(f"{module}\n{_source(reached[module])}\n".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _path(module: str) -> Path | None:
    """The file of a library module; None for anything else (other packages, names inside a module)."""
    package, *rest = module.split(".")
    if package != PACKAGE.name or not rest:
        return None
    path = PACKAGE.joinpath(*rest)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def _tree(path: Path) -> ast.Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(ast.Constant(str())), *rest]:
                    node.body = rest or [ast.Pass()]
    return tree


@cache
def _source(path: Path) -> str:
    return ast.unparse(_tree(path))


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file may import, wherever the statement stands."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
