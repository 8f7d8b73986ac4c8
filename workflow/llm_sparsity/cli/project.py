"""The files of the workflow: Snakefile, rules, scripts, profiles, and the packaged studies."""

from pathlib import Path

LIBRARY = Path(__file__).parents[1]


def project() -> Path:
    """The folder that holds the Snakefile: beside the installed library, or the checkout of an editable install."""
    installed = LIBRARY / "project"  # a wheel has it, see setup.py
    return installed if installed.is_dir() else LIBRARY.parents[1]
