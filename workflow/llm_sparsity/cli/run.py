"""Run a study. Other options go to Snakemake, such as -n, which lists the jobs, or --cores 8 (default: all)."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from llm_sparsity.study import config
from llm_sparsity.study.project import STUDY, project, study_file


def main(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Become Snakemake."""
    parser.usage = "%(prog)s [-h] study [OPTION OF SNAKEMAKE ...]"
    parser.add_argument("study", type=Path, help=STUDY)
    args, rest = parser.parse_known_args(words)
    study = study_file(args.study)
    config.parse(study)  # or Snakemake ends in a traceback
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(project() / "Snakefile")]
    command += ["--configfile", str(study), "--cores", "all", *rest]
    sys.stdout.flush()
    os.environ["LLM_SPARSITY_RUN"] = "1"
    os.execv(sys.executable, command)
