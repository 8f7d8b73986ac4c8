"""What several tests need: tiny models with random weights (said so), a real tokenizer for them, the shared data."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # kernels for GPUs run on the CPU; read when Triton is imported

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow tests first: at the end, a process that has none left takes some of the others'."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


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
