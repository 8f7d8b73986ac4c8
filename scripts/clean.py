"""List cached checkpoints that no study refers to, and remove them with --delete.

Run it where the studies run: beside work/, results/ and resources/.
"""

import argparse
from pathlib import Path

from llm_sparsity.jobs.command import run
from llm_sparsity.jobs.errors import UserError

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = [ROOT / "config.yaml", *sorted((ROOT / "studies").glob("*.yaml"))]
    parser.add_argument("studies", type=Path, nargs="*", default=studies, help="config files (default: all that ship)")
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder of cached checkpoints")
    parser.add_argument("--delete", action="store_true", help="remove what is listed")
    args = parser.parse_args()

    import yaml

    from llm_sparsity.models.families import family_name
    from llm_sparsity.storage.files import MANIFEST, read_json
    from llm_sparsity.study.clean import leftovers, remove
    from llm_sparsity.study.config import load
    from llm_sparsity.study.fingerprint import code_hash

    if not args.work.is_dir():
        raise UserError(f"{args.work}: no such folder; run this where the studies run, or give --work")

    def code(model: str) -> str:
        manifest = Path("resources/models") / model / MANIFEST
        family = family_name(read_json(manifest)["model_type"]) if manifest.exists() else None
        symbols = (f"llm_sparsity.models.families.{family}",) if family else ()
        return code_hash(ROOT / "scripts/finetune.py", symbols=symbols)

    configs = [load(yaml.safe_load(path.read_text(encoding="utf-8"))) for path in args.studies]
    total = 0
    for leftover in leftovers(args.work, configs, code):
        print(f"{leftover.bytes / 1e6:10.1f} MB  {leftover.path}  {leftover.reason}")
        total += leftover.bytes
        if args.delete:
            remove(leftover)
    print(f"{total / 1e6:10.1f} MB  {'removed' if args.delete else 'in all; --delete removes them'}")


if __name__ == "__main__":
    run(main)
