"""The final model of a run, as a folder of its results."""

import os
import shutil
from pathlib import Path

from llm_sparsity.storage.files import MANIFEST, atomic


def link_model(source: Path, target: Path) -> None:
    """Make `target` the same model folder as `source`, its manifest last: a folder that has a manifest is whole.

    Files are hard links where the file system allows them, and take no space; otherwise they are copies. So is the
    manifest, which Snakemake touches: its time tells what is to be made again.
    """
    (target / MANIFEST).unlink(missing_ok=True)
    files = sorted(path for path in source.iterdir() if path.is_file() and path.name != MANIFEST)
    for old in target.glob("[!.]*"):  # a hidden file may be one that a network file system keeps while it is read
        if old.is_file() and not (source / old.name).exists():
            old.unlink()
    for path in files:
        with atomic(target / path.name) as temporary:
            try:
                os.link(path, temporary)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(path, temporary)
    with atomic(target / MANIFEST) as temporary:
        shutil.copyfile(source / MANIFEST, temporary)
