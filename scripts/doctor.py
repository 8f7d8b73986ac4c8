"""Check the place where a study is to run: a screen of lines, each OK or what to do.

Nothing is submitted and nothing written, unless --submit asks for a job of five minutes. Exit status 1 if there is
something to do.
"""

import argparse
import sys
from pathlib import Path

from llm_sparsity.jobs.command import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "study", type=Path, nargs="?", default=Path("config.yaml"),
        help="its config, a YAML file, or the name of a shipped one (default config.yaml)",
    )  # fmt: skip
    parser.add_argument("--profile", type=Path, help="folder of a Snakemake profile (default: none, this machine)")
    parser.add_argument("--submit", action="store_true", help="run a job of five minutes on a node, and wait for it")
    args = parser.parse_args()

    import yaml

    from llm_sparsity.cli.project import study_file
    from llm_sparsity.site import doctor
    from llm_sparsity.site.place import place
    from llm_sparsity.study import config

    study = config.load(yaml.safe_load(study_file(args.study).read_text(encoding="utf-8")))
    where = place(study, args.profile)
    lines = doctor.examine(where, submits=args.submit)
    print(doctor.screen(where, lines))
    if any(line.fix for line in lines):
        sys.stdout.flush()
        sys.exit(1)


if __name__ == "__main__":
    run(main)
