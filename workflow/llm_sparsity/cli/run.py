"""Run a study. Other options go to Snakemake, such as -n, which lists the jobs, or --cores 8 (default: all, or what a
profile says)."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llm_sparsity.jobs.command import run
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.study.document import read_config
from llm_sparsity.study.project import STUDY, project, study_file


def main(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Run a study by its file or name."""
    parser.add_argument("study", type=Path, help=STUDY)
    args, rest = parser.parse_known_args(words)
    study = study_file(args.study)
    cores = [] if _profile_says(rest) else ["--cores", "all"]
    snakemake(["--snakefile", str(project() / "Snakefile"), "--configfile", str(study), *cores, *rest])


def _profile_says(words: Sequence[str]) -> bool:
    """Whether a profile among Snakemake's arguments gives the number of cores, which an option would override."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--profile", type=Path)
    profile = options.parse_known_args(words)[0].profile
    if profile is None or not profile.is_dir():
        return False
    from llm_sparsity.site.place import settings_of  # takes half a second to import

    return "cores" in settings_of(profile)


def snakemake(words: Sequence[str]) -> None:
    """Become Snakemake. What would end it in a traceback, before it reads the workflow, is found here.

    Args:
        words: Snakemake's arguments.

    Raises:
        UserError: a config file cannot be read, or Snakemake's cache cannot be written.
    """
    options = argparse.ArgumentParser(prog="snakemake", add_help=False, allow_abbrev=False)
    options.add_argument("--configfile", "--configfiles", nargs="+", type=Path, default=[])
    for file in options.parse_known_args(words)[0].configfile:
        read_config(file)
    _check_cache()
    sys.stdout.flush()
    os.environ["LLM_SPARSITY_RUN"] = "1"
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *words])


def _check_cache() -> None:
    """Check the folder of Snakemake's cache; some nodes have no home."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"Snakemake has no folder for its cache: {error}; export XDG_CACHE_HOME, a folder that can be written"
        ) from error


if __name__ == "__main__":  # as ./run starts Snakemake
    run(lambda: snakemake(sys.argv[1:]))
