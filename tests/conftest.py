"""What several tests need: tiny models with random weights (said so), a real tokenizer for them, the shared data."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # kernels for GPUs run on the CPU; read when Triton is imported
# Threads of several test processes on few cores wait for each other: three times the CPU time. Read with torch.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, as many for each process, then the others file by file.

    xdist gives each process a run of the list; one that has none left takes some of another's. The last slow tests, of
    executors and workflows, wait most of their time, so they come first of all.
    """
    slow = [item for item in reversed(items) if item.get_closest_marker("slow")]
    rest = [item for item in items if not item.get_closest_marker("slow")]
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    shares = [rest[len(rest) * n // processes : len(rest) * (n + 1) // processes] for n in range(processes)]
    items[:] = [item for n in range(processes) for item in (*slow[n::processes], *shares[n])]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and weights that lie beside some checkouts; they are no part of the product."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("no ../shared beside this checkout")
    return folder


@pytest.fixture(scope="session")
def packages() -> Path:
    """The folder of lm-evaluation-harness, which `./run test` makes first."""
    folder = ROOT / "resources/harness"
    if not (folder / "manifest.json").exists():
        pytest.skip("no resources/harness; make it: ./run --cores 1 resources/harness/manifest.json")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_model("bert")` -> folder of a tiny model with RANDOM weights and a small word-level tokenizer."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            from tests.tiny import save_tiny_model

            made[kind] = save_tiny_model(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return make
