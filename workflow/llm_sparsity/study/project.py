"""The files of the workflow: Snakefile, rules, scripts, profiles, and the packaged studies."""

from pathlib import Path

from llm_sparsity.jobs.errors import UserError

LIBRARY = Path(__file__).parents[1]
STUDY = "its config, a YAML file, with or without .yaml, or the name of a shipped one"  # explains `study_file`


def project() -> Path:
    """The folder that holds the Snakefile: beside the installed library, or the checkout of an editable install."""
    installed = LIBRARY / "project"  # a wheel has it, see setup.py
    return installed if installed.is_dir() else LIBRARY.parents[1]


def study_file(name: Path) -> Path:
    """A config, which may be named without .yaml, or one of the studies that the workflow brings, by its name alone.

    Raises:
        UserError: there is none.
    """
    for file in (name, Path(f"{name}.yaml"), project() / "studies" / f"{name}.yaml"):
        if file.is_file():
            return file
    if name.is_dir():
        raise UserError(f"{name}: is a folder, no config; `llm-sparsity init {name}` writes a study of a model folder")
    raise UserError(f"{name}: not found; `llm-sparsity init MODEL` writes a study")
