"""A source file as definitions and imports, without text that only people read.

Comments, layout, docstrings, annotations and messages are dropped, so editing them changes no definition's text.
The expressions in a message are dropped with it; they must not have side effects.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

# Calls that are dropped where they are a statement.
CALLS = {"print", "warnings.warn", "tqdm.write"}
METHODS = {"set_postfix", "set_description"}
LOGGERS = {"log", "logger", "logging"}
LOG_METHODS = {"debug", "info", "warning", "error", "exception", "critical"}

# Keyword arguments that are dropped, by the function called.
KEYWORDS = {
    "tqdm": {"desc", "unit", "postfix"},
    "Field": {"description"},
    "ArgumentParser": {"description", "epilog"},
    "add_parser": {"description", "epilog", "help"},
    "add_argument_group": {"description"},
    "add_argument": {"help", "metavar"},
}

STATEMENTS = ""  # the name under which a module holds the statements that may do more than define or import

SCOPE = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, eq=False)
class Definition:
    """The module-level statements that define a name; as a rule, one function, class or assignment."""

    statements: Sequence[ast.stmt]
    package: str

    @cached_property
    def text(self) -> str:
        """The source without what was dropped."""
        return "\n".join(map(ast.unparse, self.statements))

    @cached_property
    def names(self) -> set[str]:
        """The variables in it, each with the attributes that are read from it: `a` or `a.b.c`."""
        return {name for statement in self.statements for name in _names(statement)}

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """The names that imports inside it bind, and the absolute dotted names that each may stand for."""
        return _imports(self.statements, self.package)


@dataclass(frozen=True, eq=False)
class Module:
    """A parsed file.

    Attributes:
        definitions: by name. `STATEMENTS` holds the statements that may do more than define or import.
        imports: the names that module-level imports bind, and the absolute dotted names that each may stand for.
        exports: imported names that the module does not mention, so they are there for other modules.
    """

    definitions: dict[str, Definition]
    imports: dict[str, set[str]]
    exports: set[str]


def parse(source: str, package: str) -> Module:
    """Parse a file that lies in `package`, a dotted name."""
    tree = ast.parse(source)
    variables = _variables(tree)
    tree = _Normaliser().visit(tree)
    imports = _imports([statement for statement in tree.body if not isinstance(statement, SCOPE)], package)
    defined: dict[str, list[ast.stmt]] = defaultdict(list)
    for statement in tree.body:
        for name in _defined(statement):
            defined[name].append(statement)
    # A decorator of this library may enter what it decorates into a table: that is more than a definition.
    library = package.partition(".")[0] + "."
    ours = {*defined, *(name for name in imports if any(target.startswith(library) for target in imports[name]))}
    for statement in tree.body:
        if isinstance(statement, SCOPE) and any(ours & _variables(node) for node in statement.decorator_list):
            defined[STATEMENTS].append(statement)
    return Module(
        definitions={name: Definition(statements, package) for name, statements in defined.items()},
        imports=imports,
        exports={name for name in imports if name.partition(".")[0] not in variables},
    )


def _defined(statement: ast.stmt) -> set[str]:
    """The names that a module-level statement defines, with `STATEMENTS` if it may do more."""
    match statement:
        case ast.Import() | ast.ImportFrom():
            return set()
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {statement.name}
        case ast.Assign():
            targets = [node for target in statement.targets for node in ast.walk(target)]
            if not any(isinstance(node, ast.Attribute | ast.Subscript) for node in targets):
                return {node.id for node in targets if isinstance(node, ast.Name)}
    nodes = list(ast.walk(statement))
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return {STATEMENTS, *stored, *(node.name for node in nodes if isinstance(node, SCOPE))}


def _imports(statements: Iterable[ast.stmt], package: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for node in (node for statement in statements for node in ast.walk(statement)):
        match node:
            case ast.Import():
                for alias in node.names:
                    found[alias.asname or alias.name].add(alias.name)
                    if not alias.asname:  # `import a.b` binds `a`
                        top = alias.name.partition(".")[0]
                        found[top].add(top)
            case ast.ImportFrom():
                parents = package.split(".")
                base = parents[: len(parents) + 1 - node.level] if node.level else []
                for alias in node.names:
                    found[alias.asname or alias.name].add(".".join([*base, *filter(None, [node.module]), alias.name]))
    return dict(found)


def _names(node: ast.AST) -> Iterator[str]:
    if name := _dotted(node):
        yield name
    else:
        for child in ast.iter_child_nodes(node):
            yield from _names(child)


def _variables(node: ast.AST) -> set[str]:
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


def _dotted(node: ast.AST | None) -> str:
    """The name that an expression such as `a.b.c` spells; "" for any other expression."""
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            owner = _dotted(node.value)
            return owner and f"{owner}.{node.attr}"
    return ""


def _is_message(node: ast.expr) -> bool:
    """Whether an expression, as a statement, only prints or logs. `print(..., file=table)` writes a result."""
    if not isinstance(node, ast.Call):
        return False
    called = _dotted(node.func)
    owner, _, method = called.rpartition(".")
    if method in LOG_METHODS:
        return owner.rpartition(".")[2] in LOGGERS
    files = [_dotted(keyword.value) for keyword in node.keywords if keyword.arg == "file"]
    return (called in CALLS or method in METHODS) and files in ([], ["sys.stderr"])


class _Normaliser(ast.NodeTransformer):
    """Drops text that only people read. Bodies may end up empty, which `ast.unparse` accepts."""

    _in_class = False  # directly in a class, where annotations declare fields

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_docstring = isinstance(node.value, ast.Constant)
        return None if is_docstring or _is_message(node.value) else self.generic_visit(node)

    def visit_Pass(self, node: ast.Pass) -> None:
        return None

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if _dotted(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return [kept for statement in node.orelse if (kept := self.visit(statement))]
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._scope(node, in_class=True)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        if not node.decorator_list:  # a decorator may read them
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
        return self._scope(node, in_class=False)

    def _scope(self, node: ast.AST, in_class: bool) -> ast.AST:
        outer, self._in_class = self._in_class, in_class
        node = self.generic_visit(node)
        self._in_class = outer
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if self._in_class:
            return self.generic_visit(node)
        if node.value is None:
            return None
        return self.generic_visit(ast.copy_location(ast.Assign([node.target], node.value), node))

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call) and _dotted(node.exc.func).endswith(("Error", "SystemExit")):
            node.exc, node.cause = node.exc.func, None
        return self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else _dotted(node.func)
        node.keywords = [keyword for keyword in node.keywords if keyword.arg not in KEYWORDS.get(called, ())]
        if _dotted(node.func) == "sys.exit":
            node.args = []
        return self.generic_visit(node)
