"""What parallel test processes share: one makes it, the others wait for it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_sparsity.jobs.lock import locked


def once(name: str, factory: pytest.TempPathFactory, make: Callable[[Path], None]) -> Path:
    """A folder that one of the parallel test processes makes, for all of them; if that fails, each says so."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, failed = base / name, base / f"{name}.failed"
    with locked(base / f"{name}.lock"):
        if not folder.exists() and not failed.exists():
            half = base / f"{name}.half"
            half.mkdir()
            try:
                make(half)
            except BaseException as error:
                failed.write_text(str(error))
                raise
            half.rename(folder)
    if failed.exists():
        pytest.fail(f"another test process could not make {name}: {failed.read_text()[-3000:]}")
    return folder
