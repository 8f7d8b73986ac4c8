"""What several tests need: tiny models with random weights (said so), a real tokenizer for them, the shared data."""

import os
import re
from collections.abc import Callable
from itertools import chain, filterfalse, groupby, islice
from pathlib import Path

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # kernels for GPUs run on the CPU; read when Triton is imported
# Threads of several test processes on few cores wait for each other: three times the CPU time. Read with torch.
os.environ["OMP_NUM_THREADS"] = "1"
# The user's settings would lead tests to other caches, hubs, profiles, devices, or through a proxy to this machine.
for name in (
    "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT", "SNAKEMAKE_PROFILE",
):  # fmt: skip
    os.environ.pop(name, None)
os.environ |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "CUDA_VISIBLE_DEVICES": ""}

ROOT = Path(__file__).parent.parent


def pytest_itemcollected(item: pytest.Item) -> None:
    """Tests of lm-evaluation-harness are slow: its packages take a minute to install."""
    if "packages" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)  # once the tests that are not to run are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of executors for the first process, slow ones for the others, and fast ones after them, all file by file.

    Tests of executors wait for batch jobs most of their time: where several processes wait at once, cores are idle, and
    all compete for them later. Fast tests of the workflow come next, as most need one finished study, for which others
    would wait. xdist gives each process a run of the list, all of as many tests; one that has none left takes some of
    the end of another's.
    """

    def waits(item: pytest.Item) -> bool:
        return bool(re.search(r"snakemake-executor-plugin-parsl/|workflow/test_(slurm|polaris)", item.nodeid))

    def slow(item: pytest.Item) -> bool:
        return any(item.get_closest_marker(name) for name in ("slow", "exhaustive"))

    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    shares: list[list[pytest.Item]] = [[] for _ in range(processes)]
    shares[0] = sorted(filter(waits, items), key=slow, reverse=True)
    others = [item for item in items if not waits(item)]
    files = groupby(filter(slow, reversed(others)), key=lambda item: item.path)
    for n, (_, group) in enumerate(files):
        shares[-1 - n % max(1, processes - 1)].extend(group)
    fast = iter(sorted(filterfalse(slow, others), key=lambda item: "tests/workflow/" not in item.nodeid))
    for n, share in enumerate(shares):
        share.extend(islice(fast, max(0, (len(items) + n) // processes - len(share))))
    items[:] = [*chain(*shares), *fast]


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
    """The folder of lm-evaluation-harness, which the first test that needs it makes."""
    from llm_sparsity.data import harness

    folder = ROOT / "resources/harness"
    harness.install(folder, lock=ROOT / "envs/requirements-zero-shot.txt")
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
