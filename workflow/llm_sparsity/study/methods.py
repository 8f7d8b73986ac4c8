"""The pruning methods that a config may name, read from the files of `pruning/methods/`.

The files are parsed, not imported: importing a method imports torch, which a laptop that plans a study need not have.
"""

import ast
from pathlib import Path

_SOURCES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in (Path(__file__).parents[1] / "pruning" / "methods").glob("[a-z]*.py")
}
METHODS = tuple(sorted(_SOURCES))
METHOD_NOTES = {  # the first paragraph of a method's docstring: what it removes, and its paper
    name: " ".join((ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].split())
    for name, source in _SOURCES.items()
}
CALIBRATED = tuple(method for method in METHODS if "\ndef observe(" in _SOURCES[method])  # need calibration text
SCHEDULED = ("magnitude", "uniform")  # methods whose choice a training schedule can make as well
