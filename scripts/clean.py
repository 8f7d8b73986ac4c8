"""List cached checkpoints that nothing refers to, and remove them with --delete.

Name the config of every study whose caches are to be kept. Without --all, caches of other studies stay as well, unless
a finished run made their results anew or their results are gone.
"""

import argparse
from importlib.metadata import version
from pathlib import Path

from llm_sparsity.jobs.command import run
from llm_sparsity.jobs.errors import UserError

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+", help="config files of studies")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder of caches, beside results/")
    parser.add_argument("--delete", action="store_true", help="remove what is listed")
    parser.add_argument("--all", action="store_true", help="list caches of studies that are not named here, too")
    args = parser.parse_args()

    import yaml

    from llm_sparsity.study.clean import leftovers, remove
    from llm_sparsity.study.config import Config, load
    from llm_sparsity.study.fingerprint import code_hash

    if not args.work.is_dir():
        raise UserError(f"{args.work}: no such folder; run this where the studies run, or give --work")

    def study(path: Path) -> Config:
        try:
            return load(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{path}: no config of a study: {' '.join(str(error).split())}") from None

    code = code_hash(ROOT / "scripts/finetune.py")
    versions = {name: version(name) for name in ("torch", "transformers")}
    found = leftovers(args.work, map(study, args.studies), code, versions, others=args.all)
    for leftover in found:
        print(f"{leftover.bytes / 1e6:10.1f} MB  {leftover.path}  {leftover.reason}")
    if args.delete:
        remove(args.work, found)
    total = sum(leftover.bytes for leftover in found)
    print(f"{total / 1e6:10.1f} MB  {'removed' if args.delete else 'in all; --delete removes them'}")


if __name__ == "__main__":
    run(main)
