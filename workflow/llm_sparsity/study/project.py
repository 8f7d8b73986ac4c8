"""The files of the workflow: Snakefile, rules, scripts, profiles, and the packaged studies."""

from pathlib import Path

from llm_sparsity.jobs.errors import UserError

LIBRARY = Path(__file__).parents[1]
STUDY = "its config, a YAML file, or the name of a shipped one"  # as commands explain `study_file`


def project() -> Path:
    """The folder that holds the Snakefile: beside the installed library, or the checkout of an editable install."""
    installed = LIBRARY / "project"  # a wheel has it, see setup.py
    return installed if installed.is_dir() else LIBRARY.parents[1]


def study_file(name: Path) -> Path:
    """A config, or one of the studies that the workflow brings, by its name alone.

    Raises:
        UserError: there is none.
    """
    shipped = project() / "studies" / f"{name}.yaml"
    if not name.is_file() and not shipped.is_file():
        raise UserError(f"{name}: not found; `llm-sparsity init MODEL` writes a study")
    return name if name.is_file() else shipped
