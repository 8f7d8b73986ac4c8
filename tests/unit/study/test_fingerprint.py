"""What counts in a code hash: first with a made-up package, then with a copy of the library."""

import ast
import re
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest

from llm_sparsity.study import fingerprint
from llm_sparsity.study.methods import Chain

F = "def f():\n    return g()\n\ndef g():\n    return 1\n\ndef other():\n    return 2\n"


class Project:
    """A library and scripts in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.library = folder / "llm_sparsity"
        self.scripts = folder / "scripts"

    def write(self, **modules: str) -> None:
        """Write modules of the library, such as `data__tasks="..."`; `script` is the script."""
        for name, source in modules.items():
            path = self.library.joinpath(*name.split("__")).with_suffix(".py")
            if name.endswith("___init"):
                path = self.library.joinpath(*name.removesuffix("___init").split("__"), "__init__.py")
            path = self.scripts / "script.py" if name == "script" else path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)

    def hash(self, script: str = "script", **chosen: tuple[str, ...]) -> str:
        forget()
        return fingerprint.code_hash(self.scripts / f"{script}.py", **chosen)  # type: ignore[arg-type]


def forget() -> None:
    """Forget what was read."""
    for function in vars(fingerprint).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


PARSED = cache(fingerprint.parse)


@pytest.fixture(autouse=True)
def parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse equal files once, also after `forget`."""
    monkeypatch.setattr(fingerprint, "parse", partial(PARSED))  # `forget` clears no partial


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The script calls `f` of the module `first`."""
    made = Project(tmp_path)
    made.write(script="from llm_sparsity.first import f\n\nf()\n", first=F)
    monkeypatch.setattr(fingerprint, "PACKAGE", made.library)
    return made


def differ(project: Project, *sources: str, module: str = "first", **chosen: tuple[str, ...]) -> bool:
    """Whether two sources of a module give two hashes."""
    found = set()
    for source in sources:
        project.write(**{module: source})
        found.add(project.hash(**chosen))
    return len(found) > 1


def test_a_hash_is_sixteen_hex_digits_and_independent_of_the_folder(project: Project, tmp_path: Path) -> None:
    first = project.hash()
    assert re.fullmatch("[0-9a-f]{16}", first)
    shutil.copytree(tmp_path, tmp_path / "elsewhere")
    assert fingerprint.code_hash(project.scripts / "script.py") == first


SILENT = {
    "comment": ("def f():\n    return 1\n", "# why\n\ndef f():\n    return (1)  # one\n"),
    "docstring of a module": (F, f'"""Doc."""\n{F}'),
    "docstring of a function": ("def f():\n    return 1\n", 'def f():\n    """Doc."""\n    return 1\n'),
    "docstring alone": ("def f():\n    pass\n", 'def f():\n    """Doc."""\n'),
    "docstring of a class": ("class f:\n    x = 1\n", 'class f:\n    """Doc."""\n\n    x = 1\n'),
    "docstring of an attribute": ("class f:\n    x = 1\n", 'class f:\n    x = 1\n    """Doc."""\n'),
    "annotations": ("def f(x=1): return x\n", "def f(x: int = 1) -> int: return x\n"),
    "result of a decorated function": ("@print\ndef f(x): return x\n", "@print\ndef f(x) -> int: return x\n"),
    "annotation of a variable": ("def f():\n    x = 1\n", "def f():\n    y: str\n    x: int = 1\n"),
    "annotation of a constant": ("f = print\n", "from typing import Any, Final\nf: Final[Any] = print\n"),
    "name in an annotation": (F, F.replace("f()", "f() -> other", 1)),
    "message of an error": ("def f():\n    raise KeyError('a') from None\n", "def f(): raise KeyError(f'{1}')\n"),
    "message of an exit": ("def f(): raise SystemExit('a')\n", "def f(): raise SystemExit('b')\n"),
    "message of sys.exit": ("import sys\ndef f(): sys.exit('a')\n", "import sys\ndef f(): sys.exit('b')\n"),
    "name in a message": (
        "def g(): pass\ndef f(): raise KeyError\n",
        "def g(): pass\ndef f(): raise KeyError(g())\n",
    ),
    "message of an assert": ("def f(): assert f\n", "def f(): assert f, 'f'\n"),
    "print": ("def f():\n    return 1\n", "def f():\n    print(1)\n    return 1\n"),
    "print to stderr": ("import sys\ndef f(): pass\n", "import sys\ndef f(): print(1, file=sys.stderr)\n"),
    "print alone in a branch": ("def f(x):\n    if x: pass\n", "def f(x):\n    if x: print(x)\n"),
    "warning": ("import warnings\ndef f(): pass\n", "import warnings\ndef f(): warnings.warn('x', stacklevel=2)\n"),
    "log": ("def f(self): pass\n", "def f(self): self.log.info('x'); logger.error('y')\n"),
    "tqdm": (
        "from tqdm import tqdm\ndef f(x):\n    bar = tqdm(x)\n",
        "from tqdm import tqdm\ndef f(x):\n    bar = tqdm(x, desc='x', unit='y')\n    bar.set_postfix(z=1)\n",
    ),
    "argparse": (
        "def f(parser): parser.add_argument('--x')\n",
        "def f(parser): parser.add_argument('--x', metavar='X', help='x')\n",
    ),
    "TYPE_CHECKING": (
        f"from typing import TYPE_CHECKING\n{F}",
        f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from llm_sparsity.second import h\n{F}",
    ),
    "definition that is not reached": (F, F.replace("return 2", "return 3")),
    "class that is not reached": (F, f"{F}\nclass Other:\n    x = 1\n"),
    "assignment that is not reached": (F, f"{F}\nOTHER = 1\n"),
    "import that is not used": (F, f"import numpy\nfrom llm_sparsity.second import h\n{F}"),
    "order of definitions": (F, "def other():\n    return 2\n\ndef g():\n    return 1\n\ndef f():\n    return g()\n"),
}

COUNTS = {
    "function": (F, F.replace("return g()", "return g() + 1")),
    "function that a reached one calls": (F, F.replace("return 1", "return 3")),
    "method of a class": ("class f:\n    def a(self): return 1\n", "class f:\n    def a(self): return 2\n"),
    "base class": ("class g: x = 1\nclass f(g): pass\n", "class g: x = 2\nclass f(g): pass\n"),
    "field of a dataclass": ("class f:\n    x: int\n", "class f:\n    x: int\n    y: int\n"),
    "default of a field": ("class f:\n    x: int = 1\n", "class f:\n    x: int = 2\n"),
    "default of a field, by name": ("X = 1\nclass f:\n    x: int = X\n", "X = 2\nclass f:\n    x: int = X\n"),
    "default of an argument": ("X = 1\ndef f(x=X): return x\n", "X = 2\ndef f(x=X): return x\n"),
    "argument of a decorator": ("X = 1\n@cache(X)\ndef f(): pass\n", "X = 2\n@cache(X)\ndef f(): pass\n"),
    "argument's annotation, which a decorator may read": (
        "@print\ndef f(x: int): pass\n",
        "@print\ndef f(x: str): pass\n",
    ),
    "decorator": ("def f(): pass\n", "@staticmethod\ndef f(): pass\n"),
    "assignment": ("X, Y = 1, 2\ndef f(): return Y\n", "X, Y = 1, 3\ndef f(): return Y\n"),
    "annotated assignment": ("X: int = 1\ndef f(): return X\n", "X: int = 2\ndef f(): return X\n"),
    "type of an error": ("def f(): raise KeyError('a')\n", "def f(): raise ValueError('a')\n"),
    "test of an assert": ("def f(x): assert x, 'x'\n", "def f(x): assert not x, 'x'\n"),
    "an exit": ("import sys\ndef f(): pass\n", "import sys\ndef f(): sys.exit()\n"),
    "text printed to a file": ("def f(x): print(1, file=x)\n", "def f(x): print(2, file=x)\n"),
    "error method of a parser": ("def f(parser): pass\n", "def f(parser): parser.error('x')\n"),
    "default of argparse": ("def f(p): p.add_argument(default=1)\n", "def f(p): p.add_argument(default=2)\n"),
    "keyword of another function": ("def f(g): g(description=1)\n", "def f(g): g(description=2)\n"),
    "statement": (F, f"import torch\ntorch.set_num_threads(1)\n{F}"),
    "attribute of another library": (F, f"import torch\ntorch.backends.x = True\n{F}"),
    "item of a dict": (f"D = {{}}\n{F}", f"D = {{}}\nD['x'] = 1\n{F}"),
    "definition under a condition": (
        "if 1:\n    def f(): return 1\nelse:\n    def f(): return 2\n",
        "if 1:\n    def f(): return 1\nelse:\n    def f(): return 3\n",
    ),
    "not TYPE_CHECKING": ("if TYPE_CHECKING: f = 1\nelse: f = 2\n", "if TYPE_CHECKING: f = 1\nelse: f = 3\n"),
    "what a name of another library stands for": (
        "from math import sin as g\ndef f(): return g(1)\n",
        "from math import cos as g\ndef f(): return g(1)\n",
    ),
    "definition that a decorator of this library may register": (
        "from llm_sparsity.second import h\ndef f(): return h(1)\n@h.register\ndef _(x): return 1\n",
        "from llm_sparsity.second import h\ndef f(): return h(1)\n@h.register\ndef _(x): return 2\n",
    ),
}


@pytest.mark.parametrize("case", SILENT)
def test_does_not_count(project: Project, case: str) -> None:
    project.write(second="def h(): pass\n")
    assert not differ(project, *SILENT[case])


@pytest.mark.parametrize("case", COUNTS)
def test_counts(project: Project, case: str) -> None:
    project.write(second="def h(): pass\n")
    assert differ(project, *COUNTS[case])


def test_all_of_a_script_counts(project: Project) -> None:
    sources = ("def main(): pass\n", "def main(): pass\ndef unused(): pass\n")
    assert differ(project, *sources, module="script")
    assert not differ(project, sources[0], f'"""Doc."""\n{sources[0]}', module="script")


# How a script, or a module that it reaches, may refer to `f` of the module data.first.
REFERENCES = {
    "name": "from llm_sparsity.data.first import f\nf()\n",
    "renamed": "from llm_sparsity.data.first import f as g\ng()\n",
    "module": "from llm_sparsity.data import first\nfirst.f()\n",
    "alias of a module": "import llm_sparsity.data.first as one\none.f()\n",
    "dotted module": "import llm_sparsity.data.first\nllm_sparsity.data.first.f()\n",
    "package": "from llm_sparsity import data\ndata.first.f()\n",
    "inside a function": "def main():\n    from llm_sparsity.data.first import f\n    f()\nmain()\n",
    "module inside a function": "def main():\n    from llm_sparsity.data import first\n    first.f()\nmain()\n",
    "re-exported": "from llm_sparsity.data import f\nf()\n",
    "re-exported by a relative import": "from llm_sparsity.data import relative\nrelative()\n",
    "module that re-exports": "from llm_sparsity.data import again\nagain.twice.f()\n",
    "attribute of a class": "from llm_sparsity.data.first import f\nf.g.h()\n",
    "two imports": "try:\n    from x import f\nexcept ImportError:\n    from llm_sparsity.data.first import f\nf()\n",
}


@pytest.mark.parametrize("case", REFERENCES)
def test_references(project: Project, case: str) -> None:
    project.write(
        data___init="from llm_sparsity.data.first import f\nfrom .first import f as relative\nfrom . import first\n",
        data__again="import os.path\nfrom .. import data\nfrom ..data import first as twice\n",
        script=REFERENCES[case],
    )
    assert differ(project, F, F.replace("return 1", "return 3"), module="data__first"), "what f calls counts"
    assert not differ(project, F, F.replace("return 2", "return 3"), module="data__first"), "the rest does not"


@pytest.mark.parametrize("use", ["print(first)", "use(first)", "getattr(first, 'g')", "first.unknown()"])
def test_a_module_that_is_passed_on_counts_whole(project: Project, use: str) -> None:
    project.write(script=f"from llm_sparsity import first\nx = {use}\n")
    assert differ(project, F, F.replace("return 2", "return 3"))


def test_star_imports_count_whole(project: Project) -> None:
    project.write(script="from llm_sparsity.first import *\nf()\n")
    assert differ(project, F, F.replace("return 2", "return 3"))


def test_a_star_import_of_another_library_counts(project: Project) -> None:
    source = "from math import *\ndef f(): return sin(1)\n"
    assert differ(project, source, source.replace("math", "cmath"))


def test_cyclic_references(project: Project) -> None:
    project.write(second="def h():\n    from llm_sparsity.first import f\n    return f\n")
    source = "from llm_sparsity.second import h\ndef f(): return h() or f() or 1\n"
    assert differ(project, source, source.replace("1", "2"))


def test_statements_count_for_every_import_of_their_module(project: Project) -> None:
    project.write(first=f"import llm_sparsity.data.second\n{F}", data__second="")
    assert differ(project, "", "import torch\ntorch.set_x()\n", module="data__second")
    assert differ(project, "", "import torch\ntorch.set_x()\n", module="data___init")
    assert differ(project, "", "import torch\ntorch.set_x()\n", module="___init")
    assert not differ(project, "", "def h(): pass\n", module="data__second")


def test_what_a_name_stands_for_counts_although_both_are_reached(project: Project) -> None:
    project.write(second="def g(): return 2\n", third="def g(): return 3\n")
    script = "from llm_sparsity.second import g as a\nfrom llm_sparsity.third import g as b\n"
    project.write(script=f"{script}from llm_sparsity.first import f\na(), b(), f()\n")
    source = "from llm_sparsity.second import g\ndef f(): return g()\n"
    assert differ(project, source, source.replace("second", "third"))


def test_trackers_do_not_count(project: Project) -> None:
    project.write(first="from llm_sparsity.training import tracking\ndef f(): return tracking.g()\n")
    assert not differ(project, "def g(): return 1\n", "def g(): return 2\n", module="training__tracking")


def test_the_package_jobs_does_not_count(project: Project) -> None:
    project.write(first="from llm_sparsity.jobs.lock import g\ndef f(): return g()\n")
    assert not differ(project, "def g(): return 1\n", "import x\nx.y()\ndef g(): return 2\n", module="jobs__lock")


def test_modules_chosen_at_run_time_count_whole(project: Project) -> None:
    project.write(second="X = 1\n")
    chosen = ("llm_sparsity.methods.magnitude",)
    source = "from llm_sparsity.second import X\nGRANULARITY = 1\ndef scores(x): return x\n"
    assert not differ(project, source, source + "Y = 2\n", module="methods__magnitude")
    assert differ(project, source, source + "Y = 2\n", module="methods__magnitude", modules=chosen)
    assert differ(project, "X = 1\n", "X = 2\n", module="second", modules=chosen), "what it hands on counts"
    project.write(methods__magnitude="from llm_sparsity.second import X\ndef scores(x: X): return x\n")
    assert not differ(project, "X = 1\n", "X = 2\n", module="second", modules=chosen), "an annotation does not"


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"modules": ("llm_sparsity.nope",)}, "llm_sparsity.nope: this library has no such module"),
        ({"modules": ("numpy",)}, "numpy: this library has no such module"),
    ],
)
def test_what_does_not_exist_is_an_error(project: Project, chosen: dict[str, tuple[str]], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        project.hash(**chosen)


def test_files_count_byte_for_byte(project: Project, tmp_path: Path) -> None:
    script, template = project.scripts / "script.py", tmp_path / "template"
    found = set()
    for text in ("a", "b", "b"):
        template.write_text(text)
        fingerprint.code_hash.cache_clear()
        found.add(fingerprint.code_hash(script, files=(template,)))
    assert len(found) == 2


# The library itself.

STAGES = ("collect", "download", "evaluate", "finetune", "measure", "plot", "prune", "weights", "zero_shot")
WANDA, MAGNITUDE = "llm_sparsity.pruning.methods.wanda", "llm_sparsity.pruning.methods.magnitude"


@pytest.fixture(scope="module")
def untouched(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the library and the scripts."""
    folder = tmp_path_factory.mktemp("untouched")
    shutil.copytree(root / "workflow/llm_sparsity", folder / "llm_sparsity")
    shutil.copytree(root / "scripts", folder / "scripts")
    return Project(folder)


@pytest.fixture(scope="module")
def before(untouched: Project) -> dict[str, str]:
    """Stage -> hash of the copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, "PACKAGE", untouched.library)
        return stage_hashes(untouched)


@pytest.fixture
def copy(untouched: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Another copy, to be edited."""
    shutil.copytree(untouched.library, tmp_path / "llm_sparsity")
    shutil.copytree(untouched.scripts, tmp_path / "scripts")
    monkeypatch.setattr(fingerprint, "PACKAGE", tmp_path / "llm_sparsity")
    return Project(tmp_path)


def stage_hashes(copy: Project) -> dict[str, str]:
    forget()
    scripts = {stage: copy.scripts / f"{stage}.py" for stage in STAGES}
    return {
        stage: fingerprint.code_hash(script, modules=(WANDA,) if stage == "prune" else ())
        for stage, script in scripts.items()
    }


def changed(before: dict[str, str], copy: Project) -> set[str]:
    """The stages whose hash an edit of the copy has changed."""
    after = stage_hashes(copy)
    return {stage for stage in STAGES if before[stage] != after[stage]}


def everywhere(pattern: str, replacement: str, folder: str = ".", count: int = 0) -> Callable[[Project], None]:
    """An edit of all files of a folder of the library, at least one of which it changes."""

    def edit(copy: Project) -> None:
        edited = 0
        for path in sorted((copy.library / folder).rglob("*.py")):
            source = path.read_text()
            path.write_text(re.sub(pattern, replacement, source, count=count))
            edited += path.read_text() != source
        assert edited

    return edit


def computing(file: str, name: str) -> Callable[[Project], None]:
    """An edit that adds a statement to a function, or to the first method of a class."""

    def edit(copy: Project) -> None:
        path = copy.library / file
        lines = path.read_text().splitlines()
        defined = next(node for node in ast.walk(ast.parse(path.read_text())) if getattr(node, "name", "") == name)
        if isinstance(defined, ast.ClassDef):
            defined = next(node for node in defined.body if isinstance(node, ast.FunctionDef))
        assert isinstance(defined, ast.FunctionDef)
        last = defined.body[-1]
        lines.insert(last.lineno - 1, f"{' ' * last.col_offset}assert len([]) == 0")
        path.write_text("\n".join(lines))

    return edit


def added_method(copy: Project) -> None:
    copy.write(pruning__methods__anew='"""Anew."""\nfrom llm_sparsity.storage.files import atomic\nX = atomic\n')


SILENT_EDITS = {
    "docstrings of modules": everywhere(r'\A"""', '"""Anew: ', count=1),
    "docstrings of functions": everywhere(r'(:\n    """)', r"\1Anew: "),
    "messages of errors": everywhere(r'(raise UserError\(\s*f?")', r"\1Anew: "),
    "errors": everywhere(r"\Z", "\nX = 1\n", folder="jobs"),
    "progress bars": everywhere(r'(desc=|unit=)"', r'\1"anew '),
    "comments": everywhere(r"\Z", "\n# Anew.\n"),
    "a new method": added_method,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "edits", [[*SILENT_EDITS], *(pytest.param([e], marks=pytest.mark.exhaustive) for e in SILENT_EDITS)]
)
def test_edits_that_change_no_stage(before: dict[str, str], copy: Project, edits: list[str]) -> None:
    for edit in edits:
        SILENT_EDITS[edit](copy)
    assert changed(before, copy) == set()


@pytest.mark.slow
def test_the_code_that_writes_reaches_every_stage_that_writes(before: dict[str, str], copy: Project) -> None:
    computing("storage/files.py", "atomic")(copy)
    assert changed(before, copy) == set(STAGES)


@pytest.mark.slow
def test_the_mask_reaches_training_alone(before: dict[str, str], copy: Project) -> None:
    computing("training/mask.py", "Mask")(copy)
    assert changed(before, copy) == {"finetune"}


def test_selection_reaches_prune(before: dict[str, str], copy: Project) -> None:
    computing("pruning/selection.py", "lowest")(copy)
    edited = changed(before, copy)
    assert "prune" in edited
    assert not edited & {"collect", "download", "evaluate", "measure", "plot", "weights", "zero_shot"}


def test_a_method_reaches_the_jobs_that_name_it(copy: Project) -> None:
    old = [copy.hash("prune", modules=(method,)) for method in (WANDA, MAGNITUDE)]
    with (copy.library / "pruning/methods/magnitude.py").open("a") as file:
        file.write("\nX = 1\n")
    new = [copy.hash("prune", modules=(method,)) for method in (WANDA, MAGNITUDE)]
    assert (old[0] == new[0], old[1] == new[1]) == (True, False)


def test_owl_counts_what_it_takes_of_wanda_alone(copy: Project) -> None:
    """It observes what wanda observes: other calibrated methods reach this function, and no more of the file."""
    wanda = copy.library / "pruning/methods/wanda.py"
    hashes = []
    for old, new in (("", ""), (".abs_()", ".abs()"), (".square()", ".pow(2)")):
        wanda.write_text(wanda.read_text().replace(old, new))
        hashes.append(copy.hash("prune", modules=tuple(Chain("sparsegpt").modules)))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("file", "reached"),
    [
        ("steps/swaps.py", {"wanda+swaps", "wanda+swaps+int8"}),
        pytest.param("steps/reconstruct.py", {"magnitude+reconstruct"}, marks=pytest.mark.slow),
        pytest.param("steps/int8.py", {"int8", "wanda+swaps+int8"}, marks=pytest.mark.slow),
        pytest.param("reconstruction.py", {"magnitude+reconstruct"}, marks=pytest.mark.slow),
        pytest.param("quantization.py", {"int8", "wanda+swaps+int8"}, marks=pytest.mark.slow),
        ("calibrated.py", {"wanda", "wanda+swaps", "wanda+swaps+int8", "magnitude+reconstruct"}),
    ],
)
def test_a_step_reaches_the_chains_that_name_it(copy: Project, file: str, reached: set[str]) -> None:
    chains = ["magnitude", "wanda", "wanda+swaps", "wanda+swaps+int8", "magnitude+reconstruct", "int8"]
    old = {chain: copy.hash("prune", modules=tuple(Chain(chain).modules)) for chain in chains}
    with (copy.library / "pruning" / file).open("a") as source:
        source.write("\nX = 1\n")
    new = {chain: copy.hash("prune", modules=tuple(Chain(chain).modules)) for chain in chains}
    assert {chain for chain in chains if old[chain] != new[chain]} == reached


def test_modules_that_are_imported_by_a_computed_name_are_those_that_the_rules_name(copy: Project) -> None:
    public = copy.library / "__init__.py"  # its names are for users: no module of the library takes one from there
    sources = [path.read_text() for path in copy.library.rglob("*.py") if path != public]
    taken = r"^ *from llm_sparsity import (?!__version__$)"
    assert not any(re.search(taken, source, re.MULTILINE) for source in sources)
    commands = (copy.library / "cli/main.py").read_text()  # which no stage reaches
    sources.remove(commands)
    found = {name for source in sources for name in re.findall(r"import_module\(\s*f?\"([^\"{]*)", source)}
    assert sum(source.count("import_module(") for source in sources) > 0
    assert all(name.startswith("llm_sparsity.pruning.") for name in found), "name it in the rule, and here"


def test_hashes_are_kept_for_exactly_these_files(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process parses nothing; after an edit, one that changes no hash as well, it parses again."""
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    first = project.hash()
    (kept := fingerprint._file()).read_text()
    monkeypatch.setattr(fingerprint, "parse", None)
    assert project.hash() == first
    for change in ({"first": F + "# a comment\n"}, {"script": "from llm_sparsity.first import f, g\n"}, {"second": ""}):
        project.write(**change)
        with pytest.raises(TypeError, match="not callable"):
            project.hash()
        project.write(script="from llm_sparsity.first import f\n\nf()\n", first=F)
        (project.library / "second.py").unlink(missing_ok=True)
        assert project.hash() == first
    kept.write_text('{"library": 3}')
    with pytest.raises(TypeError, match="not callable"):
        project.hash()


def test_hashes_of_a_library_that_is_edited_meanwhile_are_not_kept(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", False)

    def edited(source: str, package: str) -> object:
        project.write(first=F.replace("1", "3"))
        return PARSED(source, package)

    monkeypatch.setattr(fingerprint, "parse", edited)
    project.hash()
    assert not fingerprint._file().exists()


def test_what_is_not_followed_exists() -> None:
    assert all(fingerprint._chosen_module(name) for name in fingerprint.IGNORED)


def test_a_large_study_hashes_each_script_once(copy: Project) -> None:
    copy.hash("finetune")
    for _ in range(100):
        fingerprint.code_hash(copy.scripts / "finetune.py")
    assert fingerprint.code_hash.cache_info().misses == 1
