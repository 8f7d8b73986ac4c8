"""The test suite that Snakemake has for every executor, in a pilot on this machine."""

import sys
from pathlib import Path

import pytest
import snakemake.common.tests
from snakemake_interface_executor_plugins.settings import ExecutorSettingsBase

from snakemake_executor_plugin_parsl import ExecutorSettings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ends processes by a call of Linux")

POOLS = """
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

config = Config(
    executors=[
        HighThroughputExecutor(
            label="cpu", address="127.0.0.1", max_workers_per_node=3, cores_per_worker=0.01,
            provider=LocalProvider(init_blocks=0, max_blocks=1),
        )
    ],
    strategy="htex_auto_scale", strategy_period=1, run_dir={folder!r},
)
"""


@pytest.mark.slow
class TestWorkflows(snakemake.common.tests.TestWorkflowsLocalStorageBase):
    __test__ = True

    @pytest.fixture(autouse=True)
    def pools(self, tmp_path: Path) -> None:
        self.file = tmp_path / "pools.py"
        self.file.write_text(POOLS.format(folder=str(tmp_path / "pilots")))

    @pytest.mark.exhaustive
    def test_group_workflow(self, tmp_path: Path) -> None:
        super().test_group_workflow(tmp_path)

    def get_executor(self) -> str:
        return "parsl"

    def get_executor_settings(self) -> ExecutorSettingsBase:
        return ExecutorSettings(config=self.file)
