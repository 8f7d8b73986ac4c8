"""Puts the files of the workflow into the wheel, so that `llm-sparsity run` works without a checkout.

In a checkout the library lies in workflow/, beside the Snakefile; in a wheel it is the other way round: the Snakefile,
rules, scripts, profiles, locks and studies lie in llm_sparsity/project/. Everything else is in pyproject.toml.
"""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py

PROJECT = (
    "Snakefile", "config.yaml", "workflow/rules/*.smk", "workflow/report/*.rst", "scripts/*.py", "profiles/**/*.*",
    "envs/*.txt", "studies/**/*.*",
)  # fmt: skip


class BuildWithProject(build_py):
    """`build_py`, and the files of the workflow; an editable install finds them in the checkout."""

    def run(self) -> None:
        """Copy both."""
        super().run()
        if self.editable_mode:
            return
        for path in (path for pattern in PROJECT for path in Path().glob(pattern)):
            target = Path(self.build_lib, "llm_sparsity/project", path)
            target.parent.mkdir(parents=True, exist_ok=True)
            copyfile(path, target)


setup(cmdclass={"build_py": BuildWithProject})
